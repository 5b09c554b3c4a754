"""Softmax attention of panels, forward and backward.

A panel is up to 64 targets with a box of sources. The targets of one vector are a group, which has columns of scores
from `lo` to `hi`, multiples of ROWS; products are computed only there.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .....compiled.jit.llvm import INNER, OPTIONS
from .block import (
    PANEL,
    ROWS,
    add_one,
    add_scaled_one,
    add_scaled_two,
    add_two,
    copy_vector,
    differentiate,
    exponentials,
    hide_one,
    hide_two,
    lanes_in,
    scale_one,
    scale_two,
    set_one,
    set_two,
    transpose_square,
    weigh,
)

# Columns of the table of panels: see `panels.plan`.
ROW, ROW_COUNT, COLUMN, COLUMN_COUNT, BITS, BOX_1, BOX_2 = range(7)
NEVER = 2**30
# Of the rows of sources, in a product over many of them: with their scores they fit into the nearest cache.
NUMBERS_AT_A_TIME = 4096


@njit(**INNER)
def aligned(n, like):
    """New array of n numbers that begins with a cache line."""
    x = np.empty(n + 64 // like.itemsize, like.dtype)
    start = (-x.ctypes.data // like.itemsize) % (64 // like.itemsize)
    return x[start : start + n]


@njit(**INNER)
def steps_of(n):
    """Offsets of n rows of scores."""
    return np.arange(n) * PANEL


@njit(**OPTIONS)
def write_bits(panels, first, count, bits):
    """Set bit m of each source that the m-th target of the panel sees."""
    for panel in panels:
        begin, n, width = panel[BITS], panel[ROW_COUNT], panel[COLUMN_COUNT]
        is_full = True
        for row in range(panel[ROW], panel[ROW] + n):
            is_full = is_full and count[0, row] * count[1, row] * count[2, row] == width
        if is_full:
            # All bits of 64 targets are the number -1.
            bits[begin : begin + width] = (np.int64(1) << n) - 1 if n < PANEL else -1
            continue
        for m in range(n):
            row = panel[ROW] + m
            for x in range(first[0, row], first[0, row] + count[0, row]):
                for y in range(first[1, row], first[1, row] + count[1, row]):
                    start = begin + (x * panel[BOX_1] + y) * panel[BOX_2] + first[2, row]
                    for column in range(start, start + count[2, row]):
                        bits[column] |= np.int64(1) << m


@njit(**INNER)
def read_spans(panel, spans, lo, hi, lanes):
    """Set the columns of a panel's groups; return how many groups there are."""
    begin, n = panel[ROW], panel[ROW_COUNT]
    groups = (n + lanes - 1) // lanes
    for j in range(groups):
        low, high = NEVER, 0
        for row in range(begin + j * lanes, begin + min(n, (j + 1) * lanes)):
            low, high = min(low, spans[0, row]), max(high, spans[1, row])
        lo[j], hi[j] = low // ROWS * ROWS, (high + ROWS - 1) // ROWS * ROWS
    # The groups that have a column must be consecutive.
    for j in range(1, groups):
        hi[j] = max(hi[j], hi[j - 1])
    for j in range(groups - 1, 0, -1):
        lo[j - 1] = min(lo[j - 1], lo[j])
    return groups


@njit(**INNER)
def set_offsets(to, begin, end, index, part, strides, b, h):
    """Set to[i] to where head h of row index[part[0] + i] begins; rows beyond the part's count repeat its last."""
    first, count = part
    base = b * strides[0] + h * strides[2]
    for i in range(begin, min(end, count)):
        to[i] = index[first + i] * strides[1] + base
    for i in range(max(begin, count), end):
        to[i] = to[count - 1]


@njit(**INNER)
def shares(panels, p):
    """Whether a panel has the sources of the one before or after it, as in a graph where all attend to all."""
    here = panels[p, COLUMN]
    return (p > 0 and panels[p - 1, COLUMN] == here) or (p + 1 < len(panels) and panels[p + 1, COLUMN] == here)


@njit(**INNER)
def room_for(n, width, like):
    """Room for `read_rows`: for n rows that are copied, where those begin, and where rows in place do."""
    return aligned(n * width, like), np.arange(n) * width, np.empty(n, np.int64)


@njit(**INNER)
def read_rows(room, x, copies, is_read, span, index, part, strides, b, h, width, lanes):
    """Return an array with head h of each row index[part[0] + i], and where they begin in it: see `set_offsets`.

    With `copies` it has them one after another, copied unless it has these already. Where they lie, rows of usual heads
    are a power of two apart, so that only few of them fit into a cache; to copy them pays if several panels read them.
    """
    near, steps, places = room
    begin, end = span
    if copies and is_read:
        return near, steps
    set_offsets(places, begin, end, index, part, strides, b, h)
    if not copies:
        return x, places
    for i in range(begin, end):
        for d in range(0, width, lanes):
            copy_vector(near, i * width + d, x, places[i] + d)
    return near, steps


@njit(**INNER)
def clear(is_there, grad, fresh, chunk, strides, b, h, width):
    """Set head h to zero in the rows to which no earlier chunk has added."""
    if is_there:
        for i in range(chunk[2], chunk[3]):
            at = b * strides[0] + fresh[i] * strides[1] + h * strides[2]
            grad[at : at + width] = 0


@njit(**INNER)
def transpose_rows(to, x, rows, groups, width, factor, lanes):
    """Set to[d, m] = factor * x[m, d]."""
    for j in range(groups):
        for d in range(0, width, lanes):
            transpose_square(to, d * PANEL + j * lanes, x, rows, j * lanes, d, factor)


@njit(**INNER)
def multiply_columns(s, steps, x, rows, transposed, width, groups, lo, hi, lanes, hides, top, bits):
    """Set s[c, m] = sum over d of x[c, d] * transposed[d, m], in the columns of each group.

    With `hides`, sources that target m doesn't see become -inf, and top is the largest of the rest.
    """
    if hides:
        for m in range(groups * lanes):
            top[m] = -np.inf
    for j in range(0, groups, 2):
        low, high, low_2, high_2 = lo[j], hi[j], NEVER, 0
        if j + 1 < groups:
            low_2, high_2 = lo[j + 1], hi[j + 1]
        for c in range(min(low, low_2), max(high, high_2), ROWS):
            is_one, is_other = low <= c < high, low_2 <= c < high_2
            lane = j * lanes if is_one else (j + 1) * lanes
            if is_one and is_other:
                if hides:
                    hide_two(s, steps, c, lane, ROWS, top, bits, x, rows, 0, 1, transposed, steps, lane, 0, width)
                else:
                    set_two(s, steps, c, lane, ROWS, top, bits, x, rows, 0, 1, transposed, steps, lane, 0, width)
            elif is_one or is_other:
                if hides:
                    hide_one(s, steps, c, lane, ROWS, top, bits, x, rows, 0, 1, transposed, steps, lane, 0, width)
                else:
                    set_one(s, steps, c, lane, ROWS, top, bits, x, rows, 0, 1, transposed, steps, lane, 0, width)


@njit(**INNER)
def multiply_rows(out, rows, n, factors, s, ones, x, x_rows, width, spans, span, lanes):
    """Set out[m, d] = factors[m] * sum over c of s[c, m] * x[c, d]: of many c in the span, for some at a time."""
    first, last = span
    step = max(NUMBERS_AT_A_TIME // width, 64)
    step = step if last - first > 2 * step else NEVER
    set_sums(out, rows, n, factors, s, ones, x, x_rows, width, spans, lanes, first + step)
    for start in range(first + step, last, step):
        add_sums(out, rows, n, factors, s, ones, x, x_rows, width, spans, lanes, start, start + step)


@njit(**INNER)
def set_sums(out, rows, n, factors, s, ones, x, x_rows, width, spans, lanes, stop):
    """Set the sums of `multiply_rows` over c before `stop`."""
    for m in range(0, n, ROWS):
        low, high = NEVER, 0
        for i in range(m, min(m + ROWS, n)):
            low, high = min(low, spans[0, i]), max(high, spans[1, i])
        high = min(high, stop)
        d = 0
        while d + 2 * lanes <= width:
            scale_two(out, rows, m, d, n - m, factors, ones, s, ones, 0, PANEL, x, x_rows, d, low, high)
            d += 2 * lanes
        if d < width:
            scale_one(out, rows, m, d, n - m, factors, ones, s, ones, 0, PANEL, x, x_rows, d, low, high)


@njit(**INNER)
def add_sums(out, rows, n, factors, s, ones, x, x_rows, width, spans, lanes, start, stop):
    """Add the sums over c from `start` to `stop`: of all rows in two vectors, then in the next ones.

    So the nearest cache holds what is read.
    """
    for d in range(0, width, 2 * lanes):
        for m in range(0, n, ROWS):
            low, high = NEVER, 0
            for i in range(m, min(m + ROWS, n)):
                low, high = min(low, spans[0, i]), max(high, spans[1, i])
            low, high = max(low, start), min(high, stop)
            if low >= high:
                continue
            if d + 2 * lanes <= width:
                add_scaled_two(out, rows, m, d, n - m, factors, ones, s, ones, 0, PANEL, x, x_rows, d, low, high)
            else:
                add_scaled_one(out, rows, m, d, n - m, factors, ones, s, ones, 0, PANEL, x, x_rows, d, low, high)


@njit(**INNER)
def add_columns(grad, rows, count, s, steps, x, x_rows, n, width, groups, lo, hi, lanes):
    """Add sum over m of s[c, m] * x[m, d] to grad[c, d]."""
    first, last = 0, 0
    for c in range(lo[0], hi[groups - 1], ROWS):
        while last < groups and lo[last] <= c:
            last += 1
        while first < last and hi[first] <= c:
            first += 1
        begin, end = first * lanes, min(last * lanes, n)
        if begin >= end:
            continue
        d = 0
        while d + 2 * lanes <= width:
            add_two(grad, rows, c, d, count - c, s, steps, s, steps, 0, 1, x, x_rows, d, begin, end)
            d += 2 * lanes
        if d < width:
            add_one(grad, rows, c, d, count - c, s, steps, s, steps, 0, 1, x, x_rows, d, begin, end)


@njit(**INNER)
def invert(x, n):
    """Set x to 1 / x, or 0 where it is 0."""
    one = x.dtype.type(1)
    for m in range(n):
        x[m] = one / x[m] if x[m] != 0 else one * 0


@njit(**INNER)
def forward_tasks(begin, end, plan, shape, scale, data, strides, out, lse, has_lse):
    """Forward pass: task (b * H + h) * P + p is panel p of head h in batch b."""
    panels, rows, columns, spans, bits, widest = plan
    targets, heads, kv_heads, width, value_width = shape
    query, key, value = data
    sign, size = scale
    lanes, room = lanes_in(query), widest + ROWS
    scores, transposed = aligned(room * PANEL, query), aligned(width * PANEL, query)
    steps, ones = steps_of(max(room, width)), np.arange(PANEL)
    query_rows, out_rows = np.empty(PANEL, np.int64), np.empty(PANEL, np.int64)
    of_keys, of_values, read = room_for(room, width, query), room_for(room, value_width, query), (-1, -1, -1, -1)
    lo, hi = np.empty(PANEL, np.int64), np.empty(PANEL, np.int64)
    top, total = np.empty(PANEL, query.dtype), np.empty(PANEL, query.dtype)
    for task in range(begin, end):
        p = task % len(panels)
        panel = panels[p]
        b, h = task // len(panels) // heads, task // len(panels) % heads
        kv = h // (heads // kv_heads)
        first, n = panel[ROW], panel[ROW_COUNT]
        groups = read_spans(panel, spans, lo, hi, lanes)
        low, high = lo[0], hi[groups - 1]
        set_offsets(query_rows, 0, PANEL, rows, panel[:2], strides[0], b, h)
        set_offsets(
            out_rows, 0, n, rows, panel[:2], (targets * heads * value_width, heads * value_width, value_width), b, h
        )
        span, part, these = (low, high), panel[2:4], (b * kv_heads + kv, panel[COLUMN], low, high)
        copies, same = shares(panels, p), read == these
        keys, key_rows = read_rows(of_keys, key, copies, same, span, columns, part, strides[1], b, kv, width, lanes)
        values, value_rows = read_rows(
            of_values, value, copies, same, span, columns, part, strides[2], b, kv, value_width, lanes
        )
        read = these
        transpose_rows(transposed, query, query_rows, groups, width, sign, lanes)
        seen = bits[panel[BITS] :]
        multiply_columns(scores, steps, keys, key_rows, transposed, width, groups, lo, hi, lanes, True, top, seen)
        for j in range(groups):
            exponentials(scores, j * lanes, lo[j], hi[j], top, size, total)
        if has_lse:
            for m in range(n):
                place = (b * targets + rows[first + m]) * heads + h
                lse[2 * place] = size * top[m] if top[m] > -np.inf else 0
                lse[2 * place + 1] = np.log(total[m])
        invert(total, groups * lanes)
        multiply_rows(
            out, out_rows, n, total, scores, ones, values, value_rows, value_width, spans[:, first:], span, lanes
        )


@njit(**INNER)
def backward_tasks(begin, end, plan, shape, scale, data, strides, chunks, fresh, grad_lse, has_lse, grads, has_grads):
    """Backward pass: task (b * H_kv + h) * K + k is chunk k of key head h in batch b, for all its query heads."""
    panels, rows, columns, spans, bits, widest = plan
    targets, heads, kv_heads, width, value_width = shape
    query, key, value, grad_out = data
    grad_query, grad_key, grad_value = grads
    sign, size = scale
    lanes, room, deepest = lanes_in(query), widest + ROWS, max(width, value_width)
    scores, slopes = aligned(room * PANEL, query), aligned(room * PANEL, query)
    transposed = aligned(deepest * PANEL, query)
    steps, ones = steps_of(max(room, deepest)), np.arange(PANEL)
    of_queries, of_given = room_for(PANEL, width, query), room_for(PANEL, value_width, query)
    of_keys, of_values, read = room_for(room, width, query), room_for(room, value_width, query), (-1, -1, -1, -1)
    grad_rows = np.empty(PANEL, np.int64)
    grad_key_rows, grad_value_rows = np.empty(room, np.int64), np.empty(room, np.int64)
    lo, hi = np.empty(PANEL, np.int64), np.empty(PANEL, np.int64)
    top, total, delta = np.empty(PANEL, query.dtype), np.empty(PANEL, query.dtype), np.empty(PANEL, query.dtype)
    each = np.ones(PANEL, query.dtype)
    share = heads // kv_heads
    for task in range(begin, end):
        b, kv = task // len(chunks) // kv_heads, task // len(chunks) % kv_heads
        chunk = chunks[task % len(chunks)]
        clear(has_grads[1], grad_key, fresh, chunk, strides[5], b, kv, width)
        clear(has_grads[2], grad_value, fresh, chunk, strides[6], b, kv, value_width)
        for number in range(chunk[0] * share, chunk[1] * share):
            panel, h = panels[number // share], kv * share + number % share
            first, n, count = panel[ROW], panel[ROW_COUNT], panel[COLUMN_COUNT]
            groups = read_spans(panel, spans, lo, hi, lanes)
            low, high = lo[0], hi[groups - 1]
            these, copies = (b * kv_heads + kv, panel[COLUMN], low, high), shares(panels, number // share)
            span, part, same = (0, groups * lanes), panel[:2], False
            queries, query_rows = read_rows(
                of_queries, query, copies, same, span, rows, part, strides[0], b, h, width, lanes
            )
            given, given_rows = read_rows(
                of_given, grad_out, copies, same, span, rows, part, strides[3], b, h, value_width, lanes
            )
            span, part, same = (low, high), panel[2:4], read == these
            keys, key_rows = read_rows(of_keys, key, copies, same, span, columns, part, strides[1], b, kv, width, lanes)
            values, value_rows = read_rows(
                of_values, value, copies, same, span, columns, part, strides[2], b, kv, value_width, lanes
            )
            read = these
            set_offsets(grad_rows, 0, n, rows, panel[:2], strides[4], b, h)
            set_offsets(grad_key_rows, low, high, columns, panel[2:4], strides[5], b, kv)
            set_offsets(grad_value_rows, low, high, columns, panel[2:4], strides[6], b, kv)

            transpose_rows(transposed, queries, query_rows, groups, width, sign, lanes)
            seen = bits[panel[BITS] :]
            multiply_columns(scores, steps, keys, key_rows, transposed, width, groups, lo, hi, lanes, True, top, seen)
            for j in range(groups):
                exponentials(scores, j * lanes, lo[j], hi[j], top, size, total)
            invert(total, groups * lanes)
            transpose_rows(transposed, given, given_rows, groups, value_width, each[0], lanes)
            multiply_columns(
                slopes, steps, values, value_rows, transposed, value_width, groups, lo, hi, lanes, False, top, seen
            )
            for j in range(groups):
                weigh(scores, slopes, j * lanes, lo[j], hi[j], total, delta)
            if has_lse:
                for m in range(n):
                    delta[m] -= grad_lse[(b * targets + rows[first + m]) * heads + h]
            for j in range(groups):
                differentiate(scores, slopes, j * lanes, lo[j], hi[j], delta, sign * size)
            if has_grads[0]:
                multiply_rows(
                    grad_query, grad_rows, n, each, slopes, ones, keys, key_rows, width, spans[:, first:], span, lanes
                )
            if has_grads[1]:
                add_columns(
                    grad_key, grad_key_rows, count, slopes, steps, queries, query_rows, n, width, groups, lo, hi, lanes
                )
            if has_grads[2]:
                add_columns(
                    grad_value,
                    grad_value_rows,
                    count,
                    scores,
                    steps,
                    given,
                    given_rows,
                    n,
                    value_width,
                    groups,
                    lo,
                    hi,
                    lanes,
                )

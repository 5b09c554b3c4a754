"""Attention over compressed rows in loops that Numba compiles.

A task is a run of rows that have a few hundred edges together, or a piece of one row that has more. Each task goes
through its edges in phases: all scores into a small scratch, the normalizer over the scratch, then the weighted sums.
Tasks depend on the graph alone, so neither the threads nor their number change a bit of the result.

A dot-product score has no vector: None, so that what is compiled for it holds nothing of the additive ones.
Arrays are flat; `shape` is (B, T, S, H, H_kv, D, V, E); the strides of edge tensors between batch elements count edges.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .....compiled.jit.llvm import OPTIONS, exponential, prefetch, store_row
from .heads import (
    activate_row,
    add_heads,
    axpy_heads,
    dot_heads,
    drop_heads,
    finish_rows,
    shift_columns,
    shift_rows,
    sum_columns,
)

# Edges per task: the scratch of twice as many stays in the second-level cache.
TASK_EDGES = 256
# Rows of the next edges that are asked for ahead of their use, in bytes; measured, and flat from half to twice.
AHEAD_BYTES = 8192

# The codes of `rows.op`.
SOFTMAX, RELU, SIGMOID, IDENTITY = range(4)
TANH = 1

# Twenty arguments on a line each would hide the loops.
# fmt: off


@njit(**OPTIONS)
def mix(word):
    """The mixer of `graphattn.dropout`, on 32 bits in a 64-bit word."""
    word &= np.uint64(0xFFFFFFFF)
    word ^= word >> np.uint64(16)
    word = (word * np.uint64(0x7FEB352D)) & np.uint64(0xFFFFFFFF)
    word ^= word >> np.uint64(15)
    word = (word * np.uint64(0x846CA68B)) & np.uint64(0xFFFFFFFF)
    return word ^ (word >> np.uint64(16))


@njit(**OPTIONS)
def fold(index):
    """Indices of 2^32 and more fold their upper half in."""
    word = np.uint64(index)
    return (word ^ ((word >> np.uint64(32)) * np.uint64(0x9E3779B9))) & np.uint64(0xFFFFFFFF)


@njit(**OPTIONS)
def hash_target(seed, batch, target):
    """State of the dropout hash after seed, batch and target."""
    state = mix((np.uint64(seed) & np.uint64(0xFFFFFFFF)) ^ np.uint64(0x9E3779B9))
    state = mix(state ^ (np.uint64(seed) >> np.uint64(32)))
    return mix(mix(state ^ fold(batch)) ^ fold(target))


@njit(**OPTIONS)
def hash_source(state, source, occurrence):
    """State of the dropout hash after the edge."""
    word = fold(source) + np.uint64(occurrence) * np.uint64(0x9E3779B9)
    return mix(state ^ (word & np.uint64(0xFFFFFFFF)))


@njit(**OPTIONS, forceinline=True)
def edge_at(perm, position):
    """Caller's edge at a position; an empty perm says that the caller's order is the sorted one."""
    return np.int64(perm[position]) if perm.size else np.int64(position)


@njit(**OPTIONS)
def count_parallel(index, first, position):
    """How many edges of the same pair lie before `position` in the row that begins at `first`."""
    count = np.int64(0)
    while position - count > first and index[position - count - 1] == index[position]:
        count += 1
    return count


@njit(**OPTIONS)
def edges_ahead(x, numbers):
    """How many edges ahead to ask for rows, where a loop reads so many numbers of x's kind per edge."""
    return min(max(AHEAD_BYTES // (numbers * x.itemsize), 4), 32)


@njit(**OPTIONS)
def whole_lines(size, like):
    """Empty array that begins at a cache line: sums that straddle two lines are read back slowly."""
    room = np.empty(size + 64 // like.itemsize, like.dtype)
    skip = -room.ctypes.data % 64 // like.itemsize
    return room[skip : skip + size]


@njit(**OPTIONS)
def plan_tasks(ptr):
    """Cut rows into tasks: [tasks, 5] of first row, last row + 1, first edge, last edge + 1, and slot.

    A row of more than TASK_EDGES edges is cut into pieces, each a task with a slot of its own for its partial sums;
    the slot of whole rows is -1. The second result lists the cut rows: [rows, 3] of row, first slot, last slot + 1.
    """
    rows = ptr.size - 1
    bound = ptr[rows] // TASK_EDGES + 1
    tasks = np.empty((4 * bound + rows // TASK_EDGES + 2, 5), np.int64)
    cut = np.empty((bound, 3), np.int64)
    count, cuts, slots, begin = 0, 0, 0, 0
    for row in range(rows):
        degree = ptr[row + 1] - ptr[row]
        is_long = degree > TASK_EDGES
        # Rows without edges take time too.
        is_full = ptr[row] - ptr[begin] + row - begin >= TASK_EDGES
        if (is_long or is_full) and row > begin:
            tasks[count, 0], tasks[count, 1], tasks[count, 4] = begin, row, -1
            tasks[count, 2], tasks[count, 3] = ptr[begin], ptr[row]
            count += 1
            begin = row
        if is_long:
            pieces = (degree + TASK_EDGES - 1) // TASK_EDGES
            cut[cuts, 0], cut[cuts, 1], cut[cuts, 2] = row, slots, slots + pieces
            cuts += 1
            for piece in range(pieces):
                low = ptr[row] + piece * TASK_EDGES
                tasks[count, 0], tasks[count, 1], tasks[count, 4] = row, row + 1, slots
                tasks[count, 2], tasks[count, 3] = low, min(low + TASK_EDGES, ptr[row + 1])
                count += 1
                slots += 1
            begin = row + 1
    if rows > begin:
        tasks[count, 0], tasks[count, 1], tasks[count, 4] = begin, rows, -1
        tasks[count, 2], tasks[count, 3] = ptr[begin], ptr[rows]
        count += 1
    return tasks[:count].copy(), cut[:cuts].copy()


@njit(**OPTIONS, forceinline=True)
def activate(a, u, q, query, k, key, ek, edge, vector, kv_head, heads, group, width, kind, slope):
    """Set a[h * width + d] to what an additive score of one edge activates, u to its derivative times the vector.

    Either may be None. The derivative by the query is that by the key too.
    """
    if vector is None:
        return
    # Heads that have a key each are one long row.
    rows, n = (1, heads * width) if group == 1 else (heads, width)
    for row in range(rows):
        place = kv_head[row] * n
        activate_row(
            a, row * n, u, vector, q, query + row * n, k, key + place, ek, edge + place, n, kind == TANH, slope
        )


@njit(**OPTIONS, forceinline=True)
def invert(total):
    """1 / total, or 0 for a row without edges."""
    return 0.0 if total == 0 else 1.0 / total


@njit(**OPTIONS)
def weigh(s, normalizer):
    """Turn scores into weights in place; those of softmax come shifted, and leave without their row's factor."""
    if normalizer == SOFTMAX:
        exponential(s)
    elif normalizer == RELU:
        for t in range(s.size):
            s[t] = s[t] if not s[t] <= 0 else 0
    elif normalizer == SIGMOID:
        for t in range(s.size):
            s[t] = -s[t]
        exponential(s)
        for t in range(s.size):
            s[t] = 1 / (1 + s[t])
    else:
        for t in range(s.size):
            s[t] = s[t] if s[t] != -np.inf else 0


# Arrays come one by one and calls are inlined: counting a reference or passing a dozen arguments costs more than a
# product of two rows.
@njit(**OPTIONS, forceinline=True)
def score_heads(
    s, at, a, query, key, of_bias, of_edge, q, k, vector, eb, ek, head, kv_head, heads, group, width, kind, slope, scale
):
    """Score all heads of one edge into s[at:]; query, key and the two after them are offsets."""
    if vector is None:
        dot_heads(s, at, scale, q, query, k, key, ek, of_edge, kv_head, heads, group, width)
    else:
        activate(a, None, q, query, k, key, ek, of_edge, vector, kv_head, heads, group, width, kind, slope)
        dot_heads(s, at, scale, vector, 0, a, 0, None, 0, head, heads, 1, width)
    add_heads(s, at, eb, of_bias, heads)


@njit(**OPTIONS)
def forward_tasks(
    begin, end, tasks, slots, csr, shape, data, edges, mode, dropout, out, sums, part_out, part_top, part_sum
):
    """Outputs and `sums` of whole rows, unscaled sums of the pieces of cut ones.

    Softmax leaves two numbers per row and head, each kind beside its like: the shift of the scores, which is the
    largest or 0 in a row without any, and the sum of their exponentials. One number for both, lse, would round away
    how they differ where scores are large.
    """
    ptr, index, perm = csr
    _, targets, sources, heads, kv_heads, width, value_width, _ = shape
    q, k, v, vector = data
    eb, eb_stride, ek, ek_stride, ev, ev_stride = edges
    kind, normalizer, slope, scale = mode
    seed, threshold, keep_scale = dropout
    count, group, last = tasks.shape[0], heads // kv_heads, index.size - 1
    head, kv_head, one = np.arange(heads), np.arange(heads) // group, scale - scale + 1
    a = whole_lines(heads * width, sums)
    scratch = np.empty(2 * (TASK_EDGES + 1) * heads, sums.dtype)
    total, top = np.empty(heads, sums.dtype), np.empty(heads, sums.dtype)
    acc = whole_lines(heads * value_width, sums)
    key_row, value_row = kv_heads * width, kv_heads * value_width
    ahead = edges_ahead(k, max(key_row, value_row))
    for t in range(begin, end):
        b = t // count
        task = t - b * count
        row_begin, row_end, first, stop, slot = tasks[task]
        s = scratch[: (stop - first) * heads]
        for i in range(row_begin, row_end):
            low, high = max(ptr[i], first), min(ptr[i + 1], stop)
            for e in range(low, high):
                prefetch(k, (b * sources + np.int64(index[min(e + ahead, last)])) * key_row, key_row)
                if perm.size:
                    prefetch(ek, (b * ek_stride + np.int64(perm[min(e + ahead, last)])) * key_row, key_row)
                edge = edge_at(perm, e)
                score_heads(
                    s, (e - first) * heads, a, (b * targets + i) * heads * width,
                    (b * sources + np.int64(index[e])) * key_row, (b * eb_stride + edge) * heads,
                    (b * ek_stride + edge) * key_row, q, k, vector, eb, ek, head, kv_head,
                    heads, group, width, kind, slope, scale
                )
            if normalizer == SOFTMAX:
                shift_columns(s, (low - first) * heads, top, high - low, heads)
                for h in range(heads):
                    if slot < 0:
                        sums[2 * (b * targets + i) * heads + h] = top[h] if top[h] > -np.inf else 0
                    else:
                        part_top[(b * slots + slot) * heads + h] = top[h]
        weigh(s, normalizer)
        for i in range(row_begin, row_end):
            low, high = max(ptr[i], first), min(ptr[i + 1], stop)
            for d in range(acc.size):
                acc[d] = 0
            sum_columns(s, (low - first) * heads, total, high - low, heads)
            state = hash_target(seed, b, i) if threshold > 0 else np.uint64(0)
            for e in range(low, high):
                prefetch(v, (b * sources + np.int64(index[min(e + ahead, last)])) * value_row, value_row)
                if perm.size:
                    prefetch(ev, (b * ev_stride + np.int64(perm[min(e + ahead, last)])) * value_row, value_row)
                value = (b * sources + np.int64(index[e])) * value_row
                edge = edge_at(perm, e)
                at = (e - first) * heads
                if threshold > 0:
                    kept = hash_source(state, index[e], count_parallel(index, ptr[i], e))
                    drop_heads(s, at, s, kept, threshold, one, heads)
                axpy_heads(
                    acc, 0, head, s, at, v, value, ev, (b * ev_stride + edge) * value_row, kv_head,
                    heads, group, value_width
                )
            row = (b * targets + i) * heads
            for h in range(heads):
                if slot >= 0:
                    part = (b * slots + slot) * heads + h
                    part_sum[part] = total[h]
                    store_row(part_out, part * value_width, one, acc, h * value_width, value_width)
                    continue
                factor = keep_scale
                if normalizer == SOFTMAX:
                    factor *= invert(total[h])
                    sums[2 * row + heads + h] = total[h]
                store_row(out, (row + h) * value_width, factor, acc, h * value_width, value_width)


@njit(**OPTIONS)
def merge_forward(cut, slots, shape, mode, keep_scale, out, sums, part_out, part_top, part_sum):
    """Join the pieces of cut rows, in their order."""
    batches, targets, heads, width = shape[0], shape[1], shape[3], shape[6]
    one = mode[3] - mode[3] + 1
    acc = np.empty(width, sums.dtype)
    for b in range(batches):
        for c in range(cut.shape[0]):
            for h in range(heads):
                row = (b * targets + cut[c, 0]) * heads
                top, total, factor = -np.inf * one, one * 0, one
                for d in range(width):
                    acc[d] = 0
                if mode[1] == SOFTMAX:
                    for slot in range(cut[c, 1], cut[c, 2]):
                        top = max(top, part_top[(b * slots + slot) * heads + h])
                for slot in range(cut[c, 1], cut[c, 2]):
                    part = (b * slots + slot) * heads + h
                    if mode[1] == SOFTMAX:
                        factor = np.exp(part_top[part] - top) if part_top[part] > -np.inf else one * 0
                        # A piece of NaN alone has no largest score, and must not vanish.
                        factor = factor if part_sum[part] == part_sum[part] else part_sum[part]
                        total += factor * part_sum[part]
                    for d in range(width):
                        acc[d] += factor * part_out[part * width + d]
                if mode[1] == SOFTMAX:
                    sums[2 * row + h] = top if top > -np.inf else 0
                    sums[2 * row + heads + h] = total
                    factor = invert(total)
                factor *= keep_scale
                store_row(out, (row + h) * width, factor, acc, 0, width)


@njit(**OPTIONS)
def weight_tasks(begin, end, tasks, csr, shape, data, edges, mode, sums, weights):
    """Weights of all edges, before dropout, in the caller's order."""
    ptr, index, perm = csr
    _, targets, sources, heads, kv_heads, width, _, edge_count = shape
    q, k, _, vector = data
    eb, eb_stride, ek, ek_stride, _, _ = edges
    kind, normalizer, slope, scale = mode
    count, group, key_row = tasks.shape[0], heads // kv_heads, kv_heads * width
    head, kv_head, a = np.arange(heads), np.arange(heads) // group, whole_lines(heads * width, weights)
    scratch, factor = np.empty(2 * (TASK_EDGES + 1) * heads, weights.dtype), np.empty(heads, weights.dtype)
    for t in range(begin, end):
        b = t // count
        task = t - b * count
        first, stop = tasks[task, 2], tasks[task, 3]
        s = scratch[: (stop - first) * heads]
        for i in range(tasks[task, 0], tasks[task, 1]):
            for e in range(max(ptr[i], first), min(ptr[i + 1], stop)):
                edge = edge_at(perm, e)
                at = (e - first) * heads
                score_heads(
                    s, at, a, (b * targets + i) * heads * width, (b * sources + np.int64(index[e])) * key_row,
                    (b * eb_stride + edge) * heads, (b * ek_stride + edge) * key_row,
                    q, k, vector, eb, ek, head, kv_head, heads, group, width, kind, slope, scale
                )
            if normalizer == SOFTMAX:
                low, high = max(ptr[i], first), min(ptr[i + 1], stop)
                row = 2 * (b * targets + i) * heads
                shift_rows(s, (low - first) * heads, sums, row, 0, None, 0, high - low, heads)
        weigh(s, normalizer)
        if normalizer == SOFTMAX:
            for i in range(tasks[task, 0], tasks[task, 1]):
                low, high = max(ptr[i], first), min(ptr[i + 1], stop)
                for h in range(heads):
                    factor[h] = invert(sums[2 * (b * targets + i) * heads + heads + h])
                finish_rows(s, None, (low - first) * heads, factor, 0, 0, None, 0, high - low, heads)
        for e in range(first, stop):
            edge = edge_at(perm, e)
            for h in range(heads):
                weights[(b * edge_count + edge) * heads + h] = s[(e - first) * heads + h]

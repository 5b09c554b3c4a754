"""The loops of `forward` and `backward` where each channel is a head: softmax over products of two numbers.

Such a call has as many weights as it has numbers in the values of its edges, so that passes over scores in memory would
take most of the time. Here a row goes through its edges once for every 16 heads, with their numbers in registers, and
computes scores again wherever they are needed, to the same bits. Nothing is kept per edge.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .....compiled.jit.lanes import exp_negative, load16, multiply_add, number16, store, where
from .....compiled.jit.llvm import INNER, prefetch, with_constants
from ...operands import LANES
from .edges import MOST_EDGES, ask_for_key, ask_for_value, cache_aligned, edges_ahead

# Arguments on a line each would hide the loops.
# fmt: off


@njit(**INNER, forceinline=True)
def inverse(total):
    """1 / total in each lane, 0 where that is 0: in a row without edges."""
    return where(total == 0.0, 0.0, 1.0 / total)


@njit(**INNER)
def channel_forward_tasks(begin, end, tasks, slots, call, results):
    """As `forward_tasks`."""
    call = with_constants(call)
    ptr, index, _ = call.edges
    _, targets, sources, heads = call.shape[:4]
    query_pitch, key_pitch, value_pitch, _ = call.shape[8:]
    q, k, v, _ = call.rows
    out, sums, part_out, part_top, part_sum = results
    count, last, scale = tasks.shape[0], index.size - 1, call.mode.scale
    ahead = edges_ahead(v, 2 * heads)
    for t in range(begin, end):
        b, task = t // count, t % count
        row_begin, row_end, first, stop, slot = tasks[task]
        for i in range(row_begin, row_end):
            low, high = max(ptr[i], first), min(ptr[i + 1], stop)
            query, row, part = (b * targets + i) * query_pitch, (b * targets + i) * heads, (b * slots + slot) * heads
            for e in range(low, high):
                ask_for_key(call, b, min(e + ahead, last))
                ask_for_value(call, b, min(e + ahead, last))
            for h in range(0, heads, LANES):
                x = load16(q, query + h)
                top = number16(sums, -np.inf)
                for e in range(low, high):
                    s = x * load16(k, (b * sources + np.int64(index[e])) * key_pitch + h) * scale
                    top = where(s > top, s, top)
                shift = where(top > -np.inf, top, 0.0)
                total, acc = number16(sums, 0.0), number16(sums, 0.0)
                for e in range(low, high):
                    j = b * sources + np.int64(index[e])
                    weight = exp_negative(x * load16(k, j * key_pitch + h) * scale - shift)
                    total = total + weight
                    acc = multiply_add(weight, load16(v, j * value_pitch + h), acc)
                if slot < 0:
                    store(sums, 2 * row + h, shift)
                    store(sums, 2 * row + heads + h, total)
                    store(out, row + h, acc * inverse(total))
                else:
                    store(part_top, part + h, top)
                    store(part_sum, part + h, total)
                    store(part_out, part + h, acc)


@njit(**INNER)
def channel_target_tasks(begin, end, tasks, slots, call, grad_out, sums, out, stats, results):
    """Gradients of the query, and what `channel_source_tasks` reads of rows, four numbers per head in one place.

    They are the query, the shift of the scores, and two that have the inverse of the sum of exponentials as a factor:
    the gradient, and the sum of weights times their gradients, see `target_gradient_tasks`.
    """
    call = with_constants(call)
    ptr, index, _ = call.edges
    _, targets, sources, heads = call.shape[:4]
    query_pitch, key_pitch, value_pitch, _ = call.shape[8:]
    q, k, v, _ = call.rows
    grad_query, part_query = results
    count, last, scale = tasks.shape[0], index.size - 1, call.mode.scale
    of_edges = cache_aligned(MOST_EDGES * 2 * LANES, sums)
    ahead = edges_ahead(v, 2 * heads)
    for t in range(begin, end):
        b, task = t // count, t % count
        row_begin, row_end, first, stop, slot = tasks[task]
        for i in range(row_begin, row_end):
            low, high = max(ptr[i], first), min(ptr[i + 1], stop)
            query, row, part = (b * targets + i) * query_pitch, (b * targets + i) * heads, (b * slots + slot) * heads
            for e in range(low, high):
                ask_for_key(call, b, min(e + ahead, last))
                ask_for_value(call, b, min(e + ahead, last))
            for h in range(0, heads, LANES):
                x, g = load16(q, query + h), load16(grad_out, row + h)
                shift, factor = load16(sums, 2 * row + h), inverse(load16(sums, 2 * row + heads + h))
                delta, acc = number16(sums, 0.0), number16(sums, 0.0)
                for e in range(low, high):
                    j, at = b * sources + np.int64(index[e]), (e - low) * 2 * LANES
                    weight = exp_negative(x * load16(k, j * key_pitch + h) * scale - shift)
                    slope = g * load16(v, j * value_pitch + h)
                    delta = multiply_add(weight, slope, delta)
                    store(of_edges, at, weight)
                    store(of_edges, at + LANES, slope)
                delta = delta * factor if slot < 0 else g * load16(out, row + h)
                for e in range(low, high):
                    key, at = load16(k, (b * sources + np.int64(index[e])) * key_pitch + h), (e - low) * 2 * LANES
                    slope = load16(of_edges, at) * (load16(of_edges, at + LANES) - delta)
                    acc = multiply_add(slope, key, acc)
                acc = acc * (factor * scale)
                # The pieces of a cut row write the same.
                at = 4 * (row + h)
                store(stats, at, x)
                store(stats, at + LANES, shift)
                store(stats, at + 2 * LANES, g * factor)
                store(stats, at + 3 * LANES, delta * factor)
                if slot < 0:
                    store(grad_query, row + h, acc)
                else:
                    store(part_query, part + h, acc)


@njit(**INNER)
def channel_source_tasks(begin, end, tasks, slots, call, stats, results):
    """Gradients of key and value; rows are sources."""
    call = with_constants(call)
    ptr, index, _ = call.edges
    _, targets, sources, heads = call.shape[:4]
    _, key_pitch, value_pitch, _ = call.shape[8:]
    _, k, v, _ = call.rows
    grad_key, grad_value, part_key, part_value = results
    count, last, scale = tasks.shape[0], index.size - 1, call.mode.scale
    ahead = edges_ahead(stats, 4 * heads)
    for t in range(begin, end):
        b, task = t // count, t % count
        row_begin, row_end, first, stop, slot = tasks[task]
        for j in range(row_begin, row_end):
            low, high = max(ptr[j], first), min(ptr[j + 1], stop)
            source, row, part = b * sources + j, (b * sources + j) * heads, (b * slots + slot) * heads
            for e in range(low, high):
                soon = b * targets + np.int64(index[min(e + ahead, last)])
                prefetch(stats, 4 * soon * heads, 4 * heads)
            for h in range(0, heads, LANES):
                key, value = load16(k, source * key_pitch + h), load16(v, source * value_pitch + h)
                of_key, of_value = number16(stats, 0.0), number16(stats, 0.0)
                for e in range(low, high):
                    at = 4 * ((b * targets + np.int64(index[e])) * heads + h)
                    x, g = load16(stats, at), load16(stats, at + 2 * LANES)
                    weight = exp_negative(x * key * scale - load16(stats, at + LANES))
                    slope = weight * (g * value - load16(stats, at + 3 * LANES))
                    of_key = multiply_add(slope, x, of_key)
                    of_value = multiply_add(weight, g, of_value)
                of_key = of_key * scale
                if slot < 0:
                    store(grad_key, row + h, of_key)
                    store(grad_value, row + h, of_value)
                else:
                    store(part_key, part + h, of_key)
                    store(part_value, part + h, of_value)

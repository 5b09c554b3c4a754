"""Attention over compressed rows in loops that Numba compiles.

A task is a run of rows that have a few hundred edges together, or a piece of one row that has more. Each task goes
through its edges in phases: all scores into a small scratch, the normalizer over the scratch, then the weighted sums.
Tasks depend on the graph alone, so neither the threads nor their number change a bit of the result.

A dot-product score has no vector: None, so that what is compiled for it holds nothing of the additive ones.
`operands` are those of `rows.operands.Loops`: a loop unpacks them once, ahead of its edges.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .....compiled.jit.llvm import INNER, store_row, with_constants
from ...operands import SOFTMAX
from .columns import clear, drop_heads, finish_rows, invert_heads, shift_columns, shift_rows, sum_columns
from .dropout import hash_source, hash_target
from .edges import (
    MOST_EDGES,
    ask_for_key,
    ask_for_value,
    cache_aligned,
    count_parallel,
    edge_at,
    edges_ahead,
)
from .edges import plan_tasks as plan_tasks
from .heads import axpy_heads
from .normalizers import apply_normalizer, invert
from .scores import score_edge

# Arguments on a line each would hide the loops.
# fmt: off


@njit(**INNER)
def forward_tasks(begin, end, tasks, slots, call, results):
    """Outputs and `sums` of whole rows, unscaled sums of the pieces of cut ones.

    Softmax leaves two numbers per row and head, first those of one kind for all heads: the shift of the scores, which
    is the largest or 0 in a row without any, and the sum of their exponentials. One number for both, lse, would round
    away how they differ where scores are large.
    """
    call = with_constants(call)
    ptr, index, perm = call.edges
    _, targets, sources, heads, kv_heads, width, value_width, _, _, _, value_pitch, _ = call.shape
    v, ev, ev_stride = call.rows.value, call.of_edges.value, call.of_edges.value_stride
    seed, threshold, keep_scale = call.dropout
    out, sums, part_out, part_top, part_sum = results
    normalizer, count, group, last = call.mode.normalizer, tasks.shape[0], heads // kv_heads, index.size - 1
    head, kv_head, one = np.arange(heads), np.arange(heads) // group, keep_scale - keep_scale + 1
    a = cache_aligned(heads * width, sums)
    scratch = np.empty(MOST_EDGES * heads, sums.dtype)
    factor, zero = np.empty(heads, sums.dtype), one - one
    for h in range(heads):
        factor[h] = keep_scale
    acc = cache_aligned(heads * value_width, sums)
    key_row, value_row = kv_heads * width, kv_heads * value_width
    ahead = edges_ahead(v, max(key_row, value_row))
    for t in range(begin, end):
        b = t // count
        task = t - b * count
        row_begin, row_end, first, stop, slot = tasks[task]
        s = scratch[: (stop - first) * heads]
        for i in range(row_begin, row_end):
            low, high = max(ptr[i], first), min(ptr[i + 1], stop)
            for e in range(low, high):
                ask_for_key(call, b, min(e + ahead, last))
                edge = edge_at(perm, e)
                score_edge(s, (e - first) * heads, a, call, b, i, np.int64(index[e]), edge, head, kv_head)
            if normalizer == SOFTMAX:
                at = (low - first) * heads
                if slot < 0:
                    shift_columns(s, at, sums, 2 * (b * targets + i) * heads, high - low, heads, zero)
                else:
                    shift_columns(s, at, part_top, (b * slots + slot) * heads, high - low, heads, -np.inf * one)
        apply_normalizer(s, normalizer)
        for i in range(row_begin, row_end):
            low, high = max(ptr[i], first), min(ptr[i + 1], stop)
            clear(acc, 0, heads * value_width)
            row, part = (b * targets + i) * heads, (b * slots + slot) * heads
            if slot >= 0:
                sum_columns(s, (low - first) * heads, part_sum, part, high - low, heads)
            elif normalizer == SOFTMAX:
                sum_columns(s, (low - first) * heads, sums, 2 * row + heads, high - low, heads)
                invert_heads(factor, sums, 2 * row + heads, keep_scale, heads)
            state = hash_target(seed, b, i) if threshold > 0 else np.uint64(0)
            for e in range(low, high):
                ask_for_value(call, b, min(e + ahead, last))
                value = (b * sources + np.int64(index[e])) * value_pitch
                edge = edge_at(perm, e)
                at = (e - first) * heads
                if threshold > 0:
                    kept = hash_source(state, index[e], count_parallel(index, ptr[i], e))
                    drop_heads(s, at, s, kept, threshold, one, heads)
                axpy_heads(
                    acc, 0, head, s, at, v, value, ev, (b * ev_stride + edge) * value_row, kv_head,
                    heads, group, value_width
                )
            if slot >= 0:
                store_row(part_out, part * value_width, one, acc, 0, heads * value_width)
                continue
            for h in range(heads):
                store_row(out, (row + h) * value_width, factor[h], acc, h * value_width, value_width)


@njit(**INNER)
def merge_forward(begin, end, cut, slots, call, results):
    """Join the pieces of cut rows, in their order; a task is a row of one batch element."""
    _, targets, _, heads, _, _, width = call.shape[:7]
    out, sums, part_out, part_top, part_sum = results
    normalizer, keep_scale = call.mode.normalizer, call.dropout.keep_scale
    one = keep_scale - keep_scale + 1
    acc = np.empty(width, sums.dtype)
    for t in range(begin, end):
        b, c = t // cut.shape[0], t % cut.shape[0]
        row = (b * targets + cut[c, 0]) * heads
        for h in range(heads):
            top, total, factor = -np.inf * one, one * 0, one
            for d in range(width):
                acc[d] = 0
            if normalizer == SOFTMAX:
                for slot in range(cut[c, 1], cut[c, 2]):
                    top = max(top, part_top[(b * slots + slot) * heads + h])
            for slot in range(cut[c, 1], cut[c, 2]):
                part = (b * slots + slot) * heads + h
                if normalizer == SOFTMAX:
                    # A piece of NaN alone has no largest score: its factor is 0, and 0 times NaN is NaN.
                    factor = np.exp(part_top[part] - top) if part_top[part] > -np.inf else one * 0
                    total += factor * part_sum[part]
                for d in range(width):
                    acc[d] += factor * part_out[part * width + d]
            if normalizer == SOFTMAX:
                sums[2 * row + h] = top if top > -np.inf else 0
                sums[2 * row + heads + h] = total
                factor = invert(total)
            factor *= keep_scale
            store_row(out, (row + h) * width, factor, acc, 0, width)


@njit(**INNER)
def weight_tasks(begin, end, tasks, call, sums, weights):
    """Weights of all edges, before dropout, in the caller's order."""
    call = with_constants(call)
    ptr, index, perm = call.edges
    _, targets, _, heads, kv_heads, width, _, edge_count = call.shape[:8]
    normalizer, count, group = call.mode.normalizer, tasks.shape[0], heads // kv_heads
    head, kv_head, a = np.arange(heads), np.arange(heads) // group, cache_aligned(heads * width, weights)
    scratch, factor = np.empty(MOST_EDGES * heads, weights.dtype), np.empty(heads, weights.dtype)
    for t in range(begin, end):
        b = t // count
        task = t - b * count
        first, stop = tasks[task, 2], tasks[task, 3]
        s = scratch[: (stop - first) * heads]
        for i in range(tasks[task, 0], tasks[task, 1]):
            for e in range(max(ptr[i], first), min(ptr[i + 1], stop)):
                edge = edge_at(perm, e)
                at = (e - first) * heads
                score_edge(s, at, a, call, b, i, np.int64(index[e]), edge, head, kv_head)
            if normalizer == SOFTMAX:
                low, high = max(ptr[i], first), min(ptr[i + 1], stop)
                row = 2 * (b * targets + i) * heads
                shift_rows(s, (low - first) * heads, sums, row, high - low, heads)
        apply_normalizer(s, normalizer)
        if normalizer == SOFTMAX:
            for i in range(tasks[task, 0], tasks[task, 1]):
                low, high = max(ptr[i], first), min(ptr[i + 1], stop)
                for h in range(heads):
                    factor[h] = invert(sums[2 * (b * targets + i) * heads + heads + h])
                finish_rows(s, None, (low - first) * heads, factor, 0, high - low, heads)
        for e in range(first, stop):
            edge = edge_at(perm, e)
            for h in range(heads):
                weights[(b * edge_count + edge) * heads + h] = s[(e - first) * heads + h]

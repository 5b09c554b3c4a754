"""The gradients of attention over compressed rows in loops that Numba compiles: see `forward`.

Two passes, each over its own tasks: one whose rows are targets, for the query and the edge tensors, and one whose rows
are sources, for key and value. The first one leaves what the second needs of each edge and head, two numbers: to read
them takes less time than to compute two products again, and no more bytes than the statistics of a row. Heads of one
number under a normalizer that looks at one score alone are the exception.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .....compiled.jit.llvm import INNER, accumulate, exponential, prefetch, store_row, with_constants
from ...operands import SOFTMAX
from .columns import add_heads, clear, finish_rows, interleave, shift_rows, sum_products, write_stats
from .dropout import drop_edges
from .edges import (
    MOST_EDGES,
    TASK_EDGES,
    ask_for_key,
    ask_for_value,
    cache_aligned,
    edge_at,
    edges_ahead,
    size_of,
    streams,
)
from .heads import axpy_heads, dot_heads, scale_heads
from .normalizers import apply_with_gradient
from .scores import activate, add_slope_by_key, add_slope_by_query, score_edge, set_slope_by_key

# Arguments on a line each would hide the loops.
# fmt: off


@njit(**INNER)
def finish_weight_slopes(g, factors, edge_lists, shape, dropout, grad_weights, b, task):
    """Take a task's gradients by weights through dropout, and add those by the weights that the call returned."""
    ptr, index, perm = edge_lists
    heads, edges, (seed, threshold, keep_scale) = shape.heads, shape.edges, dropout
    begin, end, first, stop, _ = task
    if threshold > 0:
        drop_edges(g, factors, b, begin, end, first, stop, ptr, index, seed, threshold, keep_scale, heads)
    if grad_weights.size:
        for e in range(first, stop):
            add_heads(g, (e - first) * heads, grad_weights, (b * edges + edge_at(perm, e)) * heads, heads)


@njit(**INNER)
def target_gradient_tasks(begin, end, tasks, slots, by_edge, call, slopes, rows, results):
    """Gradients of the query, of edge tensors, and per task of the vector; rows are targets.

    `by_edge` takes the whole batch through one task before the next, since they add to the same gradients of edge
    tensors. Of a row, softmax needs `stats`, three numbers per head: the shift of its scores, the inverse of the sum of
    their exponentials, and delta, the sum of weights times their gradients, plus `more`. It is the sum of the very
    weights that are used here, so that what cancels does so to the last bit. A cut row has no such sum in one place,
    but it is grad_out * out, before dropout's scale, and `more`.
    """
    call = with_constants(call)
    ptr, index, perm = call.edges
    batches, targets, sources, heads, kv_heads, width, value_width, edges = call.shape[:8]
    query_pitch, key_pitch, value_pitch, vector_pitch = call.shape[8:]
    q, k, v, vector = call.rows
    _, eb_stride, ek, ek_stride, ev, ev_stride = call.of_edges
    kind, normalizer, scale, slope, _ = call.mode
    _, threshold, keep_scale = call.dropout
    grad_out, grad_weights, of_edges = slopes
    sums, out, more = rows
    grad_query, part_query, part_vector, grad_bias, grad_edge_key, grad_edge_value = results
    has_vector, has_bias = size_of(part_vector) > 0, size_of(grad_bias) > 0
    has_key, has_value = size_of(grad_edge_key) > 0, size_of(grad_edge_value) > 0
    streams_key, streams_value = streams(grad_edge_key, width), streams(grad_edge_value, value_width)
    count, group, last = tasks.shape[0], heads // kv_heads, index.size - 1
    head, kv_head, one = np.arange(heads), np.arange(heads) // group, scale - scale + 1
    a, u = cache_aligned(heads * width, sums), cache_aligned(heads * width, sums)
    size = MOST_EDGES * heads
    scratch, slants, factors = np.empty(size, sums.dtype), np.empty(size, sums.dtype), np.empty(size, sums.dtype)
    stats, acc = np.empty(3 * (TASK_EDGES + 1) * heads, sums.dtype), cache_aligned(heads * width, sums)
    query_row, key_row, value_row = heads * width, kv_heads * width, kv_heads * value_width
    ahead = edges_ahead(k, key_row + value_row)
    for t in range(begin, end):
        b, task = (t % batches, t // batches) if by_edge else (t // count, t % count)
        first, stop, slot, begin_row = tasks[task, 2], tasks[task, 3], tasks[task, 4], tasks[task, 0]
        s, g = scratch[: (stop - first) * heads], slants[: (stop - first) * heads]
        for i in range(tasks[task, 0], tasks[task, 1]):
            row = (b * targets + i) * heads
            of_row = 3 * (i - begin_row) * heads
            if normalizer == SOFTMAX:
                write_stats(stats, of_row, sums, 2 * row, heads)
                if slot >= 0:
                    dot_heads(
                        stats, of_row + 2 * heads, keep_scale, grad_out, row * value_width, out, row * value_width,
                        None, 0, head, heads, 1, value_width
                    )
                    if more.size:
                        add_heads(stats, of_row + 2 * heads, more, row, heads)
            for e in range(max(ptr[i], first), min(ptr[i + 1], stop)):
                ask_for_key(call, b, min(e + ahead, last))
                ask_for_value(call, b, min(e + ahead, last))
                edge = edge_at(perm, e)
                j, at = b * sources + np.int64(index[e]), (e - first) * heads
                score_edge(s, at, a, call, b, i, np.int64(index[e]), edge, head, kv_head)
                dot_heads(
                    g, at, one, grad_out, row * value_width, v, j * value_pitch, ev, (b * ev_stride + edge) * value_row,
                    kv_head, heads, group, value_width
                )
            if normalizer == SOFTMAX:
                low, high = max(ptr[i], first), min(ptr[i + 1], stop)
                shift_rows(s, (low - first) * heads, stats, of_row, high - low, heads)
        finish_weight_slopes(g, factors, call.edges, call.shape, call.dropout, grad_weights, b, tasks[task])
        if normalizer == SOFTMAX:
            exponential(s)
            for i in range(tasks[task, 0], tasks[task, 1]):
                low, high = max(ptr[i], first), min(ptr[i + 1], stop)
                row, at = (b * targets + i) * heads, (low - first) * heads
                factor = 3 * (i - begin_row) * heads + heads
                if slot < 0:
                    sum_products(s, g, at, stats, factor, stats, factor + heads, high - low, heads)
                    if more.size:
                        add_heads(stats, factor + heads, more, row, heads)
                finish_rows(s, g, at, stats, factor, high - low, heads)
        else:
            apply_with_gradient(s, g, normalizer)
        if threshold > 0:
            for d in range(s.size):
                s[d] *= factors[d]
        if has_bias:
            for e in range(first, stop):
                for h in range(heads):
                    accumulate(grad_bias, (b * eb_stride + edge_at(perm, e)) * heads + h, g[(e - first) * heads + h])
        if vector is None:
            for d in range(g.size):
                g[d] *= scale
        if of_edges.size:
            interleave(of_edges, 2 * (b * edges + first) * heads, s, g, stop - first, heads)
        for i in range(tasks[task, 0], tasks[task, 1]):
            clear(acc, 0, query_row)
            row = (b * targets + i) * heads
            query = (b * targets + i) * query_pitch
            # Of one vector for all, each task has a part; of one for each target, each row and each piece of a cut one.
            of_part = t * query_row
            if vector_pitch > 0:
                of_part = (b * (targets + slots) + (i if slot < 0 else targets + slot)) * query_row
            for e in range(max(ptr[i], first), min(ptr[i + 1], stop)):
                key, at = (b * sources + np.int64(index[e])) * key_pitch, (e - first) * heads
                edge = edge_at(perm, e)
                of_edge = (b * ek_stride + edge) * key_row
                activate(
                    a, u, q, query, k, key, ek, of_edge, vector, i * vector_pitch, kv_head,
                    heads, group, width, kind, slope
                )
                if has_vector:
                    axpy_heads(part_vector, of_part, head, g, at, a, 0, None, 0, head, heads, 1, width)
                add_slope_by_query(acc, g, at, k, key, ek, of_edge, vector, u, head, kv_head, heads, group, width)
                # The batch adds to the same gradients where its edge tensors are the same, as do heads with one key.
                if has_key and group == 1 and (b == 0 or ek_stride > 0):
                    set_slope_by_key(grad_edge_key, of_edge, g, at, q, query, vector, u, heads, width, streams_key)
                elif has_key:
                    if b == 0 or ek_stride > 0:
                        clear(grad_edge_key, of_edge, key_row)
                    add_slope_by_key(
                        grad_edge_key, of_edge, g, at, q, query, vector, u, head, kv_head, heads, group, width
                    )
                of_value = (b * ev_stride + edge) * value_row
                if has_value and group == 1 and (b == 0 or ev_stride > 0):
                    scale_heads(
                        grad_edge_value, of_value, s, at, grad_out, row * value_width, heads, value_width, streams_value
                    )
                elif has_value:
                    if b == 0 or ev_stride > 0:
                        clear(grad_edge_value, of_value, value_row)
                    axpy_heads(
                        grad_edge_value, of_value, kv_head, s, at, grad_out, row * value_width, None, 0, head,
                        heads, group, value_width
                    )
            if slot < 0:
                store_row(grad_query, row * width, one, acc, 0, query_row)
            else:
                store_row(part_query, (b * slots + slot) * query_row, one, acc, 0, query_row)


@njit(**INNER)
def source_gradient_tasks(begin, end, tasks, slots, places, call, slopes, results):
    """Gradients of key and value; rows are sources, and `places` says where their edges lie in rows of targets."""
    call = with_constants(call)
    ptr, index, perm = call.edges
    _, targets, sources, heads, kv_heads, width, value_width, edges = call.shape[:8]
    query_pitch, key_pitch, _, vector_pitch = call.shape[8:]
    q, k, _, vector = call.rows
    _, _, ek, ek_stride, _, _ = call.of_edges
    kind, _, scale, slope, _ = call.mode
    grad_out, _, of_edges = slopes
    grad_key, grad_value, part_key, part_value = results
    count, group, last = tasks.shape[0], heads // kv_heads, index.size - 1
    head, kv_head, one = np.arange(heads), np.arange(heads) // group, scale - scale + 1
    u = cache_aligned(heads * width, of_edges)
    key_row, value_row = kv_heads * width, kv_heads * value_width
    key_acc, value_acc = cache_aligned(key_row, of_edges), cache_aligned(value_row, of_edges)
    query_row, out_row = heads * width, heads * value_width
    ahead = edges_ahead(q, query_row + out_row)
    for t in range(begin, end):
        b = t // count
        task = t - b * count
        first, stop, slot = tasks[task, 2], tasks[task, 3], tasks[task, 4]
        for j in range(tasks[task, 0], tasks[task, 1]):
            clear(key_acc, 0, key_row)
            clear(value_acc, 0, value_row)
            key = (b * sources + j) * key_pitch
            for e in range(max(ptr[j], first), min(ptr[j + 1], stop)):
                soon = min(e + ahead, last)
                target = b * targets + np.int64(index[soon])
                prefetch(q, target * query_pitch, query_row)
                prefetch(grad_out, target * out_row, out_row)
                if places.size:
                    prefetch(of_edges, (b * edges + edge_at(places, soon)) * 2 * heads, 2 * heads)
                if vector is not None:
                    prefetch(ek, (b * ek_stride + edge_at(perm, soon)) * key_row, key_row)
                i, at = np.int64(index[e]), (b * edges + edge_at(places, e)) * 2 * heads
                row = b * targets + i
                query = row * query_pitch
                of_edge = (b * ek_stride + edge_at(perm, e)) * key_row
                activate(
                    None, u, q, query, k, key, ek, of_edge, vector, i * vector_pitch, kv_head,
                    heads, group, width, kind, slope
                )
                add_slope_by_key(
                    key_acc, 0, of_edges, at + heads, q, query, vector, u, head, kv_head, heads, group, width
                )
                axpy_heads(
                    value_acc, 0, kv_head, of_edges, at, grad_out, row * out_row, None, 0, head,
                    heads, group, value_width
                )
            if slot < 0:
                store_row(grad_key, (b * sources + j) * key_row, one, key_acc, 0, key_row)
                store_row(grad_value, (b * sources + j) * value_row, one, value_acc, 0, value_row)
            else:
                store_row(part_key, (b * slots + slot) * key_row, one, key_acc, 0, key_row)
                store_row(part_value, (b * slots + slot) * value_row, one, value_acc, 0, value_row)


@njit(**INNER)
def narrow_source_gradient_tasks(begin, end, tasks, slots, places, call, slopes, results):
    """The same where the first pass left nothing: scores are computed again. A normalizer looks at one score alone."""
    call = with_constants(call)
    ptr, index, perm = call.edges
    _, targets, sources, heads, kv_heads, width, value_width, _ = call.shape[:8]
    query_pitch, key_pitch, value_pitch, vector_pitch = call.shape[8:]
    q, k, v, vector = call.rows
    _, _, ek, ek_stride, ev, ev_stride = call.of_edges
    kind, normalizer, scale, slope, _ = call.mode
    grad_out, _, like = slopes
    grad_key, grad_value, part_key, part_value = results
    count, group, last = tasks.shape[0], heads // kv_heads, index.size - 1
    head, kv_head, one = np.arange(heads), np.arange(heads) // group, scale - scale + 1
    a, u = cache_aligned(heads * width, like), cache_aligned(heads * width, like)
    key_row, value_row = kv_heads * width, kv_heads * value_width
    key_acc, value_acc = cache_aligned(key_row, like), cache_aligned(value_row, like)
    query_row, out_row, size = heads * width, heads * value_width, MOST_EDGES * heads
    scratch, slants = np.empty(size, like.dtype), np.empty(size, like.dtype)
    ahead = edges_ahead(q, query_row + out_row)
    for t in range(begin, end):
        b, task = t // count, t % count
        first, stop, slot = tasks[task, 2], tasks[task, 3], tasks[task, 4]
        s, g = scratch[: (stop - first) * heads], slants[: (stop - first) * heads]
        for j in range(tasks[task, 0], tasks[task, 1]):
            value = (b * sources + j) * value_pitch
            for e in range(max(ptr[j], first), min(ptr[j + 1], stop)):
                soon = b * targets + np.int64(index[min(e + ahead, last)])
                prefetch(q, soon * query_pitch, query_row)
                prefetch(grad_out, soon * out_row, out_row)
                i, edge, at = np.int64(index[e]), edge_at(perm, e), (e - first) * heads
                score_edge(s, at, a, call, b, i, j, edge, head, kv_head)
                dot_heads(
                    g, at, one, grad_out, (b * targets + i) * out_row, v, value, ev,
                    (b * ev_stride + edge) * value_row, kv_head, heads, group, value_width
                )
        apply_with_gradient(s, g, normalizer)
        if vector is None:
            for d in range(g.size):
                g[d] *= scale
        for j in range(tasks[task, 0], tasks[task, 1]):
            clear(key_acc, 0, key_row)
            clear(value_acc, 0, value_row)
            key = (b * sources + j) * key_pitch
            for e in range(max(ptr[j], first), min(ptr[j + 1], stop)):
                i, at = np.int64(index[e]), (e - first) * heads
                row = b * targets + i
                query = row * query_pitch
                of_edge = (b * ek_stride + edge_at(perm, e)) * key_row
                activate(
                    None, u, q, query, k, key, ek, of_edge, vector, i * vector_pitch, kv_head,
                    heads, group, width, kind, slope
                )
                add_slope_by_key(
                    key_acc, 0, g, at, q, query, vector, u, head, kv_head, heads, group, width
                )
                axpy_heads(
                    value_acc, 0, kv_head, s, at, grad_out, row * out_row, None, 0, head, heads, group, value_width
                )
            if slot < 0:
                store_row(grad_key, (b * sources + j) * key_row, one, key_acc, 0, key_row)
                store_row(grad_value, (b * sources + j) * value_row, one, value_acc, 0, value_row)
            else:
                store_row(part_key, (b * slots + slot) * key_row, one, key_acc, 0, key_row)
                store_row(part_value, (b * slots + slot) * value_row, one, value_acc, 0, value_row)


@njit(**INNER)
def merge_sums(begin, end, cut, slots, rows, width, whole, part):
    """Add up the pieces of cut rows, in their order; a task is a row of one batch element."""
    acc, one = np.empty(width, part.dtype), np.ones(1, part.dtype)[0]
    for t in range(begin, end):
        b, c = t // cut.shape[0], t % cut.shape[0]
        for d in range(width):
            acc[d] = 0
        for slot in range(cut[c, 1], cut[c, 2]):
            for d in range(width):
                acc[d] += part[(b * slots + slot) * width + d]
        store_row(whole, (b * rows + cut[c, 0]) * width, one, acc, 0, width)

"""Gradients of attention over compressed rows on the GPU: what Triton compiles.

Weights are computed again from the statistics of their row: a pass over rows of targets for query and edge tensors,
and one over rows of sources for key and value. Programs, items and tiles are those of `forward`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .dropout import hash_target, is_kept
from .normalizers import SOFTMAX, invert, slope_of_weight
from .scores import DOT_PRODUCT, activate, read_vector, score_heads, score_slope
from .tiles import (
    SIZES,
    add_tile,
    edge_at,
    exists,
    locate,
    locate_cut,
    number_of,
    occurrence_at,
    read_pairs,
    read_tile,
    sum_groups,
    tile_mask,
    unroll,
    write_pairs,
    write_tile,
)

# fmt: off


@triton.jit
def slope_of_value(g, x, kept, more):
    """The gradient [ROWS, HEADS] by the weight of a value, which dropout has kept with this factor.

    Of the output in place of a value, what the slopes of a row have in common. Where one weight is 1 and the others are
    0, both have the same bits and cancel: hence one explicit multiply-add at the end, see `score_heads`.
    """
    return tl.fma(tl.sum(g * x, 2), kept, more)


@triton.jit
def differentiate_edge(
    q, k, g, x, vector, scale, slope, bias_ptr, bias_row, shift, factor, delta, state, source, occurrence_ptr, e,
    is_live, threshold, keep_scale, seed_ptr, grad_weights_ptr, weights_row, head, pairs,
    SCORE: tl.constexpr, NORMALIZER: tl.constexpr, HEADS: tl.constexpr, NUMBER: tl.constexpr,
):
    """Weights [ROWS, HEADS] of one edge per row as dropout leaves them, and the gradients by the scores."""
    s = score_heads(q, k, vector, scale, slope, bias_ptr, bias_row, head, pairs, SCORE, HEADS, NUMBER)
    kept, more = tl.zeros_like(s) + 1, tl.zeros_like(s)
    if seed_ptr is not None:
        occurrence = occurrence_at(occurrence_ptr, e, is_live)
        kept = tl.where(is_kept(state, source, occurrence, head, threshold), keep_scale, 0.0)
    if grad_weights_ptr is not None:
        more = read_pairs(grad_weights_ptr, weights_row, head, pairs, HEADS, NUMBER)
    grad = slope_of_value(g, x, kept, more)
    p, ds = slope_of_weight(s, shift, factor, delta, grad, pairs, NORMALIZER)
    if seed_ptr is not None:
        p *= kept
    return p, ds


@triton.jit(do_not_specialize=SIZES)
def target_gradients(
    items_ptr, total, blocks,
    query_ptr, key_ptr, value_ptr, vector_ptr, bias_ptr, edge_key_ptr, edge_value_ptr, seed_ptr,
    index_ptr, perm_ptr, occurrence_ptr, stats_ptr, grad_out_ptr, grad_weights_ptr, out_ptr, sums_ptr, more_ptr,
    grad_query_ptr, part_query_ptr, part_vector_ptr, grad_bias_ptr, grad_edge_key_ptr, grad_edge_value_ptr,
    slots, targets, sources, edges, bias_batch, edge_key_batch, edge_value_batch,
    scale: tl.float64, slope: tl.float64, threshold: tl.int64, keep_scale: tl.float64,
    SCORE: tl.constexpr, NORMALIZER: tl.constexpr, ROWS: tl.constexpr,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, KV_BLOCK: tl.constexpr, GROUP_BLOCK: tl.constexpr,
    IS_EVEN: tl.constexpr, WIDTH: tl.constexpr, WIDTH_BLOCK: tl.constexpr,
    VALUE: tl.constexpr, VALUE_BLOCK: tl.constexpr, NUMBER: tl.constexpr,
):
    """Gradients of the query, of edge tensors per batch element, and per program of the vector; rows are targets.

    The statistics of a row are written next to each other, because the other pass reads all of them for each edge: the
    shift of its scores, the inverse of the sum of their exponentials, and what its slopes have in common. All pieces of
    a cut row write the same.
    """
    HEADS: tl.constexpr = KV_HEADS * GROUP
    b, block, row, begin, end, slot, is_item, head, kv_head, is_head, kv_only, is_kv = locate(
        items_ptr, total, blocks, ROWS, KV_HEADS, GROUP, KV_BLOCK, GROUP_BLOCK)
    d, v = tl.arange(0, WIDTH_BLOCK), tl.arange(0, VALUE_BLOCK)
    scale, slope = number_of(scale, NUMBER), number_of(slope, NUMBER)
    keep_scale = number_of(keep_scale, NUMBER)

    at = b * targets + row
    of_item = is_item[:, None] & is_head[None, :]
    q = read_tile(query_ptr, at, head, d, tile_mask(is_item, is_head, d, WIDTH, IS_EVEN), HEADS, WIDTH, NUMBER)
    g = read_tile(grad_out_ptr, at, head, v, tile_mask(is_item, is_head, v, VALUE, IS_EVEN), HEADS, VALUE, NUMBER)
    vector = q
    if SCORE != DOT_PRODUCT:
        vector = read_vector(vector_ptr, head, is_head, d, WIDTH, NUMBER)
    state = row
    if seed_ptr is not None:
        state = hash_target(seed_ptr, b, row)
    shift = tl.zeros([ROWS, KV_BLOCK * GROUP_BLOCK], NUMBER)
    factor = shift
    delta = shift
    if NORMALIZER == SOFTMAX:
        shift = read_pairs(sums_ptr, at, head, of_item, 2 * HEADS, NUMBER)
        factor = invert(read_pairs(sums_ptr + HEADS, at, head, of_item, 2 * HEADS, NUMBER))
        mask = tile_mask(is_item, is_head, v, VALUE, IS_EVEN)
        out = read_tile(out_ptr, at, head, v, mask, HEADS, VALUE, NUMBER)
        more = tl.zeros_like(shift)
        if more_ptr is not None:
            more = read_pairs(more_ptr, at, head, of_item, HEADS, NUMBER)
        delta = slope_of_value(g, out, more * 0 + keep_scale, more)
        write_pairs(stats_ptr, shift, at, head, of_item, 3 * HEADS)
        write_pairs(stats_ptr + HEADS, factor, at, head, of_item, 3 * HEADS)
        write_pairs(stats_ptr + 2 * HEADS, delta, at, head, of_item, 3 * HEADS)
    acc = tl.zeros([ROWS, KV_BLOCK * GROUP_BLOCK, WIDTH_BLOCK], NUMBER)
    of_vector = acc

    for step in tl.range(0, tl.max(end - begin, 0).to(tl.int32), loop_unroll_factor=unroll(ROWS)):
        e = begin + step
        is_live = exists(e, end, ROWS)
        pairs = is_live[:, None] & is_head[None, :]
        keys = tile_mask(is_live, is_head, d, WIDTH, IS_EVEN)
        values = tile_mask(is_live, is_head, v, VALUE, IS_EVEN)
        j = tl.load(index_ptr + e, mask=is_live, other=0).to(tl.int64)
        edge = edge_at(perm_ptr, e, is_live)
        k = read_tile(key_ptr, b * sources + j, kv_head, d, keys, KV_HEADS, WIDTH, NUMBER)
        x = read_tile(value_ptr, b * sources + j, kv_head, v, values, KV_HEADS, VALUE, NUMBER)
        k = add_tile(k, edge_key_ptr, b * edge_key_batch + edge, kv_head, d, keys, KV_HEADS, WIDTH, NUMBER)
        x = add_tile(x, edge_value_ptr, b * edge_value_batch + edge, kv_head, v, values, KV_HEADS, VALUE, NUMBER)
        p, ds = differentiate_edge(
            q, k, g, x, vector, scale, slope, bias_ptr, b * bias_batch + edge, shift, factor, delta, state, j,
            occurrence_ptr, e, is_live, threshold, keep_scale, seed_ptr, grad_weights_ptr, b * edges + edge, head,
            pairs, SCORE, NORMALIZER, HEADS, NUMBER)
        if grad_bias_ptr is not None:
            write_pairs(grad_bias_ptr, ds, b * edges + edge, head, pairs, HEADS)
        if SCORE == DOT_PRODUCT:
            ds *= scale
            acc += ds[:, :, None] * k
            of_key = ds[:, :, None] * q
        else:
            of_key = ds[:, :, None] * score_slope(q, k, vector, scale, slope, SCORE)
            acc += of_key
            if part_vector_ptr is not None:
                of_vector += ds[:, :, None] * activate(q + k, slope, SCORE)
        if grad_edge_key_ptr is not None:
            of_key = sum_groups(of_key, ROWS, KV_BLOCK, GROUP_BLOCK, WIDTH_BLOCK)
            of_kv = tile_mask(is_live, is_kv, d, WIDTH, KV_HEADS % KV_BLOCK == 0)
            write_tile(grad_edge_key_ptr, of_key, b * edges + edge, kv_only, d, of_kv, KV_HEADS, WIDTH)
        if grad_edge_value_ptr is not None:
            of_value = sum_groups(p[:, :, None] * g, ROWS, KV_BLOCK, GROUP_BLOCK, VALUE_BLOCK)
            of_kv = tile_mask(is_live, is_kv, v, VALUE, KV_HEADS % KV_BLOCK == 0)
            write_tile(grad_edge_value_ptr, of_value, b * edges + edge, kv_only, v, of_kv, KV_HEADS, VALUE)

    mask = tile_mask(is_item & (slot < 0), is_head, d, WIDTH, IS_EVEN)
    write_tile(grad_query_ptr, acc, at, head, d, mask, HEADS, WIDTH)
    if part_query_ptr is not None:
        mask = tile_mask(is_item & (slot >= 0), is_head, d, WIDTH, IS_EVEN)
        write_tile(part_query_ptr, acc, b * slots + slot, head, d, mask, HEADS, WIDTH)
    if part_vector_ptr is not None:
        one = tl.sum(tl.where(is_item[:, None, None], of_vector, 0.0), 0)
        place = (b * blocks + block) * HEADS * WIDTH + head[:, None] * WIDTH + d[None, :]
        tl.store(part_vector_ptr + place, one, mask=is_head[:, None] & (d < WIDTH)[None, :])


@triton.jit(do_not_specialize=SIZES)
def source_gradients(
    items_ptr, total, blocks,
    query_ptr, key_ptr, value_ptr, vector_ptr, bias_ptr, edge_key_ptr, edge_value_ptr, seed_ptr,
    index_ptr, perm_ptr, occurrence_ptr, stats_ptr, grad_out_ptr, grad_weights_ptr,
    grad_key_ptr, grad_value_ptr, part_key_ptr, part_value_ptr,
    slots, targets, sources, edges, bias_batch, edge_key_batch, edge_value_batch,
    scale: tl.float64, slope: tl.float64, threshold: tl.int64, keep_scale: tl.float64,
    SCORE: tl.constexpr, NORMALIZER: tl.constexpr, ROWS: tl.constexpr,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, KV_BLOCK: tl.constexpr, GROUP_BLOCK: tl.constexpr,
    IS_EVEN: tl.constexpr, WIDTH: tl.constexpr, WIDTH_BLOCK: tl.constexpr,
    VALUE: tl.constexpr, VALUE_BLOCK: tl.constexpr, NUMBER: tl.constexpr,
):
    """Gradients of key and value; rows are sources."""
    HEADS: tl.constexpr = KV_HEADS * GROUP
    b, _, row, begin, end, slot, is_item, head, kv_head, is_head, kv_only, is_kv = locate(
        items_ptr, total, blocks, ROWS, KV_HEADS, GROUP, KV_BLOCK, GROUP_BLOCK)
    d, v = tl.arange(0, WIDTH_BLOCK), tl.arange(0, VALUE_BLOCK)
    scale, slope = number_of(scale, NUMBER), number_of(slope, NUMBER)
    keep_scale = number_of(keep_scale, NUMBER)

    at = b * sources + row
    mask = tile_mask(is_item, is_head, d, WIDTH, IS_EVEN)
    node_key = read_tile(key_ptr, at, kv_head, d, mask, KV_HEADS, WIDTH, NUMBER)
    mask = tile_mask(is_item, is_head, v, VALUE, IS_EVEN)
    node_value = read_tile(value_ptr, at, kv_head, v, mask, KV_HEADS, VALUE, NUMBER)
    vector = node_key
    if SCORE != DOT_PRODUCT:
        vector = read_vector(vector_ptr, head, is_head, d, WIDTH, NUMBER)
    of_key = tl.zeros([ROWS, KV_BLOCK * GROUP_BLOCK, WIDTH_BLOCK], NUMBER)
    of_value = tl.zeros([ROWS, KV_BLOCK * GROUP_BLOCK, VALUE_BLOCK], NUMBER)

    for step in tl.range(0, tl.max(end - begin, 0).to(tl.int32), loop_unroll_factor=unroll(ROWS)):
        e = begin + step
        is_live = exists(e, end, ROWS)
        pairs = is_live[:, None] & is_head[None, :]
        keys = tile_mask(is_live, is_head, d, WIDTH, IS_EVEN)
        values = tile_mask(is_live, is_head, v, VALUE, IS_EVEN)
        i = tl.load(index_ptr + e, mask=is_live, other=0).to(tl.int64)
        edge = edge_at(perm_ptr, e, is_live)
        q = read_tile(query_ptr, b * targets + i, head, d, keys, HEADS, WIDTH, NUMBER)
        g = read_tile(grad_out_ptr, b * targets + i, head, v, values, HEADS, VALUE, NUMBER)
        k = add_tile(node_key, edge_key_ptr, b * edge_key_batch + edge, kv_head, d, keys, KV_HEADS, WIDTH, NUMBER)
        x = add_tile(
            node_value, edge_value_ptr, b * edge_value_batch + edge, kv_head, v, values, KV_HEADS, VALUE, NUMBER
        )
        state = i
        if seed_ptr is not None:
            state = hash_target(seed_ptr, b, i)
        shift = tl.zeros([ROWS, KV_BLOCK * GROUP_BLOCK], NUMBER)
        factor = shift
        delta = shift
        if NORMALIZER == SOFTMAX:
            shift = read_pairs(stats_ptr, b * targets + i, head, pairs, 3 * HEADS, NUMBER)
            factor = read_pairs(stats_ptr + HEADS, b * targets + i, head, pairs, 3 * HEADS, NUMBER)
            delta = read_pairs(stats_ptr + 2 * HEADS, b * targets + i, head, pairs, 3 * HEADS, NUMBER)
        p, ds = differentiate_edge(
            q, k, g, x, vector, scale, slope, bias_ptr, b * bias_batch + edge, shift, factor, delta, state, row,
            occurrence_ptr, e, is_live, threshold, keep_scale, seed_ptr, grad_weights_ptr, b * edges + edge, head,
            pairs, SCORE, NORMALIZER, HEADS, NUMBER)
        of_value += p[:, :, None] * g
        if SCORE == DOT_PRODUCT:
            of_key += (ds * scale)[:, :, None] * q
        else:
            of_key += ds[:, :, None] * score_slope(q, k, vector, scale, slope, SCORE)

    of_key = sum_groups(of_key, ROWS, KV_BLOCK, GROUP_BLOCK, WIDTH_BLOCK)
    of_value = sum_groups(of_value, ROWS, KV_BLOCK, GROUP_BLOCK, VALUE_BLOCK)
    is_whole = is_item & (slot < 0)
    keys = tile_mask(is_whole, is_kv, d, WIDTH, KV_HEADS % KV_BLOCK == 0)
    values = tile_mask(is_whole, is_kv, v, VALUE, KV_HEADS % KV_BLOCK == 0)
    write_tile(grad_key_ptr, of_key, at, kv_only, d, keys, KV_HEADS, WIDTH)
    write_tile(grad_value_ptr, of_value, at, kv_only, v, values, KV_HEADS, VALUE)
    if part_key_ptr is not None:
        is_part = is_item & (slot >= 0)
        at = b * slots + slot
        keys = tile_mask(is_part, is_kv, d, WIDTH, KV_HEADS % KV_BLOCK == 0)
        values = tile_mask(is_part, is_kv, v, VALUE, KV_HEADS % KV_BLOCK == 0)
        write_tile(part_key_ptr, of_key, at, kv_only, d, keys, KV_HEADS, WIDTH)
        write_tile(part_value_ptr, of_value, at, kv_only, v, values, KV_HEADS, VALUE)


@triton.jit(do_not_specialize=SIZES)
def merge_sums(
    cut_ptr, whole_ptr, part_ptr, cuts, slots, rows,
    PIECES: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, NUMBER: tl.constexpr,
):
    """Add up the pieces of one cut row, for a block of its numbers; see `merge_forward`."""
    b, row, first, last, block = locate_cut(cut_ptr, cuts, (SIZE + BLOCK - 1) // BLOCK)
    piece, place = tl.arange(0, PIECES), block * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros([PIECES, BLOCK], NUMBER)
    for slot in range(first, last, PIECES):
        at = (b * slots + slot + piece)[:, None] * SIZE + place[None, :]
        mask = (slot + piece < last)[:, None] & (place < SIZE)[None, :]
        acc += tl.load(part_ptr + at, mask=mask, other=0.0)
    y = tl.sum(acc, 0).to(whole_ptr.dtype.element_ty)
    tl.store(whole_ptr + (b * rows + row) * SIZE + place, y, mask=place < SIZE)

"""Attention over compressed rows on the GPU: what Triton compiles.

A program takes ROWS items, each a run of one row's edges, and steps through them one edge per item at a time, for a
block of heads together. So a row of all heads is one contiguous read, and a reduction stays inside a warp. An item
that is only a piece of its row writes partial sums, which another kernel joins in their order: nothing is ever added
atomically, and the result is the same bit for bit each time.

Tiles are [ROWS, HEADS, WIDTH]. Heads are counted as (kv head, head of its group), each padded to a power of two. What
a call lacks is None, and the code for it is never compiled.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .dropout import hash_target, is_kept
from .normalizers import SOFTMAX, apply_normalizer, finish, invert
from .scores import DOT_PRODUCT, read_vector, score_heads
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
    tile_mask,
    unroll,
    write_pairs,
    write_tile,
)

# Thirty arguments on a line each would hide the loops.
# fmt: off


@triton.jit(do_not_specialize=SIZES)
def forward_rows(
    items_ptr, total, blocks,
    query_ptr, key_ptr, value_ptr, vector_ptr, bias_ptr, edge_key_ptr, edge_value_ptr, seed_ptr,
    index_ptr, perm_ptr, occurrence_ptr, out_ptr, sums_ptr, exact_ptr, part_out_ptr, part_top_ptr, part_sum_ptr,
    slots, targets, sources, bias_batch, edge_key_batch, edge_value_batch,
    scale: tl.float64, slope: tl.float64, threshold: tl.int64, keep_scale: tl.float64,
    SCORE: tl.constexpr, NORMALIZER: tl.constexpr, ROWS: tl.constexpr,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, KV_BLOCK: tl.constexpr, GROUP_BLOCK: tl.constexpr,
    IS_EVEN: tl.constexpr, WIDTH: tl.constexpr, WIDTH_BLOCK: tl.constexpr,
    VALUE: tl.constexpr, VALUE_BLOCK: tl.constexpr, NUMBER: tl.constexpr,
):
    """Outputs and `sums` of whole rows, unscaled sums of the pieces of cut ones."""
    HEADS: tl.constexpr = KV_HEADS * GROUP
    b, _, row, begin, end, slot, is_item, head, kv_head, is_head, _, _ = locate(
        items_ptr, total, blocks, ROWS, KV_HEADS, GROUP, KV_BLOCK, GROUP_BLOCK)
    d, v = tl.arange(0, WIDTH_BLOCK), tl.arange(0, VALUE_BLOCK)
    scale, slope = number_of(scale, NUMBER), number_of(slope, NUMBER)
    keep_scale = number_of(keep_scale, NUMBER)

    mask = tile_mask(is_item, is_head, d, WIDTH, IS_EVEN)
    q = read_tile(query_ptr, b * targets + row, head, d, mask, HEADS, WIDTH, NUMBER)
    vector = q
    if SCORE != DOT_PRODUCT:
        vector = read_vector(vector_ptr, head, is_head, d, WIDTH, NUMBER)
    if seed_ptr is not None:
        state = hash_target(seed_ptr, b, row)
    top = tl.full([ROWS, KV_BLOCK * GROUP_BLOCK], float("-inf"), NUMBER)
    norm = tl.zeros([ROWS, KV_BLOCK * GROUP_BLOCK], NUMBER)
    acc = tl.zeros([ROWS, KV_BLOCK * GROUP_BLOCK, VALUE_BLOCK], NUMBER)

    for step in tl.range(0, tl.max(end - begin, 0).to(tl.int32), loop_unroll_factor=unroll(ROWS)):
        e = begin + step
        is_live = exists(e, end, ROWS)
        pairs = is_live[:, None] & is_head[None, :]
        keys = tile_mask(is_live, is_head, d, WIDTH, IS_EVEN)
        values = tile_mask(is_live, is_head, v, VALUE, IS_EVEN)
        j = tl.load(index_ptr + e, mask=is_live, other=0).to(tl.int64)
        edge = edge_at(perm_ptr, e, is_live)
        # Both rows are asked for before either is used.
        k = read_tile(key_ptr, b * sources + j, kv_head, d, keys, KV_HEADS, WIDTH, NUMBER)
        x = read_tile(value_ptr, b * sources + j, kv_head, v, values, KV_HEADS, VALUE, NUMBER)
        k = add_tile(k, edge_key_ptr, b * edge_key_batch + edge, kv_head, d, keys, KV_HEADS, WIDTH, NUMBER)
        x = add_tile(x, edge_value_ptr, b * edge_value_batch + edge, kv_head, v, values, KV_HEADS, VALUE, NUMBER)
        s = score_heads(
            q, k, vector, scale, slope, bias_ptr, b * bias_batch + edge, head, pairs, SCORE, HEADS, NUMBER)
        if NORMALIZER == SOFTMAX:
            s = tl.where(pairs, s, float("-inf"))
            new_top = tl.maximum(top, s)
            shift = tl.where(new_top == float("-inf"), 0.0, new_top)
            shrink, p = tl.exp(top - shift), tl.exp(s - shift)
            norm = norm * shrink + p
            acc *= shrink[:, :, None]
            top = new_top
        else:
            p = tl.where(pairs, apply_normalizer(s, NORMALIZER), 0.0)
        if seed_ptr is not None:
            p = tl.where(
                is_kept(state, j, occurrence_at(occurrence_ptr, e, is_live), head, threshold), p, 0.0)
        acc += p[:, :, None] * x

    is_whole = is_item & (slot < 0)
    at = b * targets + row
    if NORMALIZER == SOFTMAX:
        factor, shift = finish(top, norm)
        pairs = is_whole[:, None] & is_head[None, :]
        write_pairs(sums_ptr, shift, at, head, pairs, 2 * HEADS)
        write_pairs(sums_ptr + HEADS, norm, at, head, pairs, 2 * HEADS)
    else:
        factor = norm + 1
    mask = tile_mask(is_whole, is_head, v, VALUE, IS_EVEN)
    y = acc * factor[:, :, None]
    if exact_ptr is not None:
        write_tile(exact_ptr, y, at, head, v, mask, HEADS, VALUE)
    if seed_ptr is not None:
        y *= keep_scale[:, :, None]
    write_tile(out_ptr, y, at, head, v, mask, HEADS, VALUE)
    if part_out_ptr is not None:
        is_part = is_item & (slot >= 0)
        pairs = is_part[:, None] & is_head[None, :]
        at = b * slots + slot
        write_pairs(part_top_ptr, top, at, head, pairs, HEADS)
        write_pairs(part_sum_ptr, norm, at, head, pairs, HEADS)
        mask = tile_mask(is_part, is_head, v, VALUE, IS_EVEN)
        write_tile(part_out_ptr, acc, at, head, v, mask, HEADS, VALUE)


@triton.jit(do_not_specialize=SIZES)
def merge_forward(
    cut_ptr, out_ptr, sums_ptr, exact_ptr, part_out_ptr, part_top_ptr, part_sum_ptr, cuts, slots, targets,
    keep_scale: tl.float64,
    NORMALIZER: tl.constexpr, PIECES: tl.constexpr, HEADS: tl.constexpr, HEADS_BLOCK: tl.constexpr,
    VALUE: tl.constexpr, VALUE_BLOCK: tl.constexpr, NUMBER: tl.constexpr,
):
    """Join the pieces of one cut row for a block of heads.

    Several pieces are read at a time, as each reading takes as long as the memory takes to answer. The sums over pieces
    that lie PIECES apart are joined at the end: the same order each time.
    """
    b, row, first, last, block = locate_cut(cut_ptr, cuts, (HEADS + HEADS_BLOCK - 1) // HEADS_BLOCK)
    piece, v = tl.arange(0, PIECES), tl.arange(0, VALUE_BLOCK)
    h = block * HEADS_BLOCK + tl.arange(0, HEADS_BLOCK)
    tops = tl.full([PIECES, HEADS_BLOCK], float("-inf"), NUMBER)
    sums = tl.zeros([PIECES, HEADS_BLOCK], NUMBER)
    acc = tl.zeros([PIECES, HEADS_BLOCK, VALUE_BLOCK], NUMBER)
    if NORMALIZER == SOFTMAX:
        for slot in range(first, last, PIECES):
            pairs = (slot + piece < last)[:, None] & (h < HEADS)[None, :]
            at = (b * slots + slot + piece)[:, None] * HEADS + h[None, :]
            tops = tl.maximum(tops, tl.load(part_top_ptr + at, mask=pairs, other=float("-inf")))
    top = tl.max(tops, 0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    for slot in range(first, last, PIECES):
        pairs = (slot + piece < last)[:, None] & (h < HEADS)[None, :]
        at = (b * slots + slot + piece)[:, None] * HEADS + h[None, :]
        mask = pairs[:, :, None] & (v < VALUE)[None, None, :]
        part = tl.load(part_out_ptr + at[:, :, None] * VALUE + v[None, None, :], mask=mask, other=0.0)
        if NORMALIZER == SOFTMAX:
            part_top = tl.load(part_top_ptr + at, mask=pairs, other=float("-inf"))
            part_sum = tl.load(part_sum_ptr + at, mask=pairs, other=0.0)
            # A piece of NaN alone has no largest score: its factor is 0, and 0 times NaN is NaN.
            factor = tl.exp(part_top - shift[None, :])
            sums += part_sum * factor
            acc += part * factor[:, :, None]
        else:
            acc += part
    at = (b * targets + row) * HEADS + h
    y = tl.sum(acc, 0)
    if NORMALIZER == SOFTMAX:
        norm = tl.sum(sums, 0)
        factor, shift = finish(top, norm)
        y *= factor[:, None]
        of_sums = sums_ptr + (b * targets + row) * 2 * HEADS + h
        tl.store(of_sums, shift, mask=h < HEADS)
        tl.store(of_sums + HEADS, norm, mask=h < HEADS)
    mask = (h < HEADS)[:, None] & (v < VALUE)[None, :]
    at = at[:, None] * VALUE + v[None, :]
    if exact_ptr is not None:
        tl.store(exact_ptr + at, y, mask=mask)
    y *= number_of(keep_scale, NUMBER)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def weigh_rows(
    items_ptr, total, blocks,
    query_ptr, key_ptr, vector_ptr, bias_ptr, edge_key_ptr, sums_ptr, index_ptr, perm_ptr, weights_ptr,
    targets, sources, edges, bias_batch, edge_key_batch,
    scale: tl.float64, slope: tl.float64,
    SCORE: tl.constexpr, NORMALIZER: tl.constexpr, ROWS: tl.constexpr,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, KV_BLOCK: tl.constexpr, GROUP_BLOCK: tl.constexpr,
    IS_EVEN: tl.constexpr, WIDTH: tl.constexpr, WIDTH_BLOCK: tl.constexpr, NUMBER: tl.constexpr,
):
    """Weights of all edges, before dropout, in the caller's order."""
    HEADS: tl.constexpr = KV_HEADS * GROUP
    b, _, row, begin, end, _, is_item, head, kv_head, is_head, _, _ = locate(
        items_ptr, total, blocks, ROWS, KV_HEADS, GROUP, KV_BLOCK, GROUP_BLOCK)
    d = tl.arange(0, WIDTH_BLOCK)
    scale, slope = number_of(scale, NUMBER), number_of(slope, NUMBER)

    mask = tile_mask(is_item, is_head, d, WIDTH, IS_EVEN)
    q = read_tile(query_ptr, b * targets + row, head, d, mask, HEADS, WIDTH, NUMBER)
    vector = q
    if SCORE != DOT_PRODUCT:
        vector = read_vector(vector_ptr, head, is_head, d, WIDTH, NUMBER)
    if NORMALIZER == SOFTMAX:
        pairs, at = is_item[:, None] & is_head[None, :], b * targets + row
        shift = read_pairs(sums_ptr, at, head, pairs, 2 * HEADS, NUMBER)
        factor = invert(read_pairs(sums_ptr + HEADS, at, head, pairs, 2 * HEADS, NUMBER))
    for step in tl.range(0, tl.max(end - begin, 0).to(tl.int32), loop_unroll_factor=unroll(ROWS)):
        e = begin + step
        is_live = exists(e, end, ROWS)
        pairs = is_live[:, None] & is_head[None, :]
        keys = tile_mask(is_live, is_head, d, WIDTH, IS_EVEN)
        j = tl.load(index_ptr + e, mask=is_live, other=0).to(tl.int64)
        edge = edge_at(perm_ptr, e, is_live)
        k = read_tile(key_ptr, b * sources + j, kv_head, d, keys, KV_HEADS, WIDTH, NUMBER)
        k = add_tile(k, edge_key_ptr, b * edge_key_batch + edge, kv_head, d, keys, KV_HEADS, WIDTH, NUMBER)
        s = score_heads(
            q, k, vector, scale, slope, bias_ptr, b * bias_batch + edge, head, pairs, SCORE, HEADS, NUMBER)
        if NORMALIZER == SOFTMAX:
            p = tl.exp(tl.where(pairs, s - shift, float("-inf"))) * factor
        else:
            p = apply_normalizer(s, NORMALIZER)
        write_pairs(weights_ptr, p, b * edges + edge, head, pairs, HEADS)

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

# The codes of `rows.op`.
SOFTMAX = tl.constexpr(0)
RELU = tl.constexpr(1)
SIGMOID = tl.constexpr(2)
DOT_PRODUCT = tl.constexpr(0)
TANH = tl.constexpr(1)

# Arguments that differ from graph to graph: unless told not to, Triton compiles anew where one is 1 or divides by 16.
SIZES = ["total", "blocks", "slots", "cuts", "rows", "targets", "sources", "edges"]
SIZES += ["bias_batch", "edge_key_batch", "edge_value_batch", "threshold"]

# Thirty arguments on a line each would hide the loops.
# fmt: off


@triton.jit
def mix(word):
    """The mixer of `graphattn.dropout`, on uint32."""
    word = word ^ (word >> 16)
    word = word * 0x7FEB352D
    word = word ^ (word >> 15)
    word = word * 0x846CA68B
    return word ^ (word >> 16)


@triton.jit
def fold(index):
    """Indices of 2^32 and more fold their upper half in."""
    index = index.to(tl.uint64)
    return index.to(tl.uint32) ^ ((index >> 32).to(tl.uint32) * 0x9E3779B9)


@triton.jit
def hash_target(seed_ptr, batch, target):
    """State of the dropout hash after seed, batch and target."""
    seed = tl.load(seed_ptr).to(tl.uint64)
    state = mix(seed.to(tl.uint32) ^ 0x9E3779B9)
    state = mix(state ^ (seed >> 32).to(tl.uint32))
    return mix(mix(state ^ fold(batch)) ^ fold(target))


@triton.jit
def is_kept(state, source, occurrence, head, threshold):
    """Whether dropout keeps the weights [ROWS, HEADS] of one edge per row."""
    state = mix(state ^ (fold(source) + occurrence.to(tl.uint32) * 0x9E3779B9))
    bits = mix(state[:, None] ^ head.to(tl.uint32)[None, :])
    return bits.to(tl.int64) >= threshold


@triton.jit
def number_of(x, NUMBER: tl.constexpr):
    """A number that came in float64, in the accumulator's dtype."""
    return tl.full([1, 1], x, NUMBER)


@triton.jit
def tile_mask(is_live, is_head, column, WIDTH: tl.constexpr, IS_EVEN: tl.constexpr):
    """Which numbers of a tile exist: no more comparisons than its padding asks for."""
    mask = is_live[:, None, None] & (column >= 0)[None, None, :]
    if not IS_EVEN:
        mask = mask & is_head[None, :, None]
    if column.shape[0] != WIDTH:
        mask = mask & (column < WIDTH)[None, None, :]
    return mask


@triton.jit
def tile_at(row, head, column, HEADS: tl.constexpr, WIDTH: tl.constexpr):
    """Offsets [ROWS, HEADS, WIDTH] into an array [rows, HEADS, WIDTH]; `row` is int64."""
    return (row[:, None, None] * HEADS + head[None, :, None]) * WIDTH + column[None, None, :]


@triton.jit
def read_tile(ptr, row, head, column, mask, HEADS: tl.constexpr, WIDTH: tl.constexpr, NUMBER: tl.constexpr):
    """A tile of an array [rows, HEADS, WIDTH]."""
    return tl.load(ptr + tile_at(row, head, column, HEADS, WIDTH), mask=mask, other=0.0).to(NUMBER)


@triton.jit
def read_pairs(ptr, row, head, mask, HEADS: tl.constexpr, NUMBER: tl.constexpr):
    """Numbers [ROWS, HEADS] of an array [rows, HEADS]."""
    return tl.load(ptr + row[:, None] * HEADS + head[None, :], mask=mask, other=0.0).to(NUMBER)


@triton.jit
def write_tile(ptr, x, row, head, column, mask, HEADS: tl.constexpr, WIDTH: tl.constexpr):
    """Write a tile of an array [rows, HEADS, WIDTH], in the array's dtype."""
    tl.store(ptr + tile_at(row, head, column, HEADS, WIDTH), x.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def write_pairs(ptr, x, row, head, mask, HEADS: tl.constexpr):
    """Write numbers [ROWS, HEADS] of an array [rows, HEADS], in the array's dtype."""
    tl.store(ptr + row[:, None] * HEADS + head[None, :], x.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def read_vector(vector_ptr, head, is_head, column, WIDTH: tl.constexpr, NUMBER: tl.constexpr):
    """The vector of an additive score, [1, HEADS, WIDTH]."""
    at = head[None, :, None] * WIDTH + column[None, None, :]
    mask = is_head[None, :, None] & (column < WIDTH)[None, None, :]
    return tl.load(vector_ptr + at, mask=mask, other=0.0).to(NUMBER)


@triton.jit
def add_tile(x, ptr, row, head, column, mask, HEADS: tl.constexpr, WIDTH: tl.constexpr, NUMBER: tl.constexpr):
    """Add a tile of edge features to that of nodes, where there are any."""
    if ptr is not None:
        return x + read_tile(ptr, row, head, column, mask, HEADS, WIDTH, NUMBER)
    else:
        return x


@triton.jit
def activate(x, slope, SCORE: tl.constexpr):
    """What an additive score does to query + key."""
    if SCORE == TANH:
        return 1 - 2 / (1 + tl.exp(2 * x))
    else:
        return tl.where(x > 0, x, slope * x)


@triton.jit
def score_heads(
    q, k, vector, scale, slope, bias_ptr, row, head, mask, SCORE: tl.constexpr, HEADS: tl.constexpr,
    NUMBER: tl.constexpr
):
    """Scores [ROWS, HEADS] of one edge per row, with its bias.

    Every kernel must find the same bits: where scores are large, a rounding that differs exceeds any difference between
    two of them. Hence the explicit multiply-add at the end, which no compiler contracts with what follows.
    """
    if bias_ptr is not None:
        bias = read_pairs(bias_ptr, row, head, mask, HEADS, NUMBER)
    else:
        bias = tl.zeros([q.shape[0], q.shape[1]], NUMBER)
    if SCORE == DOT_PRODUCT:
        return tl.fma(tl.sum(q * k, 2), tl.zeros_like(bias) + scale, bias)
    else:
        return tl.fma(tl.sum(activate(q + k, slope, SCORE) * vector, 2), tl.zeros_like(bias) + 1, bias)


@triton.jit
def score_slope(q, k, vector, scale, slope, SCORE: tl.constexpr):
    """Derivative [ROWS, HEADS, WIDTH] of an additive score by the query, which is that by the key."""
    if SCORE == TANH:
        a = activate(q + k, slope, SCORE)
        return (1 - a * a) * vector
    else:
        return tl.where(q + k > 0, vector, slope * vector)


@triton.jit
def weigh(s, NORMALIZER: tl.constexpr):
    """Weights of normalizers that look at one score alone; -inf is no edge."""
    if NORMALIZER == RELU:
        # Written so that NaN stays.
        return tl.where(s <= 0, 0.0, s)
    elif NORMALIZER == SIGMOID:
        return 1 / (1 + tl.exp(-s))
    else:
        return tl.where(s == float("-inf"), 0.0, s)


@triton.jit
def locate(
    items_ptr, total, blocks, ROWS: tl.constexpr,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, KV_BLOCK: tl.constexpr, GROUP_BLOCK: tl.constexpr,
):
    """What a program works on: its batch element, its block of items and its block of heads.

    Of its items: row, first edge, last edge + 1, slot, and which of them exist. Of its heads: query heads, the kv head
    of each and which exist; then the kv heads, one of each, and which exist.
    """
    HEAD_BLOCKS: tl.constexpr = (KV_HEADS + KV_BLOCK - 1) // KV_BLOCK
    program = tl.program_id(0)
    b = (program // (blocks * HEAD_BLOCKS)).to(tl.int64)
    block = program % (blocks * HEAD_BLOCKS) // HEAD_BLOCKS

    item = block * ROWS + tl.arange(0, ROWS)
    is_item = item < total
    at = items_ptr + item.to(tl.int64) * 4
    row = tl.load(at, mask=is_item, other=0).to(tl.int64)
    begin = tl.load(at + 1, mask=is_item, other=0).to(tl.int64)
    end = tl.load(at + 2, mask=is_item, other=0).to(tl.int64)
    slot = tl.load(at + 3, mask=is_item, other=-1).to(tl.int64)

    first = program % HEAD_BLOCKS * KV_BLOCK
    member = tl.arange(0, KV_BLOCK * GROUP_BLOCK)
    kv_head, member = first + member // GROUP_BLOCK, member % GROUP_BLOCK
    is_head = (kv_head < KV_HEADS) & (member < GROUP)
    kv_only = first + tl.arange(0, KV_BLOCK)
    head, is_kv = kv_head * GROUP + member, kv_only < KV_HEADS
    return b, block, row, begin, end, slot, is_item, head, kv_head, is_head, kv_only, is_kv


@triton.jit
def exists(e, end, ROWS: tl.constexpr):
    """Which items have an edge left. A program of one item never steps beyond its end, and needs no mask."""
    if ROWS == 1:
        return tl.full([1], True, tl.int1)
    else:
        return e < end


@triton.constexpr_function
def unroll(ROWS):
    """Edges of an item that the loop takes at a time.

    With two, a warp asks for the rows of both before it waits: 1 KiB at 128 numbers of two bytes, where about 650 bytes
    from each of 32 warps keep an H200's memory busy. Items beside each other are that many requests as they are.
    """
    return 2 if ROWS == 1 else 1


@triton.jit
def edge_at(perm_ptr, position, is_live):
    """The caller's edge at a position; without a perm the caller's order is the sorted one."""
    if perm_ptr is not None:
        return tl.load(perm_ptr + position, mask=is_live, other=0).to(tl.int64)
    else:
        return position


@triton.jit
def occurrence_at(occurrence_ptr, position, is_live):
    """How many edges of the same pair come before; all zero where no list of them was made."""
    if occurrence_ptr is not None:
        return tl.load(occurrence_ptr + position, mask=is_live, other=0)
    else:
        return tl.zeros_like(position).to(tl.int32)


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
            p = tl.where(pairs, weigh(s, NORMALIZER), 0.0)
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


@triton.jit
def finish(top, norm):
    """The factor that makes sums of softmax weights, and the shift of their scores: both 0 in a row without edges."""
    return invert(norm), tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def invert(norm):
    """1 / norm, or 0 in a row without edges."""
    is_empty = norm == 0
    return tl.where(is_empty, 0.0, 1 / tl.where(is_empty, 1.0, norm))


@triton.jit
def locate_cut(cut_ptr, cuts, BLOCKS: tl.constexpr):
    """What a program that merges works on: batch element, row, first slot, last slot + 1, and its block of the row."""
    program = tl.program_id(0)
    b = (program // (cuts * BLOCKS)).to(tl.int64)
    cut = cut_ptr + (program // BLOCKS % cuts).to(tl.int64) * 3
    row, first, last = tl.load(cut).to(tl.int64), tl.load(cut + 1).to(tl.int64), tl.load(cut + 2).to(tl.int64)
    return b, row, first, last, program % BLOCKS


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
            # A piece of NaN alone has no largest score, and must not vanish.
            factor = tl.where(part_sum != part_sum, part_sum, tl.exp(part_top - shift[None, :]))
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
            p = weigh(s, NORMALIZER)
        write_pairs(weights_ptr, p, b * edges + edge, head, pairs, HEADS)

"""Tiles [ROWS, HEADS, WIDTH] of rows of nodes and edges: where a program's lie, and how they are read and written."""

from __future__ import annotations

import triton
import triton.language as tl

# Arguments that differ from graph to graph: unless told not to, Triton compiles again where one is 1 or divides by 16.
SIZES = ["total", "blocks", "slots", "cuts", "rows", "targets", "sources", "edges"]
SIZES += ["bias_batch", "edge_key_batch", "edge_value_batch", "threshold"]

# Arguments on a line each would hide the code.
# fmt: off


@triton.jit
def number_of(x, NUMBER: tl.constexpr):
    """A number that came in float64, in the accumulator's dtype."""
    return tl.full([1, 1], x, NUMBER)


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
def locate_cut(cut_ptr, cuts, BLOCKS: tl.constexpr):
    """What a program that merges works on: batch element, row, first slot, last slot + 1, and its block of the row."""
    program = tl.program_id(0)
    b = (program // (cuts * BLOCKS)).to(tl.int64)
    cut = cut_ptr + (program // BLOCKS % cuts).to(tl.int64) * 3
    row, first, last = tl.load(cut).to(tl.int64), tl.load(cut + 1).to(tl.int64), tl.load(cut + 2).to(tl.int64)
    return b, row, first, last, program % BLOCKS


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
    from each of 32 warps keep an H200's memory busy. Several items in one program already are that many requests.
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
def add_tile(x, ptr, row, head, column, mask, HEADS: tl.constexpr, WIDTH: tl.constexpr, NUMBER: tl.constexpr):
    """Add a tile of edge features to that of nodes, where there are any."""
    if ptr is not None:
        return x + read_tile(ptr, row, head, column, mask, HEADS, WIDTH, NUMBER)
    else:
        return x


@triton.jit
def write_tile(ptr, x, row, head, column, mask, HEADS: tl.constexpr, WIDTH: tl.constexpr):
    """Write a tile of an array [rows, HEADS, WIDTH], in the array's dtype."""
    tl.store(ptr + tile_at(row, head, column, HEADS, WIDTH), x.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def read_pairs(ptr, row, head, mask, HEADS: tl.constexpr, NUMBER: tl.constexpr):
    """Numbers [ROWS, HEADS] of an array [rows, HEADS]."""
    return tl.load(ptr + row[:, None] * HEADS + head[None, :], mask=mask, other=0.0).to(NUMBER)


@triton.jit
def write_pairs(ptr, x, row, head, mask, HEADS: tl.constexpr):
    """Write numbers [ROWS, HEADS] of an array [rows, HEADS], in the array's dtype."""
    tl.store(ptr + row[:, None] * HEADS + head[None, :], x.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def sum_groups(x, ROWS: tl.constexpr, KV_BLOCK: tl.constexpr, GROUP_BLOCK: tl.constexpr, WIDTH_BLOCK: tl.constexpr):
    """Sum [ROWS, query heads, WIDTH] over the heads that share a kv head."""
    if GROUP_BLOCK == 1:
        return x
    else:
        return tl.sum(tl.reshape(x, [ROWS, KV_BLOCK, GROUP_BLOCK, WIDTH_BLOCK]), 2)

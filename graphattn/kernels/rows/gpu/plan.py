"""What the GPU's rows are cut into, how much of them a program takes, and what a call should cost.

Nothing here needs Triton or a GPU.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ....call import Call
from ....costs import Costs
from ....csr import CSR, index_dtype
from ....offset_bias import OffsetBias
from ...base import share
from ..op import tensors_of

# Rows of at most this many edges share a program: a program of their own would wait for memory most of the time.
SHORT_ROW = 8
MOST_ROWS = 16
# Pieces of long rows have a number of edges between these two, so that there are about as many as an H200 runs warps.
PIECES = 132 * 32 * 4
PIECE_EDGES = (128, 4096)
# Largest number of elements of a tile that one warp holds, see `block_of`.
TILE = 1024
MOST_WARPS = 8
WIDEST = 256
# What a thread loads at once, at most.
LOAD_BYTES = 16
# Pieces of a cut row that are joined at a time, and numbers of each, at most. A hub of 100,000 edges has some hundred
# pieces, and each step waits for the memory once.
MERGED_PIECES, MERGED_NUMBERS = 16, 128

# Instructions of a warp for an edge and a head, and more for each number of key and value: read off the compiled loops.
# The passes backward take 1.3 and 1.5 times as many as forward.
PER_EDGE, PER_NUMBER, PASSES = 1.0, 0.15, 3.8


class Block(NamedTuple):
    """What a program takes: items, and kv heads of each; and its warps."""

    rows: int
    heads: int
    warps: int


@functools.cache
def block_of(
    kv_heads: int, group: int, widths: tuple[int, int], itemsize: int, is_short: bool, is_backward: bool
) -> Block:
    """Choose by widths, dtype and class of degree alone, so that a graph of another size compiles nothing new.

    Args:
        kv_heads: heads of key and value.
        group: query heads of each.
        widths: of a head's key and value.
        itemsize: bytes of a number in memory.
        is_short: whether several short rows share a tile. Otherwise a tile holds heads of one row.
        is_backward: of both passes.

    A table, not a race at run time: what runs doesn't depend on what ran before.

    A score must have the same bits in each pass. Threads share a row's width in the same way whatever the tile, if it
    holds as many numbers as a warp loads at once, so long rows share tiles too if they are that narrow.
    Where no tile of some pass can hold so many, all passes have the same tile.
    """
    narrow = power_of_two(group) * power_of_two(min((n for n in widths if n > 1), default=1))
    filling = 32 * LOAD_BYTES // itemsize
    blocks = {
        (short, backward): _block_of(kv_heads, group, max(widths), itemsize, short, backward, filling // narrow)
        for short in (False, True)
        for backward in (False, True)
    }
    is_filled = max(widths) == 1 or all(x.rows * x.heads * narrow >= x.warps * filling for x in blocks.values())
    return blocks[is_short, is_backward] if is_filled else blocks[True, True]


def _block_of(
    kv_heads: int, group: int, width: int, itemsize: int, is_short: bool, is_backward: bool, filling: int
) -> Block:
    """What fits into registers; `filling` heads are wanted in a tile.

    Three things halve the tile, so that it stays in registers: short rows keep indices and masks for each of them,
    backward holds twice as many tiles, and float64 has numbers twice as long. Without, variants compiled for sm_90 take
    up to all 255 registers, and spill. One warp where that is enough: no reduction leaves it then, and nothing waits
    for another.
    """
    head = power_of_two(group) * power_of_two(width)
    whole = TILE >> is_backward + (itemsize > 4)
    room = whole >> is_short
    heads = min(power_of_two(kv_heads), max(room // (MOST_ROWS if is_short else 1) // head, 1))
    rows = MOST_ROWS if is_short else min(MOST_ROWS, max(filling // heads, 1))
    rows = max(min(rows, room // (heads * head)), 1)
    return Block(rows, heads, min(max(rows * heads * head // whole, 1), MOST_WARPS))


def merge_block(heads: int, width: int) -> tuple[int, int]:
    """Pieces of a cut row that are joined at a time, and heads of each in one program."""
    return MERGED_PIECES, min(power_of_two(heads), max(MERGED_NUMBERS // power_of_two(width), 1))


def power_of_two(n: int) -> int:
    """The next one, n itself included."""
    return 1 << max(n - 1, 0).bit_length()


class ItemPlan(NamedTuple):
    """A CSR with its items, longest first: [n, 4] of row, first edge, last edge + 1, and slot.

    A row of many edges is cut into pieces, each an item with a slot of its own for its partial sums; the slot of whole
    rows is -1.

    Attributes:
        ptr, index, perm: the CSR; perm is empty where the caller's order is the sorted one.
        occurrence: [E] int32, how many edges of the same pair come before each; empty where no edges are parallel.
        long: items that are pieces, or whole rows of more than SHORT_ROW edges.
        short: items of fewer edges.
        cut: [n, 3] of row, first slot, last slot + 1.
    """

    ptr: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    perm: Tensor
    occurrence: Tensor
    long: Tensor
    short: Tensor
    cut: Tensor

    @classmethod
    def of(cls, csr: CSR, transposed: CSR | None = None) -> ItemPlan:
        """Cut the rows of a CSR into items, whatever the rows of the transposed one."""
        return cls(*tensors_of(csr), _occurrences(csr), *_items(csr))

    def slots(self) -> int:
        """How many pieces the cut rows have: each has two at least, and they come first."""
        return self.long.size(0) if self.cut.size(0) else 0


def _items(csr: CSR) -> tuple[Tensor, ...]:
    """Items of long rows, of short ones, and the cut rows, see `ItemPlan`."""
    ptr, edges = csr.ptr, csr.index.numel()
    degree = ptr.diff()
    longest = min(max(edges // PIECES, PIECE_EDGES[0]), PIECE_EDGES[1])
    order = degree.argsort(descending=True, stable=True)
    degree = degree[order]
    is_cut, is_short = degree > longest, degree <= SHORT_ROW
    cut, middle, short = order[is_cut], order[~is_cut & ~is_short], order[is_short]
    pieces = (ptr[cut + 1] - ptr[cut] + longest - 1) // longest
    last_slot = pieces.cumsum(0)
    row = cut.repeat_interleave(pieces)
    slot = torch.arange(row.numel(), device=ptr.device)
    begin = ptr[row] + (slot - (last_slot - pieces).repeat_interleave(pieces)) * longest
    of_cut = torch.stack([row, begin, torch.minimum(begin + longest, ptr[row + 1]), slot], 1)
    whole = lambda rows: torch.stack([rows, ptr[rows], ptr[rows + 1], torch.full_like(rows, -1)], 1)
    dtype = index_dtype(max(edges, ptr.numel()))
    items = (torch.cat([of_cut, whole(middle)]), whole(short), torch.stack([cut, last_slot - pieces, last_slot], 1))
    return tuple(x.to(dtype) for x in items)


def _occurrences(csr: CSR) -> Tensor:
    """How many edges of the same pair lie before each, [E] int32; nothing where no edges are parallel."""
    edges = csr.index.numel()
    if not edges:
        return csr.index.new_empty(0, dtype=torch.int32)
    place = torch.arange(edges, device=csr.index.device)
    is_first = torch.ones(edges, dtype=torch.bool, device=csr.index.device)
    is_first[1:] = csr.index[1:] != csr.index[:-1]
    is_first[csr.ptr[:-1][csr.ptr.diff() > 0]] = True
    occurrence = place - torch.where(is_first, place, 0).cummax(0).values
    return (occurrence if bool(occurrence.any()) else occurrence[:0]).to(torch.int32)


def estimate(call: Call, costs: Costs) -> float:
    """Seconds of a call: bytes over the bandwidths, or instructions where they take longer, and launches.

    Forward gathers a row of key and of value per edge, and the pass over targets once more; the pass over sources
    gathers a row of the query and of the output's gradient. What is gathered comes from the cache as far as it fits.
    """
    width = call.query.size(-1) + call.value.size(-1)
    batch, edges, itemsize = call.batch_shape.numel(), call.pattern.num_edges, call.query.dtype.itemsize
    kv_heads = call.key.size(-2)
    of_sources = batch * call.pattern.num_sources * kv_heads * width * itemsize
    of_targets = batch * call.pattern.num_targets * call.heads * width * itemsize
    bias = None if isinstance(call.edge_bias, OffsetBias) else call.edge_bias
    of_edges = sum(0 if x is None else x.nbytes for x in (bias, call.edge_key, call.edge_value))
    # Each of three passes reads or writes every tensor once, and the index and the caller's place of each edge.
    seconds = 3 * (of_sources + of_targets + of_edges + 8 * edges) / costs.triton_memory
    for rows, per_edge, passes in ((of_sources, kv_heads, 2), (of_targets, call.heads, 1)):
        held = min(1.0, costs.triton_cache_bytes / rows) if rows else 1.0
        per_byte = held / costs.triton_cache + (1 - held) / costs.triton_memory
        seconds += passes * batch * edges * per_edge * width * itemsize * per_byte
    instructions = PASSES * batch * edges * call.heads * (PER_EDGE + PER_NUMBER * width)
    return share(call) * (max(seconds, instructions / costs.triton_instructions) + costs.triton_call)

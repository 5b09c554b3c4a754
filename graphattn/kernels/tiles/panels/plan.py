"""How a pattern is cut into panels of up to 64 targets, each with a box of sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ....call import Call
from ....compiled import load
from ....costs import Costs
from ....patterns import Full, Grid, Pattern, Window
from ..plan import Plan, cut_groups, options_of

# Targets of a panel, and the divisor of their number if a tile has more.
PANEL, UNIT = 64, 16
# Sources of a tile: a panel's scores for this many fit into the caches.
MOST_COLUMNS = 8192
# Targets of one task of the backward pass, panel after panel.
CHUNK = 512
# Colors that a source can have.
BITS = 62
# panels, rows, columns, spans, bits, chunks, fresh: no plan of groups has this number of tensors.
PANEL_TENSORS = 7
# Targets of a tile along each axis with a radius: in 2-D a group of 16 targets is then 4 x 4.
HEIGHTS = {1: (64,), 2: (16, 4), 3: (8, 2, 4)}


def write_panels(pattern: Pattern) -> Plan:
    """Cut a pattern that `why_not_cut` accepts; return nothing if a tile has too many sources.

    Tensors, for P panels, R targets, C sources in all:
        panels: [P, 7] int64: first and number of `rows`, first and number of `columns`, first of `bits`, and the last
            two extents of the box that the sources make.
        rows: [R] int64 targets, each once.
        columns: [C] int64 sources.
        spans: [2, R] int64: the first of the panel's sources that the target sees, and the one after the last.
        bits: for each source of a panel, padded to multiples of 8, the targets that see it, as 64 bits.
        chunks: [K, 4] int64, the first panel of one thread's work, and the one after the last; the same for `fresh`.
            Chunks of one color share no source.
        fresh: [S] int64, the sources in the order of the first chunk that sees them.
    Numbers: the largest number of sources of a panel, then the end of each color among the chunks.
    """
    assert isinstance(pattern, Full | Window | Grid)
    boxes = _boxes_of_full(pattern) if isinstance(pattern, Full) else _boxes_of_groups(pattern)
    widest = int(boxes.widths.max()) if len(boxes.widths) else 0
    if widest > MOST_COLUMNS:
        return (), ()
    table = _cut_tiles(boxes)
    padded = (table[:, 3] + 7) // 8 * 8
    table[:, 4] = padded.cumsum(0) - padded
    bits = torch.zeros(int(padded.sum()), dtype=torch.int64)
    load("kernels.tiles.panels.jit.loops").write_bits(
        table.numpy(), boxes.first.numpy(), boxes.count.numpy(), bits.numpy()
    )
    if isinstance(pattern, Full):
        # Chunks share sources where they share a component.
        component = (np.searchsorted(pattern.ptr.numpy(), table[:, 0].numpy(), side="right") - 1).tolist()
        inside = lambda begin, end: np.arange(component[begin], component[end - 1] + 1)
        chunks, first_chunk, ends = _cut_chunks(table, inside, len(pattern.shape))
        first_chunk = first_chunk.repeat(pattern.source_shape[:, 0].numpy())
    else:
        of_panels, listed = table[:, 2:4].tolist(), boxes.columns.numpy()
        inside = lambda begin, end: np.concatenate([listed[at : at + n] for at, n in of_panels[begin:end]])
        chunks, first_chunk, ends = _cut_chunks(table, inside, pattern.num_sources)
    stops = np.bincount(first_chunk, minlength=len(chunks))[: len(chunks)].cumsum()
    chunks = np.concatenate([chunks, np.stack([np.append(0, stops)[: len(stops)], stops], 1)], 1)
    of_chunks = (torch.from_numpy(chunks), torch.from_numpy(np.argsort(first_chunk, kind="stable")))
    return (table, boxes.rows, boxes.columns, boxes.spans, bits, *of_chunks), (widest, *ends)


def panel_sizes(pattern: Pattern) -> tuple[int, int, int]:
    """Estimate the number of scores and panels of a plan, and the most sources of a panel, without making it."""
    assert isinstance(pattern, Full | Window | Grid)
    if isinstance(pattern, Full):
        targets, sources = pattern.shape[:, 0], pattern.source_shape[:, 0]
        scores = int(((targets + UNIT - 1) // UNIT * UNIT * sources).sum())
        panels = int(((targets + PANEL - 1) // PANEL).sum())
        return scores, panels, int(sources.max()) if len(sources) else 0
    radius, dilation, causal = options_of(pattern)
    height, extents = _height(pattern), [1, 1, 1, *_longest(pattern)][-3:]
    scores, widest, lanes = pattern.num_targets, 1, UNIT
    # A vector holds the last of a tile's targets.
    for axis in (2, 1, 0):
        k = axis - 3 + len(radius)
        reach = 0 if k < 0 else radius[k] * (1 if causal[k] else 2)
        extent = extents[axis] if k < 0 else -(-extents[axis] // dilation[k])
        scores *= min(min(lanes, height[axis]) + reach, extent)
        widest *= min(height[axis] + reach, extent)
        lanes = max(lanes // height[axis], 1)
    return scores, -(-pattern.num_targets // PANEL), widest


def panel_seconds(call: Call, costs: Costs, sizes: tuple[int, int, int], copied: bool) -> float:
    """Estimate the seconds of a call, with backward, for the `panel_sizes` of its pattern.

    Inputs that must be copied are read and written three more times.
    """
    scores, panels, _ = sizes
    width = call.query.size(-1) + call.value.size(-1)
    numbers = call.pattern.num_targets * width * (4 if copied else 1)
    per_score = costs.panels_score + costs.panels_product * width
    per_head = panels * costs.panels_panel + numbers * costs.panels_number + scores * per_score
    return costs.panels_call + call.batch_shape.numel() * call.heads * per_head


def _height(pattern: Window | Grid) -> tuple[int, int, int]:
    """Targets of a tile along each axis."""
    if isinstance(pattern, Window) and pattern.dilation == 1:
        return 1, 1, PANEL
    longest = [1, 1, 1, *_longest(pattern)][-3:]
    axes = [axis for axis in range(3) if longest[axis] > 1]
    height, room = [1, 1, 1], PANEL
    for axis, most in zip(axes, HEIGHTS.get(len(axes), ()), strict=True):
        height[axis] = min(longest[axis], room if axis == axes[-1] else most)
        room //= height[axis]
    return height[0], height[1], height[2]


def _longest(pattern: Window | Grid) -> list[int]:
    """The longest extent along each axis; sequences are concatenated."""
    if isinstance(pattern, Window) and pattern.dilation == 1:
        return [pattern.num_targets]
    return pattern.shape.amax(0).tolist() if len(pattern.shape) else []


class _Boxes(NamedTuple):
    """G tiles, with R targets and C sources in all.

    Attributes:
        rows: [R] int64 targets, tile by tile.
        columns: [C] int64 sources, tile by tile.
        first, count: [3, R] int64, the sources that each target sees along each axis of its tile's box.
        spans: [2, R] int64, the first of its tile's sources that each target sees, and the one after the last.
        sizes: [G] int64, number of targets of each tile.
        widths: [G] int64, number of its sources.
        extents: [2, G] int64, the last two extents of the box that these make.
    """

    rows: Tensor
    columns: Tensor
    first: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count
    spans: Tensor
    sizes: Tensor
    widths: Tensor
    extents: Tensor


def _boxes_of_full(pattern: Full) -> _Boxes:
    """One tile per component, of whatever size: all of them at once, as batches are new at each step."""
    sizes, widths = pattern.shape[:, 0], pattern.source_shape[:, 0]
    rows, columns = torch.arange(pattern.num_targets), torch.arange(pattern.num_sources)
    seen = torch.repeat_interleave(widths, sizes)
    if pattern.causal:
        seen = torch.minimum(seen, rows - torch.repeat_interleave(pattern.ptr[:-1], sizes) + 1)
    one, first = torch.ones_like(rows), torch.zeros(3, len(rows), dtype=torch.int64)
    spans, extents = _spans(first[2], seen, seen == 0), torch.stack([torch.ones_like(widths), widths])
    return _Boxes(rows, columns, first, torch.stack([one, one, seen]), spans, sizes, widths, extents)


def _boxes_of_groups(pattern: Window | Grid) -> _Boxes:
    """The tiles of a pattern's groups, without targets that are repetitions."""
    nothing = torch.empty(0, dtype=torch.int64)
    threes, pairs = nothing.view(3, 0), nothing.view(2, 0)
    found = [_Boxes(nothing, nothing, threes, threes, pairs, nothing, nothing, pairs)]
    for group in cut_groups(pattern, _height(pattern)):
        is_kept = torch.ones(group.tiles, group.height, dtype=torch.bool)
        if group.kept.numel():
            is_kept = torch.zeros_like(is_kept).view(-1).index_fill_(0, group.kept, True).view(is_kept.shape)
        rows = group.targets(0, group.tiles, 0, group.height)[is_kept]
        columns = group.sources(0, group.tiles, group.width).flatten()
        first, count = (x.expand(group.tiles, -1, -1)[is_kept].T.long() for x in (group.first, group.count))
        _, b1, b2 = group.box
        flat = lambda x, b1=b1, b2=b2: (x[0] * b1 + x[1]) * b2 + x[2]
        spans = _spans(flat(first), flat(first + count - 1) + 1, (count == 0).any(0))
        widths, extents = torch.full((group.tiles,), group.width), torch.tensor([[b1], [b2]]).expand(2, group.tiles)
        found.append(_Boxes(rows, columns, first, count, spans, is_kept.sum(1), widths, extents))
    return _Boxes(*(torch.cat(parts, -1) for parts in zip(*found, strict=True)))


def _spans(low: Tensor, high: Tensor, is_empty: Tensor) -> Tensor:
    """Bounds such that those of no source change neither a minimum nor a maximum."""
    return torch.stack([low.masked_fill(is_empty, 2**30), high.masked_fill(is_empty, 0)])


def _cut_tiles(boxes: _Boxes) -> Tensor:
    """The table of panels, but for where their bits begin."""
    sizes, widths = boxes.sizes, boxes.widths
    pieces = (sizes + PANEL - 1) // PANEL
    even = (sizes + pieces - 1) // pieces.clamp(min=1)
    size = (even + UNIT - 1) // UNIT * UNIT
    tile = torch.repeat_interleave(torch.arange(len(sizes)), pieces)
    rank = torch.arange(len(tile)) - (pieces.cumsum(0) - pieces)[tile]
    begin = (sizes.cumsum(0) - sizes)[tile] + rank * size[tile]
    many = torch.minimum(sizes[tile] - rank * size[tile], size[tile])
    column = (widths.cumsum(0) - widths)[tile]
    return torch.stack([begin, many, column, widths[tile], torch.zeros_like(tile), *boxes.extents[:, tile]], 1)


def _cut_chunks(
    panels: Tensor, inside: Callable[[int, int], np.ndarray], count: int
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Chunks of consecutive panels, color by color, the first chunk of each item, and the ends of the colors.

    Chunks of one color share no item, which are those of `count` that `inside` names for a range of panels. Items that
    no panel has belong to the last chunk.
    """
    label = panels[:, 0] // CHUNK
    begins = [0, *((label.diff() != 0).nonzero().flatten() + 1).tolist()] if len(panels) else []
    chunks = np.array([begins, [*begins[1:], len(panels)][: len(begins)]], dtype=np.int64).T
    used, colors = np.zeros(count, dtype=np.int64), np.zeros(len(chunks), dtype=np.int64)
    seen = []
    for k, (begin, end) in enumerate(chunks):
        seen.append(inside(begin, end))
        taken = int(np.bitwise_or.reduce(used[seen[-1]], initial=0))
        # The first free color; otherwise chunks run one after another.
        colors[k] = next((c for c in range(BITS) if not taken >> c & 1), max(BITS, int(colors.max()) + 1))
        if colors[k] < BITS:
            used[seen[-1]] |= 1 << colors[k]
    order = np.argsort(colors, kind="stable")
    ends = np.flatnonzero(np.diff(colors[order], append=-1)) + 1
    first_chunk = np.full(count, max(len(chunks) - 1, 0))
    for k in reversed(range(len(chunks))):
        first_chunk[seen[order[k]]] = k
    return chunks[order], first_chunk, ends.tolist()

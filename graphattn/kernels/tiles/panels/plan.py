"""How a pattern is cut into panels of up to 64 targets, each with a box of sources."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ....call import Call
from ....compiled import load
from ....costs import Costs
from ....patterns import Full, Grid, Pattern, Window
from ..plan import Group, Plan, cut_groups, options_of

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
    groups = cut_groups(pattern, None if isinstance(pattern, Full) else _height(pattern))
    widest = max((group.width for group in groups), default=0)
    if widest > MOST_COLUMNS:
        return (), ()
    empty = torch.empty(0, dtype=torch.int64)
    panels, rows, columns, bounds = [empty.view(0, 7)], [empty], [empty], [empty.view(6, 0)]
    spans, row_begin, column_begin = [empty.view(2, 0)], 0, 0
    for group in groups:
        is_kept = torch.ones(group.tiles, group.height, dtype=torch.bool)
        if group.kept.numel():
            is_kept = torch.zeros_like(is_kept).view(-1).index_fill_(0, group.kept, True).view(is_kept.shape)
        rows.append(group.targets(0, group.tiles, 0, group.height)[is_kept])
        columns.append(group.sources(0, group.tiles, group.width).flatten())
        first, count = (x.expand(group.tiles, -1, -1)[is_kept].T for x in (group.first, group.count))
        bounds.append(torch.cat([first, count]))
        spans.append(_ends(group, first.long(), count.long()))
        panels.append(_cut_tiles(group, is_kept.sum(1), row_begin, column_begin))
        row_begin, column_begin = row_begin + len(rows[-1]), column_begin + len(columns[-1])
    table = torch.cat(panels)
    padded = (table[:, 3] + 7) // 8 * 8
    table[:, 4] = padded.cumsum(0) - padded
    bits = torch.zeros(int(padded.sum()), dtype=torch.int64)
    write_bits = load("kernels.tiles.panels.jit.loops").write_bits
    write_bits(table.numpy(), *torch.cat(bounds, 1).long().view(2, 3, -1).numpy(), bits.numpy())
    listed = torch.cat(columns)
    chunks, fresh, ends = _cut_chunks(table, listed, pattern.num_sources)
    return (table, torch.cat(rows), listed, torch.cat(spans, 1), bits, chunks, fresh), (widest, *ends)


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


def _ends(group: Group, first: Tensor, count: Tensor) -> Tensor:
    """First source that each target sees, and the one after the last: [2, R]."""
    _, b1, b2 = group.box
    flat = lambda x: (x[0] * b1 + x[1]) * b2 + x[2]
    is_empty = (count == 0).any(0)
    low, high = flat(first), flat(first + count - 1) + 1
    return torch.stack([low.masked_fill(is_empty, 2**30), high.masked_fill(is_empty, 0)])


def _cut_tiles(group: Group, sizes: Tensor, row_begin: int, column_begin: int) -> Tensor:
    """Panels of a group, given the number of targets per tile."""
    pieces = -(-sizes // PANEL)
    even = (sizes + pieces - 1) // pieces.clamp(min=1)
    size = (even + UNIT - 1) // UNIT * UNIT
    tile = torch.repeat_interleave(torch.arange(group.tiles), pieces)
    piece = torch.arange(len(tile)) - (pieces.cumsum(0) - pieces)[tile]
    begin = (sizes.cumsum(0) - sizes)[tile] + piece * size[tile]
    many = torch.minimum(sizes[tile] - piece * size[tile], size[tile])
    constants = torch.tensor([group.width, 0, *group.box[1:]]).expand(len(tile), 4)
    return torch.cat([torch.stack([row_begin + begin, many, column_begin + tile * group.width], 1), constants], 1)


def _cut_chunks(panels: Tensor, columns: Tensor, sources: int) -> tuple[Tensor, Tensor, list[int]]:
    """Chunks of consecutive panels, color by color, the sources by their first chunk, and the ends of the colors."""
    label = panels[:, 0] // CHUNK
    begins = [0, *((label.diff() != 0).nonzero().flatten() + 1).tolist()] if len(panels) else []
    chunks = np.array([begins, [*begins[1:], len(panels)][: len(begins)]], dtype=np.int64).T
    used, colors = np.zeros(sources, dtype=np.int64), np.zeros(len(chunks), dtype=np.int64)
    seen = []
    for k, (begin, end) in enumerate(chunks):
        inside = [columns[column : column + count].numpy() for _, _, column, count, *_ in panels[begin:end].tolist()]
        seen.append(np.concatenate(inside))
        taken = int(np.bitwise_or.reduce(used[seen[-1]], initial=0))
        # The first free color; otherwise chunks run one after another.
        colors[k] = next((c for c in range(BITS) if not taken >> c & 1), max(BITS, int(colors.max()) + 1))
        if colors[k] < BITS:
            used[seen[-1]] |= 1 << colors[k]
    order = np.argsort(colors, kind="stable")
    ends = np.flatnonzero(np.diff(colors[order], append=-1)) + 1
    # Sources that no target sees belong to the last chunk.
    first = np.full(sources, max(len(chunks) - 1, 0))
    for k in reversed(range(len(chunks))):
        first[seen[order[k]]] = k
    stops = np.bincount(first, minlength=len(chunks))[: len(chunks)].cumsum()
    table = np.stack([*chunks[order].T, np.append(0, stops[:-1])[: len(stops)], stops], 1)
    return torch.from_numpy(table), torch.from_numpy(np.argsort(first, kind="stable")), ends.tolist()

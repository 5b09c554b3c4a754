"""How `tiles` cuts a pattern: groups of equally large tiles, each with some targets and a box of sources.

Everything has three axes; if the pattern has fewer, the leading ones have extent 1. A dilated pattern is one array per
residue class, in which it isn't dilated.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...costs import CPU, Costs
from ...patterns import Full, Grid, Pattern, Window

# Full components of more targets than this are separate tiles, smaller ones are padded to a common size.
LARGE = 256
# Candidate numbers of targets of a tile, per number of axes with a radius.
HEIGHTS = {
    0: [(1, 1, 64)],
    1: [(1, 1, m) for m in (16, 32, 64, 128, 256)],
    2: [(1, m, n) for m, n in ((4, 4), (4, 8), (8, 8), (8, 16), (16, 16), (32, 32))],
    3: [(2, 4, 4), (4, 4, 4), (4, 4, 8), (8, 8, 8)],
}


class Group(NamedTuple):
    """G tiles of M targets and the C sources of a box each. Nodes of a tile are given by an index, or by a regular
    stride.

    Attributes:
        tiles: G.
        height: M.
        box: extents of the sources, C = their product.
        row_start, row_step: tile g holds the targets row_start + g * row_step + m; with a step of 0 they are in `rows`.
        column_start, column_step: the same for its sources and `columns`.
        is_full: every target sees the whole box.
        is_causal: target m sees the sources up to the m-th.
        rows: [G, M] int64 targets, with repetitions if a tile is not full; or empty.
        columns: [G, C] int64 sources, or empty.
        place: [G or 1, M, 3] coordinates of each target, counted from the first source of the box.
        first: [G or 1, M, 3] first source that the target sees along each axis of the box.
        count: [G or 1, M, 3] number of sources that it sees.
        turn: [G or 1, M, 3] number of those that come last among the target's edges where a window crosses the border
            of a torus: they lie before the border, or, if `turn` is the larger part, the others lie behind it.
        kept: positions among the G * M targets that aren't repetitions; empty if there are none.
    """

    tiles: int
    height: int
    box: tuple[int, int, int]
    row_start: int
    row_step: int
    column_start: int
    column_step: int
    is_full: bool
    is_causal: bool
    rows: Tensor
    columns: Tensor
    place: Tensor
    first: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count
    turn: Tensor
    kept: Tensor

    @property
    def width(self) -> int:
        """C."""
        return math.prod(self.box)

    def targets(self, begin: int, end: int, top: int, bottom: int) -> Tensor:
        """Targets `top` to `bottom` of the tiles from `begin` to `end`: [g, m] int64."""
        if not self.row_step:
            return self.rows[begin:end, top:bottom]
        tile, row = (torch.arange(*ends, device=self.place.device) for ends in ((begin, end), (top, bottom)))
        return self.row_start + tile[:, None] * self.row_step + row

    def sources(self, begin: int, end: int, right: int) -> Tensor:
        """The first `right` sources of the tiles from `begin` to `end`: [g, c] int64."""
        if not self.column_step:
            return self.columns[begin:end, :right]
        tile, column = (torch.arange(*ends, device=self.place.device) for ends in ((begin, end), (0, right)))
        return self.column_start + tile[:, None] * self.column_step + column


# A plan as operators take it: the groups' tensors after each target's first edge, and their numbers after those of
# the offsets.
Plan = tuple[tuple[Tensor, ...], tuple[int, ...]]
TENSORS, NUMBERS, OFFSETS = 7, 11, 6


def write_plan(pattern: Pattern) -> Plan:
    """Cut a pattern that `why_not_cut` accepts."""
    assert isinstance(pattern, Full | Window | Grid)
    groups = cut_groups(pattern)
    degree = torch.zeros(pattern.num_targets, dtype=torch.int64, device=pattern.device)
    for group in groups:
        count = group.count.prod(-1, dtype=torch.int64).expand(group.tiles, -1)
        degree[group.targets(0, group.tiles, 0, group.height).flatten()] = count.flatten()
    ranges = [range(1)] * (3 - pattern.shape.size(1)) + list(pattern._offset_ranges())
    tensors: list[Any] = [torch.nn.functional.pad(degree.cumsum(0), (1, 0))]
    numbers: list[Any] = [along.start // along.step for along in ranges] + [len(along) for along in ranges]
    for group in groups:
        tensors += group[-TENSORS:]
        numbers += [group.tiles, group.height, *group.box, group.row_start, group.row_step]
        numbers += [group.column_start, group.column_step, int(group.is_full), int(group.is_causal)]
    return tuple(tensors), tuple(numbers)


def cut_groups(pattern: Pattern, heights: tuple[int, int, int] | None = None) -> list[Group]:
    """The groups of a pattern; `heights` are those of its tiles along each axis, the fastest if omitted."""
    assert isinstance(pattern, Full | Window | Grid)
    if isinstance(pattern, Full):
        return _components(pattern)
    if isinstance(pattern, Window) and pattern.dilation == 1:
        return _strips(pattern, heights)
    return _patches(pattern, heights)


def read_groups(tensors: list[Tensor], numbers: list[int]) -> list[Group]:
    """The groups of a plan."""
    groups = []
    for k in range((len(numbers) - OFFSETS) // NUMBERS):
        tiles, height, b0, b1, b2, *rest = numbers[OFFSETS + k * NUMBERS : OFFSETS + (k + 1) * NUMBERS]
        is_full, is_causal = map(bool, rest[4:])
        parts: list[Any] = tensors[1 + k * TENSORS : 1 + (k + 1) * TENSORS]
        regular: Any = (tiles, height, (b0, b1, b2), *rest[:4], is_full, is_causal)
        groups.append(Group(*regular, *parts))
    return groups


def why_not_cut(pattern: Pattern) -> str | None:
    """Why a pattern can't be cut into tiles."""
    if not isinstance(pattern, Full | Window | Grid):
        return f"only Full, Window and Grid have tiles, not {type(pattern).__name__}"
    if isinstance(pattern, Window) and pattern.global_tokens:
        return "global tokens don't fit into the strips of a window"
    if (
        isinstance(pattern, Grid)
        and pattern.border == "wrap"
        # Cached, because extents are data, which a compiled graph can't read.
        and not pattern.keep("dilation divides", lambda: _divides(pattern))
    ):
        return "a wrapped border needs extents that the dilation divides"
    return None


def _divides(pattern: Grid) -> bool:
    return bool((pattern.shape % torch.tensor(pattern.dilation, device=pattern.device) == 0).all())


def tile_shapes(pattern: Pattern) -> list[tuple[int, int, int]]:
    """Estimate the number of tiles of a plan and of their targets and sources, without making it."""
    assert isinstance(pattern, Full | Window | Grid)
    if isinstance(pattern, Full):
        sizes = torch.cat([pattern.shape, pattern.source_shape], 1)
        rounded = torch.where(sizes > LARGE, sizes, -(-sizes // 8) * 8)
        pairs, counts = rounded.unique(dim=0, return_counts=True)
        return [(count, *pair) for count, pair in zip(counts.tolist(), pairs.tolist(), strict=True)]
    if not pattern.num_targets:
        return []
    radius, dilation, causal = options_of(pattern)
    # From the longest extent on, every residue has at most one pixel.
    step = torch.minimum(torch.tensor(dilation, device=pattern.device), pattern.shape.amax(0))
    extents = -(-pattern.shape // step)
    if isinstance(pattern, Window) and pattern.dilation == 1:
        extents = extents.sum(0, keepdim=True)
    longest = extents.amax(0).tolist()
    height = best_height(radius, causal, longest)[3 - len(longest) :]
    reaches = [(1 if only_before else 2) * reach for reach, only_before in zip(radius, causal, strict=True)]
    box = [min(h + reach, max(e, 1)) for h, reach, e in zip(height, reaches, longest, strict=True)]
    tiles = int((-(-extents // torch.tensor(height, device=pattern.device))).prod(1).sum() * step.prod())
    return [(tiles, math.prod(height), math.prod(box))]


def options_of(pattern: Window | Grid) -> tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
    """Radius, dilation and causal along each axis."""
    if isinstance(pattern, Window):
        return (pattern.radius,), (pattern.dilation,), (pattern.causal,)
    return pattern.radius, pattern.dilation, pattern.causal


def best_height(radius: tuple[int, ...], causal: tuple[bool, ...], extents: list[int]) -> tuple[int, int, int]:
    """Targets per tile along each axis: the fastest by a model of products, passes over scores, and gathers."""
    reaches = [(1 if only_before else 2) * reach for reach, only_before in zip(radius, causal, strict=True)]
    reaches = [0] * (3 - len(reaches)) + reaches
    extents = [1] * (3 - len(extents)) + extents

    def seconds(height: tuple[int, ...]) -> float:
        height = tuple(min(h, max(e, 1)) for h, e in zip(height, extents, strict=True))
        box = [min(h + reach, max(e, 1)) for h, reach, e in zip(height, reaches, extents, strict=True)]
        tiles = math.prod(-(-e // h) for e, h in zip(extents, height, strict=True))
        # By the same constants everywhere, as the result's last bits depend on how a pattern is cut.
        return tiles * tile_seconds(CPU, math.prod(height), math.prod(box), 64, 64)

    axes = [axis for axis in range(3) if extents[axis] > 1]
    tried = []
    for height in HEIGHTS[len(axes)]:
        full = [1, 1, 1]
        for axis, h in zip(axes, height[3 - len(axes) :] if axes else [], strict=True):
            full[axis] = h
        tried.append((full[0], full[1], full[2]))
    return min(tried, key=seconds)


def tile_seconds(costs: Costs, height: int, width: int, key_width: int, value_width: int) -> float:
    """Estimate the forward seconds of one head of one tile; benchmarks/structured.py compares them."""
    products = 2 * (height + 16) * width * (key_width + value_width) / costs.tiles_flop
    moved = 4 * (height + width) * (key_width + value_width) / costs.tiles_bytes
    return products + height * width * costs.tiles_pair + moved


def _components(pattern: Full) -> list[Group]:
    """One tile per component: views of large or equal ones, the others padded to common sizes."""
    sizes, source_sizes = pattern.shape[:, 0], pattern.source_shape[:, 0]
    pairs = torch.stack([sizes, source_sizes], 1).tolist()
    if pairs and pairs[0][0] and all(pair == pairs[0] for pair in pairs):
        return [_component(pattern, len(pairs), pairs[0][0], pairs[0][1], 0, 0)]
    starts, source_starts = pattern.ptr.tolist(), pattern.source_ptr.tolist()
    groups = []
    padded: dict[tuple[int, int], list[int]] = {}
    for k, (size, source_size) in enumerate(pairs):
        if size > LARGE or source_size > LARGE:
            groups += [_component(pattern, 1, size, source_size, starts[k], source_starts[k])] if size else []
        elif size:
            padded.setdefault((_round(size), _round(source_size)), []).append(k)
    for (height, width), members in sorted(padded.items()):
        chosen = torch.tensor(members, device=pattern.device)
        row, column = (torch.arange(n, device=pattern.device) for n in (height, width))
        last, source_last = (x[chosen][:, None] - 1 for x in (sizes, source_sizes))
        rows = pattern.ptr[chosen][:, None] + torch.minimum(row, last)
        columns = pattern.source_ptr[chosen][:, None] + torch.minimum(column, source_last)
        place = torch.minimum(row, last)
        count = torch.minimum(place + 1, source_last + 1) if pattern.causal else (source_last + 1).expand_as(place)
        is_full = bool((count == width).all())
        groups.append(_indexed((1, 1, width), rows, columns, *_lines(place, count), row <= last, is_full))
    return groups


def _component(pattern: Full, tiles: int, size: int, source_size: int, row_start: int, column_start: int) -> Group:
    """Components of one size, one after another."""
    place = torch.arange(size, device=pattern.device)[None]
    count = (place + 1).clamp(max=source_size) if pattern.causal else torch.full_like(place, source_size)
    empty = place.new_empty(0)
    # A step of 0 would mean that there is an index.
    strides = (row_start, size, column_start, max(source_size, 1))
    kind = (not pattern.causal, pattern.causal)
    return Group(tiles, size, (1, 1, source_size), *strides, *kind, empty, empty, *_lines(place, count), empty)


def _strips(pattern: Window, heights: tuple[int, int, int] | None) -> list[Group]:
    """Strips of the concatenated sequences, each with its window; bounds separate the sequences."""
    nodes, reach = pattern.num_targets, (1 if pattern.causal else 2) * pattern.radius
    if nodes == 0:
        return []
    height = min((heights or best_height((pattern.radius,), (pattern.causal,), [nodes]))[2], nodes)
    width = min(height + reach, nodes)
    device = pattern.device
    component, first, count = pattern._spans()
    first, count = first[:, 0] + pattern.ptr[component], count[:, 0]

    whole = nodes // height
    starts = torch.arange(0, whole * height, height, device=device)
    origin = (starts - pattern.radius).clamp(0, nodes - width)
    row = torch.arange(height, device=device)
    shifted = (first[: whole * height].view(whole, height) - origin[:, None], count[: whole * height].view(whole, -1))
    is_regular = (shifted[0] == row).all(1) & (shifted[1] == reach + 1).all(1) & (origin == starts - pattern.radius)
    begin, end = _longest_run(is_regular)
    groups = []
    if end > begin:
        place = row[None] + pattern.radius
        bounds = _lines(place, torch.full_like(place, reach + 1), row[None])
        strides = (begin * height, height, begin * height - pattern.radius, height)
        empty = row.new_empty(0)
        groups.append(Group(end - begin, height, (1, 1, width), *strides, False, False, empty, empty, *bounds, empty))
    others = [torch.cat([starts[:begin], starts[end:]])]
    others += [torch.tensor([whole * height], device=device)] if whole * height < nodes else []
    for these in others:
        if not these.numel():
            continue
        rows = these[:, None] + torch.arange(min(height, nodes - int(these[-1])), device=device)
        origin = (these - pattern.radius).clamp(0, nodes - width)[:, None]
        columns = origin + torch.arange(width, device=device)
        bounds = _lines(rows - origin, count[rows], first[rows] - origin)
        groups.append(_indexed((1, 1, width), rows, columns, *bounds, None, False))
    return groups


def _patches(pattern: Window | Grid, heights: tuple[int, int, int] | None) -> list[Group]:
    """Blocks of an array's nodes, each with the smallest box that contains their sources."""
    if not pattern.num_targets:
        return []
    axes, device = pattern.shape.size(1), pattern.device
    radius, dilation, causal = options_of(pattern)
    is_wrapped = isinstance(pattern, Grid) and pattern.border == "wrap"
    step = torch.tensor([*[1] * (3 - axes), *dilation], device=device)
    arrays = _residue_classes(torch.nn.functional.pad(pattern.shape, (3 - axes, 0), value=1), pattern.ptr, step)
    longest = arrays.extent.amax(0)
    heights = heights or best_height(radius, causal, longest.tolist()[3 - axes :])
    height = torch.minimum(torch.tensor(heights, device=device), longest)

    tiles = (arrays.extent + height - 1) // height
    array = torch.repeat_interleave(torch.arange(len(tiles), device=device), tiles.prod(1))
    rank = torch.arange(len(array), device=device) - (tiles.prod(1).cumsum(0) - tiles.prod(1))[array]
    extent, whole, residue, base, stride = (x[array][:, None] for x in arrays)
    place = (_unravel(rank, tiles[array]) * height)[:, None] + _coordinates(height)
    is_kept = (place < extent).all(-1)
    place = torch.minimum(place, extent - 1)
    first, count = place.clone(), torch.ones_like(place)
    span = pattern._span((residue + place * step)[..., 3 - axes :], whole[..., 3 - axes :].expand(*place.shape[:2], -1))
    first[..., 3 - axes :], count[..., 3 - axes :] = span
    first = (first - residue) // step

    origin = first.amin(1, keepdim=True)
    box = (first + count - origin).flatten(0, 1).amax(0)
    turn = torch.where(first < 0, -first, torch.where(first + count > extent, extent - first, 0))
    if not is_wrapped:
        origin = torch.minimum(origin, extent - box).clamp(min=0)
    column = origin + _coordinates(box)
    column = column % extent if is_wrapped else torch.minimum(column, extent - 1)
    rows, columns = (base + (x * stride).sum(-1) for x in (place, column))
    first, place = first - origin, place - origin
    # All tiles away from the border share one mask.
    middle = len(rows) // 2
    is_alike = torch.stack([(x == x[middle]).flatten(1).all(1) for x in (first, count, place, turn)]).all(0)
    groups = []
    for alike in (True, False):
        chosen = (is_alike == alike).nonzero().flatten()
        if len(chosen):
            pick = chosen[:1] if alike else chosen
            is_full = bool((count[pick].prod(-1) == box.prod()).all())
            bounds = (place[pick], first[pick], count[pick], turn[pick])
            extents = (int(box[0]), int(box[1]), int(box[2]))
            groups.append(_indexed(extents, rows[chosen], columns[chosen], *bounds, is_kept[chosen], is_full))
    return groups


class _Arrays(NamedTuple):
    """A pattern's arrays of pixels, each of one residue modulo the dilation: [arrays, 3], `base` [arrays].

    Attributes:
        extent: pixels along each axis.
        whole: extents of the component.
        residue: coordinates of the first pixel.
        base: the node of that pixel.
        stride: nodes from one pixel to the next.
    """

    extent: Tensor
    whole: Tensor
    residue: Tensor
    base: Tensor
    stride: Tensor


def _residue_classes(shape: Tensor, ptr: Tensor, dilation: Tensor) -> _Arrays:
    """Cut each component into arrays in which the pattern isn't dilated, without empty ones."""
    stride = torch.stack([shape[:, 1] * shape[:, 2], shape[:, 2], torch.ones_like(ptr[:-1])], 1)
    found = []
    # A residue beyond the longest extent has no pixel, however large the dilation is.
    for listed in itertools.product(*map(range, torch.minimum(dilation, shape.amax(0)).tolist())):
        residue = torch.tensor(listed, device=shape.device)
        extent = (shape - residue + dilation - 1) // dilation
        base = ptr[:-1] + (residue * stride).sum(1)
        found.append((extent, shape, residue.expand_as(shape), base, stride * dilation))
    arrays = [torch.cat(parts) for parts in zip(*found, strict=True)]
    is_there = (arrays[0] > 0).all(1)
    return _Arrays(*(x[is_there] for x in arrays))


def _indexed(
    box: tuple[int, int, int],
    rows: Tensor,
    columns: Tensor,
    place: Tensor,
    first: Tensor,
    count: Tensor,
    turn: Tensor,
    is_kept: Tensor | None,
    is_full: bool,
) -> Group:
    """A group whose tiles are lists of nodes."""
    kept = rows.new_empty(0) if is_kept is None or bool(is_kept.all()) else is_kept.flatten().nonzero().flatten()
    place, first, count, turn = (x.to(torch.int32).contiguous() for x in (place, first, count, turn))
    tiles, height = rows.shape
    return Group(tiles, height, box, 0, 0, 0, 0, is_full, False, rows, columns, place, first, count, turn, kept)


def _lines(place: Tensor, count: Tensor, first: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bounds of one axis, preceded by two axes of extent 1."""
    first = torch.zeros_like(place) if first is None else first
    spread = lambda x, fill: torch.nn.functional.pad(x[..., None], (2, 0), value=fill).to(torch.int32)
    return spread(place, 0), spread(first, 0), spread(count, 1), spread(torch.zeros_like(place), 0)


def _coordinates(extents: Tensor) -> Tensor:
    """All coordinates of an array, row-major: [nodes, 3]."""
    return torch.cartesian_prod(*(torch.arange(int(extent), device=extents.device) for extent in extents))


def _unravel(rank: Tensor, extents: Tensor) -> Tensor:
    """Coordinates of row-major ranks in arrays of these extents, both [G] and [G, 3]."""
    last = rank // extents[:, 2]
    return torch.stack([last // extents[:, 1], last % extents[:, 1], rank % extents[:, 2]], 1)


def _longest_run(is_in: Tensor) -> tuple[int, int]:
    """Begin and end of the longest run of True."""
    edges = torch.nn.functional.pad(is_in.to(torch.int8), (1, 1)).diff()
    begins, ends = (edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten()
    if not begins.numel():
        return 0, 0
    longest = int((ends - begins).argmax())
    return int(begins[longest]), int(ends[longest])


def _round(size: int) -> int:
    """Sizes are padded to multiples of 8, above 64 of 32."""
    unit = 8 if size <= 64 else 32
    return -(-size // unit) * unit

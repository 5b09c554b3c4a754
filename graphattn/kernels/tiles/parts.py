"""Parts of a plan's groups: their nodes, their masks, and how their rows are read and written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...segments import Rows, segment_sum
from .plan import Group

# Numbers that are gathered at a time; a backward pass has the same number of gradients in addition.
GATHERED_AT_A_TIME = 2**24


class Part(NamedTuple):
    """Tiles `begin` to `end` of a group, restricted to the targets `top` to `bottom` and the first `right` sources."""

    group: Group
    begin: int
    end: int
    top: int
    bottom: int
    right: int

    def rows_of(self, x: Tensor) -> Tensor:
        """The targets' rows of [B, T, *rest]: [B * g, m, *rest]."""
        group = self.group
        start = group.row_start + self.begin * group.row_step + self.top
        return _take(x, self, self.bottom - self.top, start, group.row_step, self.targets)

    def rows_once(self, x: Tensor) -> Tensor:
        """`rows_of`, with zeros for a target that is repeated."""
        rows, repeated = self.rows_of(x), self.repetitions()
        if repeated is None:
            return rows
        return rows.view(x.size(0), *repeated.shape, -1).masked_fill(repeated[..., None], 0).view(rows.shape)

    def columns_of(self, x: Tensor) -> Tensor:
        """The sources' rows of [B, S, *rest]: [B * g, c, *rest]."""
        group = self.group
        start = group.column_start + self.begin * group.column_step
        return _take(x, self, self.right, start, group.column_step, self.sources)

    def targets(self) -> Tensor:
        """[g, m] int64."""
        return self.group.targets(self.begin, self.end, self.top, self.bottom)

    def sources(self) -> Tensor:
        """[g, c] int64."""
        return self.group.sources(self.begin, self.end, self.right)

    def bounds(self, name: str) -> Tensor:
        """The group's `place`, `first` or `count` of these targets: [g or 1, m, 3]."""
        bound: Tensor = getattr(self.group, name)
        bound = bound if bound.size(0) == 1 else bound[self.begin : self.end]
        return bound[:, self.top : self.bottom]

    def mask(self) -> Tensor | None:
        """[g or 1, m, c] boolean, True where the target sees the source; None if all do."""
        if self.group.is_full:
            return None
        first, count = self.bounds("first"), self.bounds("count")
        mask = torch.ones(*first.shape[:2], 1, dtype=torch.bool, device=first.device)
        for axis, extent in enumerate(self.extents()):
            column = torch.arange(extent, dtype=first.dtype, device=first.device) - first[..., axis, None]
            mask = (mask[..., None] & ((column >= 0) & (column < count[..., axis, None]))[..., None, :]).flatten(2)
        return mask

    def pairs(self) -> Tensor:
        """[g, m, c] boolean, True for every edge once."""
        mask, repeated = self.mask(), self.repetitions()
        shape = (self.end - self.begin, self.bottom - self.top, self.right)
        if mask is None:
            mask = torch.ones(1, *shape[1:], dtype=torch.bool, device=self.group.place.device)
        return mask.expand(shape) if repeated is None else mask & ~repeated[..., None]

    def edges(self, edge_ptr: Tensor) -> Tensor:
        """Number of the edge from each target to each source, valid where the mask is True: [g, m, c] int64."""
        first, count, turn = self.bounds("first"), self.bounds("count"), self.bounds("turn")
        rank = torch.zeros(*first.shape[:2], 1, dtype=torch.int64, device=first.device)
        for axis, extent in enumerate(self.extents()):
            column = torch.arange(extent, device=first.device) - first[..., axis, None] - turn[..., axis, None]
            column %= count[..., axis, None].clamp(min=1)
            rank = (rank[..., None] * count[..., axis, None, None] + column[..., None, :]).flatten(2)
        return (edge_ptr[self.targets()][..., None] + rank).clamp(0, max(int(edge_ptr[-1]) - 1, 0))

    def offsets(self, numbers: list[int]) -> Tensor:
        """Number of the offset of each source from each target: [g or 1, m, c] int64."""
        place = self.bounds("place").long()
        index = torch.zeros(*place.shape[:2], 1, dtype=torch.int64, device=place.device)
        for axis, extent in enumerate(self.extents()):
            size = numbers[3 + axis]
            column = torch.arange(extent, device=place.device) - place[..., axis, None] - numbers[axis]
            index = (index[..., None] * size + column.clamp(0, size - 1)[..., None, :]).flatten(2)
        return index

    def extents(self) -> tuple[int, int, int]:
        """Of the box; where columns are left out, of its one axis."""
        return self.group.box if self.right == self.group.width else (1, 1, self.right)

    def repetitions(self) -> Tensor | None:
        """[g, m] boolean, True for a repeated target; None if there is none."""
        if not self.group.kept.numel():
            return None
        repeated = torch.ones(self.group.tiles * self.group.height, dtype=torch.bool, device=self.group.kept.device)
        repeated[self.group.kept] = False
        return repeated.view(self.group.tiles, -1)[self.begin : self.end, self.top : self.bottom]

    def put(self, out: Tensor, x: Tensor) -> None:
        """Write [B * g, m, *rest] to the targets' rows of `out`, [B, T, *rest]."""
        group = self.group
        x = x.view(out.size(0), self.end - self.begin, self.bottom - self.top, *out.shape[2:])
        if group.row_step:
            start = group.row_start + self.begin * group.row_step + self.top
            _window(out, start, group.row_step, x.size(1), x.size(2)).copy_(x)
            return
        targets, repeated = self.targets(), self.repetitions()
        if repeated is None:
            out.index_copy_(1, targets.flatten(), x.flatten(1, 2))
        else:
            out.index_copy_(1, targets[~repeated], x[:, ~repeated])

    def add(self, grad: Tensor, x: Tensor) -> None:
        """Add [B * g, c, *rest] to the sources' rows of `grad`, [B, S, *rest], in a fixed order."""
        group = self.group
        x = x.view(grad.size(0), self.end - self.begin, self.right, *grad.shape[2:])
        if group.column_step:
            start = group.column_start + self.begin * group.column_step
            # As many columns at a time as there are before the next tile's first, so that tiles don't overlap.
            for left in range(0, self.right, group.column_step):
                piece = x[:, :, left : left + group.column_step]
                _window(grad, start + left, group.column_step, x.size(1), piece.size(2)).add_(piece)
            return
        rows = Rows.from_index(self.sources().flatten(), grad.size(1))
        grad.add_(segment_sum(x.flatten(1, 2).flatten(2), rows, -2).view_as(grad))


def _take(x: Tensor, part: Part, height: int, start: int, step: int, index: Callable[[], Tensor]) -> Tensor:
    tiles = part.end - part.begin
    if step:
        view = _window(x, start, step, tiles, height)
        return view.squeeze(0) if view.size(0) == 1 else view.flatten(0, 1)
    taken = x.index_select(1, index().flatten())
    return taken.view(x.size(0) * tiles, height, *x.shape[2:])


def _window(x: Tensor, start: int, step: int, tiles: int, height: int) -> Tensor:
    """Rows of [B, N, *rest] that begin at `start` and every `step` after: [B, tiles, height, *rest], a view."""
    stride = x.stride()
    shape = (x.size(0), tiles, height, *x.shape[2:])
    strides = (stride[0], step * stride[1], stride[1], *stride[2:])
    return x.as_strided(shape, strides, x.storage_offset() + start * stride[1])


def cut(group: Group, batch: int, heads: int, width: int, most: int) -> Iterator[Part]:
    """Cut a group into parts of about `most` scores, for gathered rows of `width` numbers: at least one tile row."""
    per_row = max(batch * heads * group.width, 1)
    per_tile = max(batch * width * (group.width + group.height), 1)
    tiles = max(1, min(most // (per_row * group.height), GATHERED_AT_A_TIME // per_tile))
    rows = group.height if tiles > 1 else max(1, min(group.height, most // per_row))
    # As evenly as possible.
    rows = -(-group.height // -(-group.height // rows))
    for begin in range(0, group.tiles, tiles):
        for top in range(0, group.height, rows):
            bottom = min(top + rows, group.height)
            right = min(bottom, group.width) if group.is_causal else group.width
            yield Part(group, begin, min(begin + tiles, group.tiles), top, bottom, right)

"""Patterns of pixels: an array of nodes in which each attends to its neighbourhood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import check_int, message
from .box import Box, write_sizes


class Grid(Box):
    """Every pixel attends to those at most `radius` away along each axis; at the border the window is clipped.

    Nodes are numbered in row-major order. With radius 1 a pixel of an image has itself and its 8 neighbours.

    Args:
        shape: extents of the array, from one to three of them; a list of such tuples for a ragged batch of arrays.
        radius: reach along every axis, or one reach per axis.

    Raises:
        TypeError: an extent or a radius is not an integer.
        ValueError: there are no axes or more than three, arrays have different numbers of axes, or an extent or a
            radius is negative.

    Example:
        >>> grid = Grid((3, 3), radius=1)
        >>> grid.mask()[4].all(), grid.mask()[0].view(3, 3).int()
        (tensor(True), tensor([[1, 1, 0],
                [1, 1, 0],
                [0, 0, 0]], dtype=torch.int32))
        >>> Grid([(28, 28), (32, 32)], 1).num_edges
        15560
    """

    def __init__(self, shape: Sequence[int] | Sequence[Sequence[int]] | Tensor, radius: int | Sequence[int]) -> None:
        shapes = _parse_shapes(shape)
        axes = shapes.size(1)
        listed = list(radius) if isinstance(radius, Sequence) else [radius] * axes
        if len(listed) != axes:
            raise ValueError(message("Grid", "radius", f"must be one integer or {axes}, one per axis", radius))
        self.radius = tuple(check_int("Grid", "radius", reach, 0) for reach in listed)
        super().__init__(shapes)

    def _span(self, position: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
        reach = torch.tensor(self.radius, device=position.device)
        first = (position - reach).clamp(min=0)
        return first, torch.minimum(position + reach, extent - 1) - first + 1

    def _is_near(self, offset: Tensor) -> Tensor:
        return offset.abs() <= torch.tensor(self.radius, device=offset.device)

    def _offset_bounds(self) -> tuple[list[int], list[int]]:
        return [-reach for reach in self.radius], list(self.radius)

    @classmethod
    def _join(cls, patterns: Sequence[Grid]) -> Self:
        if any(pattern.radius != patterns[0].radius for pattern in patterns):
            got = sorted({pattern.radius for pattern in patterns})
            raise ValueError(message("join", "patterns' radius", "must be the same for all", got))
        return cls(torch.cat([pattern.shape for pattern in patterns]), patterns[0].radius)

    def __repr__(self) -> str:
        radius = self.radius[0] if len(set(self.radius)) == 1 else self.radius
        return f"Grid({write_sizes(self.shape)}, radius={radius})"


def _parse_shapes(shape: Sequence[int] | Sequence[Sequence[int]] | Tensor) -> Tensor:
    """Read one shape or a list of them: [components, axes] int64."""
    listed: Any = shape.tolist() if isinstance(shape, Tensor) else shape
    if not isinstance(listed, Sequence) or not listed:
        raise TypeError(message("Grid", "shape", "must be a tuple of extents or a list of such tuples", repr(shape)))
    is_list = any(isinstance(row, Sequence) for row in listed)
    if is_list and not all(isinstance(row, Sequence) for row in listed):
        raise TypeError(message("Grid", "shape", "must be a tuple of extents or a list of such tuples", repr(shape)))
    rows = [list(row) for row in listed] if is_list else [list(listed)]
    if len({len(row) for row in rows}) != 1 or not 1 <= len(rows[0]) <= 3:
        raise ValueError(message("Grid", "shape", "must have one to three axes, the same number for all arrays", rows))
    checked = [[check_int("Grid", "shape", extent, 0) for extent in row] for row in rows]
    return torch.tensor(checked, dtype=torch.int64, device=shape.device if isinstance(shape, Tensor) else None)

"""Patterns of pixels: an array of nodes in which each attends to its neighbourhood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import check_choice, check_int, message
from .box import Box, check_bool, check_reach, clipped_span, is_within, reach, same_options, write_sizes

BORDERS = ("clip", "shift", "wrap")


class Grid(Box):
    """Every pixel attends to those at most `radius` steps away along each axis.

    Nodes are numbered in row-major order. With radius 1 a pixel of an image has itself and its 8 neighbours.

    Args:
        shape: extents of the array, from one to three of them; a list of such tuples for a ragged batch of arrays.
        radius: reach along every axis, or one reach per axis.
        dilation: pixels from one step to the next, or one number per axis: the sources lie at the offsets k * dilation
            with |k| <= radius.
        causal: attend only to offsets of at most 0, for all axes or per axis.
        border: what happens to a window that would leave the array.
            "clip": what lies outside is missing.
            "shift": the window moves inside, so that every pixel has all 2 * radius + 1 sources per axis. With a
            dilation it moves in steps of that: the sources are the nearest pixels with the target's residue modulo the
            dilation. Along a causal axis it is clipped instead, because a shifted window would contain the future.
            "wrap": the array is a torus: the sources are (position + k * dilation) modulo the extent.

    Raises:
        TypeError: an extent, a radius or a dilation is not an integer, or `causal` not a bool.
        ValueError: there are no axes or more than three, arrays have different numbers of axes, an option has one
            value per axis for another number of axes, an extent or a radius is negative, or a dilation less than 1;
            the border is unknown, or "wrap" along a causal axis; an array that isn't empty has an extent below
            (2 * radius + 1) * dilation under "shift", or below 2 * radius * dilation + 1 under "wrap", where sources
            would repeat.

    Example:
        >>> grid = Grid((3, 3), radius=1)
        >>> grid.mask()[4].all(), grid.mask()[0].view(3, 3).int()
        (tensor(True), tensor([[1, 1, 0],
                [1, 1, 0],
                [0, 0, 0]], dtype=torch.int32))
        >>> Grid([(28, 28), (32, 32)], 1).num_edges
        15560
        >>> for border in ("clip", "shift", "wrap"):
        ...     print(Grid((5,), radius=1, border=border).mask()[0].int())
        tensor([1, 1, 0, 0, 0], dtype=torch.int32)
        tensor([1, 1, 1, 0, 0], dtype=torch.int32)
        tensor([1, 1, 0, 0, 1], dtype=torch.int32)

    References:
        Hassani et al., 2023 (Neighborhood Attention Transformer, and NATTEN): border="shift".
    """

    _options = ("radius", "dilation", "causal", "border")

    def __init__(
        self,
        shape: Sequence[int] | Sequence[Sequence[int]] | Tensor,
        radius: int | Sequence[int],
        *,
        dilation: int | Sequence[int] = 1,
        causal: bool | Sequence[bool] = False,
        border: str = "clip",
    ) -> None:
        shapes = _parse_shapes(shape)
        axes = shapes.size(1)
        self.radius = tuple(check_int("Grid", "radius", x, 0) for x in _per_axis("radius", "integer", radius, axes))
        self.dilation = tuple(
            check_int("Grid", "dilation", x, 1) for x in _per_axis("dilation", "integer", dilation, axes)
        )
        rule = "must be a bool, or one per axis"
        self.causal = tuple(check_bool("Grid", "causal", x, rule) for x in _per_axis("causal", "bool", causal, axes))
        check_choice("Grid", "border", border, BORDERS)
        self.border = border
        self._check_extents(shapes)
        super().__init__(shapes, is_cyclic=border == "wrap")

    def _check_extents(self, shapes: Tensor) -> None:
        if self.border == "wrap" and any(self.causal):
            rule = "must be False with border='wrap', which has no first position"
            raise ValueError(message("Grid", "causal", rule, _write_option(self.causal), "Use border='clip'."))
        shapes = shapes[(shapes > 0).all(1)]
        for axis, (radius, dilation, causal) in enumerate(zip(self.radius, self.dilation, self.causal, strict=True)):
            check_reach("Grid", radius, dilation)
            if self.border != "clip" and not causal and shapes.numel():
                self._check_whole(axis, radius, dilation, int(shapes[:, axis].min()))

    def _check_whole(self, axis: int, radius: int, dilation: int, extent: int) -> None:
        """Raise ValueError unless an unclipped window fits into the shortest array."""
        is_shift = self.border == "shift"
        if ((2 * radius + 1) * dilation if is_shift else 2 * radius * dilation + 1) <= extent:
            return
        length = "(2 * radius + 1) * dilation" if is_shift else "2 * radius * dilation + 1"
        rule = f"must have {length} <= {extent}, the shortest extent of axis {axis}, with border={self.border!r}"
        largest = (extent // dilation - 1) // 2 if is_shift else (extent - 1) // (2 * dilation)
        fix = f"Use radius={largest} there, or border='clip'." if largest >= 0 else "Use border='clip'."
        raise ValueError(message("Grid", "radius", rule, f"radius {radius} and dilation {dilation}", fix))

    def _span(self, position: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
        first, count = clipped_span(position, extent, self._reach())
        if self.border == "clip":
            return first, count
        radius, dilation, causal = self._columns(position.device)
        if self.border == "wrap":
            return position - radius * dilation, (2 * radius + 1).expand_as(position)
        # Pixels of one residue modulo the dilation, counted from 0: the target's rank and their number.
        residue = position % dilation
        rank = position // dilation
        members = (extent - 1 - residue) // dilation + 1
        begin = torch.minimum((rank - radius).clamp(min=0), members - (2 * radius + 1))
        return torch.where(causal, first, begin * dilation + residue), torch.where(causal, count, 2 * radius + 1)

    def _is_near(self, offset: Tensor, position: Tensor, extent: Tensor) -> Tensor:
        if self.border == "shift":
            radius, dilation, causal = self._columns(position.device)
            # The first and the last pixel around which a whole window fits, of the target's residue.
            lowest = position % dilation + radius * dilation
            highest = extent - 1 - (extent - 1 - position) % dilation - radius * dilation
            center = torch.minimum(torch.maximum(position, lowest), highest)
            offset = offset + torch.where(causal, 0, position - center)
        return is_within(offset, self._reach())

    def _offset_ranges(self) -> Sequence[range]:
        # A window at the border may be shifted by up to its radius.
        moves = 2 if self.border == "shift" else 1
        return self._reach(moves)

    def _reach(self, moves: int = 1) -> list[range]:
        options = zip(self.radius, self.dilation, self.causal, strict=True)
        return [reach(radius * (1 if causal else moves), dilation, causal) for radius, dilation, causal in options]

    def _columns(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Radius, dilation and causal of each axis: three of [n]."""
        radius, dilation = torch.tensor([self.radius, self.dilation], device=device)
        return radius, dilation, torch.tensor(self.causal, device=device)

    @classmethod
    def _join(cls, patterns: Sequence[Grid]) -> Self:
        options = same_options(patterns)
        return cls(torch.cat([pattern.shape for pattern in patterns]), **options)

    def __repr__(self) -> str:
        dilation = f", dilation={_write_option(self.dilation)}" if max(self.dilation) > 1 else ""
        causal = f", causal={_write_option(self.causal)}" if any(self.causal) else ""
        border = "" if self.border == "clip" else f", border={self.border!r}"
        return f"Grid({write_sizes(self.shape)}, radius={_write_option(self.radius)}{dilation}{causal}{border})"


def _per_axis(argument: str, kind: str, value: Any, axes: int) -> list[Any]:
    """Read an option that has one value for all axes or one per axis."""
    listed = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * axes
    if len(listed) != axes:
        raise ValueError(message("Grid", argument, f"must be one {kind} or {axes}, one per axis", value))
    return listed


def _write_option(values: tuple[object, ...]) -> object:
    return values[0] if len(set(values)) == 1 else values


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

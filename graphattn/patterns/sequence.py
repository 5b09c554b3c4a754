"""Patterns of sequences: all pairs, and a window around each position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ..errors import check_int, message
from .box import Box, parse_sizes, sizes_of_batch, write_sizes


class Full(Box):
    """Every target attends to every source of its component.

    Args:
        sizes: number of targets, or one number per component.
        source_sizes: number of sources likewise; as many as targets where left out.
        causal: attend only to sources at the target's own position or before it.

    Raises:
        TypeError: a size is not an integer.
        ValueError: a size is negative, or sources and targets have different numbers of components.

    Example:
        >>> Full(3, causal=True).mask().int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
        >>> Full([2, 1], [1, 2]).edge_index
        tensor([[0, 0, 1, 2],
                [0, 1, 2, 2]])
    """

    def __init__(
        self,
        sizes: int | Sequence[int] | Tensor,
        source_sizes: int | Sequence[int] | Tensor | None = None,
        *,
        causal: bool = False,
    ) -> None:
        shape = parse_sizes("Full", sizes)
        source_shape = shape if source_sizes is None else parse_sizes("Full", source_sizes)
        if shape.size(0) != source_shape.size(0):
            got = f"{source_shape.size(0)} for {shape.size(0)} sizes"
            raise ValueError(message("Full", "source_sizes", "must name as many components as sizes", got))
        self.causal = causal
        super().__init__(shape, source_shape)

    @classmethod
    def from_batch(cls, batch: Tensor, source_batch: Tensor | None = None, *, causal: bool = False) -> Self:
        """Every node attends to all nodes of its own graph.

        Args:
            batch: [T] int64, sorted: the graph of each target, as PyG's `Batch` holds it.
            source_batch: [S] the same for the sources; the targets themselves where left out.
            causal: as in the constructor.
        """
        if source_batch is None:
            return cls(sizes_of_batch("Full.from_batch", "batch", batch), causal=causal)
        graphs = int(torch.cat([batch, source_batch]).max()) + 1 if len(batch) + len(source_batch) else 0
        sizes = sizes_of_batch("Full.from_batch", "batch", batch, graphs)
        return cls(sizes, sizes_of_batch("Full.from_batch", "source_batch", source_batch, graphs), causal=causal)

    def _span(self, position: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(position), torch.minimum(position + 1, extent) if self.causal else extent

    def _is_near(self, offset: Tensor) -> Tensor:
        return offset <= 0 if self.causal else torch.ones_like(offset, dtype=torch.bool)

    def _offset_bounds(self) -> tuple[list[int], list[int]]:
        if not self.shape.numel():
            return [0], [-1]
        last = 0 if self.causal else int(self.source_shape.max()) - 1
        return [1 - int(self.shape.max())], [last]

    @classmethod
    def _join(cls, patterns: Sequence[Full]) -> Self:
        _check_same("causal", patterns)
        return cls(
            torch.cat([pattern.shape for pattern in patterns]).flatten(),
            torch.cat([pattern.source_shape for pattern in patterns]).flatten(),
            causal=patterns[0].causal,
        )

    def __repr__(self) -> str:
        is_square = torch.equal(self.shape, self.source_shape)
        sources = "" if is_square else f", source_sizes={write_sizes(self.source_shape[:, 0])}"
        return f"Full({write_sizes(self.shape[:, 0])}{sources}{', causal=True' if self.causal else ''})"


class Window(Box):
    """Every position attends to those at most `radius` away in its own sequence: truncated attention.

    Args:
        sizes: length of the sequence, or one length per sequence of a ragged batch.
        radius: reach to either side, at least 0.
        causal: attend only to the position itself and those before it.

    Raises:
        TypeError: a size or the radius is not an integer.
        ValueError: a size or the radius is negative.

    Example:
        >>> Window([3, 2], radius=1).mask().int()
        tensor([[1, 1, 0, 0, 0],
                [1, 1, 1, 0, 0],
                [0, 1, 1, 0, 0],
                [0, 0, 0, 1, 1],
                [0, 0, 0, 1, 1]], dtype=torch.int32)
        >>> Window(1_000_000, radius=64).num_edges
        128995840
    """

    def __init__(self, sizes: int | Sequence[int] | Tensor, radius: int, *, causal: bool = False) -> None:
        self.radius = check_int("Window", "radius", radius, 0)
        self.causal = causal
        super().__init__(parse_sizes("Window", sizes))

    @classmethod
    def from_batch(cls, batch: Tensor, radius: int, *, causal: bool = False) -> Self:
        """Windows within each graph of a PyG batch; `batch` [N] int64 is sorted."""
        return cls(sizes_of_batch("Window.from_batch", "batch", batch), radius, causal=causal)

    def _span(self, position: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
        first = (position - self.radius).clamp(min=0)
        last = position if self.causal else torch.minimum(position + self.radius, extent - 1)
        return first, last - first + 1

    def _is_near(self, offset: Tensor) -> Tensor:
        near = offset.abs() <= self.radius
        return near & (offset <= 0) if self.causal else near

    def _offset_bounds(self) -> tuple[list[int], list[int]]:
        return [-self.radius], [0 if self.causal else self.radius]

    @classmethod
    def _join(cls, patterns: Sequence[Window]) -> Self:
        _check_same("radius", patterns)
        _check_same("causal", patterns)
        sizes = torch.cat([pattern.shape for pattern in patterns]).flatten()
        return cls(sizes, patterns[0].radius, causal=patterns[0].causal)

    def __repr__(self) -> str:
        causal = ", causal=True" if self.causal else ""
        return f"Window({write_sizes(self.shape[:, 0])}, radius={self.radius}{causal})"


def _check_same(attribute: str, patterns: Sequence[Box]) -> None:
    values = [getattr(pattern, attribute) for pattern in patterns]
    if any(value != values[0] for value in values):
        raise ValueError(message("join", f"patterns' {attribute}", "must be the same for all", sorted(set(values))))

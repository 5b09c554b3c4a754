"""Patterns of sequences: all pairs, and a window around each position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ..errors import check_int, message
from .box import (
    Box,
    check_bool,
    check_reach,
    clipped_span,
    is_within,
    parse_sizes,
    reach,
    same_options,
    sizes_of_batch,
    write_sizes,
)
from .global_tokens import GlobalTokens, parse_tokens


class Full(Box):
    """Every target attends to every source of its component.

    Args:
        sizes: number of targets, or one number per component.
        source_sizes: number of sources likewise; as many as targets if omitted.
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

    _options = ("causal",)

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
        self.causal = check_bool("Full", "causal", causal)
        super().__init__(shape, source_shape)

    @classmethod
    def from_batch(cls, batch: Tensor, source_batch: Tensor | None = None, *, causal: bool = False) -> Self:
        """Every node attends to all nodes of its own graph.

        Args:
            batch: [T] int64, sorted: the graph of each target, as PyG's `Batch` holds it.
            source_batch: [S] the same for the sources; the targets themselves if omitted.
            causal: as in the constructor.
        """
        if source_batch is None:
            return cls(sizes_of_batch("Full.from_batch", "batch", batch), causal=causal)
        graphs = int(torch.cat([batch, source_batch]).max()) + 1 if len(batch) + len(source_batch) else 0
        sizes = sizes_of_batch("Full.from_batch", "batch", batch, graphs)
        return cls(sizes, sizes_of_batch("Full.from_batch", "source_batch", source_batch, graphs), causal=causal)

    def _span(self, position: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(position), torch.minimum(position + 1, extent) if self.causal else extent

    def _is_near(self, offset: Tensor, position: Tensor, extent: Tensor) -> Tensor:
        return offset <= 0 if self.causal else torch.ones_like(offset, dtype=torch.bool)

    def _offset_ranges(self) -> Sequence[range]:
        if not self.shape.numel():
            return [range(0)]
        return [range(1 - int(self.shape.max()), 1 if self.causal else int(self.source_shape.max()))]

    @classmethod
    def _join(cls, patterns: Sequence[Full]) -> Self:
        shapes, source_shapes = zip(*((pattern.shape, pattern.source_shape) for pattern in patterns), strict=True)
        return cls(torch.cat(shapes).flatten(), torch.cat(source_shapes).flatten(), **same_options(patterns))

    def __repr__(self) -> str:
        is_square = torch.equal(self.shape, self.source_shape)
        sources = "" if is_square else f", source_sizes={write_sizes(self.source_shape[:, 0])}"
        return f"Full({write_sizes(self.shape[:, 0])}{sources}{', causal=True' if self.causal else ''})"


class Window(Box):
    """Every position attends to those at most `radius` steps away in its own sequence: truncated attention.

    Global tokens reach further: such a position attends to all of its sequence, and all of its sequence to it.

    Args:
        sizes: length of the sequence, or one length per sequence of a ragged batch.
        radius: reach to either side, at least 0.
        dilation: positions from one step to the next, at least 1: the sources lie at the offsets k * dilation with
            |k| <= radius. In a sequence no longer than the dilation every position has only itself.
        causal: attend only to the position itself and those before it; this holds for global tokens too.
        global_tokens: their positions in each sequence. One that is too short to have a position lacks that token.

    Raises:
        TypeError: a size, the radius, the dilation or a global token is not an integer.
        ValueError: a size, the radius or a global token is negative, or the dilation less than 1; a global token is
            named twice.

    Example:
        >>> Window([3, 2], radius=1).mask().int()
        tensor([[1, 1, 0, 0, 0],
                [1, 1, 1, 0, 0],
                [0, 1, 1, 0, 0],
                [0, 0, 0, 1, 1],
                [0, 0, 0, 1, 1]], dtype=torch.int32)
        >>> Window(5, radius=1, dilation=2, global_tokens=(0,)).mask().int()
        tensor([[1, 1, 1, 1, 1],
                [1, 1, 0, 1, 0],
                [1, 0, 1, 0, 1],
                [1, 1, 0, 1, 0],
                [1, 0, 1, 0, 1]], dtype=torch.int32)
        >>> Window(1_000_000, radius=64).num_edges
        128995840

    References:
        Beltagy et al., 2020 (Longformer): sliding windows, dilated ones, and global attention. There a global token
        has separate projections; here it only changes the pattern.
    """

    _options = ("radius", "dilation", "causal", "global_tokens")

    def __init__(
        self,
        sizes: int | Sequence[int] | Tensor,
        radius: int,
        *,
        dilation: int = 1,
        causal: bool = False,
        global_tokens: Sequence[int] = (),
    ) -> None:
        shape = parse_sizes("Window", sizes)
        self.radius = check_int("Window", "radius", radius, 0)
        self.dilation = check_int("Window", "dilation", dilation, 1)
        self.causal = check_bool("Window", "causal", causal)
        check_reach("Window", self.radius, self.dilation)
        self.global_tokens = parse_tokens("Window", global_tokens)
        super().__init__(shape, tokens=GlobalTokens(self.global_tokens, causal) if self.global_tokens else None)

    @classmethod
    def from_batch(
        cls,
        batch: Tensor,
        radius: int,
        *,
        dilation: int = 1,
        causal: bool = False,
        global_tokens: Sequence[int] = (),
    ) -> Self:
        """Windows within each graph of a PyG batch; `batch` [N] int64 is sorted, the rest as in the constructor."""
        sizes = sizes_of_batch("Window.from_batch", "batch", batch)
        return cls(sizes, radius, dilation=dilation, causal=causal, global_tokens=global_tokens)

    def _span(self, position: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
        return clipped_span(position, extent, self._offset_ranges())

    def _is_near(self, offset: Tensor, position: Tensor, extent: Tensor) -> Tensor:
        return is_within(offset, self._offset_ranges())

    def _offset_ranges(self) -> Sequence[range]:
        return [reach(self.radius, self.dilation, self.causal)]

    @classmethod
    def _join(cls, patterns: Sequence[Window]) -> Self:
        return cls(torch.cat([pattern.shape for pattern in patterns]).flatten(), **same_options(patterns))

    def __repr__(self) -> str:
        dilation = f", dilation={self.dilation}" if self.dilation > 1 else ""
        causal = ", causal=True" if self.causal else ""
        tokens = f", global_tokens={self.global_tokens}" if self.global_tokens else ""
        return f"Window({write_sizes(self.shape[:, 0])}, radius={self.radius}{dilation}{causal}{tokens})"

"""Absolute positions, added to the features: waves of fixed frequencies, or learned vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from ...errors import check_int, message
from ...patterns import Pattern
from ...patterns.box import Box
from ...segments import Rows, gather
from .base import (
    Encoding,
    angles,
    check_coordinates,
    check_extents,
    check_features,
    check_fit,
    check_frequencies,
    own_positions,
)


class Sinusoidal(Encoding):
    """Adds sines and cosines of each node's position in its own component to its features.

        x_p + PE(p),   PE(p)[2m] = sin(p * base^(-2m / C)),   PE(p)[2m + 1] = cos(p * base^(-2m / C))

    With more dimensions, each axis has an equal share of the C channels, one axis after another.

    Invariance: PE(p) . PE(q) depends only on p - q. The attention scores do depend on absolute positions, but not on
    the order of a batch's components, nor on their sizes.

    Args:
        channels: C, features per node; a multiple of 2 * dims.
        dims: dimensions of the patterns: 1 for `Full` and `Window`, that of the array for `Grid`.
        base: the longest wave has about base * 2 pi positions.

    Raises:
        ValueError: `channels` can't be split into pairs; a pattern has other dimensions or none.

    Numerics:
        Angles are computed in float64, once per pattern; the sum is rounded to the features' dtype once.

    Example:
        >>> from graphattn import Window
        >>> Sinusoidal(2).input(torch.zeros(3, 2), Window([2, 1], radius=1))
        tensor([[0.0000, 1.0000],
                [0.8415, 0.5403],
                [0.0000, 1.0000]])

    References:
        Vaswani et al., "Attention Is All You Need", 2017, section 3.5.
    """

    def __init__(self, channels: int, dims: int = 1, base: float = 10000.0) -> None:
        super().__init__()
        self.channels, self.dims, self.base = check_frequencies("Sinusoidal", "channels", channels, dims, base)

    def check(self, where: str, channels: int, heads: int, width: int) -> None:
        """Raise ValueError unless the layer takes as many channels."""
        check_fit(where, self, "channels", channels)

    def input(self, x: Tensor, pattern: Pattern) -> Tensor:
        """Return [*B, N, channels], in the dtype of `x`."""
        box = check_coordinates("Sinusoidal", pattern, self.dims, "Use Sinusoidal(..., dims={found}).")
        check_features("Sinusoidal", x, self.channels, pattern)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        table = pattern.keep(f"Sinusoidal {self.channels} {self.base} {dtype}", lambda: self._waves(box).to(dtype))
        return (x + table).to(x.dtype)

    def _waves(self, pattern: Box) -> Tensor:
        angle = angles(own_positions("Sinusoidal", pattern), self.channels, self.base)
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)

    def extra_repr(self) -> str:
        """Arguments of the constructor."""
        return f"{self.channels}, dims={self.dims}, base={self.base:g}"


class LearnedPosition(Encoding):
    """Adds a learned vector per position, the same in every component, to the features.

        x_p + weight[p]

    Invariance: only to the order of a batch's components, not to shifts or the order of nodes.

    Args:
        channels: C, features per node.
        shape: the largest extent, or one per dimension; smaller components use the positions at the origin.

    Attributes:
        weight: [prod(shape), C], positions in row-major order, drawn from a normal distribution of deviation 0.02.

    Raises:
        ValueError: a pattern has other dimensions, or none, or is larger than `shape`.

    Example:
        >>> from graphattn import Full
        >>> encoding = LearnedPosition(4, 10)
        >>> out = encoding.input(torch.zeros(5, 4), Full([3, 2]))
        >>> torch.equal(out, encoding.weight[[0, 1, 2, 0, 1]])
        True

    References:
        Gehring et al., "Convolutional Sequence to Sequence Learning", 2017; Dosovitskiy et al., "An Image is Worth
        16x16 Words", 2021, for pixels.
    """

    def __init__(self, channels: int, shape: int | Sequence[int]) -> None:
        super().__init__()
        self.channels = check_int("LearnedPosition", "channels", channels, 1)
        self.shape = check_extents("LearnedPosition", "shape", shape, 1)
        self._kept_as = f"LearnedPosition {self.shape}"
        self.weight = Parameter(torch.empty(math.prod(self.shape), self.channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        torch.nn.init.normal_(self.weight, std=0.02)

    def check(self, where: str, channels: int, heads: int, width: int) -> None:
        """Raise ValueError unless the layer takes as many channels."""
        check_fit(where, self, "channels", channels)

    def input(self, x: Tensor, pattern: Pattern) -> Tensor:
        """Return [*B, N, channels], in the dtype of `x`."""
        fix = "Give shape one extent for each of {found}."
        box = check_coordinates("LearnedPosition", pattern, len(self.shape), fix)
        check_features("LearnedPosition", x, self.channels, pattern)
        rows = pattern.keep(self._kept_as, lambda: self._rows(box))
        return (x + gather(self.weight, rows, -2)).to(x.dtype)

    def _rows(self, pattern: Box) -> Rows:
        position = own_positions("LearnedPosition", pattern)
        needed = [int(extent) + 1 for extent in position.amax(0)] if position.numel() else []
        if any(extent > most for extent, most in zip(needed, self.shape, strict=False)):
            shape = tuple(max(pair) for pair in zip(needed, self.shape, strict=True))
            fix = f"Use LearnedPosition({self.channels}, {shape if len(shape) > 1 else shape[0]})."
            raise ValueError(message("LearnedPosition", "pattern", f"must fit in {self.shape}", pattern, fix))
        index = torch.zeros_like(position[:, 0])
        for dim, extent in enumerate(self.shape):
            index = index * extent + position[:, dim]
        return Rows.from_index(index, self.weight.size(0))

    def extra_repr(self) -> str:
        """Arguments of the constructor."""
        return f"{self.channels}, shape={self.shape}"

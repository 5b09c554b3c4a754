"""Biases of the scores that depend on the offset between source and target: a fixed slope, or a learned table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from ...errors import check_int
from ...offset_bias import OffsetBias
from ...patterns import Pattern
from ...patterns.box import Box
from ...precision import accumulate_dtype
from ...segments import Rows, gather
from .base import Encoding, check_coordinates, check_extents, check_fit


class ALiBi(Encoding):
    """Lowers the scores of a sequence in proportion to distance, with one slope per head.

        score_ij,h - slope_h * |i - j|,   slope_h = 2^(-8 (h + 1) / H) for h = 0, ..., H - 1

    If H isn't a power of two, the slopes are those of the next lower power, and then every other one of the next higher
    power, as published.

    Invariance: to translation and to reversing the order, so that only a causal pattern distinguishes the two
    directions. Nothing is learned, and there is no maximum length.

    Args:
        heads: H of the layer.

    Attributes:
        slopes: [H], a buffer that isn't part of the `state_dict`.

    Raises:
        ValueError: a pattern isn't a sequence.

    Example:
        >>> from graphattn import Full
        >>> ALiBi(2).bias(Full(3)).table
        tensor([[-0.1250, -0.0078],
                [-0.0625, -0.0039],
                [-0.0000, -0.0000],
                [-0.0625, -0.0039],
                [-0.1250, -0.0078]])

    References:
        Press et al., "Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation", 2022.
    """

    slopes: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = check_int("ALiBi", "heads", heads, 1)
        below = 2 ** (self.heads.bit_length() - 1)
        exponents = [8 * h / below for h in range(1, below + 1)]
        exponents += [4 * h / below for h in range(1, 2 * below, 2)][: self.heads - below]
        self.register_buffer("slopes", torch.tensor([2.0**-exponent for exponent in exponents]), persistent=False)

    def check(self, where: str, channels: int, heads: int, width: int) -> None:
        """Raise ValueError unless the layer has as many heads."""
        check_fit(where, self, "heads", heads)

    def bias(self, pattern: Pattern) -> OffsetBias:
        """Return a table [R, H] in the slopes' dtype, float32 for half types."""
        box = check_coordinates("ALiBi", pattern, 1, "Use RelativeBias.")
        slopes = self.slopes.to(accumulate_dtype(self.slopes.dtype))
        return OffsetBias(-offsets_of_rows(box).abs().to(slopes.dtype) * slopes)

    def extra_repr(self) -> str:
        """Arguments of the constructor."""
        return f"{self.heads}"


class RelativeBias(Encoding):
    """Adds a learned number per head and relative offset to the scores; offsets beyond the radius share the last one.

        score_ij,h + weight[clamp(j - i, -radius, radius), h]

    On a `Window` or `Grid` of the same radius there is a number for every offset. On `Full` it works for every length;
    all offsets beyond the radius share one number.

    Invariance: to translation; not to reversing the order.

    Args:
        heads: H of the layer.
        radius: reach to either side, or one reach per dimension. For arrays of M x M pixels, (M - 1, M - 1) covers
            every offset.

    Attributes:
        weight: [prod(2 * radius + 1), H], offsets in row-major order from the lowest, drawn from a normal distribution
            of deviation 0.02.

    Raises:
        ValueError: a pattern has other dimensions or none.

    Numerics:
        The layer passes an `OffsetBias` of the pattern's offsets on; gradients are summed in a fixed order.

    Example:
        >>> from graphattn import Full
        >>> encoding = RelativeBias(1, radius=1)
        >>> _ = encoding.weight.data.copy_(torch.tensor([[-1.0], [0.0], [1.0]]))
        >>> encoding.bias(Full(3)).of_edges(Full(3)).view(3, 3)
        tensor([[ 0.,  1.,  1.],
                [-1.,  0.,  1.],
                [-1., -1.,  0.]], grad_fn=<ViewBackward0>)

    References:
        Shaw et al., "Self-Attention with Relative Position Representations", 2018, for clamping; Raffel et al., 2020
        (T5), which widens the shares of far offsets logarithmically; Liu et al., 2021 (Swin), for pixels.
    """

    def __init__(self, heads: int, radius: int | Sequence[int]) -> None:
        super().__init__()
        self.heads = check_int("RelativeBias", "heads", heads, 1)
        self.radius = check_extents("RelativeBias", "radius", radius, 0)
        self._kept_as = f"RelativeBias {self.radius}"
        self.weight = Parameter(torch.empty(math.prod(2 * reach + 1 for reach in self.radius), self.heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        torch.nn.init.normal_(self.weight, std=0.02)

    def check(self, where: str, channels: int, heads: int, width: int) -> None:
        """Raise ValueError unless the layer has as many heads."""
        check_fit(where, self, "heads", heads)

    def bias(self, pattern: Pattern) -> OffsetBias:
        """Return a table [R, H], R = `pattern.num_offsets`, in the weight's dtype."""
        fix = "Give radius one reach for each of {found}."
        box = check_coordinates("RelativeBias", pattern, len(self.radius), fix)
        return OffsetBias(gather(self.weight, pattern.keep(self._kept_as, lambda: self._rows(box)), -2))

    def _rows(self, pattern: Box) -> Rows:
        offsets = offsets_of_rows(pattern)
        index = torch.zeros_like(offsets[:, 0])
        for dim, reach in enumerate(self.radius):
            index = index * (2 * reach + 1) + offsets[:, dim].clamp(-reach, reach) + reach
        return Rows.from_index(index, self.weight.size(0))

    def extra_repr(self) -> str:
        """Arguments of the constructor."""
        return f"{self.heads}, radius={self.radius}"


def offsets_of_rows(pattern: Box) -> Tensor:
    """Return the offset of each row of an `OffsetBias` table, [R, n] int64, without listing edges.

    The row of edges that exist only because of a global token, if there is one, has no offset.
    """

    def build() -> Tensor:
        along = [torch.tensor(offsets, dtype=torch.int64) for offsets in pattern._offset_ranges()]
        rows = torch.cartesian_prod(*along).view(-1, len(along)).to(pattern.device)
        return torch.nn.functional.pad(rows, (0, 0, 0, pattern.num_offsets - len(rows)))

    return pattern.keep("offsets of rows", build)

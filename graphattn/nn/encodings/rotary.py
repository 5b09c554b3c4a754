"""Rotary positions: queries and keys are rotated by their position, so that scores depend on the difference."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import message, shape_of
from ...patterns import Pattern
from ...precision import accumulate_dtype
from .base import Encoding, angles, check_coordinates, check_fit, check_frequencies


class Rotary(Encoding):
    """Rotates each pair of features of queries and keys by an angle proportional to their position.

        (u_2m, u_2m+1) at position p  ->  the pair rotated by p * base^(-2m / D)

    With more dimensions (axial), each axis has an equal share of the D features, one axis after another.

    Invariance: to translation. The dot product of a rotated query and a rotated key depends only on the difference of
    their positions; with other scores than the dot product, the encoding isn't relative. Rotation keeps the length of
    vectors.

    Args:
        width: D, features per head; a multiple of 2 * dims.
        dims: dimensions of the patterns: 1 for `Full` and `Window`, that of the array for `Grid`.
        base: the longest wave has about base * 2 pi positions.

    Raises:
        ValueError: `width` can't be split into pairs, or isn't that of query and key; a pattern has other dimensions
            or none.

    Numerics:
        Angles are computed in float64, once per pattern; half types are rotated in float32 and rounded once.

    Example:
        >>> from graphattn import Full
        >>> query = torch.tensor([1.0, 0.0]).expand(2, 1, 2)
        >>> Rotary(2).rotate(query, query, Full(2))[0].squeeze(1)
        tensor([[1.0000, 0.0000],
                [0.5403, 0.8415]])

    References:
        Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, equation 34: neighboring
        features are a pair, unlike in implementations that pair m with m + D / 2.
    """

    def __init__(self, width: int, dims: int = 1, base: float = 10000.0) -> None:
        super().__init__()
        self.width, self.dims, self.base = check_frequencies("Rotary", "width", width, dims, base)

    def check(self, where: str, channels: int, heads: int, width: int) -> None:
        """Raise ValueError unless the layer's heads are as wide."""
        check_fit(where, self, "width", width)

    def rotate(self, query: Tensor, key: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
        """Return query [*B, T, H, D] and key [*B, S, H_kv, D], rotated, in their dtypes."""
        box = check_coordinates("Rotary", pattern, self.dims, "Use Rotary(..., dims={found}).")
        sides = (("query", query, pattern.num_targets), ("key", key, pattern.num_sources))
        for argument, x, rows in sides:
            if x.dim() < 3 or x.size(-1) != self.width or x.size(-3) != rows:
                fix = (
                    f"Use Rotary({x.size(-1)}): out_channels / heads of the layer." if x.size(-1) != self.width else ""
                )
                rule = f"must have shape [*B, {rows}, heads, {self.width}]"
                raise ValueError(message("Rotary", argument, rule, shape_of(x), fix))
        dtype = accumulate_dtype(query.dtype)

        def build() -> tuple[tuple[Tensor, Tensor], ...]:
            turns = (angles(position, self.width, self.base).unsqueeze(1) for position in box.positions())
            return tuple((angle.cos().to(dtype), angle.sin().to(dtype)) for angle in turns)

        of_targets, of_sources = pattern.keep(f"Rotary {self.width} {self.base} {dtype}", build)
        return _rotate_pairs(query, *of_targets), _rotate_pairs(key, *of_sources)

    def extra_repr(self) -> str:
        """Arguments of the constructor."""
        return f"{self.width}, dims={self.dims}, base={self.base:g}"


def _rotate_pairs(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the pairs of [*B, N, H, D] by angles whose cosines and sines are [N, 1, D / 2]."""
    first, second = x.to(cosine.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([first * cosine - second * sine, first * sine + second * cosine], -1)
    return turned.flatten(-2).to(x.dtype)

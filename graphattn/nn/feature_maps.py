"""Feature maps: attention whose weights are products of features, so that full attention takes linear time.

    weight_ij = f(q_i) . f(k_j) / sum over j of f(q_i) . f(k_j)

References:
    Katharopoulos et al., "Transformers are RNNs", 2020; Choromanski et al., "Rethinking Attention with Performers",
    2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import check_int, message
from ..functional import attention
from ..patterns import Pattern
from ..scores import DotProduct

# From rows [*B, N, H, D] to features [*B, N, H, F], which should be positive. A method `of_queries`, if there is one,
# maps those of queries.
FeatureMap = Callable[[Tensor], Tensor]

# What random features have at least.
EPSILON = 1e-4
FEATURE_MAPS: dict[str, Callable[..., Any]] = {
    "elu": lambda x: torch.nn.functional.elu(x) + 1,
    "relu": torch.relu,
}


def sums_by_features(
    query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Sums of values [*B, S, H, V], each times the dot product of features, and sums of these products [*B, T, H, 1].

    In one call, as the products are the same. In float32 at least, as they go over all nodes of a large graph.
    """
    if value.dtype in (torch.float16, torch.bfloat16):
        query, key, value = query.float(), key.float(), value.float()
    extended = torch.cat([value, value.new_ones(*value.shape[:-1], 1)], -1)
    out = attention(query, key, extended, pattern, backend=backend, score=DotProduct(1.0), normalizer="identity")
    return out[..., :-1], out[..., -1:]


def attend_by_features(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, backend: str = "auto") -> Tensor:
    """Weighted means of values [*B, S, H, V]; a weight is the dot product of features, over the sum of all of a row."""
    out, total = sums_by_features(query, key, value, pattern, backend)
    return (out / torch.where(total == 0, 1, total)).to(value.dtype)


class RandomFeatures(torch.nn.Module):
    """Positive random features, whose products are on average exp(q . k / sqrt(D)): softmax attention, approximately.

        f(x) = (exp(w x / D^(1/4) - |x|^2 / (2 sqrt(D)) - c) + epsilon) / sqrt(F)     for each of F rows w

    c cancels where weights are normalized: for queries the largest exponent of a row, for keys that of all rows of a
    head. Because of epsilon, 1e-4, no sum of weights is zero, however far apart the exponents are. Rows w are
    orthogonal in blocks of D, which lowers the variance.

    Args:
        width: D, of a head's queries and keys.
        count: F. The variance falls with it, and grows with exp(|q + k|^2 / sqrt(D)).
        seed: of the rows w, which are a buffer; `redraw` draws new ones.

    Raises:
        ValueError: a size below 1, or rows of another width.

    Example:
        >>> features = RandomFeatures(4, 64)
        >>> features(torch.randn(10, 2, 4)).shape
        torch.Size([10, 2, 64])

    References:
        Choromanski et al., "Rethinking Attention with Performers", 2021, equations 5 and 7.
    """

    rows: Tensor

    def __init__(self, width: int, count: int, seed: int = 0) -> None:
        super().__init__()
        self.width = check_int("RandomFeatures", "width", width, 1)
        self.count = check_int("RandomFeatures", "count", count, 1)
        self.register_buffer("rows", torch.empty(count, width))
        self.redraw(seed)

    @torch.no_grad()
    def redraw(self, seed: int) -> None:
        """Draw the rows w."""
        generator = torch.Generator().manual_seed(seed)
        blocks = []
        for _ in range(-(-self.count // self.width)):
            square = torch.randn(self.width, self.width, generator=generator, dtype=torch.float64)
            # Orthogonal directions, as long as rows of independent numbers are.
            length = torch.randn(self.width, self.width, generator=generator, dtype=torch.float64).norm(dim=1)
            blocks.append(torch.linalg.qr(square)[0].T * length[:, None])
        self.rows.copy_(torch.cat(blocks)[: self.count])

    def forward(self, x: Tensor) -> Tensor:
        """Features [*B, N, H, F] of rows of keys [*B, N, H, D]."""
        exponent = self._exponent(x)
        top = exponent.detach().amax((-3, -1), keepdim=True) if exponent.numel() else 0.0
        return self._exp(exponent - top)

    def of_queries(self, x: Tensor) -> Tensor:
        """The same for rows of queries: a row's own largest exponent cancels."""
        exponent = self._exponent(x)
        return self._exp(exponent - exponent.detach().amax(-1, keepdim=True))

    def _exponent(self, x: Tensor) -> Tensor:
        if x.size(-1) != self.width or x.dim() < 3:
            raise ValueError(message("RandomFeatures", "x", f"must be [*B, N, H, {self.width}]", list(x.shape)))
        x = x * self.width**-0.25
        return x @ self.rows.to(x.dtype).T - x.square().sum(-1, keepdim=True) / 2

    def _exp(self, exponent: Tensor) -> Tensor:
        return (exponent.exp() + EPSILON) / self.count**0.5

    def extra_repr(self) -> str:
        """Its sizes."""
        return f"{self.width}, {self.count}"

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

# From rows [*B, N, H, D] to features [*B, N, H, F], which should be positive.
FeatureMap = Callable[[Tensor], Tensor]

FEATURE_MAPS: dict[str, Callable[..., Any]] = {
    "elu": lambda x: torch.nn.functional.elu(x) + 1,
    "relu": torch.relu,
}


class RandomFeatures(torch.nn.Module):
    """Positive random features, whose products are on average exp(q . k / sqrt(D)): softmax attention, approximately.

        f(x) = exp(w x / D^(1/4) - |x|^2 / (2 sqrt(D)) - c) / sqrt(F)     for each of F rows w

    c is the largest exponent of all rows of a batch, of queries and of keys apart, and cancels where weights are
    normalized. Rows w are orthogonal in blocks of D, which lowers the variance.

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
        """Features [*, F] of rows [*, D]."""
        if x.size(-1) != self.width:
            raise ValueError(message("RandomFeatures", "x", f"must be {self.width} wide", list(x.shape)))
        x = x * self.width**-0.25
        exponent = x @ self.rows.to(x.dtype).T - x.square().sum(-1, keepdim=True) / 2
        return (exponent - exponent.detach().amax()).exp() / self.count**0.5

    def extra_repr(self) -> str:
        """Its sizes."""
        return f"{self.width}, {self.count}"

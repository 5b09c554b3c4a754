"""What a positional encoding may do to attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ..patterns import Pattern


class Encoding(torch.nn.Module):
    """Base of encodings: each overrides one or more of the three places where position can enter.

    The pattern is handed along because it alone knows the components of a ragged batch and the nodes' coordinates.
    """

    def input(self, x: Tensor, pattern: Pattern) -> Tensor:
        """Change the features [*B, N, C] before projection, where sources and targets are the same nodes."""
        return x

    def rotate(self, query: Tensor, key: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
        """Change query [*B, T, H, D] and key [*B, S, H_kv, D] before scoring."""
        return query, key

    def bias(self, pattern: Pattern) -> Tensor | None:
        """Return what is added to the scores, [E, H] in the caller's order, or None."""
        return None

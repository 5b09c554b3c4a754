"""What a call of `attention` is, and what a kernel says about it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..bias import OffsetBias
from ..normalizers import Normalizer
from ..patterns import Pattern
from ..scores import Score


@dataclass(frozen=True)
class Call:
    """One call of `attention`, checked: every kernel may rely on it.

    Edge tensors have all leading batch dimensions, of the batch's size or 1, and their edges in the caller's order.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    pattern: Pattern
    score: Score
    normalizer: Normalizer
    edge_bias: Tensor | OffsetBias | None = None
    edge_key: Tensor | None = None
    edge_value: Tensor | None = None
    dropout_p: float = 0.0
    return_weights: bool = False
    return_lse: bool = False

    @property
    def batch_shape(self) -> torch.Size:
        """*B."""
        return self.query.shape[:-3]

    @property
    def heads(self) -> int:
        """H."""
        return self.query.size(-2)

    @property
    def accumulate_dtype(self) -> torch.dtype:
        """What scores, weights and sums are computed in: float32 for half types, else the query's own."""
        is_half = self.query.dtype in (torch.float16, torch.bfloat16)
        return torch.float32 if is_half else self.query.dtype


class Result(NamedTuple):
    """out [*B, T, H, V]; weights [*B, E, H] in the caller's order and lse [*B, T, H] where the call asks for them."""

    out: Tensor
    weights: Tensor | None
    lse: Tensor | None


class Kernel(ABC):
    """One way to compute attention. `name` is what the user writes as `backend`."""

    name: str

    @abstractmethod
    def why_not(self, call: Call) -> str | None:
        """Why this kernel can't run the call, as the end of "cannot run this call: ..."; None if it can."""

    @abstractmethod
    def cost(self, call: Call) -> float:
        """Seconds that the call should take, by a written model of shapes, dtypes and structure alone."""

    @abstractmethod
    def run(self, call: Call) -> Result:
        """Compute the call."""

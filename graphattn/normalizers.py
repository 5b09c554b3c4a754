"""Turn the scores of one target into weights.

Each normalizer has two forms, written separately and tested against each other: over the edges of each target, and
over the rows of a matrix. A score of -inf means "no edge"; a target without edges, or with only such scores, gets
zeros and zero gradients. None divides by the degree.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import check_choice, message
from .segments import Rows, gather, segment_max, segment_sum


class UserNormalizer(Protocol):
    """What a user's own normalizer offers. Edges of score -inf get weight zero whatever it returns."""

    def edgewise(self, score: Tensor, target: Tensor, num_targets: int) -> Tensor:
        """Weights of the scores [*B, E, H], where `target` [E] int64 says whose edge each one is."""

    def dense(self, score: Tensor, mask: Tensor) -> Tensor:
        """Weights of the scores [*B, H, T, S] where `mask`, which broadcasts to them, is True, and zeros elsewhere."""


class Normalizer(ABC):
    """A normalizer of the library. `name` is what the user writes."""

    name: str

    @abstractmethod
    def on_rows(self, score: Tensor, rows: Rows) -> Tensor:
        """Weights of the scores [*B, E, H], edges grouped by target."""

    @abstractmethod
    def dense(self, score: Tensor, mask: Tensor) -> Tensor:
        """Weights of the scores [*B, H, T, S] where `mask`, which broadcasts to them, is True, and zeros elsewhere."""

    def edgewise(self, score: Tensor, target: Tensor, num_targets: int) -> Tensor:
        """Weights of the scores [*B, E, H], where `target` [E] int64, in any order, says whose edge each one is."""
        return self.on_rows(score, Rows.from_index(target, num_targets))

    def __repr__(self) -> str:
        return repr(self.name)


class Softmax(Normalizer):
    """exp(s) / sum of exp(s) over the target's edges, shifted by the row's largest score."""

    name = "softmax"

    def on_rows(self, score: Tensor, rows: Rows) -> Tensor:
        """Weights of the scores [*B, E, H], edges grouped by target."""
        exponential, total, _ = self._shifted(score, rows)
        return exponential / gather(torch.where(total == 0, 1, total), rows, -2)

    def lse_on_rows(self, score: Tensor, rows: Rows) -> Tensor:
        """Log-sum-exp of each target's scores, natural log: [*B, T, H], -inf for a target without edges."""
        _, total, shift = self._shifted(score, rows)
        is_empty = total == 0
        return torch.where(is_empty, -torch.inf, torch.where(is_empty, 1, total).log() + shift)

    def dense(self, score: Tensor, mask: Tensor) -> Tensor:
        """Weights of the scores [*B, H, T, S] where `mask`, which broadcasts to them, is True, and zeros elsewhere."""
        score = torch.where(mask, score, -torch.inf)
        # A row of nothing but -inf is shifted by 0: exp gives zeros, and zeros over 1 stay zeros.
        shift = _finite_or_zero(_row_max(score))
        exponential = (score - shift).exp()
        total = exponential.sum(-1, keepdim=True)
        return exponential / torch.where(total == 0, 1, total)

    def lse_dense(self, score: Tensor, mask: Tensor) -> Tensor:
        """Log-sum-exp of each row, natural log: [*B, H, T], -inf for a row without edges."""
        score = torch.where(mask, score, -torch.inf)
        shift = _finite_or_zero(_row_max(score))
        total = (score - shift).exp().sum(-1)
        is_empty = total == 0
        return torch.where(is_empty, -torch.inf, torch.where(is_empty, 1, total).log() + shift.squeeze(-1))

    def _shifted(self, score: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        shift = _finite_or_zero(segment_max(score, rows, -2))
        exponential = (score - gather(shift, rows, -2)).exp()
        return exponential, segment_sum(exponential, rows, -2), shift


class Elementwise(Normalizer):
    """A normalizer that looks at one score alone."""

    def on_rows(self, score: Tensor, rows: Rows) -> Tensor:
        """Weights of the scores [*B, E, H]."""
        return self._apply(score)

    def dense(self, score: Tensor, mask: Tensor) -> Tensor:
        """Weights of the scores [*B, H, T, S] where `mask`, which broadcasts to them, is True, and zeros elsewhere."""
        return self._apply(torch.where(mask, score, -torch.inf))

    @abstractmethod
    def _apply(self, score: Tensor) -> Tensor:
        """Weight of each score; zero at -inf, with a zero gradient."""


class Relu(Elementwise):
    """max(s, 0)."""

    name = "relu"

    def _apply(self, score: Tensor) -> Tensor:
        return score.relu()


class Sigmoid(Elementwise):
    """1 / (1 + exp(-s))."""

    name = "sigmoid"

    def _apply(self, score: Tensor) -> Tensor:
        return score.sigmoid()


class Identity(Elementwise):
    """The score itself: linear attention weights."""

    name = "identity"

    def _apply(self, score: Tensor) -> Tensor:
        return torch.where(score == -torch.inf, 0, score)


class OwnNormalizer(Normalizer):
    """A user's own normalizer, with edges of score -inf set to zero after it."""

    name = "own"

    def __init__(self, own: UserNormalizer) -> None:
        self.own = own

    def on_rows(self, score: Tensor, rows: Rows) -> Tensor:
        """Weights of the scores [*B, E, H], edges grouped by target."""
        weight = self.own.edgewise(score, rows.index, rows.num_rows)
        _check_result("edgewise", weight, score)
        return torch.where(score == -torch.inf, 0, weight)

    def dense(self, score: Tensor, mask: Tensor) -> Tensor:
        """Weights of the scores [*B, H, T, S] where `mask`, which broadcasts to them, is True, and zeros elsewhere."""
        weight = self.own.dense(torch.where(mask, score, -torch.inf), mask)
        _check_result("dense", weight, score)
        return torch.where(mask & (score != -torch.inf), weight, 0)

    def __repr__(self) -> str:
        return repr(self.own)


NORMALIZERS: tuple[type[Normalizer], ...] = (Softmax, Relu, Sigmoid, Identity)


def as_normalizer(where: str, normalizer: Any) -> Normalizer:
    """Return the normalizer of this name, or wrap a user's own.

    Raises:
        ValueError: an unknown name; the message has the nearest one.
        TypeError: an object without `edgewise` or `dense`.
    """
    if isinstance(normalizer, Normalizer):
        return normalizer
    if isinstance(normalizer, str):
        known = {cls.name: cls for cls in NORMALIZERS}
        check_choice(where, "normalizer", normalizer, known)
        return known[normalizer]()
    if callable(getattr(normalizer, "edgewise", None)) and callable(getattr(normalizer, "dense", None)):
        return OwnNormalizer(normalizer)
    rule = "must be a name or have edgewise(score, target, num_targets) and dense(score, mask)"
    raise TypeError(message(where, "normalizer", rule, repr(normalizer)))


def _check_result(form: str, weight: Any, score: Tensor) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(message("attention", f"normalizer.{form}", "must return a tensor", type(weight).__name__))
    if weight.shape != score.shape or weight.dtype != score.dtype:
        rule = f"must return weights like the scores, {score.dtype} {list(score.shape)}"
        raise ValueError(message("attention", f"normalizer.{form}", rule, f"{weight.dtype} {list(weight.shape)}"))


def _row_max(score: Tensor) -> Tensor:
    if score.size(-1) == 0:
        return score.new_zeros(*score.shape[:-1], 1)
    return score.detach().amax(-1, keepdim=True)


def _finite_or_zero(shift: Tensor) -> Tensor:
    return torch.where(shift == -torch.inf, 0, shift)

"""Turn the scores of one target into weights.

Each normalizer has two forms, written separately and tested against each other: over the edges of each target, and
over the rows of a matrix. A score of -inf means "no edge"; a target without edges, or with only such scores, gets
zeros and zero gradients. None divides by the degree.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import check_choice, check_takes, message
from .segments import Rows, gather, segment_max, segment_sum


class UserNormalizer(Protocol):
    """What a user's own normalizer offers. Edges of score -inf get weight zero whatever it returns.

    Example:
        >>> from graphattn import attention
        >>> class Square:
        ...     def edgewise(self, score, target, num_targets):
        ...         return score.square()
        ...     def dense(self, score, mask):
        ...         return torch.where(mask, score, 0).square()
        >>> x = torch.tensor([[1.0], [2.0], [4.0]]).unsqueeze(1)
        >>> edge_index = torch.tensor([[0, 2], [1, 1]])
        >>> attention(x, x, x, edge_index, normalizer=Square(), return_weights=True)[1].squeeze(1)
        tensor([ 4., 64.])
    """

    def edgewise(self, score: Tensor, target: Tensor, num_targets: int, /) -> Tensor:
        """Weights of the scores [*B, E, H], where `target` [E] int64 says whose edge each one is."""

    def dense(self, score: Tensor, mask: Tensor, /) -> Tensor:
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

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that the normalizer owns, by name: kernels ask them for derivatives, too."""
        return {}

    def edgewise(self, score: Tensor, target: Tensor, num_targets: int) -> Tensor:
        """Weights of the scores [*B, E, H], where `target` [E] int64, in any order, says whose edge each one is."""
        return self.on_rows(score, Rows.from_index(target, num_targets))

    def __repr__(self) -> str:
        return repr(self.name)


class Softmax(Normalizer):
    """exp(s) / sum of exp(s) over the target's edges, shifted by the row's largest score.

    Example:
        >>> Softmax().dense(torch.tensor([0.0, 0.0, -torch.inf]), torch.tensor(True))
        tensor([0.5000, 0.5000, 0.0000])
    """

    name = "softmax"

    def on_rows(self, score: Tensor, rows: Rows) -> Tensor:
        """Weights of the scores [*B, E, H], edges grouped by target."""
        exponential, total, _ = self._shifted(score, rows)
        return exponential / gather(torch.where(total == 0, 1, total), rows, -2)

    def lse_on_rows(self, score: Tensor, rows: Rows) -> Tensor:
        """Log-sum-exp of each target's scores, natural log, in two parts whose sum it is: [*B, T, H, 2].

        The first is the largest score, a constant to derivatives; a target without edges has 0 and -inf.
        """
        _, total, shift = self._shifted(score, rows)
        return torch.stack([shift, _log(total)], -1)

    def dense(self, score: Tensor, mask: Tensor) -> Tensor:
        """Weights of the scores [*B, H, T, S] where `mask`, which broadcasts to them, is True, and zeros elsewhere."""
        score = torch.where(mask, score, -torch.inf)
        # A row of nothing but -inf is shifted by 0: exp gives zeros, and zeros over 1 stay zeros.
        shift = _finite_or_zero(_row_max(score))
        exponential = (score - shift).exp()
        total = exponential.sum(-1, keepdim=True)
        return exponential / torch.where(total == 0, 1, total)

    def lse_dense(self, score: Tensor, mask: Tensor) -> Tensor:
        """Log-sum-exp of each row, natural log, in the two parts of `lse_on_rows`: [*B, H, T, 2]."""
        score = torch.where(mask, score, -torch.inf)
        shift = _finite_or_zero(_row_max(score))
        return torch.cat([shift, _log((score - shift).exp().sum(-1, keepdim=True))], -1)

    def _shifted(self, score: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        shift = _finite_or_zero(segment_max(score, rows, -2))
        exponential = (score - gather(shift, rows, -2)).exp()
        return exponential, segment_sum(exponential, rows, -2), shift


class Elementwise(Normalizer):
    """A normalizer that looks at one score alone: `function(s)`.

    Args:
        function: from scores of any shape to weights of the same; a module's parameters are trained. A score of -inf
            gets weight and gradient zero, whatever it returns.

    Example:
        >>> square = Elementwise(lambda score: score.relu().square())
        >>> square.dense(torch.tensor([3.0, -1.0, -torch.inf]), torch.tensor(True))
        tensor([9., 0., 0.])

    References:
        So et al., "Primer: Searching for Efficient Transformers for Language Modeling", 2021, for the squared ReLU.
    """

    name = "elementwise"

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        where = type(self).__name__
        if not callable(function) or isinstance(function, type):
            raise TypeError(message(where, "function", "must be a function of the scores, or a module", repr(function)))
        check_takes(where, "function", function, ("score",))
        self.function = function

    def tensors(self) -> dict[str, Tensor]:
        """The parameters of a module, see `Normalizer.tensors`."""
        return dict(self.function.named_parameters()) if isinstance(self.function, torch.nn.Module) else {}

    def on_rows(self, score: Tensor, rows: Rows) -> Tensor:
        """Weights of the scores [*B, E, H]."""
        return self._apply(score)

    def dense(self, score: Tensor, mask: Tensor) -> Tensor:
        """Weights of the scores [*B, H, T, S] where `mask`, which broadcasts to them, is True, and zeros elsewhere."""
        return self._apply(torch.where(mask, score, -torch.inf))

    def _apply(self, score: Tensor) -> Tensor:
        """Weight of each score; zero at -inf, with a zero gradient."""
        is_edge = score != -torch.inf
        weight = self.function(torch.where(is_edge, score, 0))
        _check_result("function", weight, score)
        return torch.where(is_edge, weight, 0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self.function, '__name__', type(self.function).__name__)})"


class Normalized(Elementwise):
    """`function(s)`, divided by its sum over the target's edges; zeros where that sum is zero.

    Args:
        function: as of `Elementwise`; where it can be negative, so can the sum.

    Example:
        >>> share = Normalized(lambda score: score.relu().square())
        >>> share.dense(torch.tensor([3.0, 1.0, -1.0]), torch.tensor(True))
        tensor([0.9000, 0.1000, 0.0000])
    """

    name = "normalized"

    def on_rows(self, score: Tensor, rows: Rows) -> Tensor:
        """Weights of the scores [*B, E, H], edges grouped by target."""
        weight = self._apply(score)
        total = segment_sum(weight, rows, -2)
        return weight / gather(torch.where(total == 0, 1, total), rows, -2)

    def dense(self, score: Tensor, mask: Tensor) -> Tensor:
        """Weights of the scores [*B, H, T, S] where `mask`, which broadcasts to them, is True, and zeros elsewhere."""
        weight = super().dense(score, mask)
        total = weight.sum(-1, keepdim=True)
        return weight / torch.where(total == 0, 1, total)


class Share(Normalized):
    """s / sum of s over the target's edges: of scores that are products of positive features, see `feature_map`.

    Example:
        >>> Share().dense(torch.tensor([3.0, 1.0, -torch.inf]), torch.tensor(True))
        tensor([0.7500, 0.2500, 0.0000])
    """

    name = "share"

    def __init__(self) -> None:
        """Take none."""

    def tensors(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def _apply(self, score: Tensor) -> Tensor:
        return torch.where(score == -torch.inf, 0, score)

    def __repr__(self) -> str:
        return repr(self.name)


class Plain(Elementwise):
    """An elementwise normalizer of the library, which has a name and no arguments."""

    def __init__(self) -> None:
        """Take none."""

    def tensors(self) -> dict[str, Tensor]:
        """None."""
        return {}

    @abstractmethod
    def _apply(self, score: Tensor) -> Tensor: ...

    def __repr__(self) -> str:
        return repr(self.name)


class Relu(Plain):
    """max(s, 0), which doesn't sum to 1.

    Example:
        >>> Relu().dense(torch.tensor([3.0, -1.0]), torch.tensor(True))
        tensor([3., 0.])
    """

    name = "relu"

    def _apply(self, score: Tensor) -> Tensor:
        return score.relu()


class Sigmoid(Plain):
    """1 / (1 + exp(-s)), which doesn't sum to 1.

    Example:
        >>> Sigmoid().dense(torch.tensor([0.0, -torch.inf]), torch.tensor(True))
        tensor([0.5000, 0.0000])
    """

    name = "sigmoid"

    def _apply(self, score: Tensor) -> Tensor:
        return score.sigmoid()


class Identity(Plain):
    """The score itself: linear attention weights.

    Example:
        >>> Identity().dense(torch.tensor([3.0, -1.0]), torch.tensor([True, False]))
        tensor([3., 0.])
    """

    name = "identity"

    def _apply(self, score: Tensor) -> Tensor:
        return torch.where(score == -torch.inf, 0, score)


class Entmax(Normalizer):
    """max(s / p - tau, 0) ^ p, with each target's tau such that its weights sum to 1: low scores get exactly zero.

    Thresholds are found and weights formed in float64: in float32 the many small weights of a hub would not sum to 1.
    """

    power: int

    @abstractmethod
    def _threshold(self, count: Tensor, mean: Tensor, square: Tensor) -> Tensor:
        """The tau at which a support of `count` edges, of this mean and mean square of s / p, has weights of sum 1."""

    def _raise(self, gap: Tensor) -> Tensor:
        # Under torch.compile the power may be symbolic, and `pow` has no derivative for such a one.
        return gap if self.power == 1 else gap.square()

    def on_rows(self, score: Tensor, rows: Rows) -> Tensor:
        """Weights of the scores [*B, E, H], edges grouped by target."""
        shift = _finite_or_zero(segment_max(score, rows, -2))
        scaled = (score - gather(shift, rows, -2)).double() / self.power
        if torch.compiler.is_exporting():
            rule, fix = "must not search its thresholds in steps that depend on the numbers", "Use 'softmax' or 'relu'."
            raise NotImplementedError(message("torch.export", "normalizer", rule, self, fix))
        search = _search_compiled if torch.compiler.is_compiling() else _search
        # Measured from the tau that the search has found, the sums below are of order one, whatever the degree.
        gap = (scaled - gather(search(scaled.detach(), *rows, self.power), rows, -2)).relu()
        is_chosen = gap > 0
        count = segment_sum(is_chosen.to(gap.dtype), rows, -2).clamp(min=1)
        mean, square = (segment_sum(x, rows, -2) / count for x in (gap, gap.square()))
        rest = gather(self._threshold(count, mean, square), rows, -2)
        return self._raise(torch.where(is_chosen, gap - rest, gap).relu()).to(score.dtype)

    def dense(self, score: Tensor, mask: Tensor) -> Tensor:
        """Weights of the scores [*B, H, T, S] where `mask`, which broadcasts to them, is True, and zeros elsewhere."""
        score = torch.where(mask, score, -torch.inf)
        scaled = (score - _finite_or_zero(_row_max(score))).double() / self.power
        # The largest is 0 and no tau lies below -1, so that what is cut off at -2 has no weight.
        ranked = scaled.clamp(min=-2).sort(-1, descending=True).values
        with torch.no_grad():
            counts = torch.arange(1, ranked.size(-1) + 1, dtype=ranked.dtype, device=ranked.device)
            mean, square = (x.cumsum(-1) / counts for x in (ranked, ranked.square()))
            # The support: each score that exceeds the tau of the scores up to it.
            is_chosen = ranked > self._threshold(counts, mean, square)
        count = is_chosen.sum(-1, keepdim=True, dtype=ranked.dtype).clamp(min=1)
        mean, square = (torch.where(is_chosen, x, 0).sum(-1, keepdim=True) / count for x in (ranked, ranked.square()))
        return self._raise((scaled - self._threshold(count, mean, square)).relu()).to(score.dtype)


class Sparsemax(Entmax):
    """max(s - tau, 0), with each target's tau such that its weights sum to 1.

    Example:
        >>> Sparsemax().dense(torch.tensor([1.0, 0.5, -1.0]), torch.tensor(True))
        tensor([0.7500, 0.2500, 0.0000])

    References:
        Martins and Astudillo, "From Softmax to Sparsemax", 2016: algorithm 1 on matrices. On edges Michelot, "A finite
        algorithm for finding the projection of a point onto the canonical simplex of R^n", 1986.
    """

    name = "sparsemax"
    power = 1

    def _threshold(self, count: Tensor, mean: Tensor, square: Tensor) -> Tensor:
        return mean - 1 / count


class Entmax15(Entmax):
    """max(s / 2 - tau, 0) ^ 2, with each target's tau such that its weights sum to 1.

    Example:
        >>> Entmax15().dense(torch.tensor([0.4, 0.0, -2.0]), torch.tensor(True))
        tensor([0.6400, 0.3600, 0.0000])

    References:
        Peters, Niculae and Martins, "Sparse Sequence-to-Sequence Models", 2019: algorithm 2 on matrices.
    """

    name = "entmax15"
    power = 2

    def _threshold(self, count: Tensor, mean: Tensor, square: Tensor) -> Tensor:
        # Sets that can't be a support, whose variance is too large, get their mean, which not all of them exceed.
        return mean - (1 / count - (square - mean.square())).clamp(min=0).sqrt()


class OwnNormalizer(Normalizer):
    """A user's own normalizer, with edges of score -inf set to zero after it."""

    name = "own"

    def __init__(self, own: UserNormalizer) -> None:
        self.own = own

    def tensors(self) -> dict[str, Tensor]:
        """The parameters of a module, see `Normalizer.tensors`."""
        return dict(self.own.named_parameters()) if isinstance(self.own, torch.nn.Module) else {}

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


NORMALIZERS: tuple[type[Normalizer], ...] = (Softmax, Relu, Sigmoid, Identity, Sparsemax, Entmax15)


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
    forms = {"edgewise": ("score", "target", "num_targets"), "dense": ("score", "mask")}
    if all(callable(getattr(normalizer, form, None)) for form in forms):
        if isinstance(normalizer, type):
            fix = f"Use {normalizer.__name__}()."
            raise TypeError(message(where, "normalizer", "must be an object, not its class", normalizer.__name__, fix))
        for form, names in forms.items():
            check_takes(where, f"normalizer.{form}", getattr(normalizer, form), names)
        return OwnNormalizer(normalizer)
    rule = "must be a name or have edgewise(score, target, num_targets) and dense(score, mask)"
    raise TypeError(message(where, "normalizer", rule, repr(normalizer)))


def _check_result(form: str, weight: Any, score: Tensor) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(message("attention", f"normalizer.{form}", "must return a tensor", type(weight).__name__))
    if weight.shape != score.shape or weight.dtype != score.dtype:
        rule = f"must return weights like the scores, {score.dtype} {list(score.shape)}"
        raise ValueError(message("attention", f"normalizer.{form}", rule, f"{weight.dtype} {list(weight.shape)}"))


def _search(scaled: Tensor, index: Tensor, ptr: Tensor, perm: Tensor | None, power: int) -> Tensor:
    """The tau [*B, T, H] at which the powers of max(scaled - tau, 0) sum to 1 in each row, by Newton's method.

    The sum is convex in tau and falls, so that steps from the left, from -1 below the row's largest of 0, never pass
    the root. Each step divides the distance of the sum to 1, times the slope, by 4 at least: 64 steps are enough for
    any degree.
    """
    rows, is_mapped = Rows(index, ptr, perm), _is_mapped(scaled)
    tau = scaled.new_full((*scaled.shape[:-2], rows.num_rows, scaled.size(-1)), -1)
    for _ in range(64):
        gap = (scaled - gather(tau, rows, -2)).relu()
        slope = power * segment_sum(gap.pow(power - 1) * (gap > 0), rows, -2)
        moved = tau + (segment_sum(gap.pow(power), rows, -2) - 1) / slope
        # False for rows without edges and for those that hold a NaN.
        goes_on = moved > tau
        if not is_mapped and not bool(goes_on.any()):
            break
        tau = torch.where(goes_on, moved, tau)
    return tau


def _is_mapped(x: Tensor) -> bool:
    """Whether torch.vmap is at work, under which nothing may depend on the numbers."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False


# How often the loop runs depends on the numbers, so that a compiled graph holds it as one operator.
_search_compiled = torch.library.custom_op(
    "graphattn::entmax_search",
    _search,
    mutates_args=(),
    schema="(Tensor scaled, Tensor index, Tensor ptr, Tensor? perm, SymInt power) -> Tensor",
)


@_search_compiled.register_fake
def _fake_search(scaled: Tensor, index: Tensor, ptr: Tensor, perm: Tensor | None, power: int) -> Tensor:
    return scaled.new_empty(*scaled.shape[:-2], ptr.numel() - 1, scaled.size(-1))


def _row_max(score: Tensor) -> Tensor:
    if score.size(-1) == 0:
        return score.new_zeros(*score.shape[:-1], 1)
    return score.detach().amax(-1, keepdim=True)


def _log(total: Tensor) -> Tensor:
    """Natural log, -inf with a zero gradient where a sum is empty."""
    is_empty = total == 0
    return torch.where(is_empty, -torch.inf, torch.where(is_empty, 1, total).log())


def _finite_or_zero(shift: Tensor) -> Tensor:
    return torch.where(shift == -torch.inf, 0, shift)

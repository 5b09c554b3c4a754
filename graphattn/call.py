"""What a call of `attention` is, and the checks that run before every kernel and the oracle."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Required, TypedDict

import torch
from torch import Tensor
from torch.nn import Parameter

from .calibrated import costs_of
from .compiled import NotCompiled
from .errors import check_choice, check_device, check_float_tensor, check_like, check_probability, message, shape_of
from .normalizers import NORMALIZERS, Identity, Normalizer, Relu, Sigmoid, Softmax, UserNormalizer, as_normalizer
from .offset_bias import OffsetBias
from .patterns import Edges, Pattern, PatternLike
from .patterns.base import OF_ATTENTION, Sides
from .patterns.lookup import known_edges, known_join
from .precision import accumulate_dtype
from .scores import Additive, DotProduct, FunctionScore, Score, ScoreFunction, as_score
from .tracing import Captures, Unsupported


class Options(TypedDict, total=False):
    """Keyword arguments of `attention` and its dense reference, except those that choose what to return."""

    score: Score | ScoreFunction
    normalizer: str | Normalizer | UserNormalizer
    edge_bias: Tensor | OffsetBias | None
    edge_key: Tensor | None
    edge_value: Tensor | None
    dropout_p: float


class OutAlone(Options, total=False):
    """Options of a call that returns out."""

    return_weights: Literal[False]
    return_lse: Literal[False]


class WithWeights(Options, total=False):
    """Options of a call that returns out and weights."""

    return_weights: Required[Literal[True]]
    return_lse: Literal[False]


class WithLse(Options, total=False):
    """Options of a call that returns out and lse."""

    return_weights: Literal[False]
    return_lse: Required[Literal[True, "split"]]


class WithBoth(Options):
    """Options of a call that returns out, weights and lse."""

    return_weights: Literal[True]
    return_lse: Literal[True, "split"]


class AnyOptions(Options, total=False):
    """Options of a call whose return type a type checker can't know."""

    return_weights: bool
    return_lse: bool | Literal["split"]


class Call(NamedTuple):
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
    return_lse: bool | Literal["split"] = False

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
        return accumulate_dtype(self.query.dtype)


def as_pattern(
    where: str,
    pattern: Any,
    num_sources: int,
    num_targets: int,
    *,
    sides: Sides = OF_ATTENTION,
    may_trace: bool = False,
) -> Pattern:
    """Return the pattern of a call whose `sides` have these numbers of rows; edges are made into one.

    With `may_trace`, a tensor in a graph that torch.compile is tracing is not read. Only fused kernels support this.
    While torch.export records, none is read.
    """
    if torch.jit.is_tracing():
        rule, fix = (
            "can't record a call, whose edges may differ",
            "Use torch.export, or torch.onnx.export(dynamo=True).",
        )
        raise NotImplementedError(message(where, "torch.jit.trace", rule, fix=fix))
    if isinstance(pattern, list | tuple):
        if not pattern or not all(isinstance(part, Pattern) for part in pattern):
            got = f"a {type(pattern).__name__} of {type(pattern[0]).__name__ if pattern else 'nothing'}"
            fix = "Use torch.tensor(edges).t() for a list of pairs, torch.stack([source, target]) for two tensors."
            raise TypeError(message(where, "edge_index", "must hold patterns if it is a list", got, fix))
        pattern = known_join(pattern)
    if not isinstance(pattern, Pattern):
        is_traced = torch.compiler.is_exporting() or (may_trace and torch.compiler.is_compiling())
        if is_traced and isinstance(pattern, Tensor) and pattern.layout == torch.strided:
            return Edges.traced(where, pattern, num_sources, num_targets, sides=sides)
        return _read_pattern(where, pattern, num_sources, num_targets, sides)
    for kind, argument, has, rows in (
        ("sources", sides.source, pattern.num_sources, num_sources),
        ("targets", sides.target, pattern.num_targets, num_targets),
    ):
        if has != rows:
            rule = f"must have as many {kind} as {argument} has rows, {rows}"
            raise ValueError(message(where, "pattern", rule, f"{has} in {pattern}", sides.fix))
    return pattern


def is_transformed() -> bool:
    """Whether torch.func or forward-mode derivatives are active, which fused kernels don't support."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def can_be_fused(score: Score, normalizer: Normalizer) -> bool:
    """Whether a fused kernel may support this score and this normalizer."""
    return isinstance(score, DotProduct | Additive) and isinstance(normalizer, Softmax | Relu | Sigmoid | Identity)


@torch.compiler.disable(reason="reading edges depends on their values, which a compiled graph can't hold")
def _read_pattern(where: str, container: Any, num_sources: int, num_targets: int, sides: Sides) -> Edges:
    """Read a container. This depends on the values of the data, which a compiled graph can't hold."""
    if isinstance(container, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(container):
        rule = "must be the same for all examples that torch.func maps over"
        raise NotImplementedError(message(where, "edge_index", rule, "one that differs", "Join graphs in a batch."))
    # Edges are not transformed by torch.func, and outlive the transform.
    with torch._C._DisableFuncTorch():
        if isinstance(container, Tensor):
            return known_edges(where, container, num_sources, num_targets, sides)
        return Edges.between(where, container, num_sources, num_targets, sides)


def prepare(
    where: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: PatternLike,
    score: Score | ScoreFunction = DotProduct(),
    normalizer: str | Normalizer | UserNormalizer = "softmax",
    edge_bias: Tensor | OffsetBias | None = None,
    edge_key: Tensor | None = None,
    edge_value: Tensor | None = None,
    dropout_p: float = 0.0,
    return_weights: bool = False,
    return_lse: bool | Literal["split"] = False,
) -> Call:
    """Check the arguments of `attention` and gather them into a `Call`; `where` names the function in messages."""
    query, key, value = _autocast(query), _autocast(key), _autocast(value)
    check_tensors(where, query, key, value)
    score, normalizer = as_score(where, score), as_normalizer(where, normalizer)
    may_trace = can_be_fused(score, normalizer)
    sides = Sides(fix=_layout_hint(query))
    pattern = as_pattern(where, pattern, key.size(-3), query.size(-3), sides=sides, may_trace=may_trace)
    check_device(where, "pattern", pattern.device, query)
    score.check(where, query, key)
    check_probability(where, "dropout_p", dropout_p)
    if isinstance(return_lse, str):
        check_choice(where, "return_lse", return_lse, ["split"])
    if return_lse and not isinstance(normalizer, Softmax):
        raise ValueError(message(where, "return_lse", "needs normalizer='softmax'", normalizer))

    kv_heads, edges = key.size(-2), pattern.num_edges
    is_own = isinstance(score, FunctionScore)
    key_shape = [edges] if is_own else [edges, kv_heads, query.size(-1)]
    value_shape = [edges, kv_heads, value.size(-1)]
    return Call(
        query,
        key,
        value,
        pattern,
        score,
        normalizer,
        _check_edge_bias(where, edge_bias, query, pattern),
        _check_edge_tensor(where, "edge_key", edge_key, query, key_shape, or_more=is_own),
        _check_edge_tensor(where, "edge_value", edge_value, query, value_shape),
        float(dropout_p),
        return_weights,
        return_lse,
    )


# The arguments of `attention` in the order of `Call`, not checked yet.
Arguments = tuple[Any, ...]


def captures_of(score: Any) -> Captures | None:
    """What a score of the user's own reads besides its arguments; None of others, and where that can't be said."""
    if isinstance(score, Score | type) or not callable(score) or torch.compiler.is_compiling():
        return None
    try:
        return Captures(score)
    except Unsupported:
        return None


def signature(
    arguments: Arguments, backend: Any, kernels: tuple[Any, ...], captured: Captures | None = None
) -> tuple[Any, ...] | None:
    """What the checks of a call and the choice of its kernel depend on, apart from the pattern.

    Calls with equal signatures differ in numbers alone, so that what was found for one holds for the other: checking
    takes longer than the loop over a small graph. None where more is involved: edges that aren't a pattern yet,
    torch.compile, transforms, autocast, subclasses of Tensor, normalizers of the user's own, and functions that capture
    what may change unnoticed.
    """
    query, key, value, pattern, score, normalizer, *of_edges, dropout_p, return_weights, return_lse = arguments
    is_recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if not isinstance(pattern, Pattern) or is_recorded or is_transformed():
        return None
    if type(score) is DotProduct:
        marks: list[Any] = [score.scale]
    elif type(score) is Additive:
        marks = [score.activation, score.negative_slope]
        of_edges.append(score.vector)
    elif captured is not None:
        marks = [captured.key]
    else:
        return None
    for x in (query, key, value, *of_edges):
        if x is None:
            marks.append(None)
        elif type(x) in (Tensor, Parameter) and x.layout == torch.strided:
            marks += (x.shape, x.stride(), x.dtype, x.device)
        else:
            return None
    is_known = isinstance(normalizer, str) or type(normalizer) in NORMALIZERS
    # True equals 1, and a list can't be looked up.
    is_known = is_known and type(dropout_p) in (float, int) and isinstance(backend, str)
    if not is_known or _is_autocast(query.device.type):
        return None
    return (
        *marks,
        normalizer,
        dropout_p,
        bool(return_weights),
        repr(return_lse),
        backend,
        kernels,
        costs_of(query.device),
        NotCompiled.times,
    )


def recall(arguments: Arguments, normalizer: Normalizer, captured: Captures | None = None) -> Call:
    """Gather arguments whose signature is that of a checked call into a `Call`."""
    query, key, value, pattern, score, _, *of_edges, dropout_p, return_weights, return_lse = arguments
    bias, edge_key, edge_value = of_edges
    bias, edge_value = with_batch(bias, query, 2), with_batch(edge_value, query, 3)
    if isinstance(score, Score):
        edge_key = with_batch(edge_key, query, 3)
    else:
        # Of any trailing shape, so that its own one doesn't say whether it has batch dimensions.
        edge_key = _check_edge_tensor("attention", "edge_key", edge_key, query, [pattern.num_edges], or_more=True)
        score = FunctionScore(score, captured)
    of_call = (query, key, value, pattern, score, normalizer, bias, edge_key, edge_value)
    return Call(*of_call, float(dropout_p), return_weights, return_lse)


def with_batch(x: Any, query: Tensor, dims: int) -> Any:
    """A checked edge tensor, of `dims` dimensions without those of the batch, with 1 for each that it lacks."""
    return x if x is None or x.dim() > dims else x.view(*[1] * (query.dim() - 3), *x.shape)


def _autocast(x: Tensor) -> Tensor:
    """Cast an input as torch.autocast casts those of scaled_dot_product_attention."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == torch.float64:
        return x
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if _is_autocast(device) else x


def _is_autocast(device: str) -> bool:
    # Meta tensors have no autocast. torch.amp.is_autocast_available would say so, but torch 2.11 can't compile it.
    return device != "meta" and torch.is_autocast_enabled(device)


def _layout_hint(x: Tensor) -> str:
    """The fix to suggest if rows or heads don't fit; empty for tensors without batch dimensions."""
    dim = x.dim()
    return f"Rows come before heads: from SDPA's layout, use transpose({dim - 3}, {dim - 2})." if dim > 3 else ""


def check_tensors(where: str, query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise TypeError or ValueError unless these are rows of heads that fit each other."""
    for argument, x in (("query", query), ("key", key), ("value", value)):
        check_float_tensor(where, argument, x)
        if x.dim() < 3:
            raise ValueError(message(where, argument, "must have shape [*B, rows, heads, width]", shape_of(x)))
        if x.size(-1) == 0:
            raise ValueError(message(where, argument, "must have a width of at least 1", shape_of(x)))
        check_like(where, argument, x, query)
        if x.shape[:-3] != query.shape[:-3]:
            rule = f"must have query's batch dimensions, {list(query.shape[:-3])}"
            raise ValueError(message(where, argument, rule, f"{list(x.shape[:-3])} in shape {shape_of(x)}"))
    hint = _layout_hint(query)
    if value.shape[-3] != key.shape[-3]:
        rule = f"must have as many rows as key, {key.size(-3)}"
        raise ValueError(message(where, "value", rule, value.size(-3), hint))
    if value.shape[-2] != key.shape[-2]:
        rule = f"must have as many heads as key, {key.size(-2)}"
        raise ValueError(message(where, "value", rule, value.size(-2), hint))
    if query.size(-2) == 0:
        raise ValueError(message(where, "query", "must have at least 1 head", shape_of(query)))
    if key.size(-2) == 0 or query.size(-2) % key.size(-2):
        rule = f"must divide the {query.size(-2)} heads of query"
        raise ValueError(message(where, "key's number of heads", rule, key.size(-2), hint))


def _check_edge_bias(
    where: str, bias: Tensor | OffsetBias | None, query: Tensor, pattern: Pattern
) -> Tensor | OffsetBias | None:
    if not isinstance(bias, OffsetBias):
        return _check_edge_tensor(where, "edge_bias", bias, query, [pattern.num_edges, query.size(-2)])
    bias.check(where, query, pattern)
    return bias


def _check_edge_tensor(
    where: str, argument: str, x: Tensor | None, query: Tensor, shape: list[int], *, or_more: bool = False
) -> Tensor | None:
    """Check shape, dtype and device; return the tensor with all leading batch dimensions, 1 where it had none.

    With `or_more`, any dimensions may follow those of `shape`, and any dtype is valid.
    """
    if x is None:
        return None
    if not isinstance(x, Tensor):
        raise TypeError(message(where, argument, "must be a tensor", type(x).__name__))
    batch = list(query.shape[:-3])
    found = list(x.shape)
    has_batch, has_none = (
        found[: len(wanted)] == wanted and (or_more or len(found) == len(wanted)) for wanted in (batch + shape, shape)
    )
    if not (has_batch or has_none):
        rule = f"must have shape {shape}" + (f", with or without {batch} in front" if batch else "")
        raise ValueError(message(where, argument, rule, found))
    if or_more:
        check_device(where, argument, x.device, query)
    else:
        check_float_tensor(where, argument, x)
        check_like(where, argument, x, query, or_float32=True)
    return x if has_batch else x.view(*[1] * len(batch), *x.shape)

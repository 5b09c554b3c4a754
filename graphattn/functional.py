"""`attention`: check the call, choose a kernel, run it."""

from __future__ import annotations

import inspect
import math
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor

from .calibrated import costs_of
from .call import (
    AnyOptions,
    Call,
    OutAlone,
    WithBoth,
    WithLse,
    WithWeights,
    captures_of,
    check_tensors,
    is_transformed,
    prepare,
    recall,
    signature,
)
from .compiled import NotCompiled
from .costs import Costs
from .errors import check_choice, check_float_tensor, message, shape_of
from .kernels import KERNELS, Kernel, Result
from .kernels.base import in_parts
from .kernels.rows.cpu.emit import source_of
from .kernels.rows.own import SCORE, loops_of
from .normalizers import Normalizer, UserNormalizer
from .offset_bias import OffsetBias
from .patterns import Edges, Pattern, PatternLike
from .patterns.across_processes import RemotePattern
from .precision import accumulate_dtype
from .scores import Additive, DotProduct, FunctionScore, Score, ScoreFunction, as_score, repeat_heads
from .tracing import Trace, Unsupported, traced

# Of how many kinds of calls a pattern remembers what was found, and of how many all lists of edges together.
MOST_SIGNATURES, MOST_OF_EDGES = 64, 1024
# By sizes and signature: no check of a call on the CPU, and no estimate of its cost, looks at the edges of a list.
_calls_of_edges: dict[Any, tuple[Kernel, Normalizer]] = {}


@overload
def attention(
    query: Tensor, key: Tensor, value: Tensor, pattern: PatternLike, *, backend: str = ..., **options: Unpack[OutAlone]
) -> Tensor: ...
@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: PatternLike,
    *,
    backend: str = ...,
    **options: Unpack[WithWeights],
) -> tuple[Tensor, Tensor]: ...
@overload
def attention(
    query: Tensor, key: Tensor, value: Tensor, pattern: PatternLike, *, backend: str = ..., **options: Unpack[WithLse]
) -> tuple[Tensor, Tensor]: ...
@overload
def attention(
    query: Tensor, key: Tensor, value: Tensor, pattern: PatternLike, *, backend: str = ..., **options: Unpack[WithBoth]
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: PatternLike,
    *,
    backend: str = ...,
    **options: Unpack[AnyOptions],
) -> Tensor | tuple[Tensor, ...]: ...
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: PatternLike,
    *,
    score: Score | ScoreFunction = DotProduct(),
    normalizer: str | Normalizer | UserNormalizer = "softmax",
    edge_bias: Tensor | OffsetBias | None = None,
    edge_key: Tensor | None = None,
    edge_value: Tensor | None = None,
    dropout_p: float = 0.0,
    return_weights: bool = False,
    return_lse: bool | Literal["split"] = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, ...]:
    """Attend from every target to its sources. Rows before heads: [*B, T, H, D]; SDPA's layout: transpose(1, 2).

    For tensors [B, H, T, D] of scaled_dot_product_attention use `query.transpose(1, 2)`, and the same for the result.
    If H equals T, the two layouts can't be told apart, and the wrong one raises no error.

        score_ij  = score(query_i, key_j + edge_key_ij) + edge_bias_ij
        weight_ij = normalizer(score_ij over all j -> i)
        out_i     = sum over j -> i of weight_ij * (value_j + edge_value_ij)

    Args:
        query: [*B, T, H, D] float; one row per target. The batch dimensions *B share one pattern.
        key: [*B, S, H_kv, D] float; one row per source. H is a multiple of H_kv: query head h uses head
            h // (H / H_kv).
        value: [*B, S, H_kv, V] float.
        pattern: a `Pattern`, a list of patterns of one class (they are joined), or anything that `Edges` takes, such
            as an `edge_index` [2, E], whose first row lists sources and whose second row lists targets.
        score: `DotProduct()`, `Additive(vector)` or a callable `(query_i, key_j, edge_key) -> [*B, E, H]`.
        normalizer: "softmax", "relu", "sigmoid", "identity", "sparsemax", "entmax15", or an object with
            `edgewise(score, target, num_targets)` and `dense(score, mask)`.
        edge_bias: [*B or nothing, E, H], added to the score last; -inf removes the edge. Or an `OffsetBias` table.
        edge_key: [*B or nothing, E, H_kv, D], added to the key; of any trailing shape for a callable score.
        edge_value: [*B or nothing, E, H_kv, V], added to the value.
        dropout_p: probability that a weight is zeroed; the others are scaled by 1 / (1 - dropout_p).
        return_weights: also return the weights.
        return_lse: also return the log-sum-exp of each target's scores; softmax only. "split" returns it in two parts,
            the largest score and the log of the sum of exp(score - largest), because the sum of both would be rounded
            at large scores.
        backend: "auto", or the name of a kernel, which then runs or raises.

    Edge tensors and returned weights are in the caller's order of edges: that of `pattern.edge_index`.

    Returns:
        out [*B, T, H, V] in the dtype of query; a target without edges gets zeros. Or a tuple of out, then weights
        [*B, E, H] (after normalizing, before dropout), then lse [*B, T, H] (-inf for a target without edges) or,
        split, [*B, T, H, 2] (0 and -inf), as requested.

    Raises:
        TypeError: a tensor has the wrong dtype, or an argument the wrong type.
        ValueError: shapes, sizes, devices or names don't fit; the message gives the value and a fix.
        NotImplementedError: the named backend can't run this call.

    Numerics:
        float16 and bfloat16 are accumulated in float32, and their weights and lse are float32. Under torch.autocast,
        query, key and value are cast as for scaled_dot_product_attention. On the same kernel, the result is bitwise the
        same for repeated calls and for every order of the edges; parallel edges with different edge tensors keep their
        given order.

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [4.0]]).unsqueeze(1)
        >>> edge_index = torch.tensor([[0, 1, 2], [1, 1, 0]])
        >>> out, weights = attention(x, x, x, edge_index, normalizer="identity", return_weights=True)
        >>> weights.squeeze(1)
        tensor([2., 4., 4.])
        >>> out.flatten()
        tensor([16., 10.,  0.])

    References:
        Vaswani et al., "Attention Is All You Need", 2017, for one head on the full pattern.
    """
    of_edges = (edge_bias, edge_key, edge_value)
    arguments = (query, key, value, pattern, score, normalizer, *of_edges, dropout_p, return_weights, return_lse)
    captured = captures_of(score)
    known: Any = signature(arguments, backend, KERNELS, captured)
    calls, most = _calls_of_edges, MOST_OF_EDGES
    if known is not None and isinstance(pattern, Pattern):
        # What a function captures must not outlive the pattern.
        is_shared = type(pattern) is Edges and captured is None and not pattern.is_traced
        if is_shared and query.device.type == pattern.device.type == "cpu":
            known = pattern.num_sources, pattern.num_targets, pattern.num_edges, known
        else:
            calls, most = pattern.keep("calls", dict), MOST_SIGNATURES
        if known in calls:
            kernel, checked = calls[known]
            return _results(_run(kernel, recall(arguments, checked, captured), backend), return_lse)
    call = prepare("attention", *arguments)
    if isinstance(call.pattern, RemotePattern):
        edge_tensors = {"edge_bias": edge_bias, "edge_key": edge_key, "edge_value": edge_value}
        asked_for = {"return_weights": return_weights, "return_lse": return_lse}
        options = {"score": score, "normalizer": normalizer, "dropout_p": dropout_p, "backend": backend}
        return call.pattern.attend(call.query, call.key, call.value, **options, **edge_tensors, **asked_for)
    kernel = choose(call, backend)
    if known is not None:
        if len(calls) >= most:
            calls.clear()
        calls[known] = kernel, call.normalizer
    return _results(_run(kernel, call, backend), return_lse)


def _run(kernel: Kernel, call: Call, backend: str) -> Result:
    """Run a call; where Numba fails to compile it, by what can run from then on."""
    try:
        return kernel.run(call)
    except NotCompiled:
        return choose(call, backend).run(call)


def _results(result: Result, return_lse: bool | Literal["split"]) -> Tensor | tuple[Tensor, ...]:
    """What `attention` returns."""
    if result.weights is None and result.lse is None:
        return result.out
    asked = [result.out]
    asked += [] if result.weights is None else [result.weights]
    if result.lse is not None:
        asked.append(result.lse if return_lse == "split" else result.lse.sum(-1))
    return tuple(asked)


def explain_backend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: PatternLike,
    *,
    backend: str = "auto",
    **options: Unpack[AnyOptions],
) -> BackendReport:
    """Say for each kernel whether it can run this call, at what estimated cost, and which one `attention` chooses.

    Arguments are those of `attention`. Printing the result shows one line per kernel.

    Example:
        >>> from graphattn import Window
        >>> x = torch.zeros(5, 2, 8)
        >>> explain_backend(x, x, x, Window(5, radius=1)).chosen
        'tiles'
    """
    for name in options:
        check_choice("explain_backend", "argument", name, list(inspect.signature(prepare).parameters)[5:])
    call = prepare("explain_backend", query, key, value, pattern, **options)
    costs = costs_of(call.query.device)
    answers = {kernel.name: (_why_not(kernel, call), kernel.cost(call, costs)) for kernel in KERNELS}
    return BackendReport(choose(call, backend).name, backend, answers, costs.source)


class BackendReport:
    """Each kernel's answer to one call.

    Attributes:
        chosen: name of the kernel that runs.
        answers: for each kernel's name, why it can't run the call (None if it can) and its estimated seconds.
        calibration: where the constants of the estimates are from: the file of `graphattn.calibrate`, or the package.
    """

    def __init__(
        self, chosen: str, backend: str, answers: dict[str, tuple[str | None, float]], calibration: str
    ) -> None:
        self.chosen = chosen
        self.backend = backend
        self.answers = answers
        self.calibration = calibration

    def __repr__(self) -> str:
        width = max(map(len, self.answers))
        lines = [f"backend={self.backend!r} runs {self.chosen!r}"]
        for name, (reason, seconds) in self.answers.items():
            says = f"can run, estimated {seconds * 1e3:.3g} ms"
            says = says if seconds < math.inf else "runs only if named explicitly"
            says = says if reason is None else f"cannot: {reason}"
            lines.append(f"{'>' if name == self.chosen else ' '} {name:<{width}}  {says}")
        lines.append(f"calibration: {self.calibration}")
        return "\n".join(lines)


def explain_score(score: ScoreFunction, query: Tensor, key: Tensor, *, edge_key: Tensor | None = None) -> ScoreReport:
    """Say what is made of a score of one's own: what is computed per node, the expression per edge, and the loops.

    Arguments are those of `attention`; only their shapes and dtypes matter. Printing the result shows the expression.

    Raises:
        NotImplementedError: it can't be fused; the message says which operation stands in the way.
        TypeError, ValueError: query and key aren't rows of heads.

    Example:
        >>> x = torch.zeros(5, 2, 8)
        >>> explain_score(lambda query_i, key_j, edge_key: -(query_i - key_j).square().sum(-1), x, x)
        target_0: 8 numbers per target and head
        source_1: 8 numbers per source and head
        x0 = target_0
        x1 = source_1
        x3 = x0 - x1
        x4 = x3 * x3
        x5 = sum(x4)
        x6 = neg(x5)
        score = x6
    """
    check_tensors("explain_score", query, key, key)
    batch = query.dim() - 3
    if edge_key is not None and edge_key.shape[:batch] != query.shape[:batch]:
        edge_key = edge_key.view(*[1] * batch, *edge_key.shape)
    own = as_score("explain_score", score)
    if isinstance(own, Additive) and own.vector.dim() == 3:
        rule = "must have one vector for all targets, as functions have"
        raise NotImplementedError(message("explain_score", "score", rule, repr(own)))
    key = repeat_heads(key, query.size(-2))
    try:
        function = own.function if isinstance(own, FunctionScore) else own.edgewise
        trace, _ = traced(function, query, key, edge_key, accumulate_dtype(query.dtype))
    except Unsupported as error:
        raise NotImplementedError(message("explain_score", "score", f"can't be fused: {error}")) from None
    return ScoreReport(trace)


class ScoreReport:
    """What is made of a score of one's own.

    Attributes:
        inputs: what the expression reads, as lines.
        expression: the score of an edge and a head, as lines of Python.
        loops: source of the loops that Numba compiles for it, forward and backward.
    """

    def __init__(self, trace: Trace) -> None:
        names = [f"{kind.side}_{n}" for n, kind in enumerate(trace.inputs)]
        self.inputs = []
        for name, (side, heads, width) in zip(names, trace.inputs, strict=True):
            what = "a number" if width == 1 else f"{width} numbers"
            each = [*([] if side == "parameter" else [side]), *(["head"] if heads > 1 else [])]
            self.inputs.append(f"{name}: {what}" + (f" per {' and '.join(each)}" if each else ""))
        self.expression = [*trace.expression.lines([trace.score], names), f"score = x{trace.score}"]
        self.loops = source_of(trace, [SCORE, *loops_of(trace, range(len(trace.inputs)))])

    def __repr__(self) -> str:
        return "\n".join([*self.inputs, *self.expression])


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Join softmax attention over two disjoint sets of edges into attention over their union, exactly.

        lse = log(exp(lse_a) + exp(lse_b))
        out = exp(lse_a - lse) * out_a + exp(lse_b - lse) * out_b

    Args:
        out_a: [*B, T, H, V], output of the first part.
        lse_a: [*B, T, H], its lse; or [*B, T, H, 2], as `return_lse="split"` gives it, which is exact at any score: a
            single number is rounded at large scores, and loses how much of a target's weight each part has.
        out_b: output of the second part.
        lse_b: its lse, like lse_a.

    Returns:
        out and lse of the union, like those of the parts: parts may be joined one after another, in any order.

    Raises:
        ValueError: shapes don't fit.

    Example:
        >>> x = torch.randn(5, 2, 4)
        >>> edges = torch.tensor([[0, 1, 2, 3], [4, 4, 4, 4]])
        >>> parts = [attention(x, x, x, half, return_lse=True) for half in edges.chunk(2, dim=1)]
        >>> out, _ = merge(*parts[0], *parts[1])
        >>> torch.allclose(out, attention(x, x, x, edges), atol=1e-6)
        True

    References:
        Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
    """
    for argument, x in (("out_a", out_a), ("lse_a", lse_a), ("out_b", out_b), ("lse_b", lse_b)):
        check_float_tensor("merge", argument, x)
    rows = out_a.shape[:-1]
    if out_a.shape != out_b.shape or lse_a.shape != lse_b.shape or lse_a.shape not in (rows, (*rows, 2)):
        got = ", ".join(shape_of(x) for x in (out_a, lse_a, out_b, lse_b))
        rule = "must be out [*B, T, H, V] and lse [*B, T, H] or [*B, T, H, 2], twice"
        raise ValueError(message("merge", "parts", rule, got))
    is_split = lse_a.shape != rows
    (shift_a, log_a), (shift_b, log_b) = ((x if is_split else in_parts(x)).unbind(-1) for x in (lse_a, lse_b))
    # An empty part has no largest score.
    top_a = torch.where(log_a == -torch.inf, -torch.inf, shift_a).detach()
    top_b = torch.where(log_b == -torch.inf, -torch.inf, shift_b).detach()
    top = torch.maximum(top_a, top_b)
    shift = torch.where(top == -torch.inf, 0, top)
    part_a, part_b = (top_a - shift).exp() * log_a.exp(), (top_b - shift).exp() * log_b.exp()
    total = part_a + part_b
    is_empty = total == 0
    safe = torch.where(is_empty, 1, total)
    out = (part_a / safe).unsqueeze(-1) * out_a + (part_b / safe).unsqueeze(-1) * out_b
    log = torch.where(is_empty, -torch.inf, safe.log())
    return out.to(out_a.dtype), torch.stack([shift, log], -1) if is_split else shift + log


def choose(call: Call, backend: str) -> Kernel:
    """Return the named kernel, or the cheapest that can run the call for "auto".

    Raises:
        ValueError: no kernel has this name.
        NotImplementedError: the named kernel can't run the call.
    """
    check_choice("attention", "backend", backend, ["auto", *(kernel.name for kernel in KERNELS)])
    named = next((kernel for kernel in KERNELS if kernel.name == backend), None)
    reason = None if named is None else _why_not(named, call)
    if named is not None and reason is None:
        return named
    if named is None and torch.compiler.is_exporting():
        # What is exported runs elsewhere, without our operators.
        return next(kernel for kernel in KERNELS if kernel.is_plain and kernel.why_not(call) is None)
    chosen = cheapest(call, costs_of(call.query.device))
    if named is None:
        return chosen
    fix = f"Use backend={chosen.name!r} or 'auto'."
    raise NotImplementedError(f"attention: backend={backend!r} cannot run this call: {reason}. {fix}")


def cheapest(call: Call, costs: Costs) -> Kernel:
    """The kernel that "auto" stands for, by these costs."""
    # A loop that torch.compile can trace.
    found, lowest = KERNELS[0], math.inf
    for kernel in KERNELS:
        cost = kernel.cost(call, costs) if _why_not(kernel, call) is None else math.inf
        if cost < lowest:
            found, lowest = kernel, cost
    return found


def _why_not(kernel: Kernel, call: Call) -> str | None:
    if is_transformed() and not kernel.is_plain:
        return "it supports neither forward-mode derivatives nor torch.func"
    return kernel.why_not(call)

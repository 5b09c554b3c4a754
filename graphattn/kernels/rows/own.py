"""Scores and normalizers that the loops don't have: scores of all edges ahead of attention by given scores.

Scores [B, E, H] come from loops that a device writes of a traced function, with gradients by all that it reads. They
are a bias to products of no width, so that the loops that exist do the rest: the same rows are read once either way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...call import Call, with_batch
from ...normalizers import Identity
from ...offset_bias import OffsetBias
from ...patterns import Pattern
from ...scores import DotProduct, FunctionScore, repeat_heads
from ...segments import Rows
from ...tracing import Captures, Trace, Unsupported, traced
from ..base import LastDerivative, split_batch
from .op import FUNCTIONS, NORMALIZER_CODES, VECTORS, has_vectors_of_targets, why_not_fused


class Loop(NamedTuple):
    """Which loop is written: over rows that are targets or sources, for the score or gradients by these inputs."""

    rows: str
    wanted: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the function."""
        return "_".join(["score" if not self.wanted else f"gradients_by_{self.rows}s", *map(str, self.wanted)])


SCORE = Loop("target", ())


def loops_of(trace: Trace, wanted: Iterable[int]) -> list[Loop]:
    """The loops that have the gradients by these inputs: rows of sources are summed over edges sorted by source."""
    wanted = tuple(wanted)
    of_sources = tuple(n for n in wanted if trace.inputs[n].side == "source")
    others = tuple(n for n in wanted if n not in of_sources)
    return [Loop(rows, some) for rows, some in (("target", others), ("source", of_sources)) if some]


class Own(NamedTuple):
    """What a device's loops take.

    Attributes:
        trace: the score.
        pattern: the edges.
        batches: B.
        inputs: of the expression, without gaps: [B, N, heads, width], of edges and parameters also [1, ...].
        slopes: gradients by the scores, [B, E, H]; None for the scores themselves.
    """

    trace: Trace
    pattern: Pattern
    batches: int
    inputs: tuple[Tensor, ...]
    slopes: Tensor | None

    @property
    def like(self) -> Tensor:
        """A tensor of the accumulator's dtype."""
        first, dtype = self.inputs[0], self.trace.dtype
        return first if first.dtype == dtype else first.new_empty(0, dtype=dtype)

    @property
    def strides(self) -> tuple[int, ...]:
        """Of each input, the edges from one batch element to the next, if it belongs to edges."""
        return tuple(0 if x.size(0) == 1 else self.pattern.num_edges for x in self.inputs)


def needs_scores(call: Call) -> bool:
    """Whether scores or weights of the edges are computed ahead: where the loops have no such score or normalizer."""
    return why_not_fused(call) is not None


def why_not_traced(call: Call) -> str | None:
    """Why the score of a call can't be written as a loop; None if it can."""
    if torch.compiler.is_compiling():
        return "torch.compile traces a function of one's own itself"
    if has_vectors_of_targets(call):
        return VECTORS
    try:
        _trace_of(call)
    except Unsupported as error:
        return f"the score {call.score} can't be fused: {error}"
    return None


def with_given_scores(call: Call) -> Call:
    """The call with its scores as a bias of products of no width; with its weights, if no loop has the normalizer.

    Tensors [*B, E, H] are small next to the rows that the loops read, so that what makes weights of scores needs no
    loop of its own.
    """
    with torch.autocast(call.query.device.type, enabled=False):
        scores, bias = _scores_of(call), call.edge_bias
        if isinstance(bias, OffsetBias):
            bias = with_batch(bias.of_edges(call.pattern, call.accumulate_dtype), call.query, 2)
        if bias is not None:
            scores = scores + bias.to(scores.dtype)
        if type(call.normalizer) not in NORMALIZER_CODES:
            rows = call.pattern.keep("rows of edges", lambda: _rows_of(call.pattern))
            scores = call.normalizer.on_rows(scores, rows)
            call = call._replace(normalizer=Identity())
    nothing = [x.new_empty(*x.shape[:-1], 0) for x in (call.query, call.key)]
    return call._replace(query=nothing[0], key=nothing[1], score=DotProduct(1.0), edge_bias=scores, edge_key=None)


def _trace_of(call: Call) -> tuple[Trace, Captures]:
    score, captured = call.score, None
    function: Any = score.edgewise
    if isinstance(score, FunctionScore):
        function, captured = score.function, score.captured
    return traced(function, *_given(call), call.accumulate_dtype, captured)


def _given(call: Call) -> tuple[Tensor, Tensor, Tensor | None]:
    """Query, key and edge_key as the score takes them: with a key for each head."""
    edge_key = call.edge_key
    if edge_key is not None and not isinstance(call.score, FunctionScore):
        edge_key = repeat_heads(edge_key, call.heads)
    return call.query, repeat_heads(call.key, call.heads), edge_key


def _scores_of(call: Call) -> Tensor:
    """Scores of a call's edges: [*B, E, H] in the accumulator's dtype, in the caller's order, without biases."""
    trace, captured = _trace_of(call)
    rows = trace.read(_given(call), list(captured.tensors.values()))
    inputs = tuple(x.contiguous() for x in rows)
    batch = call.batch_shape
    own = Own(trace, call.pattern, batch.numel(), inputs, None)
    is_trained = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    scores = _Scores.apply(own._replace(inputs=()), *inputs) if is_trained else _run(SCORE, own)[0]
    return split_batch(scores, batch)


def _run(loop: Loop, own: Own) -> list[Tensor]:
    """Run a loop on the device of its tensors: the scores, or the gradients by what it is wanted for."""
    return FUNCTIONS[own.inputs[0].device.type].edge_loop(loop, own)


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Own, *inputs: Tensor) -> Tensor:
        ctx.own = own
        ctx.save_for_backward(*inputs)
        return _run(SCORE, own._replace(inputs=inputs))[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad[1:]
        wanted = tuple(n for n, need in enumerate(needs) if need)
        arguments = (ctx.own, wanted, grads[0], *ctx.saved_tensors)
        found = iter(_Gradients.apply(*arguments) if torch.is_grad_enabled() else _gradients(*arguments))
        return None, *(next(found) if need else None for need in needs)


class _Gradients(LastDerivative):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return _gradients(*arguments)


def _gradients(own: Own, wanted: tuple[int, ...], slopes: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Gradients by the wanted inputs."""
    own = own._replace(inputs=inputs, slopes=slopes.contiguous())
    found: dict[int, Tensor] = {}
    for loop in loops_of(own.trace, wanted):
        found |= zip(loop.wanted, _run(loop, own), strict=True)
    return tuple(found[n].to(inputs[n].dtype) for n in wanted)


def _rows_of(pattern: Pattern) -> Rows:
    """The edges in the caller's order, grouped by target."""
    ptr, _, perm = pattern.csr()
    return Rows(pattern.edge_index[1].to(torch.int64), ptr, None if perm is None else perm.to(torch.int64))

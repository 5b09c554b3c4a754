"""Scores of a user's own function on the CPU: runs what Numba compiles of the loops that `emit` writes.

Scores [B, E, H] are an operator of their own, with gradients by all that the function reads. Attention by given scores,
which are a bias to products of no width, does the rest: the same rows are read once either way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....call import Call, with_batch
from ....compiled import compiled_loop, empty, load, load_source, run_tasks, scratch
from ....offset_bias import OffsetBias
from ....patterns import Pattern
from ....scores import DotProduct, FunctionScore, repeat_heads
from ....tracing import Trace, Unsupported, traced
from ...base import LastDerivative, split_batch
from .emit import SCORE, Loop, loops_of, source_of
from .plan import TaskPlan, plan_of


def why_not_traced(call: Call) -> str | None:
    """Why the score of a call can't be written as a loop; None if it can."""
    if torch.compiler.is_compiling():
        return "torch.compile traces a function of one's own itself"
    try:
        _trace_of(call)
    except Unsupported as error:
        return f"the score {call.score} can't be fused: {error}"
    return None


def _trace_of(call: Call) -> tuple[Trace, Any]:
    assert isinstance(call.score, FunctionScore)
    key = repeat_heads(call.key, call.heads)
    return traced(call.score.function, call.query, key, call.edge_key, call.accumulate_dtype)


def scores_of(call: Call) -> Tensor:
    """Scores of a call's edges: [*B, E, H] in the accumulator's dtype, in the caller's order, without biases."""
    trace, captured = _trace_of(call)
    key = repeat_heads(call.key, call.heads)
    rows = trace.read((call.query, key, call.edge_key), list(captured.tensors.values()))
    batch = call.batch_shape
    scores = _Scores.apply(trace, call.pattern, batch.numel(), *(x.contiguous() for x in rows))
    return split_batch(scores, batch)


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, trace: Trace, pattern: Pattern, batches: int, *inputs: Tensor) -> Tensor:
        ctx.of_call = trace, pattern, batches
        ctx.save_for_backward(*inputs)
        like = _accumulator(trace, inputs)
        scores = empty(like, batches, pattern.num_edges, trace.heads)
        _run(trace, SCORE, pattern, batches, inputs, scores, [scores], [scratch(like, 0)])
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        wanted = tuple(n for n, need in enumerate(ctx.needs_input_grad[3:]) if need)
        arguments = (*ctx.of_call, wanted, grads[0], *ctx.saved_tensors)
        found = iter(_Gradients.apply(*arguments) if torch.is_grad_enabled() else _gradients(*arguments))
        return None, None, None, *(next(found) if need else None for need in ctx.needs_input_grad[3:])


class _Gradients(LastDerivative):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return _gradients(*arguments)


def _gradients(
    trace: Trace, pattern: Pattern, batches: int, wanted: tuple[int, ...], slopes: Tensor, *inputs: Tensor
) -> tuple[Tensor, ...]:
    """Gradients by the wanted inputs."""
    like, found = _accumulator(trace, inputs), {}
    slopes = slopes.contiguous()
    for loop in loops_of(trace, wanted):
        plan = plan_of(pattern, "rows" if loop.rows == "target" else "columns")
        results, parts = [], []
        for n in loop.wanted:
            side, *size = trace.inputs[n]
            if side == "parameter":
                parts.append(empty(like, batches * len(plan.tasks), *size).zero_())
                results.append(scratch(like, 0))
                continue
            parts.append(scratch(like, 0 if side == "edge" else batches * plan.slots * size[0] * size[1]))
            results.append(empty(like, *inputs[n].shape))
        _run(trace, loop, pattern, batches, inputs, slopes, results, parts)
        for n, whole, part in zip(loop.wanted, results, parts, strict=True):
            side, heads, width = trace.inputs[n]
            if side == "parameter":
                found[n] = part.sum(0, dtype=torch.float64).view(inputs[n].shape)
            elif side != "edge" and plan.slots:
                _merge(plan, batches, whole.size(1), heads * width, whole, part)
            found.setdefault(n, whole)
    return tuple(found[n].to(inputs[n].dtype) for n in wanted)


def _accumulator(trace: Trace, inputs: tuple[Tensor, ...]) -> Tensor:
    """A tensor whose dtype is the accumulator's."""
    return inputs[0] if inputs[0].dtype == trace.dtype else inputs[0].new_empty(0, dtype=trace.dtype)


def _run(
    trace: Trace,
    loop: Loop,
    pattern: Pattern,
    batches: int,
    inputs: tuple[Tensor, ...],
    slopes: Tensor,
    results: list[Tensor],
    parts: list[Tensor],
) -> None:
    if loop not in trace.kept:
        trace.kept[loop] = getattr(load_source("score", source_of(trace, [loop])), loop.name)
    plan = plan_of(pattern, "rows" if loop.rows == "target" else "columns")
    edges = pattern.num_edges
    is_shared = [x.size(0) == 1 for x in inputs]
    strides = tuple(0 if shared else edges for shared in is_shared)
    # The batch adds to the same gradients where it shares an edge tensor.
    shares = any(is_shared[n] and trace.inputs[n].side == "edge" for n in loop.wanted)
    by_edge = batches > 1 and shares
    sizes = (batches, pattern.num_targets, pattern.num_sources, edges)
    operands = (
        plan.tasks,
        plan.slots,
        by_edge,
        plan.edges,
        sizes,
        strides,
        inputs,
        slopes,
        tuple(results),
        tuple(parts),
    )
    key = tuple(x.dtype for x in (*inputs, plan.index, plan.perm))
    compiled = compiled_loop(trace.kept[loop], key, *operands)
    run_tasks(compiled, batches * len(plan.tasks), *operands, multiple=batches if by_edge else 1)


def _merge(plan: TaskPlan, batches: int, rows: int, width: int, whole: Tensor, part: Tensor) -> None:
    """Add up the pieces of cut rows."""
    operands = (plan.cut, plan.slots, rows, width, whole, part)
    loop = compiled_loop(load("kernels.rows.cpu.jit.backward").merge_sums, (whole.dtype, part.dtype), *operands)
    run_tasks(loop, batches * len(plan.cut), *operands)


def with_given_scores(call: Call) -> Call:
    """The call with its scores as a bias of products of no width."""
    scores, bias = scores_of(call), call.edge_bias
    if isinstance(bias, OffsetBias):
        bias = with_batch(bias.of_edges(call.pattern, call.accumulate_dtype), call.query, 2)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    nothing = [x.new_empty(*x.shape[:-1], 0) for x in (call.query, call.key)]
    return call._replace(query=nothing[0], key=nothing[1], score=DotProduct(1.0), edge_bias=scores, edge_key=None)

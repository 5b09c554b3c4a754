"""Loops of a traced score on the CPU: runs what Numba compiles of the source that `emit` writes."""

from __future__ import annotations

import torch
from torch import Tensor

from ....compiled import compiled_loop, empty, load, load_source, run_tasks, scratch
from ..own import Loop, Own
from .emit import source_of
from .plan import TaskPlan, plan_of


def edge_loop(loop: Loop, own: Own) -> list[Tensor]:
    """Scores [B, E, H], or gradients by the wanted inputs, see `Functions`."""
    trace, like, batches = own.trace, own.like, own.batches
    plan = plan_of(own.pattern, "rows" if loop.rows == "target" else "columns")
    if own.slopes is None:
        scores = empty(like, batches, own.pattern.num_edges, trace.heads)
        _run(loop, own, plan, [scores], [scratch(like, 0)])
        return [scores]
    results, parts = [], []
    for n in loop.wanted:
        side, heads, width = trace.inputs[n]
        if side == "parameter":
            parts.append(empty(like, batches * len(plan.tasks), heads, width).zero_())
            results.append(scratch(like, 0))
        else:
            parts.append(scratch(like, 0 if side == "edge" else batches * plan.slots * heads * width))
            results.append(empty(like, *own.inputs[n].shape))
    _run(loop, own, plan, results, parts)
    for at, (n, whole, part) in enumerate(zip(loop.wanted, results, parts, strict=True)):
        side, heads, width = trace.inputs[n]
        if side == "parameter":
            results[at] = part.sum(0, dtype=torch.float64).view(own.inputs[n].shape)
        elif side != "edge" and plan.slots:
            _merge(plan, batches, whole.size(1), heads * width, whole, part)
    return results


def _run(loop: Loop, own: Own, plan: TaskPlan, results: list[Tensor], parts: list[Tensor]) -> None:
    trace, pattern, batches, inputs, slopes = own
    if loop not in trace.kept:
        trace.kept[loop] = getattr(load_source("score", source_of(trace, [loop])), loop.name)
    # The batch adds to the same gradients where it shares an edge tensor.
    shares = any(inputs[n].size(0) == 1 and trace.inputs[n].side == "edge" for n in loop.wanted)
    by_edge = batches > 1 and shares
    sizes = (batches, pattern.num_targets, pattern.num_sources, pattern.num_edges)
    tensors = (inputs, results[0] if slopes is None else slopes, tuple(results), tuple(parts))
    operands = (plan.tasks, plan.slots, by_edge, plan.edges, sizes, own.strides, *tensors)
    key = tuple(x.dtype for x in (*inputs, plan.index, plan.perm))
    compiled = compiled_loop(trace.kept[loop], key, *operands)
    run_tasks(compiled, batches * len(plan.tasks), *operands, multiple=batches if by_edge else 1)


def _merge(plan: TaskPlan, batches: int, rows: int, width: int, whole: Tensor, part: Tensor) -> None:
    """Add up the pieces of cut rows."""
    operands = (plan.cut, plan.slots, rows, width, whole, part)
    loop = compiled_loop(load("kernels.rows.cpu.jit.backward").merge_sums, (whole.dtype, part.dtype), *operands)
    run_tasks(loop, batches * len(plan.cut), *operands)

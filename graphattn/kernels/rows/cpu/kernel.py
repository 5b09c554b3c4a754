"""Fused rows on the CPU: runs what Numba compiles of `jit`, for the operators of `rows.op`.

Numba is loaded when the first call arrives.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....call import Call
from ....compiled import compiled_loop, empty, empty_like, load, run_tasks, scratch, why_not_compiled
from ....costs import Costs
from ....dropout import keep_scale, threshold
from ....patterns import Edges
from ....segments import Rows, segment_sum
from ...base import Kernel, Result, share
from ..op import FUNCTIONS, Functions, as_plan, edges_for, read_plan, run_fused, why_not_fused
from ..operands import (
    LANES,
    SOFTMAX,
    Arrays,
    Backward,
    Dropout,
    EdgeArrays,
    EdgeLists,
    Forward,
    Loops,
    Mode,
    Needs,
    Outputs,
    RowSums,
    Shape,
    Slopes,
    SourceGradients,
    TargetGradients,
    Tensors,
    Weights,
    gradients,
    sums_shape,
)
from ..own import needs_scores, why_not_traced, with_given_scores
from .own import edge_loop
from .plan import NAME, TaskPlan

# Width of a head's key and value together up to which the backward pass computes scores again.
NARROW = 2


class NumbaCSR(Kernel):
    """See the module."""

    name = NAME

    def why_not(self, call: Call) -> str | None:
        """Tensors elsewhere, Numba missing, or a score of one's own that has no form as a loop."""
        if call.query.device.type != "cpu":
            return f"tensors are on {call.query.device.type}"
        reason = why_not_compiled()
        if reason is None and needs_scores(call):
            return why_not_traced(call)
        return why_not_fused(call) if reason is None else reason

    def cost(self, call: Call, costs: Costs) -> float:
        """Count seconds per call, per head of a row, per head of an edge, and for the numbers of both, with backward.

        Numbers of rows that the caches don't hold take longer, unless the pattern says that they are near.
        """
        width = call.query.size(-1) + call.value.size(-1)
        rows, edges = call.pattern.num_targets, call.pattern.num_edges
        per_edge_number = costs.numba_edge_number
        if isinstance(call.pattern, Edges):
            held = call.pattern.num_sources * call.key.size(-2) * width * call.key.dtype.itemsize
            per_edge_number += costs.numba_far_number * max(0.0, 1 - costs.numba_cache_bytes / max(held, 1))
        per_row = costs.numba_row + costs.numba_row_number * width
        per_head = rows * per_row + edges * (costs.numba_edge + per_edge_number * width)
        per_call = costs.numba_own if needs_scores(call) else costs.numba_call
        return share(call) * (per_call + call.batch_shape.numel() * call.heads * per_head)

    def reads_traced_edges(self, device: torch.device) -> bool:
        """On the CPU, if Numba is there."""
        return device.type == "cpu" and why_not_compiled() is None

    def run(self, call: Call) -> Result:
        """Compute the call."""
        call = with_given_scores(call) if needs_scores(call) else call
        edges = edges_for(call, self.name, TaskPlan)
        # Rows that are cut have no other sum of their weights' gradients. A traced edge_index may have some.
        return run_fused(call, edges, not edges.rows or as_plan(edges.rows, TaskPlan).cut.numel() > 0)


def _compiled(part: str) -> Any:
    """Return the module of compiled functions, "forward" or "backward"."""
    return load(f"kernels.rows.cpu.jit.{part}")


def _types(tensors: Tensors, plan: TaskPlan) -> tuple[torch.dtype | None, ...]:
    """What the types of a loop's operands follow from."""
    optional = (tensors.vector, tensors.edge_bias, tensors.edge_key, tensors.edge_value)
    lists = (plan.index, plan.perm, plan.places)
    return tensors.query.dtype, *(x.dtype for x in lists), *(None if x is None else x.dtype for x in optional)


@lru_cache(1024)
def _numbers(mode: Mode, dropout: bool, is_double: bool) -> tuple[Mode, np.uint64, Any]:
    """A mode with numbers of the accumulator's type, the threshold of dropout's hash, and its factor on kept weights.

    To make NumPy's numbers takes longer than to look them up.
    """
    number: Any = np.float64 if is_double else np.float32
    bound = np.uint64(threshold(mode.dropout_p) if dropout else 0)
    return mode._replace(scale=number(mode.scale), slope=number(mode.slope)), bound, number(keep_scale(mode.dropout_p))


def _loops(tensors: Tensors, plan: TaskPlan, mode: Mode) -> Loops:
    """What every loop takes, of tensors as `Tensors.in_rows` returns them."""
    edges = plan.index.numel()
    shape = Shape.of(tensors, edges)
    typed, bound, kept = _numbers(mode, tensors.seed is not None, tensors.query.dtype == torch.float64)
    of_edges: list[Any] = []
    for x in (tensors.edge_bias, tensors.edge_key, tensors.edge_value):
        of_edges += [x, 0 if x is None or shape.batches == 1 or x.size(0) == 1 else edges]
    return Loops(
        plan.edges,
        shape,
        Arrays(tensors.query, tensors.key, tensors.value, tensors.vector),
        EdgeArrays(*of_edges),
        typed,
        Dropout(0 if tensors.seed is None else int(tensors.seed), bound, kept),
    )


def _run(function: Any, types: tuple[Any, ...], call: Loops, tasks: Tensor, *operands: Any, whole: int = 1) -> None:
    """Run a loop over the tasks of all batch elements, in runs of multiples of `whole`."""
    loop = compiled_loop(function, types, tasks, *operands, shape=call.shape)
    run_tasks(loop, call.shape.batches * len(tasks), tasks, *operands, multiple=whole)


def _is_by_channel(tensors: Tensors, mode: Mode, shape: Shape) -> bool:
    """Whether the loops of `jit.channels` compute a call: a head for each channel, of products and nothing else."""
    is_narrow = (shape.width, shape.value_width) == (1, 1) and shape.heads == shape.kv_heads
    has_more = any(x is not None for x in tensors[3:])
    return is_narrow and shape.heads % LANES == 0 and mode.normalizer == SOFTMAX and not has_more


def _plan_of(edges: EdgeLists, side: str, tensors: Tensors) -> TaskPlan:
    return read_plan(edges, side, tensors, NAME, TaskPlan)


def forward(operands: Forward) -> tuple[Tensor, Tensor, Tensor | None]:
    """`csr_forward` on the CPU."""
    compiled = _compiled("forward")
    tensors, edges, is_exact, mode = operands
    plan, tensors = _plan_of(edges, "rows", tensors), tensors.in_rows()
    call, query, slots = _loops(tensors, plan, mode), tensors.query, plan.slots
    shape, tasks = call.shape, plan.tasks
    if is_exact or shape.value_width != shape.width:
        out = empty(query, *query.shape[:-1], shape.value_width, dtype=None if is_exact else query.dtype)
    else:
        out = empty_like(query)
    sums = empty(query, *sums_shape(query, mode.normalizer))
    parts = (scratch(query, shape.batches * slots * shape.heads * width) for width in (shape.value_width, 1, 1))
    results = Outputs(out, sums, *parts)
    if is_exact:
        one = type(call.dropout.keep_scale)(1)
        call = call._replace(dropout=call.dropout._replace(keep_scale=one))
    types, loop = (*_types(tensors, plan), out.dtype), compiled.forward_tasks
    if _is_by_channel(tensors, mode, shape):
        loop = _compiled("channels").channel_forward_tasks
    _run(loop, types, call, tasks, slots, call, results)
    if slots:
        _run(compiled.merge_forward, types, call, plan.cut, slots, call, results)
    if not is_exact:
        return out, sums, None
    return (out * keep_scale(mode.dropout_p)).to(query.dtype), sums, out


def weights(operands: Weights) -> Tensor:
    """`csr_weights` on the CPU."""
    tensors, sums, edges, mode = operands
    return _weights(tensors.in_rows(), sums.contiguous(), _plan_of(edges, "rows", tensors), mode)


def _weights(tensors: Tensors, sums: Tensor, plan: TaskPlan, mode: Mode) -> Tensor:
    call, query, tasks = _loops(tensors, plan, mode), tensors.query, plan.tasks
    found = empty(query, call.shape.batches, call.shape.edges, call.shape.heads)
    _run(_compiled("forward").weight_tasks, _types(tensors, plan), call, tasks, call, sums, found)
    return found


def backward(operands: Backward) -> list[Tensor | None]:
    """`csr_backward` on the CPU."""
    needs, mode = operands.needs, operands.mode
    plan = _plan_of(operands.edges, "rows", operands.tensors)
    tensors = operands.tensors.in_rows()
    query, sums, more = tensors.query, operands.sums.contiguous(), None
    is_softmax = mode.normalizer == SOFTMAX
    if is_softmax:
        more = None if operands.grad_lse is None else -operands.grad_lse.contiguous()
        # Only the sums of cut rows can't be had on the way.
        if operands.grad_weights is not None and plan.slots:
            products = _weights(tensors, sums, plan, mode) * operands.grad_weights
            perm = plan.perm.to(torch.int64) if plan.perm.numel() else None
            weighed = segment_sum(products, Rows(plan.index, plan.ptr, perm), -2)
            more = torch.zeros_like(weighed, memory_format=torch.contiguous_format) if more is None else more
            more[:, plan.cut[:, 0]] += weighed[:, plan.cut[:, 0]]
    out = operands.out.to(sums.dtype) if plan.slots else None
    of_weights, of_out, of_more = (
        scratch(query, 0) if x is None else x.contiguous() for x in (operands.grad_weights, out, more)
    )
    call, has_columns = _loops(tensors, plan, mode), needs.key or needs.value
    shape = call.shape
    if operands.grad_weights is None and more is None and _is_by_channel(tensors, mode, shape):
        columns = _plan_of(operands.edges, "columns", tensors) if has_columns else None
        found = _channel_gradients(tensors, plan, columns, call, operands.grad_out.contiguous(), sums, of_out)
        return gradients(found, tensors, needs)
    is_narrow = not is_softmax and tensors.seed is None and operands.grad_weights is None
    is_narrow = is_narrow and shape.width + shape.value_width <= NARROW
    leaves = has_columns and not is_narrow
    of_edges = scratch(query, 2 * shape.batches * shape.edges * shape.heads if leaves else 0)
    slopes = Slopes(operands.grad_out.contiguous(), of_weights, of_edges)
    rows = RowSums(sums, of_out, of_more)
    found = _target_gradients(tensors, plan, call, slopes, rows, needs)
    if has_columns:
        columns = _plan_of(operands.edges, "columns", tensors)
        found |= _source_gradients(tensors, columns, call, slopes, is_narrow)
    return gradients(found, tensors, needs)


def _channel_gradients(
    tensors: Tensors, rows: TaskPlan, columns: TaskPlan | None, call: Loops, grad_out: Tensor, sums: Tensor, out: Tensor
) -> dict[str, Tensor]:
    """Gradients of the query, and of key and value where there are columns, by loops of `jit.channels`."""
    compiled, query, types = _compiled("channels"), tensors.query, _types(tensors, rows)
    batches, targets, sources, heads = call.shape[:4]
    found = {"query": empty_like(query)}
    stats = scratch(query, batches * targets * 4 * heads)
    results = found["query"], scratch(query, batches * rows.slots * heads)
    given = (call, grad_out, sums, out, stats, results)
    _run(compiled.channel_target_tasks, types, call, rows.tasks, rows.slots, *given)
    _merge(types, call, rows, targets, heads, *results)
    if columns is not None:
        found |= {name: empty_like(getattr(tensors, name)) for name in ("key", "value")}
        parts = [scratch(query, batches * columns.slots * heads) for _ in range(2)]
        of_sources = SourceGradients(found["key"], found["value"], *parts)
        types, call = _types(tensors, columns), call._replace(edges=columns.edges)
        _run(compiled.channel_source_tasks, types, call, columns.tasks, columns.slots, call, stats, of_sources)
        for name, part in zip(("key", "value"), parts, strict=True):
            _merge(types, call, columns, sources, heads, found[name], part)
    return found


def _merge(
    types: tuple[Any, ...], call: Loops, plan: TaskPlan, rows: int, size: int, whole: Tensor, part: Tensor
) -> None:
    """Add up the pieces of cut rows of so many numbers."""
    if plan.slots:
        merged = (plan.cut, plan.slots, rows, size, whole, part)
        _run(_compiled("backward").merge_sums, types, call, *merged)


def _target_gradients(
    tensors: Tensors, plan: TaskPlan, call: Loops, slopes: Slopes, rows: RowSums, needs: Needs
) -> dict[str, Tensor]:
    """Gradients of the query, the vector and edge tensors."""
    compiled, query = _compiled("backward"), tensors.query
    (batches, targets, _, heads, _, width, *_), tasks, slots = call.shape, plan.tasks, plan.slots
    found = {"query": empty_like(query)}
    part_vector = None
    if tensors.vector is not None:
        parts = targets + slots if call.shape.vector_pitch else len(tasks)
        part_vector = empty(query, batches * parts if needs.vector else 0, heads, width).zero_()
    of_edges: dict[str, Tensor] = {}
    for name, need in needs.of_edges().items():
        x = getattr(tensors, name)
        if x is not None:
            of_edges[name] = empty(query, *x.shape if need else (0,))
        if need:
            found[name] = of_edges[name]
    if needs.edge_bias:
        found["edge_bias"].zero_()
    by_edge = batches > 1 and any(need and found[name].size(0) == 1 for name, need in needs.of_edges().items())
    arrays = (of_edges.get(name) for name in needs.of_edges())
    part_query = scratch(query, batches * slots * heads * width)
    results = TargetGradients(found["query"], part_query, part_vector, *arrays)
    types, loop, whole = _types(tensors, plan), compiled.target_gradient_tasks, batches if by_edge else 1
    _run(loop, types, call, tasks, slots, by_edge, call, slopes, rows, results, whole=whole)
    _merge(types, call, plan, targets, heads * width, results.query, results.part_query)
    if needs.vector and part_vector is not None:
        found["vector"] = _joined(part_vector, plan, call.shape)
    return found


def _joined(parts: Tensor, plan: TaskPlan, shape: Shape) -> Tensor:
    """The gradient of the vector, or of one for each target, of its parts."""
    if not shape.vector_pitch:
        return parts.sum(0, dtype=torch.float64)
    parts = parts.unflatten(0, (shape.batches, -1)).sum(0, dtype=torch.float64)
    whole, pieces = parts.split([shape.targets, plan.slots])
    for target, begin, end in plan.cut.tolist():
        whole[target] = pieces[begin:end].sum(0)
    return whole


def _source_gradients(
    tensors: Tensors, plan: TaskPlan, call: Loops, slopes: Slopes, is_narrow: bool
) -> dict[str, Tensor]:
    """Gradients of key and value."""
    compiled, query, call = _compiled("backward"), tensors.query, call._replace(edges=plan.edges)
    (batches, _, sources, _, kv_heads, width, value_width, *_), slots = call.shape, plan.slots
    sizes, tasks = (kv_heads * width, kv_heads * value_width), plan.tasks
    found = [empty_like(x) for x in (tensors.key, tensors.value)]
    results = SourceGradients(*found, *(scratch(query, batches * slots * size) for size in sizes))
    places = plan.places if plan.places.numel() else plan.perm
    types = _types(tensors, plan)
    loop = compiled.narrow_source_gradient_tasks if is_narrow else compiled.source_gradient_tasks
    _run(loop, types, call, tasks, slots, places, call, slopes, results)
    for size, whole, part in zip(sizes, results[:2], results[2:], strict=True):
        _merge(types, call, plan, sources, size, whole, part)
    return {"key": found[0], "value": found[1]}


FUNCTIONS["cpu"] = Functions(forward, weights, backward, edge_loop, takes_one_graph=True)

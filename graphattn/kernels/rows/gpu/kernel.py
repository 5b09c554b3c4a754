"""Fused rows on the GPU: runs what Triton compiles of `jit`, for the operators of `rows.op`.

Triton is loaded when the first call arrives.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ....calibrated import costs_of
from ....call import Call
from ....costs import Costs, allows, allows_any
from ....dropout import keep_scale, threshold
from ....precision import accumulate_dtype
from ....segments import Rows, segment_sum
from ...base import Kernel, Result
from ..op import FUNCTIONS, VECTORS, Functions, edges_for, has_vectors_of_targets, read_plan, run_fused
from ..operands import (
    SOFTMAX,
    Backward,
    EdgeLists,
    Forward,
    Mode,
    Needs,
    Shape,
    SourceGradients,
    TargetGradients,
    Tensors,
    Weights,
    gradients,
    sums_shape,
)
from ..own import needs_scores, why_not_traced, with_given_scores
from .buffers import empty, empty_like
from .features import features_of
from .launch import launch
from .own import NAME, edge_loop
from .plan import WIDEST, Block, ItemPlan, block_of, estimate, merge_block, power_of_two

HAS_TRITON = importlib.util.find_spec("triton") is not None
# Parts of a sum that are added in its own dtype before the rest is in float64.
PARTS = 64


class TritonCSR(Kernel):
    """See the module."""

    name = NAME
    # Tests run it on the CPU by Triton's interpreter.
    device = "cuda"

    def why_not(self, call: Call) -> str | None:
        """Tensors elsewhere, a score or normalizer that isn't built in, rows too wide, or Triton missing."""
        if call.query.device.type != self.device:
            return f"tensors are on {call.query.device.type}"
        if not HAS_TRITON:
            return "Triton is not installed (pip install triton)"
        width = max(call.query.size(-1), call.value.size(-1))
        if width > WIDEST:
            return f"heads must be at most {WIDEST} wide, not {width}"
        if has_vectors_of_targets(call):
            return VECTORS
        return why_not_traced(call) if needs_scores(call) else None

    def cost(self, call: Call, costs: Costs) -> float:
        """Count bytes, instructions and the call itself, see `estimate`; infinite where such calls weren't checked.

        A wrong result costs more than a slow one.
        """
        return estimate(call, costs) if allows(costs, features_of(call)) else math.inf

    def reads_traced_edges(self, device: torch.device) -> bool:
        """On a GPU, if Triton is there, and "auto" takes the kernel."""
        return HAS_TRITON and device.type == self.device and allows_any(costs_of(device))

    def run(self, call: Call) -> Result:
        """Compute the call."""
        call = with_given_scores(call) if needs_scores(call) else call
        return run_fused(call, edges_for(call, self.name, ItemPlan), is_exact=True)


class _Operands:
    """What all kernels take: tensors without gaps, numbers, and what is compiled in."""

    def __init__(self, tensors: Tensors, mode: Mode, plan: ItemPlan) -> None:
        self.tensors, self.mode, self.plan = tensors.contiguous(), mode, plan
        self.shape = Shape.of(tensors, plan.index.numel())
        self.of_batch = [0 if x is None or x.size(0) == 1 else self.shape.edges for x in tensors[4:7]]

    def lists(self) -> tuple[Tensor | None, ...]:
        """Index, perm and occurrences, None where they would say nothing."""
        # Dropout alone asks for occurrences.
        is_counted = self.tensors.seed is not None and self.plan.occurrence.numel() > 0
        perm = self.plan.perm if self.plan.perm.numel() else None
        return self.plan.index, perm, self.plan.occurrence if is_counted else None

    def items(self) -> list[tuple[Tensor, bool]]:
        """Each list of items, and whether its rows are short."""
        return [(self.plan.long, False), (self.plan.short, True)]

    def numbers(self) -> tuple[float, ...]:
        """Numbers of the passes that read values."""
        dropout_p = self.mode.dropout_p
        return *self.of_batch, self.mode.scale, self.mode.slope, threshold(dropout_p), keep_scale(dropout_p)

    def empty(self, *shape: int) -> Tensor:
        """New tensor of the accumulator's dtype."""
        query = self.tensors.query
        return empty(query, *shape, dtype=accumulate_dtype(query.dtype))

    def block(self, is_short: bool, is_backward: bool) -> Block:
        """What a program takes."""
        shape, itemsize = self.shape, self.tensors.query.dtype.itemsize
        widths, group = (shape.width, shape.value_width), shape.heads // shape.kv_heads
        return block_of(shape.kv_heads, group, widths, itemsize, is_short, is_backward)

    def launch(
        self,
        kernel: Any,
        items: Tensor,
        is_short: bool,
        tensors: Sequence[Any],
        numbers: Sequence[Any],
        is_backward: bool = False,
        **options: Any,
    ) -> None:
        """Run a kernel over items."""
        rows, heads, warps = self.block(is_short, is_backward)
        shape, blocks = self.shape, -(-items.size(0) // rows)
        kv_heads, group = shape.kv_heads, shape.heads // shape.kv_heads
        programs = shape.batches * blocks * -(-kv_heads // heads)
        if not programs:
            return
        constants = {
            "SCORE": self.mode.score,
            "NORMALIZER": self.mode.normalizer,
            "ROWS": rows,
            "KV_HEADS": kv_heads,
            "GROUP": group,
            "KV_BLOCK": heads,
            "GROUP_BLOCK": power_of_two(group),
            "IS_EVEN": kv_heads % heads == 0 and group == power_of_two(group),
            "WIDTH": shape.width,
            "WIDTH_BLOCK": power_of_two(shape.width),
            "NUMBER": _number(self.tensors.query),
            **options,
        }
        launch(kernel, programs, (items, items.size(0), blocks, *tensors, *numbers), constants, warps)

    def values(self) -> dict[str, Any]:
        """What kernels that read values are compiled for."""
        return {"VALUE": self.shape.value_width, "VALUE_BLOCK": power_of_two(self.shape.value_width)}


def _on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run an operator where its tensors are: Triton launches on the current device, whatever it is given."""

    @functools.wraps(function)
    def run(operands: Any) -> Any:
        with torch.cuda.device_of(operands.tensors.query):
            return function(operands)

    return run


@_on_its_device
def forward(given: Forward) -> tuple[Tensor, Tensor, Tensor | None]:
    """`csr_forward` on the GPU."""
    from .jit.forward import forward_rows, merge_forward

    tensors, edges, is_exact, mode = given
    operands = _Operands(tensors, mode, _plan_of(edges, "rows", tensors))
    query, shape, slots = operands.tensors.query, operands.shape, operands.plan.slots()
    out = empty(query, *query.shape[:3], shape.value_width)
    sums = operands.empty(*sums_shape(query, mode.normalizer))
    exact = operands.empty(*out.shape) if is_exact else None
    sizes = [shape.batches * slots * shape.heads * width for width in (shape.value_width, 1, 1)]
    parts = [operands.empty(size) if slots else None for size in sizes]
    numbers = (slots, shape.targets, shape.sources, *operands.numbers())
    for items, is_short in operands.items():
        results = (out, sums, exact, *([None] * 3 if is_short else parts))
        arrays = (*operands.tensors, *operands.lists(), *results)
        operands.launch(forward_rows, items, is_short, arrays, numbers, **operands.values())
    if slots and shape.batches:
        cut = operands.plan.cut
        pieces, heads_block = merge_block(shape.heads, shape.value_width)
        programs = shape.batches * cut.size(0) * -(-shape.heads // heads_block)
        arguments = (cut, out, sums, exact, *parts, cut.size(0), slots, shape.targets, keep_scale(mode.dropout_p))
        constants = {
            "NORMALIZER": mode.normalizer,
            "PIECES": pieces,
            "HEADS": shape.heads,
            "HEADS_BLOCK": heads_block,
            "NUMBER": _number(query),
            **operands.values(),
        }
        launch(merge_forward, programs, arguments, constants, warps=8)
    return out, sums, exact


@_on_its_device
def weights(given: Weights) -> Tensor:
    """`csr_weights` on the GPU."""
    tensors, sums, edges, mode = given
    return _weights(_Operands(tensors, mode, _plan_of(edges, "rows", tensors)), sums.contiguous())


def _weights(operands: _Operands, sums: Tensor) -> Tensor:
    from .jit.forward import weigh_rows

    (query, key, _, vector, bias, edge_key, *_), shape, mode = operands.tensors, operands.shape, operands.mode
    found = operands.empty(shape.batches, shape.edges, shape.heads)
    given = (query, key, vector, bias, edge_key, sums, *operands.lists()[:2], found)
    numbers = (shape.targets, shape.sources, shape.edges, *operands.of_batch[:2], mode.scale, mode.slope)
    for items, is_short in operands.items():
        operands.launch(weigh_rows, items, is_short, given, numbers)
    return found


@_on_its_device
def backward(given: Backward) -> list[Tensor | None]:
    """`csr_backward` on the GPU."""
    needs, plan = given.needs, _plan_of(given.edges, "rows", given.tensors)
    operands, sums = _Operands(given.tensors, given.mode, plan), given.sums.contiguous()
    grad_weights = None if given.grad_weights is None else given.grad_weights.contiguous()
    stats = more = None
    if given.mode.normalizer == SOFTMAX:
        stats = operands.empty(*given.sums.shape[:2], 3, operands.shape.heads)
        more = None if given.grad_lse is None else -given.grad_lse
        if grad_weights is not None:
            perm = plan.perm.to(torch.int64) if plan.perm.numel() else None
            weighed = segment_sum(_weights(operands, sums) * grad_weights, Rows(plan.index, plan.ptr, perm), -2)
            more = weighed if more is None else weighed + more
        more = None if more is None else more.contiguous()
    grads = (stats, given.grad_out.contiguous(), grad_weights)
    found: dict[str, Tensor] = {}
    # With softmax, this pass also sets the statistics that the next one needs.
    if stats is not None or needs.query or needs.vector or any(needs.of_edges().values()):
        found |= _target_gradients(operands, (*grads, given.out.contiguous(), sums, more), needs)
    if needs.key or needs.value:
        columns = _Operands(given.tensors, given.mode, _plan_of(given.edges, "columns", given.tensors))
        found |= _source_gradients(columns, grads)
    return gradients(found, given.tensors, needs)


def _plan_of(edges: EdgeLists, side: str, tensors: Tensors) -> ItemPlan:
    return read_plan(edges, side, tensors, TritonCSR.name, ItemPlan)


def _target_gradients(operands: _Operands, grads: Sequence[Any], needs: Needs) -> dict[str, Tensor]:
    """Gradients of the query, the vector and edge tensors; the statistics of rows are left for the other pass."""
    from .jit.backward import merge_sums, target_gradients

    tensors, shape, slots = operands.tensors, operands.shape, operands.plan.slots()
    batches, heads, width = shape.batches, shape.heads, shape.width
    found = {"query": empty_like(tensors.query)}
    part = operands.empty(batches * slots * heads * width) if slots else None
    of_edges = {name: getattr(tensors, name) for name, need in needs.of_edges().items() if need}
    for name, x in of_edges.items():
        # What is summed over the batch afterwards, in the accumulator's dtype.
        found[name] = empty_like(x) if x.size(0) == batches else operands.empty(batches, *x.shape[1:])
    blocks = [-(-items.size(0) // operands.block(short, is_backward=True).rows) for items, short in operands.items()]
    vectors = operands.empty(batches * sum(blocks), heads, width) if needs.vector else None
    of_items = [None] * 2 if vectors is None else vectors.split([batches * count for count in blocks])
    for (items, is_short), vector in zip(operands.items(), of_items, strict=True):
        results = TargetGradients(found["query"], None if is_short else part, vector, *map(found.get, needs.of_edges()))
        operands.launch(
            target_gradients,
            items,
            is_short,
            (*tensors, *operands.lists(), *grads, *results),
            (slots, shape.targets, shape.sources, shape.edges, *operands.numbers()),
            is_backward=True,
            **operands.values(),
        )
    if part is not None:
        _merge(merge_sums, operands, shape.targets, found["query"], part)
    if vectors is not None:
        found["vector"] = _sum_programs(vectors)
    for name, x in of_edges.items():
        if x.size(0) != batches:
            found[name] = found[name].sum(0, keepdim=True)
    return found


def _source_gradients(operands: _Operands, grads: Sequence[Any]) -> dict[str, Tensor]:
    """Gradients of key and value."""
    from .jit.backward import merge_sums, source_gradients

    tensors, shape, slots = operands.tensors, operands.shape, operands.plan.slots()
    found = [empty_like(tensors.key), empty_like(tensors.value)]
    parts = [operands.empty(shape.batches * slots * x.size(2) * x.size(3)) if slots else None for x in found]
    for items, is_short in operands.items():
        results = SourceGradients(*found, *([None] * 2 if is_short else parts))
        operands.launch(
            source_gradients,
            items,
            is_short,
            (*tensors, *operands.lists(), *grads, *results),
            (slots, shape.targets, shape.sources, shape.edges, *operands.numbers()),
            is_backward=True,
            **operands.values(),
        )
    for whole, part in zip(found, parts, strict=True):
        if part is not None:
            _merge(merge_sums, operands, shape.sources, whole, part)
    return {"key": found[0], "value": found[1]}


def _merge(kernel: Any, operands: _Operands, rows: int, whole: Tensor, part: Tensor) -> None:
    """Add up the pieces of cut rows."""
    batches, plan, size = operands.shape.batches, operands.plan, whole.size(2) * whole.size(3)
    pieces, block = merge_block(size, 1)
    if batches and plan.cut.size(0):
        constants = {"PIECES": pieces, "SIZE": size, "BLOCK": block, "NUMBER": _number(whole)}
        programs = batches * plan.cut.size(0) * -(-size // block)
        arguments = (plan.cut, whole, part, plan.cut.size(0), plan.slots(), rows)
        launch(kernel, programs, arguments, constants, warps=8)


def _sum_programs(x: Tensor) -> Tensor:
    """Sum over the programs that each wrote a part, in float64 after a first step in the accumulator's dtype.

    In float64 alone the sum takes a large part of what the pass that wrote them takes.
    """
    steps = x.size(0) // PARTS
    first = x[: steps * PARTS].view(steps, PARTS, *x.shape[1:]).sum(1)
    return first.sum(0, dtype=torch.float64) + x[steps * PARTS :].sum(0, dtype=torch.float64)


def _number(like: Tensor) -> Any:
    """Triton's name of the accumulator's dtype."""
    import triton.language as tl

    return tl.float64 if like.dtype == torch.float64 else tl.float32


FUNCTIONS["cuda"] = Functions(forward, weights, backward, edge_loop)

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

from ....call import Call, accumulate_dtype
from ....dropout import keep_scale, threshold
from ....normalizers import Softmax
from ....segments import Rows, segment_sum
from ...base import Kernel, Result
from ..op import NORMALIZER_CODES, library, lists_for, read_list, run_fused, sums_shape, why_not_fused
from .plan import WIDEST, Block, block_of, estimate, merge_block, plan, power_of_two

HAS_TRITON = importlib.util.find_spec("triton") is not None
# Whether a GPU has run these kernels and `make gpu` has passed and measured there. Until then "auto" never takes them,
# whatever the estimate: that they are right rests on an interpreter, and a wrong result costs more than a slow one.
MEASURED = False


class TritonCSR(Kernel):
    """See the module."""

    name = "triton"
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
        return why_not_fused(call)

    def cost(self, call: Call) -> float:
        """Count bytes, instructions and launches, see `estimate`; infinite until they were measured."""
        return estimate(call) if MEASURED else math.inf

    def reads_traced_edges(self, device: torch.device) -> bool:
        """On a GPU, if Triton is there, and "auto" takes the kernel."""
        return MEASURED and HAS_TRITON and device.type == self.device

    def run(self, call: Call) -> Result:
        """Compute the call."""
        return run_fused(call, *lists_for(call, self.name, plan), is_exact=True)


class _Side:
    """An operator's list, read: rows of targets or columns of sources."""

    def __init__(self, given: list[Tensor], side: str, shared: Sequence[Any]) -> None:
        query, key, seed = shared[0], shared[1], shared[7]
        ptr, index, perm, occurrence, long, short, cut = read_list(given, side, query, key, TritonCSR.name, plan)
        self.ptr, self.cut, self.edges = ptr, cut, index.numel()
        # Dropout alone asks for occurrences.
        is_counted = seed is not None and occurrence.numel() > 0
        self.lists = (index, perm if perm.numel() else None, occurrence if is_counted else None)
        self.items = ((long, False), (short, True))
        # Each piece of a cut row has a slot, and a cut row has two pieces at least.
        self.slots = long.size(0) if cut.size(0) else 0


class _Operands:
    """What all kernels take: tensors, numbers, and what is compiled in."""

    def __init__(self, shared: Sequence[Any], mode: tuple[int, int, float, float, float], edges: int) -> None:
        given: list[Any] = [None if x is None else x.contiguous() for x in shared]
        query, key, value, vector, bias, edge_key, edge_value, _ = given
        self.score, self.normalizer, scale, slope, dropout_p = mode
        self.query = query
        self.batches, self.targets, self.heads, self.width = query.shape
        self.sources, self.kv_heads, self.value_width = key.size(1), key.size(2), value.size(3)
        # Edges between the batch elements of edge tensors: none where all share one.
        stride = [0 if x is None or x.size(0) == 1 else edges for x in (bias, edge_key, edge_value)]
        self.tensors, self.numbers = given, (*stride, scale, slope, threshold(dropout_p), keep_scale(dropout_p))
        self.for_weights = (query, key, vector, bias, edge_key), (*stride[:2], scale, slope)

    def empty(self, *shape: int) -> Tensor:
        """New tensor of the accumulator's dtype."""
        return self.query.new_empty(shape, dtype=accumulate_dtype(self.query.dtype))

    def block(self, is_short: bool, is_backward: bool) -> Block:
        """What a program takes."""
        widths, itemsize = (self.width, self.value_width), self.query.dtype.itemsize
        return block_of(self.kv_heads, self.heads // self.kv_heads, widths, itemsize, is_short, is_backward)

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
        blocks, group = -(-items.size(0) // rows), self.heads // self.kv_heads
        programs = self.batches * blocks * -(-self.kv_heads // heads)
        if not programs:
            return
        kernel[(programs,)](
            items,
            items.size(0),
            blocks,
            *tensors,
            *numbers,
            SCORE=self.score,
            NORMALIZER=self.normalizer,
            ROWS=rows,
            KV_HEADS=self.kv_heads,
            GROUP=group,
            KV_BLOCK=heads,
            GROUP_BLOCK=power_of_two(group),
            IS_EVEN=self.kv_heads % heads == 0 and group == power_of_two(group),
            WIDTH=self.width,
            WIDTH_BLOCK=power_of_two(self.width),
            NUMBER=_number(self.query),
            num_warps=warps,
            **options,
        )

    def values(self) -> dict[str, Any]:
        """What kernels that read values are compiled for."""
        return {"VALUE": self.value_width, "VALUE_BLOCK": power_of_two(self.value_width)}


def _on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run an operator where its first tensor is: Triton launches on the current device, whatever it is given."""

    @functools.wraps(function)
    def run(*inputs: Any) -> Any:
        with torch.cuda.device_of(inputs[0]):
            return function(*inputs)

    return run


@_on_its_device
def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`csr_forward` on the GPU."""
    from .jit.forward import forward_rows, merge_forward

    *shared, rows, is_exact, kind, normalizer, scale, slope, dropout_p = inputs
    side = _Side(rows, "rows", shared)
    operands = _Operands(shared, (kind, normalizer, scale, slope, dropout_p), side.edges)
    (batches, targets, heads), width = operands.query.shape[:3], operands.value_width
    out = operands.query.new_empty(batches, targets, heads, width)
    sums = operands.empty(*sums_shape(operands.query, normalizer))
    exact = operands.empty(*out.shape) if is_exact else None
    parts = [operands.empty(batches * side.slots * heads * n) if side.slots else None for n in (width, 1, 1)]
    numbers = (side.slots, targets, operands.sources, *operands.numbers)
    for items, is_short in side.items:
        results = (out, sums, exact, *([None] * 3 if is_short else parts))
        operands.launch(
            forward_rows, items, is_short, (*operands.tensors, *side.lists, *results), numbers, **operands.values()
        )
    if side.slots and batches:
        pieces, heads_block = merge_block(heads, width)
        merge_forward[(batches * side.cut.size(0) * -(-heads // heads_block),)](
            side.cut,
            out,
            sums,
            exact,
            *parts,
            side.cut.size(0),
            side.slots,
            targets,
            keep_scale(dropout_p),
            NORMALIZER=normalizer,
            PIECES=pieces,
            num_warps=8,
            HEADS=heads,
            HEADS_BLOCK=heads_block,
            NUMBER=_number(operands.query),
            **operands.values(),
        )
    return out, sums, sums.new_empty(0) if exact is None else exact


@_on_its_device
def weights(*inputs: Any) -> Tensor:
    """`csr_weights` on the GPU."""
    from .jit.forward import weigh_rows

    *shared, sums, rows, kind, normalizer, scale, slope, dropout_p = inputs
    side = _Side(rows, "rows", shared)
    operands = _Operands(shared, (kind, normalizer, scale, slope, dropout_p), side.edges)
    found = operands.empty(operands.batches, side.edges, operands.heads)
    tensors, numbers = operands.for_weights
    for items, is_short in side.items:
        operands.launch(
            weigh_rows,
            items,
            is_short,
            (*tensors, sums.contiguous(), *side.lists[:2], found),
            (operands.targets, operands.sources, side.edges, *numbers),
        )
    return found


@_on_its_device
def backward(grad_out: Tensor, grad_lse: Tensor | None, grad_weights: Tensor | None, *inputs: Any) -> list[Tensor]:
    """`csr_backward` on the GPU."""
    *shared, out, sums, rows, columns, needs, kind, normalizer, scale, slope, dropout_p = inputs
    mode = (kind, normalizer, scale, slope, dropout_p)
    side = _Side(rows, "rows", shared)
    operands = _Operands(shared, mode, side.edges)
    grad_out = grad_out.contiguous()
    stats = more = None
    if normalizer == NORMALIZER_CODES[Softmax]:
        stats = operands.empty(operands.batches, operands.targets, 3, operands.heads)
        more = None if grad_lse is None else -grad_lse
        if grad_weights is not None:
            products = weights(*shared, sums, rows, *mode) * grad_weights
            index, perm, _ = side.lists
            rows_of = Rows(index, side.ptr, None if perm is None else perm.to(torch.int64))
            weighed = segment_sum(products, rows_of, -2)
            more = weighed if more is None else weighed + more
    grads = (grad_out, None if grad_weights is None else grad_weights.contiguous())
    found: dict[str, Tensor] = {}
    # Of softmax, this pass also sets the stats that the next one needs.
    if stats is not None or needs[0] or any(needs[3:]):
        given = [None if x is None else x.contiguous() for x in (out, sums, more)]
        found |= _target_gradients(operands, side, (stats, *grads, *given), needs)
    if needs[1] or needs[2]:
        found |= _source_gradients(operands, _Side(columns, "columns", shared), (stats, *grads))
    names = ("query", "key", "value", "vector", "edge_bias", "edge_key", "edge_value")
    return [
        found[name].to(x.dtype) if need else operands.query.new_empty(0)
        for name, x, need in zip(names, shared, needs, strict=False)
    ]


def _target_gradients(operands: _Operands, side: _Side, grads: Sequence[Any], needs: list[bool]) -> dict[str, Tensor]:
    """Gradients of the query, the vector and edge tensors; the statistics of rows are left for the other pass."""
    from .jit.backward import merge_sums, target_gradients

    query, batches, heads, width = operands.query, operands.batches, operands.heads, operands.width
    found = {"query": torch.empty_like(query)}
    part = operands.empty(batches * side.slots * heads * width) if side.slots else None
    of_edges: list[Tensor | None] = []
    for name, x, need in zip(("edge_bias", "edge_key", "edge_value"), operands.tensors[4:7], needs[4:], strict=True):
        if need:
            # What is summed over the batch afterwards, in the accumulator's dtype.
            found[name] = torch.empty_like(x) if x.size(0) == batches else operands.empty(batches, *x.shape[1:])
        of_edges.append(found.get(name))
    blocks = [-(-items.size(0) // operands.block(is_short, is_backward=True).rows) for items, is_short in side.items]
    vectors = operands.empty(batches * sum(blocks), heads, width) if needs[3] else None
    of_items = [None] * 2 if vectors is None else vectors.split([batches * count for count in blocks])
    for (items, is_short), vector in zip(side.items, of_items, strict=True):
        results = (found["query"], None if is_short else part, vector, *of_edges)
        operands.launch(
            target_gradients,
            items,
            is_short,
            (*operands.tensors, *side.lists, *grads, *results),
            (side.slots, operands.targets, operands.sources, side.edges, *operands.numbers),
            is_backward=True,
            **operands.values(),
        )
    if part is not None:
        _merge(merge_sums, side, batches, operands.targets, found["query"], part)
    if vectors is not None:
        found["vector"] = vectors.sum(0, dtype=torch.float64)
    for name, x in zip(("edge_bias", "edge_key", "edge_value"), operands.tensors[4:7], strict=True):
        if name in found and x.size(0) != batches:
            found[name] = found[name].sum(0, keepdim=True)
    return found


def _source_gradients(operands: _Operands, side: _Side, grads: Sequence[Any]) -> dict[str, Tensor]:
    """Gradients of key and value."""
    from .jit.backward import merge_sums, source_gradients

    key, value = operands.tensors[1:3]
    found = [torch.empty_like(key), torch.empty_like(value)]
    sizes = [operands.batches * side.slots * x.size(2) * x.size(3) for x in found]
    parts = [operands.empty(size) if side.slots else None for size in sizes]
    for items, is_short in side.items:
        operands.launch(
            source_gradients,
            items,
            is_short,
            (*operands.tensors, *side.lists, *grads, *found, *([None] * 2 if is_short else parts)),
            (side.slots, operands.targets, operands.sources, side.edges, *operands.numbers),
            is_backward=True,
            **operands.values(),
        )
    for whole, part in zip(found, parts, strict=True):
        if part is not None:
            _merge(merge_sums, side, operands.batches, operands.sources, whole, part)
    return {"key": found[0], "value": found[1]}


def _merge(kernel: Any, side: _Side, batches: int, rows: int, whole: Tensor, part: Tensor) -> None:
    """Add up the pieces of cut rows."""
    size, cuts = whole.size(2) * whole.size(3), side.cut.size(0)
    pieces, block = merge_block(size, 1)
    if batches and cuts:
        options = {"PIECES": pieces, "SIZE": size, "BLOCK": block, "NUMBER": _number(whole), "num_warps": 8}
        programs = batches * cuts * -(-size // block)
        kernel[(programs,)](side.cut, whole, part, cuts, side.slots, rows, **options)


def _number(like: Tensor) -> Any:
    """Triton's name of the accumulator's dtype."""
    import triton.language as tl

    return tl.float64 if like.dtype == torch.float64 else tl.float32


if HAS_TRITON:
    library.impl("csr_forward", forward, "CUDA")
    library.impl("csr_weights", weights, "CUDA")
    library.impl("csr_backward", backward, "CUDA")

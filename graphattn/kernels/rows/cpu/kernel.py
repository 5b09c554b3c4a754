"""Fused rows on the CPU: runs what Numba compiles of `jit`, for the operators of `rows.op`.

Numba is loaded when the first call arrives.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....call import Call
from ....compiled import empty, load, run_tasks, why_not_compiled
from ....csr import CSR
from ....dropout import keep_scale, threshold
from ....normalizers import Softmax
from ....segments import Rows, segment_sum
from ...base import Kernel, Result, share
from ..op import NORMALIZER_CODES, library, list_of, lists_for, read_list, run_fused, sums_shape, why_not_fused

# See `NumbaCSR.cost`.
SECONDS = (6.5e-4, 1.3e-8, 1.7e-9, 1.85e-8, 6.8e-11)


class NumbaCSR(Kernel):
    """See the module."""

    name = "numba"

    def why_not(self, call: Call) -> str | None:
        """Tensors elsewhere, a score or normalizer that isn't built in, or Numba missing."""
        if call.query.device.type != "cpu":
            return f"tensors are on {call.query.device.type}"
        reason = why_not_fused(call)
        return why_not_compiled() if reason is None else reason

    def cost(self, call: Call) -> float:
        """Count seconds per call, per head of a row, per head of an edge, and for the numbers of both, with backward.

        Fitted on two cores to the sweep of benchmarks/structured.py.
        """
        per_call, per_row, per_row_number, per_edge, per_edge_number = SECONDS
        width = call.query.size(-1) + call.value.size(-1)
        rows, edges = call.pattern.num_targets, call.pattern.num_edges
        per_head = rows * (per_row + per_row_number * width) + edges * (per_edge + per_edge_number * width)
        return share(call) * (per_call + call.batch_shape.numel() * call.heads * per_head)

    def reads_traced_edges(self, device: torch.device) -> bool:
        """On the CPU, if Numba is there."""
        return device.type == "cpu" and why_not_compiled() is None

    def run(self, call: Call) -> Result:
        """Compute the call."""
        rows, columns = lists_for(call, self.name, _plan)
        # Rows that are cut have no other sum of their weights' gradients. A traced edge_index may have some.
        has_cut_rows = len(rows) < 5 or rows[4].numel() > 0
        return run_fused(call, rows, columns, has_cut_rows)


def _compiled(part: str) -> Any:
    """Return the module of compiled functions, "forward" or "backward"."""
    return load(f"kernels.rows.cpu.jit.{part}")


def _plan(csr: CSR) -> list[Tensor]:
    """A CSR with its tasks and its cut rows."""
    tasks, cut = _compiled("forward").plan_tasks(csr.ptr.numpy())
    return [*list_of(csr), torch.from_numpy(tasks), torch.from_numpy(cut)]


def _flat(x: Tensor | None) -> np.ndarray | None:
    """A flat array of the tensor's own memory; half types as the integers that stand for them."""
    if x is None:
        return None
    x = x.detach().contiguous()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().reshape(-1)
    if x.dtype == torch.float16:
        return x.view(torch.int16).numpy().view(np.uint16).reshape(-1)
    return x.numpy().reshape(-1)


class _Operands:
    """What all compiled functions take, in their order: csr, shape, data, edges, mode, dropout."""

    def __init__(self, shared: Sequence[Any], edges: int, mode: tuple[int, int, float, float, float]) -> None:
        query, key, value, vector, edge_bias, edge_key, edge_value, seed = shared
        kind, normalizer, scale, slope, dropout_p = mode
        self.batches: int = query.size(0)
        number = np.float64 if query.dtype == torch.float64 else np.float32
        sizes = (key.size(1), query.size(2), key.size(2), query.size(3), value.size(3))
        self.shape = (query.size(0), query.size(1), *sizes, edges)
        self.data = (_flat(query), _flat(key), _flat(value), _flat(vector))
        stride = lambda x: 0 if x is None or x.size(0) == 1 else edges
        optional = ((_flat(x), stride(x)) for x in (edge_bias, edge_key, edge_value))
        self.edges: tuple[Any, ...] = tuple(itertools.chain.from_iterable(optional))
        self.mode = (kind, normalizer, number(slope), number(scale))
        bound = np.uint64(threshold(dropout_p)) if seed is not None else np.uint64(0)
        self.dropout = (0 if seed is None else int(seed), bound, number(keep_scale(dropout_p)))

    def common(self) -> tuple[Any, ...]:
        return self.shape, self.data, self.edges, self.mode


def _arrays(
    given: list[Tensor], side: str, query: Tensor, key: Tensor
) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray, int]:
    """Arrays of an operator's list: csr, tasks, cut rows, and how many slots these have."""
    ptr, index, perm, tasks, cut = read_list(given, side, query, key, NumbaCSR.name, _plan)
    csr = (ptr.numpy(), index.numpy(), perm.numpy())
    slots = int(cut[-1, 2]) if cut.numel() else 0
    return csr, tasks.numpy(), cut.numpy(), slots


def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`csr_forward` on the CPU."""
    compiled = _compiled("forward")
    *shared, rows, is_exact, kind, normalizer, scale, slope, dropout_p = inputs
    query, value = shared[0], shared[2]
    csr, tasks, cut, slots = _arrays(rows, "rows", *shared[:2])
    operands = _Operands(shared, len(csr[1]), (kind, normalizer, scale, slope, dropout_p))
    (batches, targets, heads), width = query.shape[:3], value.size(3)
    out = empty(query, batches, targets, heads, width, dtype=None if is_exact else query.dtype)
    sums = empty(query, *sums_shape(query, normalizer))
    part_out, part_top, part_sum = (empty(query, batches * slots * heads * w) for w in (width, 1, 1))
    results = [_flat(x) for x in (out, sums, part_out, part_top, part_sum)]
    seed, bound, keep = operands.dropout
    keep = type(keep)(1) if is_exact else keep
    dropout = (seed, bound, keep)
    total = batches * len(tasks)
    run_tasks(compiled.forward_tasks, total, tasks, slots, csr, *operands.common(), dropout, *results)
    if slots:
        compiled.merge_forward(cut, slots, operands.shape, operands.mode, keep, *results)
    return ((out * keep_scale(dropout_p)).to(query.dtype), sums, out) if is_exact else (out, sums, sums.new_empty(0))


def weights(*inputs: Any) -> Tensor:
    """`csr_weights` on the CPU."""
    compiled = _compiled("forward")
    *shared, sums, rows, kind, normalizer, scale, slope, dropout_p = inputs
    csr, tasks, _, _ = _arrays(rows, "rows", *shared[:2])
    operands = _Operands(shared, len(csr[1]), (kind, normalizer, scale, slope, dropout_p))
    query = shared[0]
    found = empty(query, query.size(0), len(csr[1]), query.size(2))
    total = operands.batches * len(tasks)
    run_tasks(compiled.weight_tasks, total, tasks, csr, *operands.common(), _flat(sums), _flat(found))
    return found


def backward(grad_out: Tensor, grad_lse: Tensor | None, grad_weights: Tensor | None, *inputs: Any) -> list[Tensor]:
    """`csr_backward` on the CPU."""
    compiled = _compiled("backward")
    *shared, out, sums, rows, columns, needs, kind, normalizer, scale, slope, dropout_p = inputs
    mode = (kind, normalizer, scale, slope, dropout_p)
    query, key, value, _, edge_bias, edge_key, edge_value, _ = shared
    csr, tasks, cut, slots = _arrays(rows, "rows", *shared[:2])
    edges = len(csr[1])
    operands = _Operands(shared, edges, mode)
    batches, heads, width = operands.batches, query.size(2), query.size(3)
    stats, more, weighed = sums, None, None
    is_softmax = normalizer == NORMALIZER_CODES[Softmax]
    if is_softmax:
        stats = empty(query, *sums.shape[:2], 4, heads)
        more = None if grad_lse is None else -grad_lse
        # Only the sums of cut rows can't be had on the way.
        if grad_weights is not None and slots:
            ptr, index, perm = map(torch.from_numpy, csr)
            products = weights(*shared, sums, rows, *mode) * grad_weights
            weighed = segment_sum(products, Rows(index, ptr, perm.to(torch.int64) if perm.numel() else None), -2)
    grads = (_flat(grad_out), _flat(sums), _flat(stats), _flat(grad_weights))
    found: dict[str, Tensor] = {}
    one = operands.mode[3].dtype.type(1)

    # Of softmax, this pass also sets the stats that the next one needs.
    if is_softmax or needs[0] or any(needs[3:]):
        found["query"] = empty(query, *query.shape, dtype=query.dtype)
        part_vector = query.new_zeros(batches * len(tasks), heads, width, dtype=sums.dtype) if needs[3] else None
        part_query = empty(query, batches * slots * heads * width)
        of_edges = {"edge_bias": edge_bias, "edge_key": edge_key, "edge_value": edge_value}
        for (name, x), need in zip(of_edges.items(), needs[4:], strict=True):
            if x is not None and need:
                found[name] = empty(query, *x.shape)
        if "edge_bias" in found:
            found["edge_bias"].zero_()
        by_edge = batches > 1 and any(name in found and found[name].size(0) == 1 for name in of_edges)
        results = [
            _flat(found["query"]),
            _flat(part_query),
            _flat(part_vector),
            *(_flat(found.get(x)) for x in of_edges),
        ]
        run_tasks(
            compiled.target_gradient_tasks,
            batches * len(tasks),
            by_edge,
            tasks,
            slots,
            csr,
            *operands.common(),
            operands.dropout,
            grads,
            _flat(out),
            _flat(more),
            _flat(weighed),
            *results,
            multiple=batches if by_edge else 1,
        )
        if slots:
            compiled.merge_sums(batches, query.size(1), cut, slots, heads * width, one, results[0], results[1])
        if part_vector is not None:
            found["vector"] = part_vector.sum(0, dtype=torch.float64)
    if needs[1] or needs[2]:
        csc, tasks, cut, slots = _arrays(columns, "columns", query, key)
        found["key"], found["value"] = (empty(query, *x.shape, dtype=query.dtype) for x in (key, value))
        sizes = (key.size(2) * width, value.size(2) * value.size(3))
        parts = [empty(query, batches * slots * size) for size in sizes]
        results = [_flat(x) for x in (found["key"], found["value"], *parts)]
        run_tasks(
            compiled.source_gradient_tasks,
            batches * len(tasks),
            tasks,
            slots,
            csc,
            *operands.common(),
            operands.dropout,
            grads,
            *results,
        )
        if slots:
            for size, whole, part in zip(sizes, results[:2], results[2:], strict=True):
                compiled.merge_sums(batches, key.size(1), cut, slots, size, one, whole, part)

    names = ("query", "key", "value", "vector", "edge_bias", "edge_key", "edge_value")
    return [
        found[name].to(x.dtype) if need else query.new_empty(0)
        for name, x, need in zip(names, shared, needs, strict=False)
    ]


library.impl("csr_forward", forward, "CPU")
library.impl("csr_weights", weights, "CPU")
library.impl("csr_backward", backward, "CPU")

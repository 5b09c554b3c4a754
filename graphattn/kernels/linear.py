"""Dot products that are not normalized, where all pairs are edges, in time proportional to the number of nodes.

    out_i = sum over j of (q_i . k_j) v_j = q_i (sum over j of k_j v_j^T)

The matrix in brackets, [D, V] for each head, is the same for all targets of a component; under a causal mask it grows
from one chunk of targets to the next, and only the pairs inside a chunk are computed one by one.

References:
    Katharopoulos et al., "Transformers are RNNs", 2020; chunks as in Hua et al., "Transformer Quality in Linear Time",
    2022.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..call import Call, is_transformed
from ..compiled import empty
from ..costs import Costs
from ..normalizers import Identity
from ..patterns import Full
from ..scores import DotProduct
from .base import Kernel, Result, join_batch, share, split_batch

# Targets of a chunk under a causal mask.
CHUNK = 64
# Products of matrices that are computed one after another, in place; more are computed together, and copied.
MOST_PRODUCTS = 64


class Group(NamedTuple):
    """Components of about one size, padded to the largest: [components, size] int64 nodes, and which of them are."""

    targets: Tensor
    is_target: Tensor
    sources: Tensor
    is_source: Tensor


class Plan(NamedTuple):
    """How a pattern's nodes are arranged.

    Attributes:
        sizes: targets and sources of each component, if all have the same; then there are no groups.
        groups: see `Group`.
        order: [T] the place of each target among those of all groups, one after another.
    """

    sizes: tuple[int, int] | None
    groups: tuple[Group, ...]
    order: Tensor | None


class Linear(Kernel):
    """See the module."""

    name = "linear"
    is_plain = True

    def why_not(self, call: Call) -> str | None:
        """Another pattern, score or normalizer; or something that is asked of single pairs."""
        if not isinstance(call.pattern, Full):
            return f"only Full has all pairs, not {call.pattern}"
        if not isinstance(call.score, DotProduct) or not isinstance(call.normalizer, Identity):
            return "it supports only the dot product with the identity normalizer"
        if any(x is not None for x in (call.edge_bias, call.edge_key, call.edge_value)):
            return "it supports no edge tensors"
        return "it computes no weights, which dropout and return_weights need" if _needs_weights(call) else None

    def cost(self, call: Call, costs: Costs) -> float:
        """Count the FLOP of both products, thrice with backward, and what a call takes."""
        if self.why_not(call) is not None:
            return float("inf")
        pattern, width, value_width = call.pattern, call.query.size(-1), call.value.size(-1)
        per_row = width * value_width + (CHUNK * (width + value_width) if _is_causal(call) else 0)
        flop = 6 * call.batch_shape.numel() * call.heads * (pattern.num_targets + pattern.num_sources) * per_row
        groups = max(len(_plan(call).groups), 1)
        return share(call) * (costs.linear_call * groups + flop / costs.linear_flop)

    def run(self, call: Call) -> Result:
        """Compute the call."""
        plan, dims = _plan(call), len(call.batch_shape)
        assert isinstance(call.score, DotProduct)
        with torch.autocast(call.query.device.type, enabled=False):
            dtype = call.accumulate_dtype
            query, key, value = (join_batch(x, dims).to(dtype) for x in (call.query, call.key, call.value))
            scale = call.score.factor(query.size(-1))
            multiply = functools.partial(_multiply_causal if _is_causal(call) else _multiply, scale)
            if plan.sizes is not None:
                targets, sources = plan.sizes
                by_component = lambda x, n: x.reshape(-1, n, *x.shape[2:])
                out = multiply(by_component(query, targets), by_component(key, sources), by_component(value, sources))
                out = out.reshape(*query.shape[:-1], value.size(-1))
            else:
                out = _multiply_groups(plan, query, key, value, multiply)
        return Result(split_batch(out.to(call.query.dtype), call.batch_shape), None, None)


def _needs_weights(call: Call) -> bool:
    return call.dropout_p > 0 or call.return_weights


def _is_causal(call: Call) -> bool:
    return isinstance(call.pattern, Full) and call.pattern.causal


def _plan(call: Call) -> Plan:
    pattern = call.pattern
    assert isinstance(pattern, Full)
    found: Plan = pattern.keep("linear", lambda: _arrange(pattern))
    return found


def _arrange(pattern: Full) -> Plan:
    sizes = torch.cat([pattern.shape, pattern.source_shape], 1)
    alike = sizes.unique(dim=0).tolist()
    if len(alike) == 1 and min(alike[0]) > 0:
        return Plan((alike[0][0], alike[0][1]), (), None)
    # Padding takes a quarter at most.
    step = (2 ** (sizes.amax(1).clamp(min=1).log2().floor() - 2)).clamp(min=8).long()
    bucket = -(-sizes.amax(1) // step) * step
    groups, placed = [], []
    for size in bucket.unique().tolist():
        members = (bucket == size).nonzero().flatten()
        sides = []
        for ptr, counts in ((pattern.ptr, sizes[:, 0]), (pattern.source_ptr, sizes[:, 1])):
            place = torch.arange(int(counts[members].max()), device=pattern.device)
            is_node = place < counts[members, None]
            sides += [torch.where(is_node, ptr[members, None] + place, 0), is_node]
        groups.append(Group(*sides))
        placed.append(sides[0][sides[1]])
    order = torch.cat(placed) if placed else pattern.ptr.new_empty(0)
    inverse = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
    return Plan(None, tuple(groups), inverse)


def _multiply_groups(plan: Plan, query: Tensor, key: Tensor, value: Tensor, multiply: Callable[..., Tensor]) -> Tensor:
    parts = []
    for group in plan.groups:
        q = query[:, group.targets].flatten(0, 1)
        # Whatever lies in the row that stands for a missing source must not count, NaN included.
        k, v = (
            x[:, group.sources].masked_fill(~group.is_source[..., None, None], 0).flatten(0, 1) for x in (key, value)
        )
        parts.append(multiply(q, k, v).unflatten(0, (query.size(0), -1))[:, group.is_target])
    found = torch.cat(parts, 1) if parts else query.new_zeros(*query.shape[:-1], value.size(-1))
    return found if plan.order is None else found[:, plan.order]


def _multiply(scale: float, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """q_i (sum over j of k_j v_j^T) for query [b, n, H, D], key [b, m, H_kv, D] and value [b, m, H_kv, V]."""
    if torch.compiler.is_compiling() or is_transformed():
        outer, rows = _outer, _rows_together
    else:
        outer, rows = _Outer.apply, _Rows.apply
    state, group = outer(key, value) * scale, query.size(2) // key.size(2)
    found: Tensor = rows(query, state if group == 1 else state.repeat_interleave(group, 1))
    return found


def _outer(x: Tensor, y: Tensor) -> Tensor:
    """Sum of x_i y_i^T over rows: [b, n, H, D] and [b, n, H, V] to [b, H, D, V]."""
    return x.permute(0, 2, 3, 1) @ y.transpose(1, 2)


def _rows(x: Tensor, matrix: Tensor) -> Tensor:
    """Rows [b, n, H, D] times a matrix of each head, [b, H, D, V]: [b, n, H, V]."""
    batches, rows, heads, _ = x.shape
    if x.device.type != "cpu" or batches * heads > MOST_PRODUCTS:
        return _rows_together(x, matrix)
    out = empty(x, batches, rows, heads, matrix.size(3))
    for b, h in itertools.product(range(batches), range(heads)):
        torch.mm(x[b, :, h], matrix[b, h], out=out[b, :, h])
    return out


def _rows_together(x: Tensor, matrix: Tensor) -> Tensor:
    return (x.transpose(1, 2) @ matrix).transpose(1, 2)


# Each is the derivative of the other: written as functions, so that their results lie as the next one reads them.
class _Outer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return _outer(x, y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        needs_x, needs_y = ctx.needs_input_grad
        return _Rows.apply(y, grad.mT) if needs_x else None, _Rows.apply(x, grad) if needs_y else None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(x, matrix)
        return _rows(x, matrix)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix = ctx.saved_tensors
        needs_x, needs_matrix = ctx.needs_input_grad
        return _Rows.apply(grad, matrix.mT) if needs_x else None, _Outer.apply(x, grad) if needs_matrix else None


def _multiply_causal(scale: float, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same, where the i-th target sees the sources up to the i-th."""
    targets = query.size(1)
    chunks = -(-max(targets, key.size(1)) // CHUNK)
    query, key, value = (_in_chunks(x, chunks) for x in (query * scale, key, value))
    # Query heads that share a head of the keys side by side.
    query = query.unflatten(3, (key.size(3), -1))
    score = torch.einsum("bcikgd,bcjkd->bckgij", query, key).tril()
    inside = torch.einsum("bckgij,bcjkv->bcikgv", score, value)
    states = torch.einsum("bcjkd,bcjkv->bckdv", key, value)
    # The sum of all chunks before.
    before = torch.nn.functional.pad(states.cumsum(1)[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
    out = inside + torch.einsum("bcikgd,bckdv->bcikgv", query, before)
    return out.flatten(1, 2)[:, :targets].flatten(2, 3)


def _in_chunks(x: Tensor, chunks: int) -> Tensor:
    """[b, n, ...] to [b, chunks, CHUNK, ...], with zeros behind."""
    missing = chunks * CHUNK - x.size(1)
    return torch.nn.functional.pad(x, (0, 0) * (x.dim() - 2) + (0, missing)).unflatten(1, (chunks, CHUNK))

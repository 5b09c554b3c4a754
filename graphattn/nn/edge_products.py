"""Updated features of edges: a linear map of the products of query and key, without these in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..call import is_transformed
from ..kernels.base import LastDerivative
from ..patterns import Pattern
from ..segments import Rows, gather, segment_sum
from .ends import ends_of

# Edges whose products are in memory at a time.
CHUNK = 2**14


def edge_products(
    query: Tensor,
    key: Tensor,
    edge: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pattern: Pattern,
    *,
    is_plain: bool = False,
) -> Tensor:
    """Map concat_h(query_i * (key_j + edge_ij)), elementwise, by a matrix: [*B, E, C].

    Args:
        query: [*B, T, H, D].
        key: [*B, S, H, D].
        edge: [E, H, D] or [*B, E, H, D].
        weight: [C, H * D].
        bias: [C].
        pattern: E edges, in the order of the rows of `edge`.
        is_plain: use torch's own operators alone, which have derivatives of every order, and keep products.
    """
    by_target, by_source = ends_of(pattern)
    is_plain = is_plain or query.dim() != 3 or is_transformed() or torch.compiler.is_compiling()
    if is_plain or torch.is_autocast_enabled(query.device.type):
        products = gather(query, by_target, -3) * (gather(key, by_source, -3) + edge)
        return linear(products.flatten(-2), weight, bias)
    rows = (query.flatten(1), key.flatten(1), edge.flatten(1))
    out: Tensor = _Products.apply(*rows, weight, by_target, by_source)
    return out if bias is None else out + bias


class _Products(torch.autograd.Function):
    """Keeps its inputs alone, and computes products again."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, edge: Tensor, weight: Tensor, by_target: Rows, by_source: Rows
    ) -> Tensor:
        ctx.save_for_backward(query, key, edge, weight)
        ctx.ends = by_target, by_source
        out = edge.new_empty(edge.size(0), weight.size(0))
        ends = (by_target.index.split(CHUNK), by_source.index.split(CHUNK))
        for target, source, of_edges, some in zip(*ends, edge.split(CHUNK), out.split(CHUNK), strict=True):
            products = key.index_select(0, source).add_(of_edges).mul_(query.index_select(0, target))
            torch.mm(products, weight.t(), out=some)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        found = _Gradients.apply(grad, *ctx.saved_tensors, *ctx.ends)
        return *found, None, None


class _Gradients(LastDerivative):
    @staticmethod
    def forward(
        grad: Tensor, query: Tensor, key: Tensor, edge: Tensor, weight: Tensor, by_target: Rows, by_source: Rows
    ) -> tuple[Tensor, ...]:
        grad_query, grad_edge = torch.zeros_like(query), torch.empty_like(edge)
        grad_weight = weight.new_zeros(weight.shape)
        # Edges by target, so that a chunk adds to consecutive rows of queries, each in one order.
        order = torch.arange(edge.size(0), device=edge.device) if by_target.perm is None else by_target.perm
        for start in range(0, edge.size(0), CHUNK):
            some = order[start : start + CHUNK]
            target, slope = by_target.index[some], grad.index_select(0, some)
            of_query = query.index_select(0, target)
            of_pair = key.index_select(0, by_source.index[some]).add_(edge.index_select(0, some))
            of_product = slope @ weight
            grad_edge[some] = of_product * of_query
            grad_weight.addmm_(slope.t(), of_query.mul_(of_pair))
            first, last = int(target[0]), int(target[-1]) + 1
            ptr = (by_target.ptr[first : last + 1] - start).clamp(0, some.numel())
            grad_query[first:last] += segment_sum(of_product.mul_(of_pair), Rows(target - first, ptr, None), -2)
        return grad_query, segment_sum(grad_edge, by_source, -2), grad_edge, grad_weight

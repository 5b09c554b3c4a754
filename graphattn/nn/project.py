"""Projections of rows, each with the weights of its relation."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..kernels.base import LastDerivative
from ..patterns.relations import Pairs


def project_rows(x: Tensor, weight: Tensor, rows: Pairs, *, is_plain: bool = False) -> Tensor:
    """Project the node of each row with the weights of the row's relation: one matrix product per relation.

    Args:
        x: [N, G, D], G groups of features of each node, such as heads.
        weight: [R, G, D, C].
        rows: pairs of a relation and a node.
        is_plain: use torch's own operators alone, which have derivatives of every order.

    Returns:
        [rows, G, C].
    """
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
    with torch.autocast(device, enabled=False):
        if not is_plain:
            found: Tensor = _Project.apply(x, weight, rows.node, rows.ptr)
            return found
        parts = [_product(x.index_select(0, rows.node[low:high]), w) for low, high, w in _relations(rows.ptr, weight)]
        return torch.cat(parts) if parts else x.new_empty(0, x.size(1), weight.size(-1))


def _relations(ptr: list[int], weight: Tensor) -> list[tuple[int, int, Tensor]]:
    """Where the rows of each relation that has any begin and end, and its weights."""
    return [(low, high, w) for (low, high), w in zip(pairwise(ptr), weight, strict=True) if high > low]


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """[n, G, D] times [G, D, C]."""
    if x.size(1) == 1:
        return (x.squeeze(1) @ weight[0]).unsqueeze(1)
    return torch.einsum("ngd,gdc->ngc", x, weight)


class _Project(torch.autograd.Function):
    """Without the copies that torch's own operators would keep of the rows of each relation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, node: Tensor, ptr: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight, node)
        ctx.ptr = ptr
        out = x.new_empty(len(node), weight.size(1), weight.size(3))
        for low, high, w in _relations(ptr, weight):
            # Faster than plain indexing.
            out[low:high] = _product(x.index_select(0, node[low:high]), w)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, node = ctx.saved_tensors
        found = _Gradients.apply(grad, x, weight, node, ctx.ptr, *ctx.needs_input_grad[:2])
        return *found, None, None


class _Gradients(LastDerivative):
    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, weight: Tensor, node: Tensor, ptr: list[int], of_x: bool, of_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        grad_x = torch.zeros_like(x, memory_format=torch.contiguous_format) if of_x else None
        grad_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format) if of_weight else None
        for r, (low, high) in enumerate(pairwise(ptr)):
            if high == low:
                continue
            nodes, slope = node[low:high], grad[low:high]
            if grad_x is not None:
                # Each node is there once, so that the order of additions is that of the relations.
                part = _product(slope, weight[r].transpose(1, 2))
                grad_x.flatten(1).index_add_(0, nodes, part.flatten(1))
            if grad_weight is not None:
                torch.bmm(x.index_select(0, nodes).permute(1, 2, 0), slope.transpose(0, 1), out=grad_weight[r])
        return grad_x, grad_weight

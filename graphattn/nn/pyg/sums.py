"""Sums over the edges of a graph, and softmax by what sources alone say, which is a quotient of two such sums."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ...patterns import Edges, Pattern
from ...precision import accumulate_dtype, without_autocast
from .channelwise import can_loop, share_in_loops

# Columns that are summed at a time: more rows of so many stay in the caches.
COLUMNS = 64
# The exponents of one channel may differ by as much as this: exp of it, and of its opposite, is far from the ends of
# float32.
WIDEST_SPREAD = 60.0


def groups_of(index: Tensor, num_groups: int) -> Edges:
    """Return the pattern of groups, each of which attends to the rows that have its number in `index`."""
    listed = torch.stack([torch.arange(len(index), device=index.device), index])
    return Edges(listed, num_sources=len(index), num_targets=num_groups)


def sum_sources(x: Tensor, pattern: Pattern) -> Tensor:
    """Sum over j -> i of x_j: rows [S, C] of sources to [T, C], with derivatives of every order.

    Example:
        >>> from graphattn import Edges
        >>> sum_sources(torch.tensor([[1.0], [2.0], [4.0]]), Edges(torch.tensor([[0, 1, 2], [1, 1, 0]]), 3)).flatten()
        tensor([4., 3., 0.])
    """
    found: Tensor = _Sum.apply(x, pattern, False)
    return found


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pattern: Pattern, transposed: bool) -> Tensor:
        ctx.pattern, ctx.transposed = pattern, transposed
        if transposed and pattern.keep("each source once", lambda: _has_each_source_once(pattern)):
            return x.index_select(0, pattern.edge_index[1])
        dtype = accumulate_dtype(x.dtype)
        matrix = pattern.keep(
            f"adjacency {dtype} {'transposed' if transposed else 'rows'}", lambda: _matrix(pattern, dtype, transposed)
        )
        with without_autocast(x.device.type):
            parts = [matrix @ part.to(dtype) for part in x.split(COLUMNS, 1)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Sum.apply(grad, ctx.pattern, not ctx.transposed), None, None


def _has_each_source_once(pattern: Pattern) -> bool:
    source = pattern.edge_index[0]
    return torch.equal(source, torch.arange(pattern.num_sources, device=source.device))


def _matrix(pattern: Pattern, dtype: torch.dtype, transposed: bool) -> Tensor:
    """[T, S], or [S, T], with a one for each edge."""
    rows = pattern.csc() if transposed else pattern.csr()
    size = (pattern.num_targets, pattern.num_sources)
    with warnings.catch_warnings():
        # torch announces that these tensors are in beta.
        warnings.simplefilter("ignore", UserWarning)
        ones = torch.ones(rows.index.numel(), dtype=dtype, device=rows.index.device)
        ptr = rows.ptr.to(rows.index.dtype)
        return torch.sparse_csr_tensor(ptr, rows.index, ones, size=size[::-1] if transposed else size)


def share_by_source(score: Tensor, value: Tensor, pattern: Pattern, in_loops: bool = False) -> Tensor | None:
    """Softmax over j -> i of score_j [S, C or 1], times value_j [S, C]: [T, C]; None where exponents may overflow.

        out_i = sum over j -> i of exp(score_j - c) value_j / sum over j -> i of exp(score_j - c)

    c is the largest score of a channel. Targets without edges get zeros. In torch's operators, which have derivatives
    of every order, or in compiled loops, where they take such tensors.
    """
    given = score.detach()
    if not given.numel():
        return value.new_zeros(pattern.num_targets, value.size(1))
    top = given.amax(0)
    # Not so where a score isn't finite.
    if not float((top.double() - given.amin(0).double()).amax()) < WIDEST_SPREAD:
        return None
    if in_loops and score.shape == value.shape and can_loop(score, value):
        return share_in_loops(score, value, top, pattern)
    result = torch.promote_types(score.dtype, value.dtype)
    dtype = accumulate_dtype(result)
    with torch.autocast(value.device.type, enabled=False):
        weight = (score.to(dtype) - top.to(dtype)).exp()
        total, out = sum_sources(weight, pattern), sum_sources(weight * value.to(dtype), pattern)
        return (out / torch.where(total == 0, 1, total)).to(result)

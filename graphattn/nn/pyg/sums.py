"""Sums over the edges of a graph, and softmax by what sources alone say, which is a quotient of two such sums."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ...compiled import compiled_loop, empty, empty_like, load, run_tasks, why_not_compiled
from ...kernels.base import LastDerivative
from ...patterns import Edges, Pattern
from ...precision import accumulate_dtype, without_autocast

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


def softmax_of_groups(x: Tensor, factor: Tensor, pattern: Edges) -> Tensor:
    """Softmax of factor * x over the rows [N, C] of each group, times these rows: [groups, C]; see `jit.groups`.

    The pattern is that of `groups_of`, the factor [C]. In compiled loops, which keep nothing per row.
    """
    out: Tensor = _Softmax.apply(x.contiguous(), factor.contiguous(), None, pattern, False)
    return out


def gated_mean_of_groups(x: Tensor, vector: Tensor, bias: Tensor | None, pattern: Edges) -> Tensor:
    """The same with one weight for all channels of a row, softmax of x . vector [C]: one number is kept per row.

    A bias, the same for all rows, cancels: its gradient is zero.
    """
    out: Tensor = _Softmax.apply(x.contiguous(), vector.contiguous(), bias, pattern, True)
    return out


def can_group(x: Tensor, *tensors: Tensor) -> bool:
    """Whether the compiled loops take these."""
    is_exact = x.dtype in (torch.float32, torch.float64) and all(y.dtype == x.dtype for y in tensors)
    return is_exact and not torch.is_autocast_enabled(x.device.type) and why_not_compiled() is None


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, vector: Tensor, bias: Tensor | None, pattern: Edges, is_gated: bool) -> Tensor:
        groups, channels = pattern.num_targets, x.size(1)
        kept = [empty(x, len(x))] if is_gated else [empty(x, groups, channels) for _ in range(2)]
        results = (*kept, empty(x, groups, channels))
        _run_groups("gated_forward_tasks" if is_gated else "forward_tasks", x, vector, pattern, results)
        ctx.save_for_backward(x, vector, *results)
        ctx.pattern, ctx.is_gated, ctx.zero = pattern, is_gated, None if bias is None else torch.zeros_like(bias)
        return results[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given = (grad, ctx.pattern, ctx.is_gated, ctx.needs_input_grad[1])
        return (*_SoftmaxGradients.apply(*given, *ctx.saved_tensors), ctx.zero, None, None)


class _SoftmaxGradients(LastDerivative):
    @staticmethod
    def forward(
        grad: Tensor, pattern: Edges, is_gated: bool, needs_vector: bool, x: Tensor, vector: Tensor, *results: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        needs_vector = needs_vector or is_gated
        of_x, of_vector = empty_like(x), empty(x, *grad.shape) if needs_vector else x.new_empty(0)
        name, more = "gated_backward_tasks" if is_gated else "backward_tasks", (grad.contiguous(), of_x, of_vector)
        _run_groups(name, x, vector, pattern, results, *more)
        return of_x, of_vector.sum(0, dtype=torch.float64).to(x.dtype) if needs_vector else None


def _run_groups(name: str, x: Tensor, vector: Tensor, pattern: Edges, results: tuple[Tensor, ...], *more: Any) -> None:
    ptr, index, _ = pattern.csr()
    arguments = (x, vector, ptr, index, x.size(1), results, *more)
    loop = compiled_loop(getattr(load("nn.pyg.jit.groups"), name), (x.dtype, ptr.dtype, index.dtype), *arguments)
    run_tasks(loop, pattern.num_targets, *arguments)


def share_by_source(score: Tensor, value: Tensor, pattern: Pattern) -> Tensor | None:
    """Softmax over j -> i of score_j [S, C or 1], times value_j [S, C]: [T, C]; None where exponents may overflow.

        out_i = sum over j -> i of exp(score_j - c) value_j / sum over j -> i of exp(score_j - c)

    c is the largest score of a channel. Targets without edges get zeros.
    """
    given = score.detach()
    if not given.numel():
        return value.new_zeros(pattern.num_targets, value.size(1))
    top = given.amax(0)
    # Not so where a score isn't finite.
    if not float((top.double() - given.amin(0).double()).amax()) < WIDEST_SPREAD:
        return None
    result = torch.promote_types(score.dtype, value.dtype)
    dtype = accumulate_dtype(result)
    with torch.autocast(value.device.type, enabled=False):
        weight = (score.to(dtype) - top.to(dtype)).exp()
        total, out = sum_sources(weight, pattern), sum_sources(weight * value.to(dtype), pattern)
        return (out / torch.where(total == 0, 1, total)).to(result)

"""Gather rows and sum segments of rows: two linear maps, each the other's derivative, to any order.

The backward pass of plain indexing adds in an order that differs from run to run, on several threads and, by atomics,
on a GPU. These two add each row's edges in one fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .csr import pointers, stable_order


class Rows(NamedTuple):
    """E edges grouped by row.

    Attributes:
        index: [E] row of each edge.
        ptr: [rows + 1] int64; row r owns the positions ptr[r] to ptr[r + 1] of `perm`.
        perm: [E] edge at each position; None where edges are sorted by row already.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    ptr: Tensor
    perm: Tensor | None

    @property
    def num_rows(self) -> int:
        """Number of rows, those without edges included."""
        return self.ptr.numel() - 1

    @staticmethod
    def from_index(index: Tensor, num_rows: int) -> Rows:
        """Group edges by row; `index` may be in any order."""
        perm = stable_order(index, num_rows)
        return Rows(index, pointers(index[perm], num_rows), perm)

    @staticmethod
    def unsorted(index: Tensor, num_rows: int) -> Rows:
        """Rows for torch.export, which records plain operators: these read nothing of `ptr` but its length."""
        return Rows(index, index.new_empty(num_rows + 1), None)


def gather(x: Tensor, rows: Rows, dim: int) -> Tensor:
    """Take each edge's row: `x.index_select(dim, rows.index)`; dim counts from the end."""
    return _along(_gather, x, rows, dim)


def segment_sum(x: Tensor, rows: Rows, dim: int) -> Tensor:
    """Sum the edges of each row along `dim`, zeros for a row without edges; dim counts from the end."""
    return _along(_segment_sum, x, rows, dim)


def segment_max(x: Tensor, rows: Rows, dim: int) -> Tensor:
    """Largest edge of each row along `dim`, -inf for a row without edges. Not differentiable."""
    shape = list(x.shape)
    shape[dim] = rows.num_rows
    index = rows.index.to(torch.int64).view(-1, *[1] * (-dim - 1)).expand_as(x)
    return x.new_full(shape, -torch.inf).scatter_reduce(dim, index, x.detach(), "amax")


def permute(x: Tensor, perm: Tensor, inverse: Tensor, dim: int) -> Tensor:
    """Reorder `x` along `dim` by a permutation whose inverse is known."""
    return _along(_gather, x, Rows(perm, _every(inverse.numel() + 1, inverse.device), inverse), dim)


def _every(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device)


def _along(function: Callable[..., Tensor], x: Tensor, rows: Rows, dim: int) -> Tensor:
    """Apply a map on the rows of a matrix along dimension `dim` of `x`."""
    x = x.movedim(dim, 0)
    result = function(x.reshape(x.size(0), math.prod(x.shape[1:])), *rows)
    return result.view(result.size(0), *x.shape[1:]).movedim(0, dim)


def _gather(x: Tensor, index: Tensor, ptr: Tensor, perm: Tensor | None) -> Tensor:
    if torch.compiler.is_exporting():
        return x.index_select(0, index)
    function = _Gather if torch.compiler.is_compiling() else _GatherWithTangent
    return function.apply(x, index, ptr, perm)


def _segment_sum(x: Tensor, index: Tensor, ptr: Tensor, perm: Tensor | None) -> Tensor:
    if torch.compiler.is_exporting():
        return x.new_zeros(ptr.numel() - 1, x.size(1)).scatter_add(0, index.unsqueeze(1).expand_as(x), x)
    function = _SegmentSum if torch.compiler.is_compiling() else _SegmentSumWithTangent
    return function.apply(x, index, ptr, perm)


class _Linear(torch.autograd.Function):
    """What the two maps share: only the index structure is saved."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, index, ptr, perm = inputs
        saved = (index, ptr) if perm is None else (index, ptr, perm)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)


class _Gather(_Linear):
    @staticmethod
    def forward(x: Tensor, index: Tensor, ptr: Tensor, perm: Tensor | None) -> Tensor:
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _segment_sum(grad, *_saved(ctx)), None, None, None


class _SegmentSum(_Linear):
    @staticmethod
    def forward(x: Tensor, index: Tensor, ptr: Tensor, perm: Tensor | None) -> Tensor:
        if x.numel() == 0:
            return x.new_zeros(ptr.numel() - 1, x.size(1))
        # On every device, embedding_bag adds the rows of each bag one after another, in the order of its indices.
        perm = _every(x.size(0), x.device) if perm is None else perm
        return torch.nn.functional.embedding_bag(perm, x.contiguous(), ptr, mode="sum", include_last_offset=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _gather(grad, *_saved(ctx)), None, None, None


# Forward mode and torch.vmap need these. torch.compile refuses a Function that has them, so they are only used outside.
class _GatherWithTangent(_Gather):
    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *rows: Any) -> tuple[Tensor, int]:
        return _map(_gather, in_dims[0], x, rows)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _gather(tangent, *_saved(ctx))


class _SegmentSumWithTangent(_SegmentSum):
    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *rows: Any) -> tuple[Tensor, int]:
        return _map(_segment_sum, in_dims[0], x, rows)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _segment_sum(tangent, *_saved(ctx))


def _map(function: Callable[..., Tensor], dim: int | None, x: Tensor, rows: tuple[Any, ...]) -> tuple[Tensor, int]:
    """Concatenated matrices are one matrix."""
    assert dim is not None
    x = x.movedim(dim, -1)
    result = function(x.flatten(1), *rows)
    return result.view(result.size(0), *x.shape[1:]), 2


def _saved(ctx: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    saved = ctx.saved_tensors
    return (*saved, None) if len(saved) == 2 else saved

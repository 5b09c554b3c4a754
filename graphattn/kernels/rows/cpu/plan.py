"""The edges of a pattern as loops on the CPU go over them."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....compiled import load
from ....csr import CSR
from ....patterns import Pattern
from ..op import keep_plan, tensors_of
from ..operands import SortedEdges

# Under which patterns keep plans.
NAME = "numba"


class _Lists(NamedTuple):
    ptr: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    perm: Tensor
    tasks: Tensor
    cut: Tensor
    places: Tensor


class TaskPlan(_Lists):
    """A CSR with its tasks [n, 5] and its cut rows [n, 3], see `plan_tasks`.

    `places` of a plan of columns says where each of its edges lies in the rows, unless perm does: it is empty where
    rows are in the caller's order.
    """

    @classmethod
    def of(cls, csr: CSR, transposed: CSR | None = None) -> TaskPlan:
        """Cut the rows of a CSR into tasks."""
        tasks, cut = load("kernels.rows.cpu.jit.forward").plan_tasks(csr.ptr.numpy())
        ptr, index, perm = tensors_of(csr)
        places = perm.new_empty(0)
        if transposed is not None and transposed.perm is not None:
            places = torch.empty_like(transposed.perm)
            load("compiled.jit.sort").places_of(*(x.numpy() for x in (perm, transposed.perm, places)))
        return cls(ptr, index, perm, torch.from_numpy(tasks), torch.from_numpy(cut), places)

    @cached_property
    def edges(self) -> SortedEdges:
        """The edges as the loops take them."""
        return SortedEdges(self.ptr, self.index, self.perm)

    @cached_property
    def slots(self) -> int:
        """How many pieces the cut rows have."""
        return int(self.cut[-1, 2]) if self.cut.numel() else 0

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and files hold the tensors alone.
        return type(self), tuple(self)


def plan_of(pattern: Pattern, side: str) -> TaskPlan:
    """The plan of a side, "rows" or "columns", kept by the pattern."""
    return keep_plan(pattern, side, NAME, TaskPlan)

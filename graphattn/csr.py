"""Compressed sparse rows and columns of an edge list, by stable counting passes."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .compiled import NotCompiled, load, why_not_compiled

IN_NUMPY = {torch.int32: np.int32, torch.int64: np.int64}


class CSR(NamedTuple):
    """Edges sorted by (row, column); parallel edges keep the caller's order.

    Attributes:
        ptr: [rows + 1] int64; row r owns the positions ptr[r] to ptr[r + 1].
        index: [E] column of each position; int32 below 2^31 columns, else int64.
        perm: [E] the caller's edge at each position, int32 below 2^31 edges, else int64; None if the caller's order is
            already sorted.
    """

    ptr: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    perm: Tensor | None


def build_csr(row: Tensor, column: Tensor, num_rows: int, num_columns: int) -> CSR:
    """Sort edges by (row, column): two stable passes, the last key first.

    Args:
        row: [E] int64 in [0, num_rows).
        column: [E] int64 in [0, num_columns).
        num_rows: rows of the result.
        num_columns: bound of `column`; decides the dtype of `index`.

    Example:
        >>> build_csr(torch.tensor([1, 0, 1]), torch.tensor([2, 0, 1]), 2, 3)
        CSR(ptr=tensor([0, 1, 3]), index=tensor([0, 1, 2], dtype=torch.int32),
            perm=tensor([1, 2, 0], dtype=torch.int32))
    """
    if _is_countable(row, max(num_rows, num_columns)):
        # NumPy makes an array in less time than torch takes for a tensor.
        found = (
            np.empty(num_rows + 1, np.int64),
            np.empty(row.numel(), IN_NUMPY[index_dtype(num_columns)]),
            np.empty(row.numel(), IN_NUMPY[index_dtype(row.numel())]),
        )
        keys = row.contiguous().numpy(), column.contiguous().numpy()
        with suppress(NotCompiled):
            is_sorted = load("compiled.jit.sort").sort_pairs(*keys, num_columns, *found)
            ptr, index, perm = map(torch.from_numpy, found)
            return CSR(ptr, index, None if is_sorted else perm)
    if _is_sorted(row, column):
        return CSR(pointers(row, num_rows), column.to(index_dtype(num_columns)), None)
    order = stable_order(column, num_columns)
    order = order[stable_order(row[order], num_rows)]
    index = column[order].to(index_dtype(num_columns))
    return CSR(pointers(row[order], num_rows), index, order.to(index_dtype(row.numel())))


def stable_order(key: Tensor, num_keys: int) -> Tensor:
    """Stable argsort of keys in [0, num_keys): [E] int64."""
    if _is_countable(key, num_keys):
        order = torch.empty(key.shape, dtype=torch.int64)
        with suppress(NotCompiled):
            load("compiled.jit.sort").sort_keys(key.contiguous().numpy(), num_keys, order.numpy())
            return order
    return torch.sort(key, stable=True).indices


def _is_countable(key: Tensor, num_keys: int) -> bool:
    """Whether counting is best: its memory grows with the number of keys, that of sorting with the number of edges."""
    is_best = key.device.type == "cpu" and num_keys <= 16 * key.numel() + 2**20
    # While it records, torch.export replaces functions of Python, which Numba doesn't load then.
    return is_best and not torch.compiler.is_exporting() and why_not_compiled() is None


def pointers(sorted_row: Tensor, num_rows: int) -> Tensor:
    """Where each row begins in a sorted list of rows: [num_rows + 1] int64."""
    return torch.searchsorted(sorted_row, torch.arange(num_rows + 1, device=sorted_row.device))


def index_dtype(bound: int) -> torch.dtype:
    """Narrowest dtype that kernels use for indices in [0, bound)."""
    return torch.int32 if bound < 2**31 else torch.int64


def _is_sorted(row: Tensor, column: Tensor) -> bool:
    if not bool((row[1:] >= row[:-1]).all()):
        return False
    return not bool(((row[1:] == row[:-1]) & (column[1:] < column[:-1])).any())

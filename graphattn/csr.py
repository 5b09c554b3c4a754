"""Compressed sparse rows and columns of an edge list, by stable counting passes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


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
    if _is_sorted(row, column):
        return CSR(pointers(row, num_rows), column.to(index_dtype(num_columns)), None)
    if _is_countable(row, max(num_rows, num_columns)):
        ptr, index, perm = _count_pairs(row, column, num_rows, num_columns)
    else:
        perm = stable_order(column, num_columns)
        perm = perm[stable_order(row[perm], num_rows)]
        ptr, index = pointers(row[perm], num_rows), column[perm]
    return CSR(ptr.to(torch.int64), index.to(index_dtype(num_columns)), perm.to(index_dtype(row.numel())))


def stable_order(key: Tensor, num_keys: int) -> Tensor:
    """Stable argsort of keys in [0, num_keys): [E] int64."""
    if not _is_countable(key, num_keys):
        return torch.sort(key, stable=True).indices
    count = key.numel()
    width = _width(count, num_keys)
    keys = key.numpy().astype(width)
    by_key = _transpose(np.ones(count, np.int8), keys, np.arange(count + 1, dtype=width), (count, num_keys))
    return torch.from_numpy(by_key.indices).to(torch.int64)


def _is_countable(key: Tensor, num_keys: int) -> bool:
    """Whether counting is best: its memory grows with the number of keys, that of sorting with the number of edges."""
    return key.device.type == "cpu" and num_keys <= 16 * key.numel() + 2**20


def _count_pairs(row: Tensor, column: Tensor, num_rows: int, num_columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pointers, column and edge of each position, by (row, column), all in the narrowest dtype that holds them."""
    count = row.numel()
    width = _width(count, max(num_rows, num_columns))
    rows, columns = (key.numpy().astype(width) for key in (row, column))
    # First each edge is written at its column, with its row; then the edges of each column at their rows.
    by_column = _transpose(rows, columns, np.arange(count + 1, dtype=width), (count, num_columns))
    del rows, columns
    by_row = _transpose(by_column.indices, by_column.data, by_column.indptr, (num_columns, num_rows))
    return torch.from_numpy(by_row.indptr), torch.from_numpy(by_row.indices), torch.from_numpy(by_row.data)


def _transpose(data: np.ndarray, index: np.ndarray, ptr: np.ndarray, shape: tuple[int, int]) -> Any:
    """Compress rows into columns by a stable counting pass in compiled code, several times as fast as torch's sort."""
    from scipy.sparse import csr_array

    return csr_array((data, index, ptr), shape=shape).tocsc()


def _width(count: int, num_keys: int) -> type[np.signedinteger]:
    """Narrowest dtype of all indices of a counting pass."""
    return np.int32 if max(count, num_keys) < 2**31 - 1 else np.int64


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

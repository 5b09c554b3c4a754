"""Compressed sparse rows and columns of an edge list, by stable counting passes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class CSR(NamedTuple):
    """Edges sorted by (row, column); parallel edges keep the caller's order.

    Attributes:
        ptr: [rows + 1] int64; row r owns the positions ptr[r] to ptr[r + 1].
        index: [E] column of each position; int32 below 2^31 columns, else int64.
        perm: [E] the caller's edge at each position, int32 below 2^31 edges, else int64; None where the caller's
            order is the sorted order already.
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
    perm = order_of_pairs(row, column, num_rows, num_columns)
    if perm is not None:
        row, column = row[perm], column[perm]
        perm = perm.to(index_dtype(row.numel()))
    return CSR(pointers(row, num_rows), column.to(index_dtype(num_columns)), perm)


def order_of_pairs(row: Tensor, column: Tensor, num_rows: int, num_columns: int) -> Tensor | None:
    """Stable argsort by (row, column): [E] int64; None where they are sorted already."""
    if _is_sorted(row, column):
        return None
    perm = stable_order(column, num_columns)
    return perm[stable_order(row[perm], num_rows)]


def stable_order(key: Tensor, num_keys: int) -> Tensor:
    """Stable argsort of keys in [0, num_keys): [E] int64."""
    count = key.numel()
    # Counting takes memory in the order of the keys, sorting in that of the edges.
    if key.device.type != "cpu" or num_keys > 16 * count + 2**20:
        return torch.sort(key, stable=True).indices
    # One row per edge, one entry per row: turning that matrix into columns is a counting pass in compiled code,
    # two to three times as fast as torch's sort.
    from scipy.sparse import csr_array

    width = np.int32 if max(count, num_keys) < 2**31 - 1 else np.int64
    entries = (np.ones(count, np.int8), key.numpy().astype(width), np.arange(count + 1, dtype=width))
    by_key = csr_array(entries, shape=(count, num_keys)).tocsc()
    return torch.from_numpy(by_key.indices).to(torch.int64)


def pointers(sorted_row: Tensor, num_rows: int) -> Tensor:
    """Where each row begins in a sorted list of rows: [num_rows + 1] int64."""
    return torch.searchsorted(sorted_row, torch.arange(num_rows + 1, device=sorted_row.device))


def index_dtype(bound: int) -> torch.dtype:
    """Narrowest dtype that kernels use for indices in [0, bound)."""
    return torch.int32 if bound < 2**31 else torch.int64


def _is_sorted(row: Tensor, column: Tensor) -> bool:
    step = row[1:] - row[:-1]
    return bool(((step > 0) | ((step == 0) & (column[1:] >= column[:-1]))).all())

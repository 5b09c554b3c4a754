"""Stable counting passes over the edges of a graph: as fast as memory, and from a few edges on.

Indices are int64 as in an edge_index, and what is written is as narrow as the caller's arrays are.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .llvm import INNER, OPTIONS


@njit(**INNER)
def point(key, ptr):
    """Set ptr [keys + 1] to where the edges of each key begin once they are sorted by it."""
    ptr[:] = 0
    for k in key:
        ptr[k + 1] += 1
    for k in range(len(ptr) - 1):
        ptr[k + 1] += ptr[k]


@njit(**OPTIONS)
def sort_keys(key, num_keys, order):
    """Set `order` to the stable argsort of keys in [0, num_keys)."""
    ptr = np.empty(num_keys + 1, np.int64)
    point(key, ptr)
    for edge in range(len(key)):
        order[ptr[key[edge]]] = edge
        ptr[key[edge]] += 1


@njit(**OPTIONS)
def sort_pairs(row, column, num_columns, ptr, index, perm):
    """Sort edges by (row, column): ptr [rows + 1], their columns, and unless the result is True, their numbers.

    It is True if they were sorted already.
    """
    count = len(row)
    is_sorted, rises = True, True
    for edge in range(1, count):
        falls = column[edge] < column[edge - 1]
        is_sorted &= (row[edge] > row[edge - 1]) | ((row[edge] == row[edge - 1]) & (not falls))
        rises &= not falls
    # Narrow, so that more of it stays in the caches.
    place = np.empty(len(ptr), perm.dtype)
    point(row, place)
    ptr[:] = place
    if is_sorted:
        for edge in range(count):
            index[edge] = column[edge]
        return True
    if rises:
        for edge in range(count):
            at = place[row[edge]]
            place[row[edge]] += 1
            index[at], perm[at] = column[edge], edge
        return False
    # First each edge is written at its column, with its row; then the edges of each column at their rows.
    end = np.empty(num_columns + 1, perm.dtype)
    point(column, end)
    rows, edges = np.empty_like(index), np.empty_like(perm)
    for edge in range(count):
        at = end[column[edge]]
        end[column[edge]] += 1
        rows[at], edges[at] = row[edge], edge
    begin = 0
    for c in range(num_columns):
        for at in range(begin, end[c]):
            to = place[rows[at]]
            place[rows[at]] += 1
            index[to], perm[to] = c, edges[at]
        begin = end[c]
    return False


@njit(**OPTIONS)
def places_of(perm, others, places):
    """Set places[i] to where edge perm[i] lies in another order, `others`; an empty perm is the caller's order."""
    at = np.empty_like(places)
    for i in range(len(others)):
        at[others[i]] = i
    if len(perm) == 0:
        places[:] = at
        return
    for i in range(len(perm)):
        places[i] = at[perm[i]]

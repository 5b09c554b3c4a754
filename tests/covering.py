"""Covering designs: few rows of a product of factors, such that every two values meet in one of them.

A fault nearly always shows by one value of an argument or by two together (Kuhn et al., "Software Fault Interactions",
2004), so rows in which each pair of values meets find what the whole product finds, in as many rows as the two longest
factors have pairs: 34 patterns, 2 kernels, 6 normalizers and 5 scores take about 204 rows of 2,040. `make fuzz`, which
sets GRAPHATTN_FUZZ, runs the whole product.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from typing import Any


def pairwise(*factors: Iterable[Any], valid: Callable[..., bool] = lambda *row: True) -> list[tuple[Any, ...]]:
    """Rows of the product of the factors in which each pair of values meets that some valid row has.

    The greedy way of AETG (Cohen et al., 1997), without its random numbers: of all valid rows that hold the first pair
    that is still missing, take the one with the most missing pairs, and the first of those.
    """
    values = [list(factor) for factor in factors]
    rows = [row for row in itertools.product(*map(range, map(len, values))) if valid(*_read(values, row))]
    if "GRAPHATTN_FUZZ" in os.environ:
        return [_read(values, row) for row in rows]
    holds: dict[Pair, list[tuple[int, ...]]] = {}
    for row in rows:
        for pair in _pairs(row):
            holds.setdefault(pair, []).append(row)
    # In the order of the product; the values of a dict keep it.
    missing, chosen = dict.fromkeys(holds), []
    while missing:
        best = max(holds[next(iter(missing))], key=lambda row: sum(pair in missing for pair in _pairs(row)))
        chosen.append(best)
        for pair in _pairs(best):
            missing.pop(pair, None)
    return [_read(values, row) for row in sorted(chosen)]


Pair = tuple[tuple[int, int], tuple[int, int]]


def _pairs(row: tuple[int, ...]) -> Iterable[Pair]:
    return itertools.combinations(enumerate(row), 2)


def _read(values: list[list[Any]], row: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(factor[place] for factor, place in zip(values, row, strict=True))


def in_turn(*factors: Iterable[Any]) -> list[tuple[Any, ...]]:
    """As many rows as the longest factor has values, in which the values of each take turns."""
    values = [list(factor) for factor in factors]
    if "GRAPHATTN_FUZZ" in os.environ:
        return list(itertools.product(*values))
    return [tuple(factor[i % len(factor)] for factor in values) for i in range(max(map(len, values)))]


def few(values: Iterable[Any], most: int = 1) -> list[Any]:
    """The first values, for what takes seconds each."""
    return list(values)[: None if "GRAPHATTN_FUZZ" in os.environ else most]


def each_in_turn(names: Iterable[Any], others: Iterable[Any], most: int = 3) -> list[tuple[Any, ...]]:
    """Every name with one of the others, and every one of these with `most` names far apart."""
    names, others = list(names), list(others)
    step = max(1, len(names) // most)
    few = names[step // 2 :: step][:most]
    return list(dict.fromkeys([*in_turn(names, others), *itertools.product(few, others)]))

"""Every two values that a valid row has meet in a row of the design."""

from __future__ import annotations

import itertools

import pytest
from covering import in_turn, pairwise

FACTORS = ["abcdefgh", range(2), range(6), range(5)]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.delenv("GRAPHATTN_FUZZ", raising=False)


def pairs(rows):
    return {pair for row in rows for pair in itertools.combinations(enumerate(row), 2)}


@pytest.mark.parametrize("valid", [lambda *row: True, lambda a, b, c, d: b == 0 or (c < 4 and d < 4)])
def test_each_valid_pair_meets_in_few_valid_rows(valid):
    product = [row for row in itertools.product(*FACTORS) if valid(*row)]
    rows = pairwise(*FACTORS, valid=valid)
    assert pairs(rows) == pairs(product) and set(rows) <= set(product)
    assert 8 * 6 <= len(rows) <= 1.5 * 8 * 6
    assert rows == pairwise(*FACTORS, valid=valid)


def test_values_in_turn_and_whole_products(monkeypatch):
    assert in_turn("abc", range(2)) == [("a", 0), ("b", 1), ("c", 0)]
    monkeypatch.setenv("GRAPHATTN_FUZZ", "1")
    assert pairwise("ab", range(2)) == in_turn("ab", range(2)) == list(itertools.product("ab", range(2)))

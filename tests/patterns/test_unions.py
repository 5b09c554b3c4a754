"""Unions of patterns, and random patterns to unite them with."""

from __future__ import annotations

import re

import networkx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphattn import Edges, Full, Grid, Window, random_edges, random_regular
from graphattn.testing import pattern_zoo

ZOO = pattern_zoo()


def pairs_of(pattern):
    return list(zip(*pattern.edge_index.tolist(), strict=True))


@st.composite
def patterns(draw):
    """Patterns of six nodes: structured ones, and edge lists with parallel edges."""
    pairs = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=15))
    return draw(
        st.sampled_from(
            [
                Edges(torch.tensor(pairs, dtype=torch.int64).view(-1, 2).t(), 6),
                Full([2, 4]),
                Window(6, 1, dilation=2),
                Window([4, 2], 1, global_tokens=(3,)),
                Grid((6,), 1, border="wrap"),
                Edges(torch.empty(2, 0, dtype=torch.int64), 6),
            ]
        )
    )


@given(patterns(), patterns())
def test_a_union_is_the_first_and_what_it_lacks_of_the_second(a, b):
    united = a | b
    held = set(pairs_of(a))
    assert pairs_of(united) == pairs_of(a) + [pair for pair in pairs_of(b) if pair not in held]
    assert torch.equal(united.mask(), a.mask() | b.mask())
    assert torch.equal((b | a).mask(), united.mask())


@given(patterns(), patterns(), patterns())
def test_unions_are_associative_in_order_too_and_idempotent(a, b, c):
    assert pairs_of(a | a) == pairs_of(a)
    assert pairs_of((a | b) | c) == pairs_of(a | (b | c))


@pytest.mark.parametrize("name", ZOO)
def test_a_union_with_nothing_changes_nothing(name):
    pattern = ZOO[name]
    sizes = dict(num_sources=pattern.num_sources, num_targets=pattern.num_targets)
    nothing = Edges(torch.empty(2, 0, dtype=torch.int64), **sizes)
    for united in (pattern | nothing, nothing | pattern):
        assert torch.equal(united.edge_index, pattern.edge_index)
        assert (united.num_sources, united.num_targets) == (pattern.num_sources, pattern.num_targets)


def test_bipartite_patterns_unite():
    united = Full([1, 2], [3, 0]) | Edges(torch.tensor([[2, 2], [0, 1]]), num_sources=3, num_targets=3)
    assert pairs_of(united) == [(0, 0), (1, 0), (2, 0), (2, 1)]


def test_large_unions_need_no_matrix():
    united = random_edges(200_000, 2) | Window(200_000, radius=1)
    assert 3 * 200_000 - 2 <= united.num_edges <= 5 * 200_000


def test_patterns_that_dont_unite():
    with pytest.raises(ValueError, match=r"^union") as caught:
        Window(5, 1) | Full(4)
    assert str(caught.value) == "union: patterns must have the same nodes, got Window(5, radius=1) and Full(4)."
    with pytest.raises(ValueError, match=re.escape("must have the same nodes, got Full(4, source_sizes=5)")):
        Full(4, 5) | Full(5, 4)
    with pytest.raises(ValueError, match=r"^union") as caught:
        Window(5, 1) | Window(5, 1).to("meta")
    assert str(caught.value) == "union: patterns must be on one device, got cpu and meta. Use other.to('cpu')."
    for other in (3, None, {1}):
        with pytest.raises(TypeError, match="unsupported operand"):
            Window(5, 1) | other


ragged = st.lists(st.integers(0, 7), max_size=4)


@given(ragged, st.integers(0, 9), st.integers(0, 99))
def test_random_edges_are_distinct_and_of_the_own_component(sizes, degree, seed):
    pattern = random_edges(sizes, degree, generator=torch.Generator().manual_seed(seed))
    assert pattern.num_targets == pattern.num_sources == sum(sizes)
    assert bool((~pattern.mask() | Full(sizes).mask()).all())
    assert pattern.csr().ptr.diff().tolist() == [min(degree, size) for size in sizes for _ in range(size)]
    assert pattern.csr().perm is None and pattern.occurrence() is None
    again = random_edges(torch.tensor(sizes, dtype=torch.int64), degree, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(again.edge_index, pattern.edge_index)


@pytest.mark.parametrize(("size", "degree"), [(5, 2), (4, 3), (3, 1)])
def test_every_choice_of_sources_is_as_likely(size, degree):
    generator = torch.Generator().manual_seed(0)
    components = 20_000
    source = random_edges([size] * components, degree, generator=generator).edge_index[0] % size
    chosen = (2 ** source.view(-1, degree)).sum(1)
    counts = torch.bincount(chosen)
    counts = counts[counts > 0].double()
    choices = torch.combinations(torch.arange(size), degree).size(0)
    assert len(counts) == choices
    # Five standard deviations of a count.
    expected = components * size / choices
    assert float((counts - expected).abs().max()) < 5 * expected**0.5


@given(st.lists(st.integers(0, 9), max_size=3), st.integers(0, 8), st.integers(0, 99))
@settings(max_examples=50)
def test_random_regular_graphs_are_regular_simple_and_symmetric(sizes, degree, seed):
    if any(size and (degree >= size or size * degree % 2) for size in sizes):
        with pytest.raises(ValueError, match="random_regular: degree must be"):
            random_regular(sizes, degree)
        return
    pattern = random_regular(sizes, degree, generator=torch.Generator().manual_seed(seed))
    mask = pattern.mask()
    assert pattern.num_targets == sum(sizes) and bool((~mask | Full(sizes).mask()).all())
    assert torch.equal(mask, mask.t()) and not bool(mask.diagonal().any())
    assert mask.sum(1).tolist() == [degree] * sum(sizes)
    assert pattern.csr().perm is None and pattern.occurrence() is None
    again = random_regular(sizes, degree, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(again.edge_index, pattern.edge_index)


def test_random_patterns_differ_from_draw_to_draw_and_from_component_to_component():
    generator = torch.Generator().manual_seed(0)
    for draw in (random_edges, random_regular):
        first, second = (draw([20, 20], 4, generator=generator).mask() for _ in range(2))
        assert not torch.equal(first, second)
        assert not torch.equal(first[:20, :20], first[20:, 20:])


def test_random_patterns_follow_torchs_own_seed():
    for draw in (random_edges, random_regular):
        torch.manual_seed(3)
        first = draw(20, 4).edge_index
        torch.manual_seed(3)
        assert torch.equal(draw(20, 4).edge_index, first)


def test_random_regular_graphs_expand():
    graph = networkx.from_edgelist(pairs_of(random_regular(500, 4, generator=torch.Generator().manual_seed(0))))
    assert networkx.is_connected(graph) and networkx.diameter(graph) <= 10
    assert random_regular(120, 117).csr().ptr.diff().unique().tolist() == [117]


def test_longformer_and_bigbird_are_unions():
    generator = torch.Generator().manual_seed(0)
    drawn = random_edges(12, 2, generator=generator)
    bigbird = Window(12, radius=1, global_tokens=(0,)) | drawn
    position = torch.arange(12)
    longformer = (position[:, None] - position).abs() <= 1
    longformer[0] = longformer[:, 0] = True
    assert torch.equal(Window(12, 1, global_tokens=(0,)).mask(), longformer)
    assert torch.equal(bigbird.mask(), longformer | drawn.mask())
    assert bigbird.num_edges == int(bigbird.mask().sum())


@pytest.mark.parametrize(
    ("function", "error", "text"),
    [
        (lambda: random_edges(5, -1), ValueError, "random_edges: degree must be at least 0, got -1."),
        (lambda: random_edges(5, 1.5), TypeError, "random_edges: degree must be an integer, got 1.5 (float)."),
        (lambda: random_edges([5, -2], 1), ValueError, "random_edges: sizes must be at least 0, got -2."),
        (lambda: random_regular(5, -1), ValueError, "random_regular: degree must be at least 0, got -1."),
        (
            lambda: random_regular([6, 0, 4], 4),
            ValueError,
            "random_regular: degree must be less than the nodes of each component, 4 here, got 4. "
            "Use degree=3 or less.",
        ),
        (
            lambda: random_regular([4, 5], 3),
            ValueError,
            "random_regular: degree must be even for a component of 5 nodes, because every edge has two ends, got 3. "
            "Use an even degree.",
        ),
    ],
)
def test_random_patterns_that_cannot_be(function, error, text):
    with pytest.raises(error) as caught:
        function()
    assert str(caught.value) == text

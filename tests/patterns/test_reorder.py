"""Reordered nodes: attention is the same, and tensors travel there and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphattn import Edges, Full, Grid, Window, attention
from graphattn.patterns import NodeOrder
from graphattn.patterns.reorder import ORDERS
from graphattn.testing import graph_zoo, random_call

SQUARE = {name: pattern for name, pattern in graph_zoo().items() if pattern.num_sources == pattern.num_targets}
BACKENDS = ("scatter", "numba")


@st.composite
def graphs(draw):
    """Loops, parallel edges and isolated nodes included."""
    nodes = draw(st.integers(1, 9))
    pairs = draw(st.lists(st.tuples(st.integers(0, nodes - 1), st.integers(0, nodes - 1)), max_size=25))
    return Edges(torch.tensor(pairs, dtype=torch.int64).view(-1, 2).t(), nodes)


def shuffled(nodes: int, seed: int = 0) -> torch.Tensor:
    return torch.randperm(nodes, generator=torch.Generator().manual_seed(seed))


def results(pattern, tensors, direction, backend, order=None):
    """Output, weights and gradients; with an order, of the reordered call, carried back."""
    there, back = (lambda x: x, lambda x: x) if order is None else (order.apply, order.undo)
    given = {name: x if name.startswith("edge") else there(x) for name, x in tensors.items()}
    out, weights = attention(**given, pattern=pattern, return_weights=True, backend=backend)
    gradients = torch.autograd.grad((back(out) * direction).sum(), list(tensors.values()))
    return back(out), weights, *gradients


def assert_same_attention(pattern, order, backend, seed=0):
    other, carried = pattern.reorder(order)
    tensors = random_call(pattern, edge_tensors=True, seed=seed)
    direction = torch.randn(tensors["query"].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain = results(pattern, tensors, direction, backend)
    for ours, theirs in zip(results(other, tensors, direction, backend, carried), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@given(graphs(), st.sampled_from([*ORDERS, "permutation"]), st.sampled_from(BACKENDS), st.integers(0, 2**20))
@settings(max_examples=40)
def test_attention_does_not_depend_on_the_order_of_nodes(pattern, order, backend, seed):
    order = shuffled(pattern.num_targets, seed) if order == "permutation" else order
    assert_same_attention(pattern, order, backend, seed)


@pytest.mark.parametrize("name", SQUARE)
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_is_a_permutation_that_keeps_the_edges_in_their_order(name, order):
    pattern = SQUARE[name]
    other, (perm, inverse) = pattern.reorder(order)
    assert torch.equal(perm.sort().values, torch.arange(pattern.num_targets))
    assert torch.equal(perm[other.edge_index], pattern.edge_index)
    assert torch.equal(inverse[pattern.edge_index], other.edge_index)
    again, carried = pattern.reorder(order)
    assert torch.equal(carried.perm, perm) and torch.equal(again.edge_index, other.edge_index)


@pytest.mark.parametrize("name", ["empty graph", "hub", "parallel edges"])
def test_corners_of_the_zoo_attend_as_before(name):
    assert_same_attention(SQUARE[name], "rcm", "numba")


def test_degrees_fall_and_ties_keep_their_order():
    _, order = SQUARE["hub"].reorder("degree")
    assert order.perm[:3].tolist() == [0, 1, 2]
    _, order = Edges(torch.tensor([[3, 3, 1], [2, 2, 3]]), 5).reorder("degree")
    assert order.perm.tolist() == [3, 2, 1, 0, 4]


def test_bandwidth_of_a_shuffled_path_becomes_one():
    path = torch.stack([torch.arange(49), torch.arange(1, 50)])
    pattern = Edges(shuffled(50)[path], 50)
    distance = lambda given: int((given.edge_index[0] - given.edge_index[1]).abs().max())
    assert distance(pattern) > 10
    assert distance(pattern.reorder("rcm")[0]) == 1


def test_nodes_of_a_part_lie_side_by_side(monkeypatch):
    pytest.importorskip("pymetis", reason="needs pip install '.[partition]'")
    monkeypatch.setattr("graphattn.patterns.reorder.PART_NODES", 20)
    cliques = Full([20, 20, 20]).edge_index
    pattern, _ = Edges(shuffled(60)[cliques], 60).reorder("metis")
    assert torch.equal(pattern.edge_index[0] // 20, pattern.edge_index[1] // 20)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("dim", [0, 1, -2])
def test_undo_undoes_apply(dtype, dim):
    _, order = Edges(torch.empty(2, 0, dtype=torch.int64), 4).reorder(shuffled(4))
    x = torch.arange(64).view(4, 4, 4).to(dtype)
    assert torch.equal(order.apply(x, dim), x.index_select(dim, order.perm))
    assert torch.equal(order.undo(order.apply(x, dim), dim), x)
    assert torch.equal(order.apply(order.undo(x, dim), dim), x)


def test_carrying_is_differentiable_twice():
    order = NodeOrder(torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0]))
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    for carry in (order.apply, order.undo):
        assert torch.autograd.gradcheck(carry, x) and torch.autograd.gradgradcheck(carry, x)


def test_a_permutation_may_be_an_array_a_list_or_an_order():
    pattern = Edges(torch.tensor([[0, 1], [1, 2]]), 3)
    expected, order = pattern.reorder(torch.tensor([2, 0, 1]))
    for same in (order, order.perm.numpy(), order.perm.tolist()):
        assert torch.equal(pattern.reorder(same)[0].edge_index, expected.edge_index)


def test_an_order_moves_with_its_pattern():
    pattern, order = SQUARE["chain"].reorder("rcm")
    assert {x.device.type for x in (pattern.to("meta").edge_index, *order.to("meta"))} == {"meta"}


@pytest.mark.parametrize("pattern", [Full(3), Window(4, 1), Grid((2, 2), 1)], ids=repr)
def test_structured_patterns_say_why_not(pattern):
    with pytest.raises(NotImplementedError, match=r"reorder: pattern must be Edges, because .*got .* Use Edges"):
        pattern.reorder("rcm")


@pytest.mark.parametrize(
    ("order", "error", "text"),
    [
        ("rcn", ValueError, r"reorder: order must be one of 'degree', 'rcm', 'metis', got 'rcn'. Did you mean 'rcm'"),
        (torch.tensor([0.0, 1, 2]), TypeError, "order must have an integer dtype, got torch.float32"),
        (torch.tensor([0, 1]), ValueError, r"order must have shape \[3\], got \[2\]"),
        (torch.tensor([0, 1, 1]), ValueError, "order must name each of the 3 nodes once, got no entry for node 2"),
        (torch.tensor([-1, 1, 3]), ValueError, "got no entry for node 0"),
    ],
)
def test_what_is_no_order_is_refused(order, error, text):
    with pytest.raises(error, match=text):
        Edges(torch.tensor([[0], [2]]), 3).reorder(order)


def test_bipartite_patterns_and_rows_of_others_are_refused():
    with pytest.raises(ValueError, match="reorder: pattern must have as many sources as targets"):
        graph_zoo()["bipartite"].reorder("degree")
    _, order = SQUARE["chain"].reorder("degree")
    for carry in (order.apply, order.undo):
        with pytest.raises(ValueError, match=r"x must have a row for each of the 6 nodes along dim=0, got \[7, 2\]"):
            carry(torch.zeros(7, 2))

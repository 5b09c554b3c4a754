"""Encodings by the graph's own structure: by hand, beside PyG's, and on graphs with corners."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data
from torch_geometric.transforms import AddLaplacianEigenvectorPE

from graphattn import Edges, Full, Window
from graphattn.nn import GraphAttention, LaplacianPosition, RandomWalkPosition
from graphattn.testing import graph_zoo

C = 8
MAKERS = {"laplacian": lambda: LaplacianPosition(C, 3), "random walk": lambda: RandomWalkPosition(C, 3)}


def layer_with(encoding) -> GraphAttention:
    torch.nn.init.normal_(encoding.lin.weight)
    return GraphAttention(C, C, heads=2, encoding=encoding).double()


def draw(rows: int) -> torch.Tensor:
    return torch.randn(rows, C, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))


def eigenvectors(edge_index, nodes: int, k: int) -> torch.Tensor:
    return LaplacianPosition(C, k).eval().vectors(Edges(torch.as_tensor(edge_index), nodes))


def laplacian(edge_index: torch.Tensor, nodes: int) -> torch.Tensor:
    adjacency = torch.zeros(nodes, nodes, dtype=torch.float64)
    adjacency[edge_index[0], edge_index[1]] = adjacency[edge_index[1], edge_index[0]] = 1
    adjacency.fill_diagonal_(0)
    scale = adjacency.sum(0).clamp(min=1).rsqrt()
    return torch.eye(nodes, dtype=torch.float64) - scale[:, None] * adjacency * scale


# No symmetry: eigenvalues differ by 0.04 at least, and so do the two largest entries of every eigenvector.
LOPSIDED = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 3], [1, 2, 3, 4, 5, 6, 6, 6, 6]])


@pytest.mark.parametrize(
    ("edge_index", "nodes"), [(LOPSIDED, 7), (torch.arange(401).unfold(0, 2, 1).t(), 401)], ids=["dense", "sparse"]
)
def test_eigenvectors_solve_their_equation(edge_index, nodes):
    encoding = LaplacianPosition(C, 4).eval()
    state = torch.get_rng_state()
    found = encoding.vectors(Edges(edge_index, nodes)).double()
    assert torch.equal(torch.get_rng_state(), state)
    values, _ = torch.linalg.eigh(laplacian(edge_index, nodes))
    torch.testing.assert_close(laplacian(edge_index, nodes) @ found, found * values[1:5], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.t() @ found, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-6)
    largest = found.abs() >= found.abs().amax(0) * (1 - 1e-5)
    assert (found.gather(0, largest.to(torch.int8).argmax(0, keepdim=True)) > 0).all()
    assert torch.equal(found, eigenvectors(edge_index.clone(), nodes, 4).double())
    both = torch.cat([edge_index, edge_index.flip(0)], 1)
    theirs = AddLaplacianEigenvectorPE(4, is_undirected=True)(Data(edge_index=both, num_nodes=nodes))
    torch.testing.assert_close(found.abs().float(), theirs.laplacian_eigenvector_pe.abs(), rtol=0, atol=1e-3)


@settings(max_examples=20)
@given(st.permutations(range(7)))
def test_relabelling_the_nodes_permutes_what_graphs_say(order):
    perm = torch.tensor(order)
    torch.testing.assert_close(
        eigenvectors(perm[LOPSIDED], 7, 4)[perm], eigenvectors(LOPSIDED, 7, 4), rtol=0, atol=1e-5
    )
    walk = RandomWalkPosition(C, 5)
    relabelled = walk.probabilities(Edges(perm[LOPSIDED], 7))[perm]
    torch.testing.assert_close(relabelled, walk.probabilities(Edges(LOPSIDED, 7)))


def test_laplacian_reads_edges_as_undirected_once_and_without_loops():
    variants = [LOPSIDED, LOPSIDED.flip(0), torch.cat([LOPSIDED, LOPSIDED.flip(0), LOPSIDED], 1)]
    variants.append(torch.cat([LOPSIDED, torch.arange(7).expand(2, -1)], 1))
    expected = eigenvectors(LOPSIDED, 7, 6)
    for edge_index in variants[1:]:
        torch.testing.assert_close(eigenvectors(edge_index, 7, 6), expected, rtol=0, atol=1e-5)


def test_more_eigenvectors_than_nodes_are_zeros():
    found = eigenvectors(LOPSIDED, 7, 10)
    assert found.shape == (7, 10) and (found[:, :6].norm(dim=0) > 0.99).all() and not found[:, 6:].any()
    chain = torch.arange(300).unfold(0, 2, 1).t()
    assert eigenvectors(chain, 300, 299).isfinite().all()


def test_components_have_their_own_eigenvectors():
    # A pair, an isolated node, the lopsided graph with nodes in between, a node with a loop.
    places = torch.tensor([1, 3, 4, 6, 7, 8, 9])
    edge_index = torch.cat([torch.tensor([[0, 10], [2, 10]]), places[LOPSIDED]], 1)
    found = eigenvectors(edge_index, 11, 3)
    torch.testing.assert_close(found[places], eigenvectors(LOPSIDED, 7, 3))
    torch.testing.assert_close(found[[0, 2], 0].abs(), torch.full((2,), 0.5).sqrt())
    assert not found[[0, 2], 1:].any() and not found[[5, 10]].any()


@pytest.mark.parametrize("name", [name for name in graph_zoo() if name != "bipartite"])
@pytest.mark.parametrize("kind", MAKERS)
def test_every_graph_can_be_encoded(kind, name):
    pattern = graph_zoo()[name]
    layer = layer_with(MAKERS[kind]())
    for training in (True, False):
        out = layer.train(training)(draw(pattern.num_targets), pattern)
        assert out.shape == (pattern.num_targets, C) and out.isfinite().all()


def test_signs_are_drawn_in_training_by_component():
    encoding = LaplacianPosition(C, 3)
    pattern = Window([6] * 40, radius=1)
    fixed = copy.deepcopy(encoding).eval().vectors(pattern)
    flips = (encoding.vectors(pattern) * fixed).view(40, 6, 3).sum(1)
    torch.testing.assert_close(flips.abs(), torch.ones(40, 3), rtol=0, atol=1e-5)
    assert 30 < (flips > 0).sum() < 90
    assert not torch.equal(encoding.vectors(pattern), encoding.vectors(pattern))
    assert torch.equal(encoding.eval().vectors(pattern), fixed)


@pytest.mark.parametrize("name", [name for name in graph_zoo() if name not in ("bipartite", "hub")])
def test_return_probabilities_by_hand(name):
    pattern = graph_zoo()[name]
    adjacency = pattern.mask().t().double()
    step = adjacency / adjacency.sum(1, keepdim=True).clamp(min=1)
    expected = torch.stack([torch.linalg.matrix_power(step, length).diagonal() for length in range(1, 6)], 1)
    torch.testing.assert_close(RandomWalkPosition(C, 5).probabilities(pattern), expected.float())


def test_return_probabilities_of_a_graph_too_large_for_a_dense_matrix():
    chain = torch.arange(2101).unfold(0, 2, 1).t()
    found = RandomWalkPosition(C, 4).probabilities(Edges(torch.cat([chain, chain.flip(0)], 1), 2101))
    torch.testing.assert_close(found[4:-4], torch.tensor([0, 0.5, 0, 0.375]).expand(2093, 4))
    torch.testing.assert_close(found[0], torch.tensor([0, 0.5, 0, 0.375]))


def test_a_random_walk_cannot_tell_nodes_of_a_symmetric_graph():
    layer, perm = layer_with(RandomWalkPosition(C, 4)), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(layer(draw(4)[perm], Full(4)), layer(draw(4), Full(4))[perm])


def test_what_a_pattern_says_is_computed_once(monkeypatch):
    calls = []
    forward = AddLaplacianEigenvectorPE.forward
    monkeypatch.setattr(AddLaplacianEigenvectorPE, "forward", lambda self, data: calls.append(1) or forward(self, data))
    layer, edge_index = layer_with(LaplacianPosition(C, 2)), LOPSIDED.clone()
    for _ in range(3):
        layer(draw(7), edge_index)
    assert len(calls) == 1

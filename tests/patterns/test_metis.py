"""Partitions of a graph by METIS."""

from __future__ import annotations

import sys

import pytest
import torch

from graphattn import Edges, Full
from graphattn.patterns import metis_parts


def two_cliques(size: int, device: str = "cpu") -> Edges:
    """Two graphs in which everyone knows everyone, and one edge from the first node to the last."""
    within = Full([size, size]).edge_index
    bridge = torch.tensor([[0], [2 * size - 1]])
    return Edges(torch.cat([bridge, within], 1), 2 * size)


def test_cliques_are_not_cut():
    part = metis_parts(two_cliques(8), 2)
    assert part.dtype == torch.int64 and part.shape == (16,)
    assert part.unique_consecutive().numel() == 2 and part[:8].unique().numel() == 1


@pytest.mark.parametrize("recursive", [False, True])
def test_parts_are_nearly_equal_and_the_same_each_time(recursive):
    torch.manual_seed(0)
    edge_index = torch.randint(400, (2, 2000))
    part = metis_parts(edge_index, 5, 400, recursive=recursive)
    assert part.bincount(minlength=5).min() >= 60
    assert torch.equal(part, metis_parts(Edges(edge_index, 400), 5, seed=0, recursive=recursive))
    is_cut = lambda part: (part[edge_index[0]] != part[edge_index[1]]).sum()
    assert is_cut(part) < is_cut(torch.arange(400) % 5)


def test_direction_order_loops_and_parallel_edges_do_not_matter():
    edge_index = two_cliques(8).edge_index
    part = metis_parts(edge_index, 2, 16)
    noisy = torch.cat([edge_index.flip(0), edge_index, torch.zeros(2, 9, dtype=torch.int64)], 1)
    assert torch.equal(metis_parts(noisy, 2, 16), part)


@pytest.mark.parametrize(("nodes", "parts"), [(0, 1), (0, 3), (5, 1), (3, 3), (2, 4)])
def test_few_nodes_and_no_edges(nodes, parts):
    part = metis_parts(torch.empty(2, 0, dtype=torch.int64), parts, nodes)
    assert part.shape == (nodes,) and part.dtype == torch.int64
    assert part.unique().numel() == min(nodes, parts)


def test_nodes_without_edges_belong_to_a_part():
    assert metis_parts(torch.tensor([[0, 1], [1, 0]]), 2, 9).bincount(minlength=2).min() >= 3


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((torch.zeros(2, 1, dtype=torch.int64), 0), "metis_parts: num_parts must be at least 1, got 0"),
        ((torch.zeros(2, 1, dtype=torch.int64), 2, 4, -1), "metis_parts: seed must be at least 0, got -1"),
        ((Edges(torch.zeros(2, 1, dtype=torch.int64), 3), 2, 4), "num_nodes must be that of the pattern, 3, got 4"),
        (
            (Edges(torch.zeros(2, 1, dtype=torch.int64), num_sources=3, num_targets=2), 2),
            "metis_parts: pattern must have as many sources as targets, got 3 sources and 2 targets",
        ),
    ],
)
def test_bad_partitions_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        metis_parts(*arguments)


def test_without_pymetis_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(ImportError, match=r"pymetis must be installed\. Use pip install 'graphattn\[partition\]'"):
        metis_parts(torch.tensor([[0], [1]]), 2)

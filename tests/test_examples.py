"""Examples run, and print and draw what they promise."""

from __future__ import annotations

import os

import pytest
import torch
from conftest import run_example
from matplotlib import pyplot

from graphattn import Edges
from graphattn.datasets import digits_graph
from graphattn.plot import draw_graph, draw_neighborhood, mark_node


@pytest.fixture
def axes():
    pyplot.switch_backend("Agg")
    figure, axes = pyplot.subplots()
    yield axes
    pyplot.close(figure)


def test_node_classification_prints_scores_and_draws(tmp_path):
    printed = run_example("node_classification.py", "--smoke", "--output", str(tmp_path))
    assert "digits: 1,797 nodes" in printed
    assert "test accuracy with the graph: " in printed and "test accuracy without edges: " in printed
    (difference,) = (line for line in printed.splitlines() if "torch.float64" in line)
    outputs, gradients = (
        float(part.split("by ")[1].split()[0].rstrip(",")) for part in difference.split(": ")[1].split(", ")
    )
    assert 0 < outputs < 1e-12 and 0 < gradients < 1e-12
    assert (tmp_path / "node_classification_digits.png").stat().st_size > 50_000


@pytest.mark.skipif(not os.environ.get("GRAPHATTN_DATASETS"), reason="needs the real data sets in $GRAPHATTN_DATASETS")
@pytest.mark.parametrize("name", ["Cora", "Minesweeper"])
def test_node_classification_takes_real_data(name, tmp_path):
    printed = run_example("node_classification.py", "--smoke", "--dataset", name, "--output", str(tmp_path))
    assert f"Picture: {tmp_path / f'node_classification_{name.lower()}.png'}" in printed


def test_accelerate_pyg_compares_both_and_draws(tmp_path):
    printed = run_example("accelerate_pyg.py", "--smoke", "--output", str(tmp_path)).splitlines()
    assert printed[0].startswith("PyG: test accuracy ") and printed[1].startswith("accelerated: test accuracy ")
    assert "standard error" in printed[2]
    assert (tmp_path / "accelerate_pyg_digits.png").stat().st_size > 20_000


def test_convolution_is_attention_compares_both_and_draws(tmp_path):
    printed = run_example("convolution_is_attention.py", "--smoke", "--output", str(tmp_path)).splitlines()
    assert printed[0].endswith("on 10 digits is GraphAttention(1, 4, heads=9, head_channels=1)")
    for line, most in zip(printed[1:3], (1e-12, 1e-5), strict=True):
        assert float(line.split("differ by ")[1].split(",")[0]) < most
    assert (tmp_path / "convolution_is_attention.png").stat().st_size > 40_000


def test_digits_are_a_symmetric_graph_of_neighbors():
    data = digits_graph(neighbors=3)
    assert data.x.shape == (1797, 64) and 0 <= float(data.x.min()) and float(data.x.max()) == 1
    pattern = Edges(data.edge_index, 1797)
    assert torch.equal(pattern.mask(), pattern.mask().t())
    assert bool(pattern.mask().diagonal().all())
    assert torch.bincount(data.edge_index[1]).min() >= 4


def test_drawn_graph_has_every_node_and_edge(axes):
    pattern = Edges(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), 3)
    position = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    assert (
        draw_graph(axes, pattern, position, torch.tensor([0, 0, 1]), wrong=torch.tensor([False, True, False])) is axes
    )
    lines, nodes, rings = axes.collections
    assert len(lines.get_segments()) == 2
    assert len(nodes.get_offsets()) == 3 and len(rings.get_offsets()) == 1
    assert [text.get_text() for text in axes.texts] == ["0", "1"]
    mark_node(axes, position[2], "A", away_from=position[0])
    assert axes.texts[-1].get_text() == "A"


def test_drawn_neighborhood_shows_the_weights(axes):
    source, weight = torch.tensor([4, 1, 2, 3]), torch.tensor([0.4, 0.3, 0.2, 0.1])
    label = torch.zeros(5, dtype=torch.int64)
    draw_neighborhood(axes, 4, source, weight, list("abcde"), label=label, images=torch.rand(5, 8, 8), most=2)
    texts = {text.get_text() for text in axes.texts}
    assert {"30%", "20%", "itself 40%, 1 more 10%", "b", "c", "e"} == texts
    widths = sorted(line.get_linewidth() for line in axes.lines)
    assert len(axes.images) == 3 and widths[0] < widths[1]


def test_uniform_weights_stay_visible(axes):
    label = torch.zeros(4, dtype=torch.int64)
    draw_neighborhood(axes, 0, torch.arange(1, 4), torch.full((3,), 1 / 3), list("abcd"), label=label)
    assert all(line.get_linewidth() > 2 for line in axes.lines) and len(axes.lines) == 3


def test_pictures_of_other_sizes_are_refused(axes):
    with pytest.raises(ValueError, match=r"draw_graph: position must have shape \[3, 2\], got \[4, 2\]"):
        draw_graph(axes, Edges(torch.tensor([[0], [2]])), torch.zeros(4, 2), torch.zeros(3))

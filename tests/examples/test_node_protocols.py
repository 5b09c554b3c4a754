"""Published protocols run, and a board of minesweeper is a grid."""

from __future__ import annotations

import json
import os

import pytest
import torch
from conftest import ROOT, run_example
from torch_geometric.data import Data
from torch_geometric.utils import coalesce

from graphattn import Edges, Grid
from graphattn.datasets import load_graph

needs_data = pytest.mark.skipif(
    not os.environ.get("GRAPHATTN_DATASETS"), reason="needs the real data sets in $GRAPHATTN_DATASETS"
)


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import node_protocols

    return node_protocols


@pytest.mark.parametrize("model", ["GAT-2018", "GT"])
def test_every_model_reports_and_draws(model, tmp_path):
    record = tmp_path / "record.json"
    arguments = ("--smoke", "--model", model, "--record", str(record), "--output", str(tmp_path))
    printed = run_example("node_protocols.py", *arguments)
    assert printed.startswith(f"digits, {model}: accuracy ")
    (row,) = json.loads(record.read_text())
    assert (row["data"], row["model"], row["measure"]) == ("digits", model, "accuracy")
    assert len(row["scores"]) == 1 and 0 < row["scores"][0] < 100 and row["parameters"] > 1000
    assert (tmp_path / "node_protocols.png").exists()


@needs_data
@pytest.mark.parametrize(("data", "model"), [("Minesweeper", "GAT-sep")])
def test_real_data_is_drawn_beside_what_is_published(data, model, tmp_path):
    printed = run_example(
        "node_protocols.py", "--smoke", "--dataset", data, "--model", model, "--output", str(tmp_path)
    )
    assert printed.startswith(f"{data}, {model}: {'accuracy' if data == 'Cora' else 'ROC AUC'} ")


def test_bad_runs_are_refused_in_one_line(example, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["node_protocols.py", "--runs", "0"])
    with pytest.raises(SystemExit):
        example.main()
    assert capsys.readouterr().err.endswith("error: --runs must be at least 1, got 0\n")


def test_the_test_score_is_that_of_the_epoch_that_validation_chose(example, monkeypatch):
    """Validation is best at epoch 2, test at epoch 3: the result must be epoch 2's."""
    scores = iter([50.0, 1.0, 70.0, 2.0, 60.0])
    monkeypatch.setattr(example, "score", lambda logits, y: next(scores))
    data = Data(x=torch.randn(4, 3), y=torch.tensor([0, 1, 0, 1]))
    settings = example.OURS | {"epochs": 3, "every": 1}
    masks = [torch.tensor([True, False, False, True])] * 3
    pattern = Edges(torch.tensor([[0, 1], [1, 2]]), 4)
    network = example.make_network("GT", 3, 2, settings)
    bar = type("Bar", (), {"update": lambda self: None})()
    assert example.train(network, data, pattern, masks, settings, bar) == (70.0, 2.0)


def test_early_stopping_needs_both_to_choose_and_either_to_go_on(example, monkeypatch):
    """Loss falls at epochs 1 and 3, accuracy never after the first: epoch 1 is kept, and 3 resets the patience."""
    scores, losses = iter([80.0, 10.0, 70.0, 60.0, 60.0, 60.0]), iter([1.0, 2.0, 0.5, 3.0, 3.0])
    monkeypatch.setattr(example, "score", lambda logits, y: next(scores))
    real = torch.nn.functional.cross_entropy

    def cross_entropy(logits, y):
        return real(logits, y) if logits.requires_grad else torch.tensor(next(losses))

    monkeypatch.setattr(example.F, "cross_entropy", cross_entropy)
    data = Data(x=torch.eye(4).to_sparse().coalesce(), y=torch.tensor([0, 1, 0, 1]))
    settings = example.PAPER | {"epochs": 9, "patience": 2}
    masks = [torch.ones(4, dtype=torch.bool)] * 3
    epochs = []
    bar = type("Bar", (), {"update": lambda self: epochs.append(1)})()
    pattern = Edges(torch.tensor([[0, 1], [1, 2]]), 4)
    network = example.make_network("GAT-2018", 4, 2, settings)
    assert example.train(network, data, pattern, masks, settings, bar) == (80.0, 10.0)
    assert len(epochs) == 5


def test_sparse_features_are_dropped_as_dense_ones(example):
    """In evaluation the sparse network is the dense one; in training each feature is 0 or itself / 0.4."""
    torch.manual_seed(0)
    x, edges = (torch.rand(6, 5) < 0.5).float(), Edges(torch.tensor([[0, 1, 2], [1, 2, 3]]), 6)
    network = example.PaperGAT(5, 3).double().eval()
    sparse = network(x.double().to_sparse().coalesce(), edges)
    first = torch.nn.functional.elu(network.first(x.double(), edges.edge_index))
    torch.testing.assert_close(sparse, network.second(first, edges.edge_index))


def test_a_board_of_its_own_is_a_grid_and_trains_the_same(tmp_path):
    printed = run_example("minesweeper_is_a_grid.py", "--smoke", "--output", str(tmp_path)).splitlines()
    assert printed[0].endswith("the grid 13,924; 0 are in only one")
    assert float(printed[3].split("differ by ")[1].split()[0]) < 1e-4
    assert (tmp_path / "minesweeper_is_a_grid_generated.png").exists()


@needs_data
def test_the_edges_of_minesweeper_are_those_of_a_grid():
    data = load_graph("Minesweeper")[0]
    graph, grid = (
        coalesce(pattern.edge_index)
        for pattern in (Edges(data.edge_index, data.num_nodes).with_self_loops(), Grid((100, 100), radius=1))
    )
    assert torch.equal(graph, grid)


def test_a_generated_board_tells_the_truth(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from minesweeper_is_a_grid import make_board

    data = make_board(12, seed=1)
    mines = torch.nn.functional.conv2d(data.y.view(1, 1, 12, 12).float(), torch.ones(1, 1, 3, 3), padding=1).flatten()
    around = (mines - data.y).long().clamp(max=5)
    shown = data.x[:, 0] == 0
    assert torch.equal(data.x[shown].argmax(1) - 1, around[shown])
    assert 0.3 < shown.float().mean() < 0.7 and bool((data.x.sum(1) == 1).all())
    assert bool((data.train_mask.int() + data.val_mask.int() + data.test_mask.int() == 1).all())

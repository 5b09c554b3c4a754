"""Examples run, and print and draw what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, run_example

from graphattn import Edges, Window
from graphattn.datasets import digits_graph
from graphattn.nn import GraphAttention


def test_node_classification_prints_scores_and_draws(tmp_path):
    # In a process of its own, as `make demo` runs it: nothing that tests have set may be what makes it work.
    command = [sys.executable, str(ROOT / "examples" / "node_classification.py"), "--smoke", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True).stdout
    assert "digits: 1,797 nodes" in printed
    assert "test accuracy with the graph: " in printed and "test accuracy without edges: " in printed
    (difference,) = (line for line in printed.splitlines() if "torch.float64" in line)
    outputs, gradients = (
        float(part.split("by ")[1].split()[0].rstrip(",")) for part in difference.split(": ")[1].split(", ")
    )
    assert 0 < outputs < 1e-12 and 0 < gradients < 1e-12
    (times,) = (line for line in printed.splitlines() if line.startswith("Forward and backward"))
    assert re.search(r"sparse \d+ ms, SDPA with the mask \d+ ms; dense oracle, for verification, \d+ ms", times)
    assert (tmp_path / "node_classification_digits.png").exists()


def test_sdpa_with_the_mask_is_the_same_layer(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from node_classification import MaskedAttention

    sparse, masked = GraphAttention(8, 12, heads=3), MaskedAttention(8, 12, heads=3)
    masked.load_state_dict(sparse.state_dict())
    x, pattern = torch.randn(7, 8), Window(7, radius=2)
    torch.testing.assert_close(masked(x, pattern), sparse(x, pattern))


@pytest.mark.skipif(not os.environ.get("GRAPHATTN_DATASETS"), reason="needs the real data sets in $GRAPHATTN_DATASETS")
@pytest.mark.parametrize("name", ["Cora"])
def test_node_classification_takes_real_data(name, tmp_path):
    printed = run_example("node_classification.py", "--smoke", "--dataset", name, "--output", str(tmp_path))
    assert f"Picture: {tmp_path / f'node_classification_{name.lower()}.png'}" in printed


def test_accelerate_pyg_compares_both_and_draws(tmp_path):
    printed = run_example("accelerate_pyg.py", "--smoke", "--output", str(tmp_path)).splitlines()
    assert printed[0].startswith("PyG: test accuracy ") and printed[1].startswith("accelerated: test accuracy ")
    assert "standard error" in printed[2]
    assert (tmp_path / "accelerate_pyg_digits.png").exists()


def test_convolution_is_attention_compares_both_and_draws(tmp_path):
    printed = run_example("convolution_is_attention.py", "--smoke", "--output", str(tmp_path)).splitlines()
    assert "on 10 digits is GraphAttention(1, 4, heads=9, head_channels=1, bias=False, encoding=" in printed[0]
    for line, most in zip(printed[1:3], (1e-12, 1e-5), strict=True):
        assert float(line.split("differ by ")[1].split(",")[0]) < most
    assert (tmp_path / "convolution_is_attention.png").exists()


def test_digits_are_a_symmetric_graph_of_neighbors():
    data = digits_graph(neighbors=3)
    assert data.x.shape == (1797, 64) and float(data.x.min()) >= 0 and float(data.x.max()) == 1
    pattern = Edges(data.edge_index, 1797)
    assert torch.equal(pattern.mask(), pattern.mask().t())
    assert bool(pattern.mask().diagonal().all())
    assert torch.bincount(data.edge_index[1]).min() >= 4
    distance = torch.cdist(data.x.double(), data.x.double())
    assert bool((pattern.mask() >= (distance < distance.kthvalue(4, dim=1, keepdim=True).values - 1e-9)).all())

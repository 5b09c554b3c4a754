"""The example of graph classification runs, and prints, records and draws what it promises."""

from __future__ import annotations

import json
import os

import pytest
from conftest import run_example

READOUTS = ["softmax attention", "sigmoid attention", "sum", "sum and softmax attention"]


def test_graph_classification_compares_readouts_and_draws(tmp_path):
    record = tmp_path / "results.json"
    options = ("--smoke", "--output", str(tmp_path), "--record", str(record))
    printed = run_example("graph_classification.py", *options).splitlines()
    assert printed[0].startswith("necklaces: 120 graphs of ") and printed[0].endswith(" nodes, 6 classes")
    rows = json.loads(record.read_text())
    assert [row["model"] for row in rows] == [f"{readout} readout" for readout in READOUTS]
    assert all(row["unit"] == "folds" and 0 <= row["scores"][0] <= 100 for row in rows)
    assert rows[0]["parameters"] == rows[1]["parameters"] > rows[2]["parameters"]
    assert (tmp_path / "graph_classification_necklaces.png").exists()


@pytest.mark.skipif(not os.environ.get("GRAPHATTN_DATASETS"), reason="needs the real data sets in $GRAPHATTN_DATASETS")
@pytest.mark.parametrize("name", ["MUTAG", "PROTEINS"])
def test_graph_classification_takes_real_data(name, tmp_path):
    options = ("--smoke", "--dataset", name, "--readouts", "softmax attention", "--output", str(tmp_path))
    assert f"{name}, softmax attention readout: accuracy " in run_example("graph_classification.py", *options)
    assert (tmp_path / f"graph_classification_{name.lower()}.png").exists()


def test_bad_arguments_are_named():
    with pytest.raises(AssertionError, match="--width must be a multiple of 4, got 30"):
        run_example("graph_classification.py", "--width", "30")

"""Tuned models train by their protocols, and the search prints validation scores alone."""

from __future__ import annotations

import json
import re
import runpy
import tomllib

import pytest
import torch
from conftest import ROOT, run_example

PROTOCOLS = sorted((ROOT / "examples" / "protocols").glob("*.toml"))


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        return runpy.run_path(str(ROOT / "examples" / "node_models.py"))


@pytest.mark.parametrize("model", ["GAT", "Polynormer", "SGFormer", "GPS", "Exphormer"])
def test_each_model_reports_a_score(model, tmp_path):
    record = tmp_path / "record.json"
    printed = run_example("node_models.py", "--smoke", "--model", model, "--record", str(record)).splitlines()
    assert printed[-1].startswith(f"digits, tuned {model}: accuracy ")
    (row,) = json.loads(record.read_text())
    assert row["unit"] == "splits" and row["best_epoch"] == 2 and len(row["scores"]) == 1


def test_the_search_prints_validation_scores_of_every_variant():
    printed = run_example("node_models.py", "--smoke", "--search", "--runs", "1").splitlines()
    assert all(line.startswith("validation ") and ", best after 2 epochs: " in line for line in printed[-3:])
    assert sorted(line.partition("epochs: ")[2] for line in printed[-3:]) == [
        "as they are",
        "{'dropout': 0.2}",
        "{'dropout': 0.5}",
    ]
    scores = [float(line.split()[1].rstrip(",")) for line in printed[-3:]]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("path", PROTOCOLS, ids=lambda path: path.stem)
def test_the_settings_of_each_file_make_a_model(path, example):
    protocol = tomllib.loads(path.read_text())
    data = example["digits_graph"]()
    for name, settings in protocol.items():
        if not isinstance(settings, dict):
            continue
        variants = settings.pop("search", {})
        assert set(variants) <= set(settings)
        training = example["TRAINING"] | {key: settings.pop(key) for key in example["TRAINING"] if key in settings}
        network, pattern = example["build"](name, data, training, settings)
        assert pattern.num_edges >= data.num_edges
        assert sum(parameter.numel() for parameter in network.parameters()) > 1000


def test_predictions_that_agree_and_are_sure_cost_nothing(example):
    disagreement = example["disagreement"]
    sure = torch.tensor([[[30.0, 0.0], [0.0, 30.0]]]).repeat(2, 1, 1)
    assert float(disagreement(sure)) < 1e-12 and disagreement(sure[:1]) == 0
    # Probabilities (0.8, 0.2) and (0.4, 0.6): the mean (0.6, 0.4), sharpened, is (0.36, 0.16) / 0.52.
    logits = torch.tensor([[[0.8, 0.2]], [[0.4, 0.6]]]).log()
    first = 0.36 / 0.52
    expected = ((0.8 - first) ** 2 + (0.4 - first) ** 2) / 2 * 2
    assert float(disagreement(logits)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--protocol", "coral"], "--protocol must be one of citeseer, cora, "),
        (["--protocol", "tolokers", "--model", "GPS"], "--model must be one that tolokers.toml has settings for, "),
        (["--runs", "0"], "--runs must be at least 1, got 0"),
        (["--processes", "0"], "--processes must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, text):
    with pytest.raises(AssertionError, match=re.escape(text)):
        run_example("node_models.py", *arguments)

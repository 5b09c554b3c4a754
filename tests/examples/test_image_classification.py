"""The example that classifies images runs, and prints and draws what it promises."""

from __future__ import annotations

import json
import runpy
import sys

import pytest
from conftest import ROOT, run_example


def test_image_classification_compares_three_models_and_draws(tmp_path):
    record = tmp_path / "record.json"
    printed = run_example("image_classification.py", "--smoke", "--output", str(tmp_path), "--record", str(record))
    rows = json.loads(record.read_text())
    names = [(row["data"], row["model"]) for row in rows]
    models = ("grid attention, 3 x 3", "full attention", "CNN")
    assert names == [(f"digits, {size} images", model) for size in (50, 100) for model in models]
    assert len({row["steps"] for row in rows}) == 1
    parameters = [row["parameters"] for row in rows]
    assert max(parameters) < 1.1 * min(parameters)
    assert all(f"{data}, {model}: test accuracy " in printed for data, model in names)
    assert (tmp_path / "image_classification.png").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--full"], "--full needs --dataset mnist"),
        (["--train-sizes", "1200"], "--train-sizes must lie between 1 and 1,100"),
        (["--epochs", "0"], "--epochs and --lr above 0"),
    ],
)
def test_image_classification_refuses_bad_arguments(arguments, text, monkeypatch, capsys):
    # In this process, for starting another one takes longer than the test.
    path = ROOT / "examples" / "image_classification.py"
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    with pytest.raises(SystemExit):
        runpy.run_path(str(path), run_name="__main__")
    assert text in capsys.readouterr().err

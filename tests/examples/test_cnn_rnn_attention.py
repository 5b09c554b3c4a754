"""The comparison of CNN, RNN and attention runs, and its models see as far as it says."""

from __future__ import annotations

import json
import runpy

import pytest
import torch
from conftest import ROOT, run_example


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        return runpy.run_path(str(ROOT / "examples" / "cnn_rnn_attention.py"))


def test_the_comparison_reports_all_four_parts_and_draws(tmp_path):
    record = tmp_path / "results.json"
    lines = run_example(
        "cnn_rnn_attention.py", "--smoke", "--output", str(tmp_path), "--record", str(record)
    ).splitlines()
    assert lines[0].startswith("(a) ") and float(lines[0].split("differ by ")[1].rstrip(".")) < 1e-12
    assert lines[-1].startswith("Recall over 32 tokens, where chance is 25 %: LSTM ")
    fields = [line for line in lines if line.startswith("(d) ")]
    assert len(fields) == 7 and all(line.endswith(", as the formula says") for line in fields)
    rows = json.loads(record.read_text())
    recalled = [row for row in rows if row["measure"] == "accuracy"]
    assert len(recalled) == 6 and all(len(row["scores"]) == 2 for row in recalled)
    parameters = {row["parameters"] for row in recalled}
    assert max(parameters) < 1.2 * min(parameters)
    # On a busy machine the dense matrix may be too slow for the second length.
    timed = [row for row in rows if row["measure"] == "ms per step"]
    assert len({row["model"] for row in timed if row["data"] == "64 tokens"}) == 4
    assert (tmp_path / "cnn_rnn_attention.png").exists()


def test_the_label_is_the_first_token_and_nothing_else_tells_it(example):
    x, label = example["draw_sequences"](500, 9, torch.Generator().manual_seed(0))
    assert torch.equal(x[:, 0].argmax(-1), label) and set(label.tolist()) == {0, 1, 2, 3}
    assert x[:, 1:, :4].sum() == 0 and bool((x[:, -1, 8] == 1).all())


@pytest.mark.parametrize(
    ("name", "distance", "sees"), [("windowed attention", 16, True), ("windowed attention", 17, False)]
)
def test_a_stack_of_windows_is_blind_beyond_layers_times_radius(example, name, distance, sees):
    torch.manual_seed(0)
    build, of_length = example["MODELS"][name]
    model = build()
    x, _ = example["draw_sequences"](1, distance, torch.Generator().manual_seed(0))
    other = x.clone()
    other[0, 0] = x[0, 0].roll(1)
    last, of_other = (model(tokens, of_length(distance + 1))[0, -1] for tokens in (x, other))
    assert torch.equal(last, of_other) != sees


def test_bad_arguments_are_refused_in_one_line(example, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["cnn_rnn_attention.py", "--seeds", "0"])
    with pytest.raises(SystemExit):
        example["main"]()
    assert capsys.readouterr().err.splitlines()[-1].endswith("error: --seeds and --steps must be at least 1")

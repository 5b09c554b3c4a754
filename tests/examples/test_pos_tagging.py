"""The example of tagging runs on both corpora, and says what it promises."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import run_example

from graphattn.datasets import TREEBANKS

REAL = os.environ.get("GRAPHATTN_DATASETS")


def test_every_model_tags_and_is_recorded(tmp_path):
    record = tmp_path / "record.json"
    arguments = ("--smoke", "--output", str(tmp_path), "--record", str(record))
    printed = run_example("pos_tagging.py", *arguments).splitlines()
    assert printed[0].startswith("AmbiguousWords: ") and printed[0].endswith(" to test, 11 tags")
    rows = {row["model"]: row for row in json.loads(record.read_text())}
    models = [
        line.removeprefix("AmbiguousWords, ").split(": accuracy ")[0] for line in printed if ": accuracy " in line
    ]
    assert models == list(rows) and len(models) > 12
    for row in rows.values():
        assert 0 < row["scores"][0] < 100 and 0 <= row["on_ambiguous_words"] <= 100
        assert row["cpu_seconds_per_epoch"] > 0 and "on_unseen_words" not in row
    # Wider windows have more to learn; attention's parameters don't depend on its reach.
    windows = [rows[name]["parameters"] for name in ("per token", "window 1", "window 2", "window 3", "window 5")]
    assert windows == sorted(windows) and windows[4] > 5 * windows[0]
    assert rows["full attention, no positions"]["parameters"] == rows["truncated attention, no positions"]["parameters"]
    saws = dict(line.strip().split(": ") for line in printed[printed.index("I saw a saw:") + 1 : -1])
    first, second = saws.pop("per token").split()[1::2]
    assert first == second, "a network of single words can't tell them apart"
    assert len(saws) == 1 and len(next(iter(saws.values())).split()) == 4
    assert (tmp_path / "pos_tagging_ambiguous.png").exists()


def test_a_width_that_heads_cannot_share_is_refused():
    with pytest.raises(AssertionError, match="--hidden must be a multiple of 4, the number of heads"):
        run_example("pos_tagging.py", "--hidden", "30")


@pytest.mark.skipif(
    REAL is None or not all((Path(REAL) / file.path).exists() for file in TREEBANKS["UD_English-EWT"]),
    reason="needs UD_English-EWT in $GRAPHATTN_DATASETS",
)
def test_english_ewt_has_unseen_words(tmp_path):
    arguments = ("--smoke", "--dataset", "ewt", "--models", "per token", "truncated attention, relative")
    printed = run_example("pos_tagging.py", *arguments, "--output", str(tmp_path))
    assert ", 17 tags" in printed and printed.count("on unseen words ") == 2
    assert (tmp_path / "pos_tagging_ewt.png").exists()

"""The example of data-parallel training runs alone and under torchrun, and survives the death of a process."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

PATH = ROOT / "examples" / "distributed_sampling.py"


def torchrun(folder, *arguments: str, restarts: int = 0) -> tuple[str, float]:
    """Run the example on two processes; what it printed, and the loss of its last epoch in full precision."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    record = folder / "record.json"
    command = [sys.executable, *launch, str(PATH), "--smoke", "--output", str(folder), "--record", str(record)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(record.read_text())
    assert row["model"] == "GraphAttention, 2 processes" and row["scores"][0] > 60
    return done.stdout, row["last_loss"]


@pytest.mark.skipif(sys.platform != "linux", reason="kills a process by a signal")
def test_after_a_process_was_killed_training_ends_with_the_same_loss(tmp_path):
    printed, expected = torchrun(tmp_path / "whole")
    assert "Goes on" not in printed
    printed, loss = torchrun(tmp_path / "killed", "--fail-at-epoch", "3", restarts=1)
    assert f"Goes on from {tmp_path / 'killed' / 'distributed_sampling.pt'}, written after epoch 2." in printed
    assert loss == expected


def run_here(monkeypatch, *arguments: str) -> None:
    """Run the example alone, in this process, for starting another one takes longer than the test."""
    monkeypatch.syspath_prepend(PATH.parent)
    monkeypatch.setattr(sys, "argv", [str(PATH), *arguments])
    runpy.run_path(str(PATH), run_name="__main__")


def test_alone_it_goes_on_from_a_checkpoint_that_fits(tmp_path, monkeypatch, capsys):
    arguments = ("--smoke", "--output", str(tmp_path))
    run_here(monkeypatch, *arguments)
    first = capsys.readouterr().out
    assert "communities, GraphAttention, 1 process: test accuracy" in first
    # After the last epoch nothing is left to train.
    run_here(monkeypatch, *arguments, "--resume")
    again = capsys.readouterr().out
    assert "written after epoch 4." in again and first in again
    state = torch.load(tmp_path / "distributed_sampling.pt")
    state["settings"]["seed"] = 1
    torch.save(state, tmp_path / "distributed_sampling.pt")
    try:
        with pytest.raises(SystemExit):
            run_here(monkeypatch, *arguments, "--resume")
    finally:
        torch.distributed.destroy_process_group()
    assert "distributed_sampling.pt is a checkpoint of {'nodes': 600" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--epochs", "0"], "--nodes, --epochs and --batch-size must be at least 1"),
        (["--batch-size", "0"], "--nodes, --epochs and --batch-size must be at least 1"),
        (["--epochs", "4", "--fail-at-epoch", "5"], "--fail-at-epoch must lie between 1 and --epochs, 4"),
    ],
)
def test_bad_arguments_are_refused(arguments, text, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_here(monkeypatch, *arguments)
    assert text in capsys.readouterr().err

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


# What torchrun does, twice, except that processes are forked from a server that has imported everything. They aren't
# forked from a process that has trained: that one has threads, whose locks a copy may find taken for ever.
LAUNCH = """
import multiprocessing, runpy, sys, torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

def work(path, folder, *arguments):
    torch.set_num_threads(1)
    sys.path.insert(0, path.rpartition("/")[0])
    sys.argv[1:] = ["--smoke", "--output", folder, "--record", folder + "/record.json", *arguments]
    runpy.run_path(path, run_name="__main__")

if __name__ == "__main__":
    path, alone, whole, killed = sys.argv[1:]
    multiprocessing.set_forkserver_preload(["graphattn.nn", "graphattn.sampling", "torch.distributed.launcher.api"])
    work(path, alone)
    for folder, *arguments in ([whole], [killed, "--fail-at-epoch", "3"]):
        nodes = dict(min_nodes=1, max_nodes=1, nproc_per_node=2)
        meeting = dict(rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id=folder)
        config = LaunchConfig(**nodes, **meeting, max_restarts=len(arguments) // 2, start_method="forkserver")
        elastic_launch(config, work)(path, folder, *arguments)
"""


@pytest.mark.skipif("GRAPHATTN_FUZZ" not in os.environ, reason="starts seven processes: run by make fuzz")
@pytest.mark.skipif(sys.platform != "linux", reason="kills a process by a signal")
@pytest.mark.skipif(torch.cuda.is_available(), reason="processes that use CUDA can't be forked")
def test_after_a_process_was_killed_training_ends_with_the_same_loss(tmp_path):
    folders = [tmp_path / "alone", tmp_path / "whole", tmp_path / "killed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    (tmp_path / "launch.py").write_text(LAUNCH)
    command = [sys.executable, str(tmp_path / "launch.py"), str(PATH), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Goes on from") == 1
    assert f"Goes on from {folders[2] / 'distributed_sampling.pt'}, written after epoch 2." in done.stdout
    alone, whole, killed = (json.loads((folder / "record.json").read_text()) for folder in folders)
    assert whole[0].pop("command") + " --fail-at-epoch 3" == killed[0].pop("command")
    assert whole == killed and whole[0]["model"] == "GraphAttention, 2 processes"
    assert alone[0]["scores"][0] > 60 and whole[0]["scores"][0] > 60


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

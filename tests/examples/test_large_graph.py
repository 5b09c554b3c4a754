"""Training on a large graph: stopped and resumed, and with features that don't fit into memory."""

from __future__ import annotations

import gc
import signal
import sys
import weakref

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader

from graphattn.sampling import NeighborLoader, NeighborSampler


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import large_graph

    return large_graph


@pytest.fixture
def run(example, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["large_graph.py", "--smoke", *map(str, arguments)])
        example.main()
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize("mode", [(), ("--sampled",)], ids=["whole", "sampled"])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(mode, run, example, tmp_path, monkeypatch):
    whole = run(*mode, "--output", tmp_path / "whole")
    assert list((tmp_path / "whole").glob("*.png"))

    class Bar(example.tqdm):
        def update(self):
            super().update()
            if self.n == 3:
                signal.raise_signal(signal.SIGINT)

    broken = tmp_path / "broken"
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(example, "tqdm", Bar)
        stopped = run(*mode, "--output", broken)
    assert signal.getsignal(signal.SIGINT) is handler
    assert stopped[-1].startswith("Stopped after step 3: ") and not list(broken.glob("*.png"))
    (checkpoint,) = broken.glob("*.pt")
    with pytest.raises(SystemExit):
        run(*mode, "--output", broken, "--lr", "0.5")
    resumed = run(*mode, "--output", broken)
    assert resumed[0].startswith("Going on after step 3 of 6")
    (expected,) = (line for line in whole if line.startswith("Loss of the last step: "))
    assert expected in resumed and not checkpoint.exists()
    accuracy = lambda lines: next(line.partition("accuracy ")[2].split(",")[0] for line in lines if "accuracy" in line)
    assert accuracy(resumed) == accuracy(whole)


def from_file(path, shape):
    return torch.from_file(str(path), shared=True, size=shape[0] * shape[1]).view(shape)


def from_memmap(path, shape):
    return torch.from_numpy(np.memmap(path, np.float32, "w+", shape=shape))


@pytest.mark.parametrize("mapped", [from_file, from_memmap])
def test_of_features_on_disk_only_the_sampled_rows_are_read(mapped, tmp_path):
    """64 GiB of zeros take no room in a file with holes, but would in memory."""
    nodes, channels = 2**14, 2**20
    x = mapped(tmp_path / "x", (nodes, channels))
    before = psutil.Process().memory_info().rss
    around = torch.tensor([9000, 5, 8999, 4])
    x[around, 7] = around.float()
    ring = torch.stack([torch.arange(nodes), torch.arange(1, nodes + 1) % nodes])
    data = Data(x=x, edge_index=ring)
    for loader in (
        NeighborLoader(data, [-1], around[:2], batch_size=2),
        NodeLoader(data, NeighborSampler(data, [-1]), around[:2], batch_size=2),
    ):
        (batch,) = loader
        assert torch.equal(batch.n_id, around) and batch.x.shape == (4, channels)
        assert torch.equal(batch.x[:, 7], around.float()) and not batch.x[:, 8:].any()
    assert psutil.Process().memory_info().rss - before < 2**30


def test_batches_leave_nothing_behind():
    ring = torch.stack([torch.arange(60), torch.arange(1, 61) % 60])
    loader = NeighborLoader(Data(edge_index=ring, num_nodes=60), [2, 2], torch.arange(60), batch_size=20)
    patterns = [weakref.ref(batch.pattern) for batch in loader]
    gc.collect()
    assert len(patterns) == 3 and all(pattern() is None for pattern in patterns)

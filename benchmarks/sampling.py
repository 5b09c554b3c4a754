"""The part of a training epoch that sampling takes, and its speed against PyG's compiled sampler, if installed.

    make bench

Two layers on the sampled neighborhoods of all nodes of a random graph. Sampling includes the compressed rows and
columns of both layers. Writes results/sampling.json and results/sampling.md.
"""

from __future__ import annotations

import itertools
import statistics
import time
import warnings

import torch
import torch.nn.functional as F
import torch_geometric.typing
from gather import machine_and_gather
from harness import Line, in_ms, race, ratio, write
from systems import random_edges
from torch_geometric.data import Data
from torch_geometric.sampler import NeighborSampler as PyGNeighborSampler
from torch_geometric.sampler import NodeSamplerInput

from graphattn.nn import GraphAttention
from graphattn.sampling import NeighborLoader, NeighborSampler

NODES, EDGES, FAN_OUT, BATCH, CLASSES = 100_000, 2_000_000, [10, 10], 1024, 10
WIDTH, HEADS, STEPS = 64, 4, 30
# Percent of an epoch.
MOST_SHARE = 30


class Network(torch.nn.Module):
    """Two attention layers, each on the edges that it needs, and a linear layer for the classes of the seeds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(GraphAttention(WIDTH, WIDTH, heads=HEADS) for _ in FAN_OUT)
        self.classify = torch.nn.Linear(WIDTH, CLASSES)

    def forward(self, batch: Data) -> torch.Tensor:
        """Scores of the classes, [batch_size, CLASSES]."""
        x = batch.x
        for layer, pattern in zip(self.layers, batch.layer_patterns, strict=True):
            x = F.elu(layer(x[: pattern.num_sources], pattern))
        return self.classify(x[: batch.batch_size])


def epoch(data: Data) -> Line:
    """Train for the first batches of an epoch, and measure the time of each part."""
    torch.manual_seed(0)
    model, loader = Network(), NeighborLoader(data, FAN_OUT, batch_size=BATCH, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters())
    seconds = {"sampling": 0.0, "features": 0.0}
    # Both run inside the loader's iterator, in this process.
    sample, join = loader.node_sampler.sample_from_nodes, loader.filter_fn

    def timed(name, function):
        def call(*arguments):
            begin = time.perf_counter()
            result = function(*arguments)
            seconds[name] += time.perf_counter() - begin
            return result

        return call

    loader.node_sampler.sample_from_nodes = timed("sampling", sample)
    loader.filter_fn = timed("features", join)

    def train(batches):
        for batch in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(batch), batch.y[: batch.batch_size]).backward()
            optimizer.step()

    # The first batches load compiled code.
    train(itertools.islice(loader, 3))
    seconds.update(sampling=0.0, features=0.0)
    begin = time.perf_counter()
    train(itertools.islice(loader, STEPS))
    parts = {**seconds, "all": time.perf_counter() - begin}
    share = 100 * parts["sampling"] / parts["all"]
    detail = f"{STEPS} batches: " + ", ".join(f"{name} {1e3 * part:,.0f}" for name, part in parts.items())
    what = f"{len(FAN_OUT)} layers of {HEADS} heads of {WIDTH // HEADS}"
    return Line(f"{name_of_work()}, {what}: sampling", "the epoch", "%", MOST_SHARE, None, share, detail, False)


def speed(data: Data) -> Line:
    """Batches by each sampler, in turns."""
    seeds = NodeSamplerInput(torch.arange(BATCH), torch.randperm(NODES)[:BATCH])
    ours = NeighborSampler(data, FAN_OUT)
    systems = {"graphattn": lambda: ours.sample_from_nodes(seeds)}
    if torch_geometric.typing.WITH_TORCH_SPARSE or torch_geometric.typing.WITH_PYG_LIB:
        with warnings.catch_warnings():
            # PyG announces that it will drop torch-sparse.
            warnings.simplefilter("ignore")
            theirs = PyGNeighborSampler(data, FAN_OUT)
        systems["PyG"] = lambda: theirs.sample_from_nodes(seeds)
    taken = race(systems)
    name = "pyg-lib" if torch_geometric.typing.WITH_PYG_LIB else "torch-sparse"
    rate = BATCH / statistics.median(taken["graphattn"])
    detail = f"graphattn {in_ms(taken['graphattn'])} a batch, {rate:,.0f} seeds/s"
    if "PyG" not in taken:
        detail += ", torch-sparse: not installed"
        return Line(f"{name_of_work()}: sampling", name, "x", 1, None, None, detail)
    detail += f", {name} {in_ms(taken['PyG'])}"
    return Line(f"{name_of_work()}: sampling", name, "x", 1, None, ratio(taken, "PyG", "graphattn"), detail)


def name_of_work() -> str:
    """Describe the sampled graph."""
    return f"{NODES // 1000}k nodes, {EDGES // 1_000_000}M edges, {BATCH:,} seeds, {FAN_OUT} neighbors"


def main() -> None:
    """Measure both."""
    about = machine_and_gather()
    x, y = torch.randn(NODES, WIDTH), torch.randint(CLASSES, (NODES,))
    data = Data(x=x, edge_index=random_edges(NODES, EDGES), y=y)
    write("sampling", "Sampled neighborhoods", about, [epoch(data), speed(data)], {})


if __name__ == "__main__":
    main()

"""Whole training epochs of PyG's models, before and after `graphattn.accelerate(model)`.

    make bench

Linear layers, loss and optimizer are included. Writes results/layers.json, results/layers.md and results/layers.png.
Photo and Tolokers are read from $GRAPHATTN_DATASETS, or downloaded by PyG's loaders.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable

import matplotlib
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from gather import machine_and_gather
from harness import RESULTS, Line, in_ms, race, ratio, write
from systems import random_edges
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GATv2Conv, TransformerConv

import graphattn
from graphattn.datasets import load_graph
from graphattn.memory import format_bytes, peak_memory

COLORS = {"PyG": "tab:red", "graphattn": "tab:blue"}


class Network(torch.nn.Module):
    """Attention layers of PyG with ELU between them, and a linear layer for the classes."""

    def __init__(self, layers: list[torch.nn.Module], width: int, classes: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)
        self.classify = torch.nn.Linear(width, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Scores of the classes."""
        for layer in self.layers:
            x = F.elu(layer(x, edge_index))
        return self.classify(x)


def photo() -> tuple[Data, Network]:
    """Two layers of GAT, 8 heads of 8."""
    data = load_graph("Photo")[0]
    layers = [GATConv(data.num_features, 8, heads=8, dropout=0.6), GATConv(64, 8, heads=8, dropout=0.6)]
    return data, Network(layers, 64, int(data.y.max()) + 1)


def tolokers() -> tuple[Data, Network]:
    """Three layers of TransformerConv, 4 heads of 64."""
    data = load_graph("Tolokers")[0]
    widths = [data.num_features, 256, 256]
    return data, Network([TransformerConv(width, 64, heads=4) for width in widths], 256, 2)


def random_graph() -> tuple[Data, Network]:
    """Two layers of GATv2, 8 heads of 8, on 100,000 nodes and a million edges."""
    nodes, width = 100_000, 64
    data = Data(x=torch.randn(nodes, width), edge_index=random_edges(nodes, 1_000_000), y=torch.randint(5, (nodes,)))
    return data, Network([GATv2Conv(width, 8, heads=8) for _ in range(2)], width, 5)


# Model, data, the least and the intended speedup, and the allowed fraction of PyG's memory.
CASES = (
    ("GAT, 2 layers of 8 heads of 8", "Amazon Photo", photo, 4, None),
    ("TransformerConv, 3 layers of 4 heads of 64", "Tolokers", tolokers, 6, 0.2),
    ("GATv2, 2 layers of 8 heads of 8", "100k nodes, 1M edges", random_graph, 6, 0.2),
)


def epoch(model: torch.nn.Module, data: Data) -> Callable[[], None]:
    """One step of training on the whole graph."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    y = data.y.long()

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(data.x, data.edge_index), y).backward()
        optimizer.step()

    return step


def measure(what: str, where: str, make: Callable, at_least: float, part: float | None) -> tuple[list[Line], dict]:
    """Lines of time and memory, and the data of the picture."""
    torch.manual_seed(0)
    data, model = make()
    ours = copy.deepcopy(model)
    graphattn.accelerate(ours)
    torch.testing.assert_close(
        ours.eval()(data.x, data.edge_index), model.eval()(data.x, data.edge_index), rtol=1e-3, atol=1e-3
    )
    steps = {"PyG": epoch(model.train(), data), "graphattn": epoch(ours.train(), data)}
    taken = race(steps, 10, 7)
    peaks = {name: peak_memory(step) or 0 for name, step in steps.items()}
    work = f"{where}: {what}, one epoch"
    detail = f"PyG {in_ms(taken['PyG'])}, graphattn {in_ms(taken['graphattn'])}"
    lines = [Line(work, "PyG", "x", at_least, None, ratio(taken, "PyG", "graphattn"), detail)]
    if part is not None:
        detail = f"PyG {format_bytes(peaks['PyG'])}, graphattn {format_bytes(peaks['graphattn'])}"
        found = peaks["graphattn"] / peaks["PyG"]
        lines.append(Line(f"{work}, peak memory", "PyG", "x", part, None, found, detail, more_is_better=False))
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    return lines, {"work": f"{what}\n{where}", "seconds": seconds, "peak bytes": peaks}


def picture(found: list[dict]) -> None:
    """Seconds and peak memory of an epoch, side by side, on logarithmic axes."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    labels = ["{}\n{}".format(*(line.partition(",")[0] for line in case["work"].split("\n"))) for case in found]
    quantities = (("seconds", 1, "seconds per epoch"), ("peak bytes", 2**20, "peak memory, MiB"))
    for axes, (key, unit, label) in zip(panels, quantities, strict=True):
        for place, case in enumerate(found):
            for side, (name, color) in enumerate(COLORS.items()):
                height = case[key][name] / unit
                axes.bar(place + 0.38 * side, height, 0.36, color=color, label=name if place == 0 else None)
        axes.set(yscale="log", ylabel=label)
        axes.set_xticks([place + 0.19 for place in range(len(found))], labels, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.savefig(RESULTS / "layers.png", dpi=150)
    plt.close(figure)


def main() -> None:
    """Measure all cases."""
    matplotlib.use("Agg")
    about = machine_and_gather()
    lines, found = [], []
    for case in CASES:
        new, shown = measure(*case)
        lines += new
        found.append(shown)
    print(write("layers", "Training epochs of PyG's models, accelerated", about, lines, {"epochs": found}))
    picture(found)


if __name__ == "__main__":
    main()

"""Time to the same accuracy: one network, one script, with PyG's layers and with ours.

    python benchmarks/time_to_accuracy.py                        three data sets, a quarter of an hour on two cores
    python benchmarks/time_to_accuracy.py --protocols tolokers   one of examples/protocols

Both start from the same parameters, and train in one process, by turns of a few epochs. The score to reach is the best
validation score that both reach in the end. Data sets are read from $GRAPHATTN_DATASETS, or downloaded. Writes
results/time_to_accuracy.json, results/time_to_accuracy.md and the picture results/time_to_accuracy.png.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
import torch_geometric.nn as pyg
from gather import machine_and_gather
from harness import RESULTS, Line, write
from tqdm import tqdm

import graphattn.nn as ours
from graphattn.memory import format_bytes, peak_memory

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import node_models
from node_models import TRAINING

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LAYERS = {"PyG": pyg.GATConv, "graphattn": ours.GATConv}
COLORS = {"PyG": "#EE6677", "graphattn": "#4477AA"}
# Seconds and validation score after each turn.
History = list[tuple[float, float]]


def seconds_until(history: History, value: float) -> float:
    """Seconds until a score is reached."""
    return next(seconds for seconds, score in history if score >= value)


def race(protocol: dict[str, Any], epochs: int, root: str | None) -> tuple[dict[str, History], dict[str, int]]:
    """Train both on the first split; return what happened, and the peak memory of a training step of each."""
    settings = protocol["GAT"] | {"epochs": epochs}
    settings.pop("search", None)
    data = node_models.load(protocol, root)
    masks = node_models.split(data, protocol, 0)
    training = TRAINING | {name: value for name, value in settings.items() if name in TRAINING}
    options = {name: value for name, value in settings.items() if name not in TRAINING}
    runs, peaks, start = {}, {}, None
    for name, layer in LAYERS.items():
        torch.manual_seed(0)
        network, pattern = node_models.build("GAT", data, training, options | {"layer": layer})
        start = copy.deepcopy(network.state_dict()) if start is None else start
        network.load_state_dict(start)
        # PyG's layers take the edges themselves.
        edges = pattern if name == "graphattn" else data.edge_index

        def step(network: torch.nn.Module = network, edges: Any = edges) -> None:
            F.cross_entropy(network(data.x, edges), data.y).backward()
            network.zero_grad()

        step()
        peaks[name] = peak_memory(step)
        network.load_state_dict(start)
        runs[name] = node_models.train_epochs(network, data, edges, masks, training)
    found: dict[str, History] = {name: [] for name in runs}
    turns = -(-training["epochs"] // training["every"])
    for _ in tqdm(range(turns), desc=protocol["data"], unit=" turns", disable=None):
        for name, run in runs.items():
            begin = time.perf_counter()
            value, _, _ = next(run)
            before = found[name][-1][0] if found[name] else 0.0
            found[name].append((round(before + time.perf_counter() - begin, 2), round(value, 3)))
    return found, peaks


def draw(histories: dict[str, dict[str, History]], path: Path) -> None:
    """Validation score over seconds, a panel for each data set."""
    figure, panels = plt.subplots(
        1, len(histories), figsize=(1 + 4 * len(histories), 3.6), layout="constrained", squeeze=False
    )
    for axes, (data, found) in zip(panels[0], histories.items(), strict=True):
        for name, history in found.items():
            axes.plot(*zip(*history, strict=True), color=COLORS[name], label=f"{name}'s layers", lw=1.8)
        best = min(max(score for _, score in history) for history in found.values())
        axes.axhline(best, color="#999999", lw=0.8, ls=":")
        scores = sorted(score for history in found.values() for _, score in history)
        # The first epochs would hide the rest.
        axes.set(title=data, xlabel="seconds", ylim=(scores[len(scores) // 5], scores[-1] + 0.3))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("validation score in %")
    panels[0, 0].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure all protocols."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocols", nargs="+", default=["minesweeper", "tolokers", "photo"], metavar="NAME")
    parser.add_argument("--root", help="folder of the data sets; default: $GRAPHATTN_DATASETS, then datasets/")
    about_epochs = "in place of the protocols', default 120; the rate falls to zero within them"
    parser.add_argument("--epochs", type=int, default=120, help=about_epochs)
    args = parser.parse_args()
    about, lines, histories = machine_and_gather(), [], {}
    for name in args.protocols:
        protocol = node_models.read_protocol(name, parser)
        found, peaks = race(protocol, args.epochs, args.root)
        best = min(max(score for _, score in history) for history in found.values())
        until = {side: seconds_until(history, best) for side, history in found.items()}
        whole = {side: history[-1][0] for side, history in found.items()}
        data = protocol["data"]
        histories[data] = found
        for work, seconds in ((f"until validation score {best:.2f}", until), ("all epochs", whole)):
            detail = ", ".join(f"{side} {number:.0f} s" for side, number in seconds.items())
            line = Line(f"{data}, {work}", "PyG", "x", 4, 8, seconds["PyG"] / seconds["graphattn"], detail)
            lines.append(line)
        detail = ", ".join(f"{side} {format_bytes(peak)}" for side, peak in peaks.items())
        part = peaks["graphattn"] / peaks["PyG"]
        lines.append(Line(f"{data}, peak memory of a step", "PyG", "x", 1, None, part, detail, more_is_better=False))
    draw(histories, RESULTS / "time_to_accuracy.png")
    print(write("time_to_accuracy", "Time to the same accuracy", about, lines, {"histories": histories}))


if __name__ == "__main__":
    main()

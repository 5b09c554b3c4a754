"""An unchanged PyG model before and after one line: accuracy, seconds per epoch and peak memory.

    python examples/accelerate_pyg.py                      handwritten digits, no download
    python examples/accelerate_pyg.py --dataset Cora --seeds 20

The model is the two-layer GAT of Velickovic et al., 2018: 8 heads of 8, dropout 0.6, Adam with rate 0.005 and weight
decay 5e-4. Expected on Cora: 83.0 +- 0.7 % (their table 2), from both, within one standard error of each other.
"""

import argparse
import statistics
import time
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from torch_geometric.nn import GATConv
from torch_geometric.transforms import NormalizeFeatures, RandomNodeSplit
from tqdm import tqdm

import graphattn
from graphattn.datasets import digits_graph, load_graph
from graphattn.memory import format_bytes, peak_memory

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = {"PyG": "tab:red", "accelerated": "tab:blue"}


class Network(torch.nn.Module):
    """The paper's two layers, from PyG only."""

    def __init__(self, in_channels, classes):
        super().__init__()
        self.first = GATConv(in_channels, 8, heads=8, dropout=0.6)
        self.second = GATConv(64, classes, dropout=0.6)

    def forward(self, x, edge_index):
        x = F.dropout(x, 0.6, self.training)
        x = F.dropout(F.elu(self.first(x, edge_index)), 0.6, self.training)
        return self.second(x, edge_index)


def train(model, data, epochs, patience):
    """Train until the validation loss stops improving; return test accuracy at its best, and seconds of each epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005, weight_decay=5e-4)

    def step():
        model.train()
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)
        F.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
        optimizer.step()

    best, accuracy, waited, seconds = float("inf"), 0.0, 0, []
    for _ in range(epochs):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
        model.eval()
        with torch.no_grad():
            out = model(data.x, data.edge_index)
        loss = F.cross_entropy(out[data.val_mask], data.y[data.val_mask]).item()
        waited += 1
        if loss < best:
            best, waited = loss, 0
            accuracy = (out.argmax(-1) == data.y)[data.test_mask].float().mean().item()
        if waited == patience:
            break
    return 100 * accuracy, seconds, step


def load(name, seed):
    """The graph with its own split, or else 20 labels per class for training."""
    torch.manual_seed(seed)
    data = digits_graph() if name == "digits" else NormalizeFeatures()(load_graph(name)[0])
    return data if "train_mask" in data else RandomNodeSplit("test_rest", num_train_per_class=20, num_val=300)(data)


def draw(results, path, title):
    """Accuracy of each seed, seconds per epoch, and peak memory, side by side."""
    figure, panels = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
    labels = ("test accuracy, %", "milliseconds per epoch", "peak memory of a step, MiB")
    for axes, label, key in zip(panels, labels, ("accuracy", "ms", "MiB"), strict=True):
        for place, (name, found) in enumerate(results.items()):
            if key == "accuracy":
                spread = torch.linspace(-0.15, 0.15, len(found[key]))
                axes.plot(place + spread, found[key], "o", color=COLORS[name], markersize=4, alpha=0.7)
            else:
                axes.bar(place, found[key], color=COLORS[name], width=0.5)
                axes.annotate(f"{found[key]:.3g}", (place, found[key]), ha="center", va="bottom")
        axes.set(xticks=range(len(results)), xticklabels=list(results), ylabel=label, xlim=(-0.6, len(results) - 0.4))
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="digits, or a graph that load_graph knows")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    parser.add_argument("--smoke", action="store_true", help="two seeds of three epochs")
    options = parser.parse_args()
    seeds, epochs = (2, 3) if options.smoke else (options.seeds, options.epochs)

    results = {name: {"accuracy": [], "seconds": []} for name in COLORS}
    for seed in tqdm(range(seeds), desc="training", disable=None):
        data = load(options.dataset, seed)
        for name, found in results.items():
            torch.manual_seed(seed)
            model = Network(data.num_features, int(data.y.max()) + 1)
            if name == "accelerated":
                graphattn.accelerate(model)
            accuracy, seconds, step = train(model, data, epochs, patience=100)
            found["accuracy"].append(accuracy)
            found["seconds"] += seconds
            found["bytes"] = peak_memory(step)

    for name, found in results.items():
        found["ms"] = 1e3 * statistics.median(found["seconds"])
        found["MiB"] = (found["bytes"] or 0) / 2**20
        deviation = statistics.stdev(found["accuracy"])
        print(
            f"{name}: test accuracy {statistics.mean(found['accuracy']):.1f} +- {deviation:.1f} % over {seeds} seeds, "
            f"{found['ms']:.1f} ms per epoch, peak memory of a step {format_bytes(found['bytes'] or 0)}"
        )
    theirs, ours = results.values()
    error = (statistics.variance(theirs["accuracy"]) / seeds + statistics.variance(ours["accuracy"]) / seeds) ** 0.5
    apart = abs(statistics.mean(theirs["accuracy"]) - statistics.mean(ours["accuracy"]))
    print(f"The means are {apart:.2f} points apart; the standard error of their difference is {error:.2f}.")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"accelerate_pyg_{options.dataset.lower()}.png"
    draw(results, path, f"{options.dataset}: a two-layer GAT of PyG, before and after graphattn.accelerate(model)")
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()

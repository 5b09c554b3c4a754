"""Minesweeper is an image: the graph of the data set and a pattern of pixels are the same edges, and train the same.

    python examples/minesweeper_is_a_grid.py                            a generated board, no download
    python examples/minesweeper_is_a_grid.py --dataset Minesweeper      the board of the data set, 100 x 100

Squares are nodes, a fifth of them mines; half of the squares show the number of mines around them, the others nothing.
The task is to say which squares are mines. Expected: no edge differs, and both train to the same test score within
0.05.
"""

import argparse
import statistics
import time
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from report import report
from sklearn.metrics import roc_auc_score
from torch_geometric.data import Data
from torch_geometric.utils import grid as grid_graph
from torch_geometric.utils import remove_self_loops
from tqdm import tqdm

from graphattn import Edges, Grid
from graphattn.datasets import load_graph
from graphattn.nn import GraphTransformer

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def make_board(side, seed):
    """A board like that of Platonov et al.: features say one-hot "hidden", or 0, 1, ..., at least 5 mines around."""
    torch.manual_seed(seed)
    edge_index = remove_self_loops(grid_graph(side, side)[0])[0]
    is_mine, is_hidden, place = torch.rand(side**2) < 0.2, torch.rand(side**2) < 0.5, torch.rand(side**2)
    count = torch.zeros(side**2).index_add_(0, edge_index[1], is_mine[edge_index[0]].float()).long().clamp(max=5)
    x = F.one_hot(torch.where(is_hidden, 0, count + 1), 7).float()
    masks = {"train_mask": place < 0.5, "val_mask": (place >= 0.5) & (place < 0.75), "test_mask": place >= 0.75}
    return Data(x=x, edge_index=edge_index, y=is_mine.long(), **masks)


def edges_of(pattern):
    """The set of edges, each as one number."""
    source, target = pattern.edge_index
    return set((target * pattern.num_sources + source).tolist())


def train(data, pattern, epochs, bar):
    """Test ROC AUC in percent after the last epoch, the probability of a mine, and CPU seconds per epoch."""
    torch.manual_seed(0)
    network = GraphTransformer(data.x.size(1), 64, 2, num_layers=4, heads=8, feed_forward=1, ego="concat")
    optimizer = torch.optim.Adam(network.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=epochs + 1, pct_start=0.1)
    seconds = []
    for _ in range(epochs):
        start = time.process_time()
        optimizer.zero_grad()
        F.cross_entropy(network(data.x, pattern)[data.train_mask], data.y[data.train_mask]).backward()
        optimizer.step()
        rate.step()
        seconds.append(time.process_time() - start)
        bar.update()
    with torch.no_grad():
        probability = network(data.x, pattern).softmax(1)[:, 1]
    return (
        100 * roc_auc_score(data.y[data.test_mask], probability[data.test_mask]),
        probability,
        statistics.median(seconds),
    )


def draw(data, side, probability, path):
    """A corner of the board: what is shown, what the network predicts, and the mines."""
    corner = min(side, 20)
    shown = torch.where(data.x[:, 0] > 0, torch.nan, data.x.argmax(1) - 1.0)
    figure, panels = plt.subplots(1, 3, figsize=(12, 4.3), layout="constrained")
    titles = ("given: mines around a square, half of them hidden", "predicted: how likely a mine", "mines")
    for axes, title, values in zip(panels, titles, (shown, probability, data.y.float()), strict=True):
        values = values.view(side, side)[:corner, :corner]
        axes.imshow((values / 8 if axes is panels[0] else values).numpy(), cmap="Greys", vmin=0, vmax=1)
        axes.set_title(title, fontsize=11)
        axes.set(xticks=[], yticks=[])
        if axes is panels[0]:
            axes.set_facecolor("#88CCEE")
            for row, column in (~values.isnan()).nonzero().tolist():
                axes.text(column, row, int(values[row, column]), ha="center", va="center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=["generated", "Minesweeper"], default="generated")
    parser.add_argument("--root", help="folder of the data sets; default: $GRAPHATTN_DATASETS, then datasets/")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--record", type=Path, help="a JSON file to write the results to")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder of the picture")
    parser.add_argument("--smoke", action="store_true", help="a quick run that only checks that it works")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {args.epochs}")
    epochs = 3 if args.smoke else args.epochs

    data = make_board(40, seed=0) if args.dataset == "generated" else load_graph("Minesweeper", args.root)[0]
    for name in ("train_mask", "val_mask", "test_mask"):
        data[name] = data[name][:, 0] if data[name].dim() == 2 else data[name]
    side = round(data.num_nodes**0.5)
    # A square isn't its own neighbor in the data set, but is in a grid.
    graph = Edges(data.edge_index, data.num_nodes).with_self_loops()
    grid = Grid((side, side), radius=1)
    differ = edges_of(graph) ^ edges_of(grid)
    print(f"{args.dataset}: {side} x {side} squares; the graph has {graph.num_edges:,} edges with self-loops, ", end="")
    print(f"the grid {grid.num_edges:,}; {len(differ)} are in only one")
    if differ:
        raise SystemExit("The nodes of this graph are not the squares of a board, row by row.")

    with tqdm(total=2 * epochs, desc="training", unit=" epochs", mininterval=1, disable=None) as bar:
        found = {"graph": train(data, graph, epochs, bar), "grid": train(data, grid, epochs, bar)}
    for name, (score, _, seconds) in found.items():
        report(args.dataset, name, "ROC AUC", [score], record=args.record, cpu_ms_per_epoch=1e3 * seconds)
    apart = (found["graph"][1] - found["grid"][1]).abs().max().item()
    print(f"Probabilities differ by {apart:.1e} at most after {epochs} epochs.")
    path = args.output / f"minesweeper_is_a_grid_{args.dataset.lower()}.png"
    draw(data, side, found["grid"][1], path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()

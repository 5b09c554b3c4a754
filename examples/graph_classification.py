"""Graph classification, n -> 1: one label for a whole graph, by attention to all of its nodes.

    python examples/graph_classification.py                       necklaces, no download
    python examples/graph_classification.py --dataset NCI1        or PROTEINS, MUTAG, ...: TUDataset, 10 folds

Expected on the necklaces, in a minute or two: chance, 17 to 18 %, by softmax attention, and 99 to 100 % by the others.

Softmax weights of a graph sum to 1, so that a readout by softmax attention is a mean, which can't count. Necklaces show
this: in one, every 4th (5th, ..., 8th) bead is dark, and its class is the number of dark beads, 1 to 6. The
neighborhood of a bead is the same in all of these classes, so that no mean distinguishes them, whatever layers come
before it. A sum counts them; so does attention with sigmoid weights, which needn't sum to 1.

Protocol, after Errica et al., "A Fair Comparison of Graph Neural Networks for Graph Classification", 2020: stratified
folds; in each, a tenth of the training part is held out; its loss chooses the epoch at which the test part is read.
"""

import argparse
import statistics
import time
from pathlib import Path

import matplotlib
import networkx
import torch
import torch.nn.functional as F
from report import report
from sklearn.model_selection import StratifiedKFold, train_test_split
from torch_geometric.data import Data
from torch_geometric.datasets import TUDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn.aggr import MultiAggregation, SumAggregation
from torch_geometric.utils import degree
from tqdm import tqdm

from graphattn import Edges
from graphattn.datasets import dataset_root
from graphattn.nn import AttentionReadout, GraphTransformer, RandomWalkPosition
from graphattn.plot import COLORS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HEADS = 4
READOUTS = {
    "softmax attention": lambda width: AttentionReadout(width, width, HEADS),
    "sigmoid attention": lambda width: AttentionReadout(width, width, HEADS, normalizer="sigmoid"),
    "sum": lambda width: SumAggregation(),
    "sum and softmax attention": lambda width: MultiAggregation(["sum", AttentionReadout(width, width, HEADS)]),
}
# Chosen on the validation part of the first fold. Sigmoid attention can count neighbors too.
NECKLACES = dict(folds=3, epochs=25, width=32, layers=1, lr=0.005, dropout=0.0, batch_size=64, normalizer="softmax")
OTHERS = dict(folds=10, epochs=30, width=64, layers=3, lr=0.002, dropout=0.0, batch_size=128, normalizer="sigmoid")
PROTEINS = OTHERS | dict(epochs=25, width=32, layers=1, lr=0.005, dropout=0.3, normalizer="softmax")
SETTINGS = {"necklaces": NECKLACES, "PROTEINS": PROTEINS}


class Classifier(torch.nn.Module):
    """A graph transformer on the edges, a readout, and a small network on its result."""

    def __init__(self, readout, in_channels, classes, args):
        super().__init__()
        width, read = args.width, args.width * (2 if " and " in readout else 1)
        options = {"dropout": args.dropout, "normalizer": args.normalizer, "feed_forward": 2}
        self.nodes = GraphTransformer(in_channels, width, None, args.layers, HEADS, **options)
        self.readout = READOUTS[readout](width)
        # A sum has another scale than a mean. Unlike layer norm, batch norm preserves the differences between graphs.
        self.classify = torch.nn.Sequential(
            torch.nn.BatchNorm1d(read),
            torch.nn.Linear(read, width),
            torch.nn.GELU(),
            torch.nn.Dropout(args.dropout),
            torch.nn.Linear(width, classes),
        )

    def embed(self, batch):
        return self.nodes(batch.x, Edges(batch.edge_index, batch.num_nodes))

    def forward(self, batch):
        return self.classify(self.readout(self.embed(batch), batch.batch, dim_size=batch.num_graphs))


def necklaces(number, seed=0):
    """Rings in which every 4th to 8th bead is dark; the class is the number of dark beads, 1 to 6."""
    generator = torch.Generator().manual_seed(seed)
    graphs = []
    for i in range(number):
        dark, distance = i % 6 + 1, int(torch.randint(4, 9, (), generator=generator))
        here = torch.arange(dark * distance)
        after = here.roll(-1)
        x = (here % distance == 0).float()[:, None]
        edge_index = torch.stack([torch.cat([here, after]), torch.cat([after, here])])
        graphs.append(Data(x=x, edge_index=edge_index, y=torch.tensor([dark])))
    return graphs


def with_structure(dataset, walk_length=16):
    """Graphs with the degree of nodes, which softmax over neighbors can't see, and return probabilities as features."""
    walk, graphs = RandomWalkPosition(1, walk_length), []
    for data in tqdm(dataset, desc="random walks", unit=" graphs", leave=False):
        neighbors = degree(data.edge_index[0], data.num_nodes).long().clamp(max=9)
        returns = walk.probabilities(Edges(data.edge_index, data.num_nodes))
        # Attributes can be large: asinh is like a logarithm but is defined for 0 and negative numbers.
        given = [] if data.x is None else [data.x.asinh()]
        x = torch.cat([*given, F.one_hot(neighbors, 10), returns], 1)
        graphs.append(Data(x=x, edge_index=data.edge_index, y=data.y))
    return graphs


@torch.no_grad()
def measure(model, batches):
    """Accuracy in percent, and mean loss."""
    model.eval()
    logits, y = torch.cat([model(batch) for batch in batches]), torch.cat([batch.y for batch in batches])
    return 100 * (logits.argmax(1) == y).double().mean().item(), F.cross_entropy(logits, y).item()


def train(model, parts, args, bar):
    """Train on the first part; return accuracies on the others, at the epoch chosen on the second part."""
    loader = DataLoader(parts[0], args.batch_size, shuffle=True, drop_last=len(parts[0]) > args.batch_size)
    validation, test = (list(DataLoader(part, 512)) for part in parts[1:])
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    steps = args.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, steps, pct_start=0.1)
    best, chosen = (float("inf"), 0.0), None
    for _ in range(args.epochs):
        model.train()
        for batch in loader:
            loss = F.cross_entropy(model(batch), batch.y)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        accuracy, loss = measure(model, validation)
        # With few held-out graphs, the loss is more informative than the accuracy.
        if loss < best[0]:
            best, chosen = (loss, accuracy), {name: x.clone() for name, x in model.state_dict().items()}
        bar.set_postfix(loss=f"{loss:.3f}", validation=f"{best[1]:.1f}", refresh=False)
        bar.update()
    model.load_state_dict(chosen)
    return best[1], measure(model, test)[0]


def draw_scores(axes, results):
    """Accuracy of each readout, a dot for each fold."""
    for row, (scores, color) in enumerate(zip(results.values(), COLORS, strict=False)):
        mean, deviation = statistics.fmean(scores), statistics.pstdev(scores)
        axes.barh(row, mean, xerr=deviation, height=0.5, color=color, alpha=0.55, capsize=4)
        axes.scatter(scores, [row] * len(scores), s=14, color="black", zorder=3)
        axes.text(0, row - 0.3, f"{mean:.1f} $\\pm$ {deviation:.1f} %", va="bottom", fontsize=12)
    names = [name.replace(" and", "\nand").replace(" attention", "\nattention") for name in results]
    axes.set_yticks(range(len(results)), names, fontsize=12)
    axes.set(xlim=(0, 104), ylim=(len(results) - 0.5, -0.7), xlabel="test accuracy in %; a dot is a fold")
    axes.spines[["top", "right"]].set_visible(False)


@torch.no_grad()
def draw_attention(axes, name, model, graph):
    """A graph, its nodes colored by weight, mean over the heads; dark beads have a black rim."""
    (batch,) = DataLoader([graph], 1)
    guess = int(model.eval()(batch).argmax())
    _, weights = model.readout(model.embed(batch), batch.batch, return_attention_weights=True)
    edges = networkx.Graph(batch.edge_index.t().tolist())
    edges.add_nodes_from(range(batch.num_nodes))
    position = networkx.kamada_kawai_layout(edges)
    networkx.draw_networkx_edges(edges, position, ax=axes, edge_color="#777777")
    points = torch.tensor([position[node].tolist() for node in range(batch.num_nodes)])
    is_dark = (batch.x[:, 0] == 1) & (batch.x.size(1) == 1)
    rims = {"edgecolors": ["black" if dark else "#999999" for dark in is_dark], "lw": 0.8 + 1.6 * is_dark}
    size = 3000 / max(batch.num_nodes, 15)
    dots = axes.scatter(*points.t(), s=size, c=weights.mean((1, 2)), cmap="YlGnBu", vmin=0, zorder=2, **rims)
    axes.figure.colorbar(dots, ax=axes, shrink=0.7, pad=0.02)
    axes.set_title(f"{name}: says {guess}, is {int(batch.y)}", fontsize=11)
    axes.set_aspect("equal")
    axes.margins(0.12)
    axes.set_axis_off()


def draw(results, models, graphs, title, path):
    """Scores, and what each pure attention readout of the last fold attends to in test graphs."""
    figure = plt.figure(figsize=(5.2 + 4 * len(graphs), 6.6), layout="constrained")
    pure = {name: model for name, model in models.items() if isinstance(model.readout, AttentionReadout)}
    grid = figure.add_gridspec(max(len(pure), 1), 1 + len(graphs), width_ratios=[1.5, *[1] * len(graphs)])
    draw_scores(figure.add_subplot(grid[:, 0]), results)
    for row, (name, model) in enumerate(pure.items()):
        for column, graph in enumerate(graphs):
            draw_attention(figure.add_subplot(grid[row, column + 1]), name, model, graph)
    figure.suptitle(title, fontsize=13, x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="necklaces", help="necklaces (default), NCI1, PROTEINS, MUTAG, ...")
    parser.add_argument("--root", help="folder of the data sets; default: $GRAPHATTN_DATASETS, then datasets/")
    parser.add_argument("--readouts", nargs="+", default=list(READOUTS), choices=READOUTS, metavar="READOUT")
    for name, value in OTHERS.items():
        text = f"default: {NECKLACES[name]} for necklaces, {PROTEINS[name]} for PROTEINS, else {value}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), help=text)
    parser.add_argument("--first-folds", type=int, help="run at most this many of the folds")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder of the picture")
    parser.add_argument("--record", type=Path, help="JSON file to write the results to")
    parser.add_argument("--smoke", action="store_true", help="a quick run that only checks that it works")
    parser.set_defaults(**SETTINGS.get(parser.parse_known_args()[0].dataset, OTHERS))
    args = parser.parse_args()
    if args.folds < 2 or args.epochs < 1 or args.batch_size < 2:
        parser.error("--folds and --batch-size must be at least 2, --epochs at least 1")
    if args.width < 1 or args.width % HEADS:
        parser.error(f"--width must be a multiple of {HEADS}, got {args.width}")
    if args.smoke:
        args.folds, args.epochs, args.first_folds = 3, 2, 1

    if args.dataset == "necklaces":
        graphs = necklaces(120 if args.smoke else 900)
    else:
        try:
            dataset = TUDataset(str(dataset_root(args.root) / "TUDataset"), args.dataset, use_node_attr=True)
        except (OSError, RuntimeError) as error:
            parser.error(f"--dataset {args.dataset} isn't there and can't be downloaded: {error}")
        graphs = with_structure(dataset[:: max(len(dataset) // 120, 1)] if args.smoke else dataset)
    y = [int(graph.y) for graph in graphs]
    sizes = (graphs[0].x.size(1), max(y) + 1)
    nodes = sum(graph.num_nodes for graph in graphs) / len(graphs)
    print(f"{args.dataset}: {len(graphs):,} graphs of {nodes:.1f} nodes, {len(set(y))} classes", flush=True)

    folds = list(StratifiedKFold(args.folds, shuffle=True, random_state=0).split(y, y))[: args.first_folds]
    results, models = {}, {}
    for readout in args.readouts:
        validation, scores, start = [], [], time.perf_counter()
        with tqdm(total=len(folds) * args.epochs, desc=readout, unit=" epochs", mininterval=1, leave=False) as bar:
            for fold, (rest, test) in enumerate(folds):
                own = [y[i] for i in rest]
                parts = (*train_test_split(rest, test_size=0.1, stratify=own, random_state=fold), test)
                torch.manual_seed(fold)
                model = models[readout] = Classifier(readout, *sizes, args)
                found = train(model, [[graphs[i] for i in part] for part in parts], args, bar)
                validation.append(found[0])
                scores.append(found[1])
        results[readout] = scores
        details = {
            "validation": statistics.fmean(validation),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "seconds_per_fold": (time.perf_counter() - start) / len(folds),
        }
        report(args.dataset, f"{readout} readout", "accuracy", scores, "folds", args.record, **details)
    path = args.output / f"graph_classification_{args.dataset.lower()}.png"
    title = f"{args.dataset}: accuracy by readout, and the weights of nodes in test graphs"
    title += " (a black rim marks a dark bead)" if args.dataset == "necklaces" else ""
    of_class = {y[i]: graphs[i] for i in reversed(test)}
    classes = sorted(of_class)
    shown = [of_class[number] for number in sorted({classes[0], classes[len(classes) // 2], classes[-1]})]
    draw(results, models, shown, title, path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()

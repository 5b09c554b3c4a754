"""Whole steps on small graphs, PyG's layers against the same ones accelerated, and what an edge costs by degree.

    make bench

Writes results/small.json, results/small.md and results/small.png. Cora is read from $GRAPHATTN_DATASETS, or downloaded
by PyG's loader.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import tempfile
from collections.abc import Callable
from functools import partial

import matplotlib
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from gather import machine_and_gather
from harness import RESULTS, Line, in_ms, race, ratio, write
from systems import random_edges, with_backward, without_gradients
from torch import Tensor
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import (
    AGNNConv,
    FAConv,
    GATConv,
    GATv2Conv,
    GENConv,
    GeneralConv,
    GINEConv,
    GMMConv,
    GPSConv,
    MessagePassing,
    PointTransformerConv,
    ResGatedGraphConv,
    RGATConv,
    SuperGATConv,
    TransformerConv,
)
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.nn.models.attentive_fp import GATEConv

import graphattn
from graphattn import Edges, Pattern, attention
from graphattn.datasets import load_graph
from graphattn.nn.pyg.fused import LeavesSmall
from graphattn.sampling import NeighborLoader

Step = Callable[[], object]
Model = torch.nn.Module
WIDTH, HEADS, EDGE_DIM = 64, 4, 16
DEGREES = (1, 2, 3, 4, 8, 16, 64)


class GAT(Model):
    """The network of Velickovic et al., 2018, for Cora: 8 heads of 8, then one head per class, dropout of 0.6."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.first = GATConv(features, 8, heads=8, dropout=0.6)
        self.second = GATConv(64, classes, heads=1, concat=False, dropout=0.6)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Scores of the classes."""
        x = F.elu(self.first(F.dropout(x, 0.6, self.training), edge_index))
        return self.second(F.dropout(x, 0.6, self.training), edge_index)


class Network(Model):
    """Layers of TransformerConv, 4 heads of 16, with edge features or without."""

    def __init__(self, layers: int, edge_dim: int | None = None) -> None:
        super().__init__()
        options = dict(heads=HEADS, edge_dim=edge_dim)
        self.layers = torch.nn.ModuleList(TransformerConv(WIDTH, WIDTH // HEADS, **options) for _ in range(layers))

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        """Features of the nodes."""
        for layer in self.layers:
            x = torch.relu(layer(x, edge_index, edge_attr))
        return x


def train(model: Model, loss: Callable[[Model], Tensor]) -> Step:
    """One step of training with Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()

    return step


def cora() -> tuple[Model, Callable[[Model], Step]]:
    """The paper's network on Cora."""
    data = load_graph("Cora")[0]
    y, seeds = data.y[data.train_mask], data.train_mask

    def loss(model: Model) -> Tensor:
        return F.cross_entropy(model(data.x, data.edge_index)[seeds], y)

    return GAT(data.num_features, int(data.y.max()) + 1), lambda model: train(model, loss)


def molecule(atoms: int) -> Data:
    """A chain with a few rings closed, as molecules are: nearly as many bonds as atoms, in both directions."""
    bonds = torch.arange(atoms - 1)
    one_way = torch.stack([bonds, bonds + 1])
    edge_index = torch.cat([one_way, one_way.flip(0)], dim=1)
    edges = edge_index.size(1)
    return Data(x=torch.randn(atoms, WIDTH), edge_index=edge_index, edge_attr=torch.randn(edges, EDGE_DIM))


def molecules() -> tuple[Model, Callable[[Model], Step]]:
    """256 molecules of 10 to 40 atoms in a batch."""
    batch = Batch.from_data_list([molecule(int(atoms)) for atoms in torch.randint(10, 41, (256,))])

    def loss(model: Model) -> Tensor:
        # As from a DataLoader, the edges are a tensor that no earlier step has seen.
        return model(batch.x, batch.edge_index.clone(), batch.edge_attr).square().mean()

    return Network(3, EDGE_DIM), lambda model: train(model, loss)


def sampled() -> tuple[Model, Callable[[Model], Step]]:
    """Neighborhoods of 1,024 seeds, 10 neighbors of each in two hops; sampling is included."""
    nodes = 100_000
    data = Data(x=torch.randn(nodes, WIDTH), edge_index=random_edges(nodes, 2_000_000), num_nodes=nodes)
    loader = NeighborLoader(data, [10, 10], batch_size=1024, shuffle=True)

    def steps(model: Model) -> Step:
        batches = itertools.chain.from_iterable(itertools.repeat(loader))

        def loss(model: Model) -> Tensor:
            batch = next(batches)
            return model(batch.x, batch.edge_index)[: batch.batch_size].square().mean()

        return train(model, loss)

    return Network(2), steps


def one_graph(is_new: bool = False) -> tuple[Model, Callable[[Model], Step]]:
    """One graph of 30 nodes, without gradients; `is_new` lets its edges be a tensor that no earlier call has seen."""
    graph = molecule(30)

    def steps(model: Model) -> Step:
        model.eval()

        @torch.inference_mode()
        def answer() -> Tensor:
            edge_index = graph.edge_index.clone() if is_new else graph.edge_index
            return model(graph.x, edge_index, graph.edge_attr)

        return answer

    return Network(3, EDGE_DIM), steps


# What is timed, how, the least speedup and the intended one.
CASES = {
    "Cora, the paper's 2-layer GAT, one epoch": (cora, 2.5, 4),
    "256 molecules of 10 to 40 atoms, 3 layers of TransformerConv with edge features, one step": (molecules, 4, 8),
    "NeighborLoader, 1,024 seeds, [10, 10], 2 layers of TransformerConv, one step": (sampled, 3, 5),
    "one graph of 30 nodes, 3 layers of TransformerConv with edge features, inference": (one_graph, 2, 3),
    "the same on edges that are new at each call": (partial(one_graph, is_new=True), 1, 2),
}


class Rest(torch.nn.Module):
    """Stands for an attention layer: its projections, without what they are for."""

    def __init__(self, layer: Model) -> None:
        super().__init__()
        self.linears = torch.nn.ModuleList(x for x in layer.children() if isinstance(x, Linear))

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        """The sum of the projections of nodes, with the mean of those of edges."""
        total: Tensor | int = 0
        for linear in self.linears:
            is_of_edges = edge_attr is not None and linear.in_channels == edge_attr.size(-1)
            total = total + (linear(edge_attr).mean(0) if is_of_edges else linear(x))
        return total


def as_ours(model: Model) -> None:
    """Accelerate a model, small calls included."""
    graphattn.accelerate(model)
    for module in model.modules():
        if isinstance(module, LeavesSmall):
            module.leaves_small = False


def speed(work: str, make: Callable, at_least: float, aim: float) -> Line:
    """PyG's step and ours, in turns; and what remains of it without attention."""
    torch.manual_seed(0)
    model, steps = make()
    ours, rest = copy.deepcopy(model), copy.deepcopy(model)
    as_ours(ours)
    for parent in list(rest.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, MessagePassing):
                setattr(parent, name, Rest(layer))
    taken = race({"PyG": steps(model), "graphattn": steps(ours), "without attention": steps(rest)}, 12)
    detail = ", ".join(f"{name} {in_ms(seconds)}" for name, seconds in taken.items())
    return Line(work, "PyG", "x", at_least, aim, ratio(taken, "PyG", "graphattn"), detail)


def latencies() -> Line:
    """One graph through the same model, compiled by torch.compile and by AOTInductor."""
    torch.manual_seed(0)
    model, _ = one_graph()
    ours, graph = copy.deepcopy(model), molecule(30)
    as_ours(ours)
    inputs = (graph.x, graph.edge_index, graph.edge_attr)
    systems = {}
    for name, side in (("PyG", model.eval()), ("graphattn", ours.eval())):
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            package = torch._inductor.aoti_compile_and_package(
                torch.export.export(side, inputs), package_path=f"{folder}/model.pt2"
            )
            loaded = torch._inductor.aoti_load_package(package)
        compiled = torch.compile(side, fullgraph=True)
        systems[f"{name} compiled"] = without_gradients(lambda compiled=compiled: compiled(*inputs))
        systems[f"{name} by AOTInductor"] = without_gradients(lambda loaded=loaded: loaded(*inputs))
    taken = race(systems, 12)
    detail = ", ".join(f"{name} {in_ms(seconds)}" for name, seconds in taken.items())
    work = "one graph of 30 nodes, 3 layers of TransformerConv with edge features, under torch.compile"
    return Line(work, "PyG, compiled", "x", 1, None, ratio(taken, "PyG compiled", "graphattn compiled"), detail)


def layers() -> dict[str, tuple[torch.nn.Module, Callable[[Data, Tensor, Tensor], tuple]]]:
    """Layers that `accelerate` replaces, and their arguments on a graph with these rows and edges."""
    network = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU())
    plain = lambda graph, x, edges: (x, edges)
    with_edges = lambda graph, x, edges: (x, edges, graph.edge_attr)
    # Graphs of twenty nodes.
    batched = lambda graph, x, edges: (x, edges, torch.arange(len(x)) // 20)
    heads = dict(heads=HEADS, out_channels=WIDTH // HEADS)
    return {
        "TransformerConv": (TransformerConv(WIDTH, **heads, edge_dim=EDGE_DIM), with_edges),
        "GATConv": (GATConv(WIDTH, **heads), plain),
        "GATv2Conv": (GATv2Conv(WIDTH, **heads), plain),
        "GENConv": (GENConv(WIDTH, WIDTH, norm="layer"), plain),
        "PointTransformerConv": (PointTransformerConv(WIDTH, WIDTH), lambda _, x, edges: (x, x[:, :3], edges)),
        "ResGatedGraphConv": (ResGatedGraphConv(WIDTH, WIDTH), plain),
        "AGNNConv": (AGNNConv(), plain),
        "FAConv": (FAConv(WIDTH), lambda _, x, edges: (x, x, edges)),
        "SuperGATConv": (SuperGATConv(WIDTH, **heads), plain),
        "GATEConv": (GATEConv(WIDTH, WIDTH, EDGE_DIM), with_edges),
        "GeneralConv": (GeneralConv(WIDTH, attention=True, **heads), plain),
        "GMMConv": (GMMConv(WIDTH, WIDTH, EDGE_DIM, 4), with_edges),
        "RGATConv": (RGATConv(WIDTH, num_relations=4, **heads), lambda _, x, edges: (x, edges, edges[0] % 4)),
        "GPSConv": (GPSConv(WIDTH, GINEConv(network, edge_dim=EDGE_DIM), heads=HEADS), batched),
    }


def slowest(nodes: int, is_training: bool) -> Line:
    """Single layers on edges that are new at each call, of one graph of so many nodes: the one that loses most."""
    torch.manual_seed(0)
    graph, ratios = molecule(nodes), {}
    for name, (layer, arguments) in layers().items():
        ours = copy.deepcopy(layer)
        graphattn.accelerate(ours)

        def step(side: torch.nn.Module, arguments: Callable = arguments) -> Step:
            side.train(is_training)
            named = {"edge_attr": graph.edge_attr} if isinstance(side, GPSConv) else {}
            call = lambda: side(*arguments(graph, graph.x, graph.edge_index.clone()), **named)
            return (lambda: call().square().mean().backward()) if is_training else without_gradients(call)

        ratios[name] = ratio(race({"PyG": step(layer), "ours": step(ours)}, 0.8), "PyG", "ours")
    worst = min(ratios, key=lambda name: ratios[name])
    detail = ", ".join(f"{name} {found:.3g}" for name, found in ratios.items())
    passes = "forward and backward" if is_training else "inference"
    work = f"a single layer, {nodes:,} nodes, {graph.num_edges:,} edges that are new at each call, {passes}: {worst}"
    return Line(work, "PyG", "x", 1, None, ratios[worst], detail)


def collate() -> Line:
    """A DataLoader's batch of 256 molecules, with an edge_index per graph, and with a pattern, joined as layers do."""
    torch.manual_seed(0)
    graphs = [molecule(int(atoms)) for atoms in torch.randint(10, 41, (256,))]
    patterns = [
        Data(graph.x, edge_attr=graph.edge_attr, pattern=Edges(graph.edge_index, graph.num_nodes)) for graph in graphs
    ]
    loaders = {"PyG": DataLoader(graphs, batch_size=256), "graphattn": DataLoader(patterns, batch_size=256)}
    systems = {
        "PyG": lambda: next(iter(loaders["PyG"])),
        "graphattn": lambda: Pattern.join(next(iter(loaders["graphattn"])).pattern),
    }
    taken = race(systems, 6)
    detail = ", ".join(f"{name} {in_ms(seconds)}" for name, seconds in taken.items())
    work = "a DataLoader's batch of 256 molecules that carry patterns, joined"
    return Line(work, "PyG, edge_index", "x", 1, None, ratio(taken, "graphattn", "PyG"), detail, more_is_better=False)


def per_edge(degree: int, has_edge_tensors: bool, edges: int = 12_800) -> dict[str, float]:
    """Nanoseconds per edge, forward and backward, at a constant number of edges, 4 heads of 16, on one thread.

    So few edges that all fits into the caches: otherwise what low degrees cost is that they read and write more rows.
    """
    nodes = edges // degree
    edges = nodes * degree
    target = torch.arange(nodes).repeat_interleave(degree)
    # Sources are nearby, so that bandwidth isn't what is measured.
    source = (target + torch.randint(-50, 51, (edges,))).clamp(0, nodes - 1)
    pattern = Edges(torch.stack([source, target]), nodes)
    rows = [torch.randn(nodes, HEADS, WIDTH // HEADS, requires_grad=True) for _ in range(3)]
    of_edges = [torch.randn(edges, HEADS, WIDTH // HEADS, requires_grad=True) for _ in range(2 * has_edge_tensors)]
    options = dict(zip(("edge_key", "edge_value"), of_edges, strict=False))
    call = lambda: attention(*rows, pattern, backend="numba", **options)
    taken = race({"forward": without_gradients(call), "both": with_backward(call, [*rows, *of_edges])}, 3)
    forward = statistics.median(taken["forward"])
    backward = statistics.median(b - a for a, b in zip(taken["forward"], taken["both"], strict=True))
    return {"forward": forward / edges * 1e9, "backward": backward / edges * 1e9}


def sweep() -> tuple[list[Line], dict[str, list[float]]]:
    """What an edge costs over degrees."""
    found: dict[str, list[float]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for has_edge_tensors in (False, True):
        suffix = ", edge tensors" if has_edge_tensors else ""
        for degree in DEGREES:
            for what, number in per_edge(degree, has_edge_tensors).items():
                found.setdefault(what + suffix, []).append(number)
    torch.set_num_threads(threads)
    lines = []
    for what, numbers in found.items():
        low, high = numbers[DEGREES.index(2)], numbers[DEGREES.index(16)]
        detail = ", ".join(f"{degree}: {number:.0f} ns" for degree, number in zip(DEGREES, numbers, strict=True))
        work = f"12,800 edges, H4 D16, one thread, time per edge, {what}: degree 2"
        lines.append(Line(work, "degree 16", "x", 1.6, None, low / high, detail, more_is_better=False))
    return lines, found


def picture(found: dict[str, list[float]]) -> None:
    """Nanoseconds per edge over the degree, a line per pass."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for what, numbers in found.items():
        style = "--" if "edge tensors" in what else "-"
        color = "tab:blue" if what.startswith("forward") else "tab:red"
        axes.plot(DEGREES, numbers, style, marker="o", color=color, label=what)
    axes.set(xscale="log", xlabel="edges per target", ylabel="ns per edge", ylim=(0, None))
    axes.set_xticks(DEGREES, [str(degree) for degree in DEGREES], minor=False)
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(RESULTS / "small.png", dpi=150)
    plt.close(figure)


def main() -> None:
    """Measure all cases."""
    matplotlib.use("Agg")
    about = machine_and_gather()
    lines = [*(speed(work, *case) for work, case in CASES.items()), latencies(), collate()]
    lines += [slowest(nodes, is_training) for nodes in (30, 400, 2000) for is_training in (False, True)]
    more, found = sweep()
    print(write("small", "Small graphs, accelerated", about, lines + more, {"nanoseconds per edge": found}))
    picture(found)


if __name__ == "__main__":
    main()

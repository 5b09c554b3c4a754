"""A graph of ten million edges on one machine: as a whole, or sampled with the features left on disk.

    python examples/large_graph.py                the whole graph in every step
    python examples/large_graph.py --sampled      mini-batches of neighborhoods; features are mapped from a file
    python examples/large_graph.py --nodes 2000000 --edges 100000000 --steps 2        ten times as large

Ctrl-C stops after the current step and leaves a checkpoint; the same command continues from it, with the same final
result. The graph is generated: most edges connect nodes of one class, and features without edges say little about the
class.

Expected, after two minutes: 99.7 % of the held-out nodes are right; chance is 14 %.
"""

import argparse
import math
import signal
import sys
import time
from pathlib import Path

import matplotlib
import psutil
import torch
import torch.nn.functional as F
from report import report
from torch_geometric.data import Data
from tqdm import tqdm

from graphattn import Edges
from graphattn.memory import format_bytes
from graphattn.nn import GraphAttention
from graphattn.plot import COLORS
from graphattn.sampling import NeighborLoader

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CLASSES, CHANNELS = 7, 32
# Nodes, or edges, that are generated at a time.
CHUNK = 2**22


class Network(torch.nn.Module):
    """Two layers of attention and a linear classifier; dropout, so that a resumed run must restore its random state."""

    def __init__(self):
        super().__init__()
        self.first = GraphAttention(CHANNELS, CHANNELS, heads=4, dropout=0.1)
        self.second = GraphAttention(CHANNELS, CHANNELS, heads=4, dropout=0.1)
        self.classify = torch.nn.Linear(CHANNELS, CLASSES)

    def forward(self, x, pattern):
        x = F.elu(self.first(x, pattern))
        return self.classify(F.elu(self.second(x, pattern)))


def generate(args):
    """Edges and labels of a graph in which 60 % of the edges come from a node of the target's class."""
    generator = torch.Generator().manual_seed(args.seed)
    y = torch.randint(CLASSES, (args.nodes,), generator=generator)
    by_class, count = y.argsort(stable=True), torch.bincount(y, minlength=CLASSES)
    first = count.cumsum(0) - count
    edge_index = torch.empty(2, args.edges, dtype=torch.int64)
    for part in edge_index.split(CHUNK, 1):
        part.random_(0, args.nodes, generator=generator)
        of_target = y[part[1]]
        place = torch.rand(part.size(1), generator=generator)
        alike = by_class[first[of_target] + (place * count[of_target]).long().clamp(max=count[of_target] - 1)]
        part[0] = torch.where(torch.rand(part.size(1), generator=generator) < 0.6, alike, part[0])
    return edge_index, y


def write_features(x, y, seed):
    """Fill x with the centers of the classes plus much noise, some rows at a time, in memory or in a file."""
    generator = torch.Generator().manual_seed(seed + 1)
    centers = 0.4 * torch.randn(CLASSES, CHANNELS, generator=generator)
    for rows, labels in zip(x.split(CHUNK // CHANNELS), y.split(CHUNK // CHANNELS), strict=True):
        rows.normal_(generator=generator).add_(centers[labels])
    return x


def seeds_of(nodes, args):
    """The nodes of all batches of a run in sequence: one shuffle of the nodes after another."""
    generator = torch.Generator().manual_seed(args.seed + 2)
    epochs = math.ceil(args.steps * args.batch / len(nodes))
    every = torch.cat([nodes[torch.randperm(len(nodes), generator=generator)] for _ in range(epochs)])
    return every[: args.steps * args.batch]


def resident():
    """Current and peak memory of the process in bytes, including pages of a mapped file."""
    memory = psutil.Process().memory_info()
    if sys.platform == "win32":
        return memory.rss, memory.peak_wset
    import resource  # Windows has none.

    return memory.rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def train(network, optimizer, batches, history, args):
    """Run the remaining steps; return whether a signal interrupted them. `history` has a row for each step."""
    stopped = []

    def stop(number, frame):
        stopped.append(number)
        # The second signal stops at once.
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    with tqdm(total=args.steps, initial=len(history), desc="training", unit=" steps") as bar:
        start = time.perf_counter()
        for x, graph, edges, nodes, y in batches:
            loss = F.cross_entropy(network(x, graph)[nodes], y[nodes])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            now, (memory, peak) = time.perf_counter(), resident()
            history.append((loss.item(), edges / (now - start), memory))
            start = now
            memory, peak, rate = format_bytes(memory), format_bytes(peak), f"{history[-1][1] / 1e6:.2f} M"
            bar.set_postfix({"loss": f"{history[-1][0]:.3f}", "edges/s": rate, "memory": memory, "peak": peak})
            bar.update()
            if stopped:
                break
    for number, handler in before.items():
        signal.signal(number, handler)
    return bool(stopped)


def save(path, network, optimizer, **more):
    """Write a checkpoint atomically."""
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
    part = path.with_suffix(".part")
    torch.save(state | more, part)
    part.replace(path)


def draw(history, resumed, title, path):
    """Loss, throughput and memory, step by step; a line where a run was resumed."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    scales, labels = (1, 1e-6, 2**-30), ("loss", "million edges per second", "resident memory, GiB")
    for axes, numbers, scale, label in zip(panels, zip(*history, strict=True), scales, labels, strict=True):
        axes.plot(range(1, len(numbers) + 1), [number * scale for number in numbers], color=COLORS[0])
        for step in resumed:
            axes.axvline(step + 0.5, color="grey", linestyle=":")
        axes.set(xlabel="step", ylabel=label, ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=500_000)
    parser.add_argument("--edges", type=int, default=10_000_000)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--sampled", action="store_true", help="sample neighborhoods, with features on disk")
    parser.add_argument("--batch", type=int, default=1024, help="nodes of a batch, with --sampled")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="output folder")
    parser.add_argument("--record", type=Path, help="write the result to this JSON file too")
    parser.add_argument("--smoke", action="store_true", help="a quick run that only checks that it works")
    args = parser.parse_args()
    if args.smoke:
        args.nodes, args.edges, args.steps, args.batch = 2_000, 20_000, 6, 256
    if args.nodes < 100 or min(args.edges, args.steps, args.batch) < 1:
        parser.error("--nodes must be at least 100, --edges, --steps and --batch at least 1")
    args.output.mkdir(parents=True, exist_ok=True)
    name = "large_graph_sampled" if args.sampled else "large_graph"
    checkpoint = args.output / f"{name}.pt"
    settings = {key: value for key, value in vars(args).items() if key not in ("output", "record", "smoke")}

    torch.manual_seed(args.seed)
    network, history, resumed = Network(), [], []
    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr)
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        if saved["settings"] != settings:
            parser.error(f"{checkpoint} is of a run with other options: finish or delete it, or use another --output")
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        history, resumed = saved["history"], [*saved["resumed"], len(saved["history"])]
        print(f"Going on after step {len(history)} of {args.steps}, from {checkpoint}.")

    edge_index, y = generate(args)
    # Every tenth node is held out.
    is_held_out = torch.arange(args.nodes) % 10 == 0
    known, held_out = (~is_held_out).nonzero().flatten(), is_held_out.nonzero().flatten()
    if args.sampled:
        # Tensors on a shared map of a file: pages are read with their rows, and the system may drop them again.
        path = args.output / "large_graph_features.bin"
        on_disk = lambda: torch.from_file(str(path), shared=True, size=args.nodes * CHANNELS).view(-1, CHANNELS)
        write_features(on_disk(), y, args.seed)
        # Mapped again, so that written pages need not stay in memory.
        x = on_disk()
        data = Data(x=x, y=y, edge_index=edge_index)
        # Loaders draw a number for their workers; from the global generator, a resumed run would draw another one.
        options = dict(seed=args.seed, batch_size=args.batch, generator=torch.Generator())
        load = lambda nodes: NeighborLoader(data, [10, 10], nodes, **options)
        # The loader copies only the rows of x that a batch needs.
        of_batch = lambda batch: (batch.x, batch.pattern, batch.num_edges, slice(batch.batch_size), batch.y)
        batches = map(of_batch, load(seeds_of(known, args)[len(history) * args.batch :]))
    else:
        x, pattern = write_features(torch.empty(args.nodes, CHANNELS), y, args.seed), Edges(edge_index, args.nodes)
        batches = ((x, pattern, args.edges, known, y) for _ in range(len(history), args.steps))
    place = "on disk" if args.sampled else "in memory"
    print(f"{args.nodes:,} nodes, {args.edges:,} edges, {format_bytes(x.nbytes)} of features {place}")

    if train(network, optimizer, batches, history, args):
        save(checkpoint, network, optimizer, settings=settings, history=history, resumed=resumed)
        return print(f"Stopped after step {len(history)}: {checkpoint}. The same command goes on.")

    network.eval()
    with torch.no_grad():
        if args.sampled:
            parts = map(of_batch, load(held_out[: 10 * args.batch]))
            is_right = torch.cat([network(x, graph)[nodes].argmax(1) == y[nodes] for x, graph, _, nodes, y in parts])
        else:
            is_right = (network(x, pattern).argmax(1) == y)[held_out]
    losses, rates, _ = zip(*history, strict=True)
    print(f"Loss of the last step: {losses[-1]!r}")
    details = {"million_edges_per_second": sum(rates) / len(rates) / 1e6, "peak_GiB": resident()[1] / 2**30}
    model = "sampled, features on disk" if args.sampled else "whole graph"
    accuracy = 100 * is_right.double().mean().item()
    report(f"{args.edges:,} edges", model, "accuracy", [accuracy], record=args.record, **details)
    title = f"{args.nodes:,} nodes, {args.edges:,} edges, {model}: {accuracy:.1f} % of the held-out nodes are right"
    draw(history, resumed, title, args.output / f"{name}.png")
    checkpoint.unlink(missing_ok=True)
    print(f"Picture: {args.output / f'{name}.png'}")


if __name__ == "__main__":
    main()

"""PyG's layers that attend against the same ones accelerated, and linear attention against a product of matrices.

    python benchmarks/attending.py

Writes results/attending.json and results/attending.md. docs/reference/attending.md lists all layers that attend.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from gather import machine_and_gather
from harness import Line, in_ms, race, ratio, write
from systems import random_edges
from torch import Tensor
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
    HypergraphConv,
    PointTransformerConv,
    ResGatedGraphConv,
    SuperGATConv,
    TransformerConv,
    aggr,
)
from torch_geometric.nn.models.attentive_fp import GATEConv

from graphattn import Edges, Full, accelerate, attention
from graphattn.memory import format_bytes, peak_memory

NODES, EDGES, WIDTH = 100_000, 1_000_000, 64


class Case(NamedTuple):
    """What is timed: the name of PyG's layer, what it does, its least and intended speedup and part of the memory."""

    kind: str
    work: str
    layer: torch.nn.Module
    arguments: tuple
    speedup: tuple[float, float | None]
    memory: tuple[float, float] | None = None


class Gps(torch.nn.Module):
    """Three layers of GPSConv over GINEConv."""

    def __init__(self) -> None:
        super().__init__()
        network = lambda: torch.nn.Sequential(
            torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH)
        )
        self.layers = torch.nn.ModuleList([GPSConv(WIDTH, GINEConv(network()), heads=4) for _ in range(3)])

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, edge_attr: Tensor) -> Tensor:
        """Rows of the last layer; the batch is new in each step, as those of a loader are."""
        batch = batch.clone()
        for layer in self.layers:
            x = layer(x, edge_index, batch, edge_attr=edge_attr)
        return x


def batch_of(sizes: list[int]) -> tuple[Tensor, ...]:
    """Features, edges, batch and features of edges: graphs of these sizes with two edges per node."""
    starts = torch.tensor([0, *sizes]).cumsum(0)
    edges = [torch.randint(n, (2, 2 * n)) + start for n, start in zip(sizes, starts[:-1], strict=True)]
    edge_index = torch.cat(edges, 1)
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return torch.randn(len(batch), WIDTH), edge_index, batch, torch.randn(edge_index.size(1), WIDTH)


def cases() -> list[Case]:
    """Every layer; those that other benchmarks time are here once more, in the same setting."""
    x, edges, of_edges = (
        torch.randn(NODES, WIDTH, requires_grad=True),
        random_edges(NODES, EDGES),
        torch.randn(EDGES, 16),
    )
    points, neighbors = 20_000, 16
    near = torch.stack(
        [torch.randint(points, (points * neighbors,)), torch.arange(points).repeat_interleave(neighbors)]
    )
    of_points = (torch.randn(points, WIDTH, requires_grad=True), torch.randn(points, 3), near)
    hyperedges = torch.stack([edges[0], torch.arange(20_000).repeat_interleave(50)])
    index = torch.randint(10_000, (EDGES,)).sort().values
    items = torch.randn(EDGES, 32, requires_grad=True)
    size = "100k nodes, 1M edges, 64 channels"
    batched = batch_of(torch.randint(50, 2001, (16,)).tolist())
    molecules = torch.randint(10, 41, (128,)).tolist()
    return [
        Case("GENConv", size, GENConv(WIDTH, WIDTH, norm="layer"), (x, edges), (6, 12), (0.25, 1 / 6)),
        Case(
            "GENConv",
            f"{size}, features of edges",
            GENConv(WIDTH, WIDTH, edge_dim=16, norm="layer"),
            (x, edges, of_edges),
            (1, None),
        ),
        Case(
            "PointTransformerConv",
            "20k points, 16 neighbors, 64 channels",
            PointTransformerConv(WIDTH, WIDTH),
            of_points,
            (3, 6),
        ),
        Case("ResGatedGraphConv", size, ResGatedGraphConv(WIDTH, WIDTH), (x, edges), (6, 12)),
        Case("AGNNConv", size, AGNNConv(), (x, edges), (6, 15)),
        # In evaluation: what it samples in training takes PyG's time in both.
        Case("SuperGATConv", f"{size}, MX", SuperGATConv(WIDTH, 16, heads=4).eval(), (x, edges), (6, 15)),
        Case("FAConv", size, FAConv(WIDTH), (x, x, edges), (6, 15)),
        Case("GATEConv", size, GATEConv(WIDTH, WIDTH, 16), (x, edges, of_edges), (6, 15)),
        Case("GeneralConv", size, GeneralConv(WIDTH, 16, heads=4, attention=True), (x, edges), (6, 15)),
        Case("GMMConv", f"{size}, 4 Gaussians", GMMConv(WIDTH, WIDTH, 3, 4), (x, edges, of_edges[:, :3]), (1, None)),
        Case(
            "HypergraphConv",
            "100k nodes in 20k hyperedges of 50 each, 4 heads of 16",
            HypergraphConv(WIDTH, 16, use_attention=True, heads=4),
            (x, hyperedges, None, torch.randn(20_000, WIDTH)),
            (1, None),
        ),
        Case("GATConv", size, GATConv(WIDTH, 16, heads=4), (x, edges), (6, 15)),
        Case("GATv2Conv", size, GATv2Conv(WIDTH, 16, heads=4), (x, edges), (6, 15)),
        Case("TransformerConv", size, TransformerConv(WIDTH, 16, heads=4), (x, edges), (6, 15)),
        Case("GPSConv", "128 molecules of 10 to 40 atoms, 3 layers of 4 heads", Gps(), batch_of(molecules), (1.3, 2)),
        Case(
            "GPSConv",
            "16 graphs of 50 to 2,000 nodes, 3 layers of 4 heads",
            Gps(),
            batched,
            (4, 10),
            (0.2, 0.1),
        ),
        Case(
            "SoftmaxAggregation",
            "1M nodes in 10k graphs, 32 channels",
            aggr.SoftmaxAggregation(learn=True),
            (items, index, None, 10_000),
            (3, 6),
        ),
        Case(
            "AttentionalAggregation",
            "1M nodes in 10k graphs, 32 channels",
            aggr.AttentionalAggregation(torch.nn.Linear(32, 1)),
            (items, index, None, 10_000),
            (3, 6),
        ),
        Case(
            "SetTransformerAggregation",
            "16 graphs of 50 to 2,000 nodes, 4 heads of 16",
            aggr.SetTransformerAggregation(WIDTH, heads=4),
            (batched[0], batched[2]),
            (3, 8),
        ),
        Case(
            "GraphMultisetTransformer",
            "16 graphs of 50 to 2,000 nodes, 4 heads of 16, 100 seeds",
            aggr.GraphMultisetTransformer(WIDTH, 100, heads=4),
            (batched[0], batched[2]),
            (3, 8),
        ),
        Case(
            "Set2Set",
            "1M nodes in 10k graphs, 32 channels, 3 steps",
            aggr.Set2Set(32, 3),
            (items, index, None, 10_000),
            (1, None),
        ),
    ]


def step(layer: torch.nn.Module, arguments: tuple) -> Callable[[], None]:
    """Forward and backward."""

    def run() -> None:
        layer.zero_grad()
        layer(*arguments).square().mean().backward()

    return run


def measure(case: Case) -> list[Line]:
    """Time of both, and peak memory where there is an aim."""
    ours = copy.deepcopy(case.layer)
    assert accelerate(ours).changed
    systems = {"PyG": step(case.layer, case.arguments), "graphattn": step(ours, case.arguments)}
    taken = race(systems, 6, 9)
    work = f"{case.kind}: {case.work}, forward and backward"
    detail = ", ".join(f"{name} {in_ms(seconds)}" for name, seconds in taken.items())
    lines = [Line(work, "PyG", "x", *case.speedup, ratio(taken, "PyG", "graphattn"), detail)]
    peaks = {name: peak_memory(run) for name, run in systems.items()}
    part = peaks["graphattn"] / peaks["PyG"]
    detail = ", ".join(f"{name} {format_bytes(peak)}" for name, peak in peaks.items())
    aims = case.memory or (1, None)
    lines.append(Line(f"{work}, peak memory", "PyG", "x", *aims, part, detail, more_is_better=False))
    return lines


def linear() -> Line:
    """Linear attention against products of as many FLOP, of matrices as narrow: one forward, two backward."""
    nodes, heads, width = 100_000, 4, 32
    query, key, value = (torch.randn(nodes, heads, width, requires_grad=True) for _ in range(3))
    rows = torch.randn(nodes, heads * width, requires_grad=True)
    matrix = torch.randn(heads * width, 2 * width, requires_grad=True)
    pattern, grad, like = Full(nodes), torch.randn(nodes, heads, width), torch.randn(nodes, 2 * width)
    attend = lambda: attention(query, key, value, pattern, normalizer="identity", backend="linear")
    systems = {
        "product": lambda: torch.autograd.grad(rows @ matrix, (rows, matrix), like),
        "linear": lambda: torch.autograd.grad(attend(), (query, key, value), grad),
    }
    taken = race(systems)
    flop = 12 * nodes * heads * width * width
    detail = ", ".join(f"{name} {in_ms(seconds)}" for name, seconds in taken.items())
    detail += f"; {flop / statistics.median(taken['linear']) / 1e9:.3g} GFLOP/s"
    work = "linear attention, 100k nodes, 4 heads of 32, forward and backward"
    return Line(work, "products of matrices", "%", 60, 85, 100 * ratio(taken, "product", "linear"), detail)


def channels() -> list[Line]:
    """Heads of one number against as many numbers in heads of 32, each call by its numbers."""
    nodes, edges = 5_000, 50_000
    pattern = Edges(random_edges(nodes, edges), nodes)
    systems = {}
    for heads, width in ((4, 32), (128, 1), (512, 1)):
        rows = [torch.randn(nodes, heads, width, requires_grad=True) for _ in range(3)]
        grad = torch.randn(nodes, heads, width)
        systems[heads * width, f"{heads} heads of {width}"] = lambda rows=rows, grad=grad: torch.autograd.grad(
            attention(*rows, pattern, backend="numba"), rows, grad
        )
    (numbers, reference), *others = systems
    taken = race({name: run for (_, name), run in systems.items()})
    lines = []
    for count, name in others:
        each = {which: 1e9 * statistics.median(taken[which]) / edges for which in (reference, name)}
        detail = f"{reference} {each[reference] / numbers:.3g} ns, {name} {each[name] / count:.3g} ns"
        work = f"softmax, {name}: 5,000 nodes, 50,000 edges, forward and backward, per edge and number"
        measured = ratio(taken, reference, name) * count / numbers
        lines.append(Line(work, reference, "x", 1, None, measured, detail))
    return lines


def main() -> None:
    """Measure all cases."""
    torch.manual_seed(0)
    about, lines = machine_and_gather(), [linear(), *channels()]
    for case in cases():
        lines += measure(case)
        print(lines[-2].work, f"{lines[-2].measured:.3g}x", lines[-2].detail, flush=True)
    print(write("attending", "Layers that attend, accelerated", about, lines, {}))


if __name__ == "__main__":
    main()

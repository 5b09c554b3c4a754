"""Attention over several relations: PyG's layers against the same ones accelerated.

    python benchmarks/relations.py [HeteroConv]

Writes results/relations.json and results/relations.md; given a word, prints the lines of the cases with this word, and
writes nothing. PyG's HGTConv over 140 relations takes minutes, and runs once.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from gather import machine_and_gather
from harness import Line, in_ms, race, ratio, write
from systems import random_edges
from torch import Tensor
from torch_geometric.nn import (
    GATConv,
    GATv2Conv,
    HANConv,
    HeteroConv,
    HGTConv,
    MessagePassing,
    RGATConv,
    TransformerConv,
    to_hetero,
)

import graphattn
from graphattn.memory import format_bytes, peak_memory

SIZES = {"a": 20_000, "b": 20_000, "c": 10_000}
SEVEN = [("a", "b"), ("b", "a"), ("a", "a"), ("c", "a"), ("a", "c"), ("b", "c"), ("c", "b")]
WIDTH, HEADS = 64, 4


class Case(NamedTuple):
    """What is timed: a layer and its arguments, the least and the intended speedup and part of the peak memory."""

    work: str
    layer: torch.nn.Module
    arguments: tuple
    speedup: tuple[float, float]
    memory: tuple[float, float] | None = None
    # Takes minutes.
    is_slow: bool = False
    # Against PyG's container of layers that are accelerated, each by itself.
    of_layers: tuple[float, float] | None = None


def hetero(pairs: list[tuple[str, str]], edges: int) -> tuple[tuple, tuple]:
    """Metadata of a random graph, and its features and edges."""
    relations = [(source, f"r{number}", target) for number, (source, target) in enumerate(pairs)]
    types = [name for name in SIZES if any(name in pair for pair in pairs)]
    x = {name: torch.randn(SIZES[name], WIDTH) for name in types}
    index = {
        name: torch.stack([torch.randint(SIZES[name[0]], (edges,)), torch.randint(SIZES[name[2]], (edges,))])
        for name in relations
    }
    return (types, relations), (x, index)


class Homogeneous(torch.nn.Module):
    """Two layers, for `to_hetero`."""

    def __init__(self, kind: type[torch.nn.Module], **options: int) -> None:
        super().__init__()
        self.first, self.second = kind(WIDTH, **options), kind(WIDTH, **options)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


class Layers(torch.nn.Module):
    """One layer after another, over the same edges."""

    def __init__(self, *layers: torch.nn.Module) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x: dict[str, Tensor], edges: dict[tuple, Tensor]) -> dict[str, Tensor]:
        """Features of each type."""
        for layer in self.layers:
            x = layer(x, edges)
        return x


def cases() -> list[Case]:
    """All of them, drawn anew."""
    torch.manual_seed(0)
    nodes, edges, relations = 20_000, 400_000, 8
    typed = (torch.randn(nodes, WIDTH), random_edges(nodes, edges), torch.randint(relations, (edges,)))
    rgat = RGATConv(WIDTH, WIDTH // HEADS, relations, heads=HEADS)
    metadata, graph = hetero(SEVEN, 600_000 // len(SEVEN))
    hgt = Layers(*(HGTConv(WIDTH, WIDTH, metadata, heads=HEADS) for _ in range(2)))
    one_head = dict(heads=HEADS, out_channels=WIDTH // HEADS)
    kinds = {
        kind.__name__: HeteroConv({name: kind(WIDTH, **one_head, **options) for name in metadata[1]})
        for kind, options in (
            (GATv2Conv, {"add_self_loops": False}),
            (GATConv, {"add_self_loops": False}),
            (TransformerConv, {}),
        )
    }
    shared = to_hetero(Homogeneous(TransformerConv, **one_head), metadata)
    batch = {name: x[:200] for name, x in graph[0].items()}, {name: x[:, :300] % 200 for name, x in graph[1].items()}
    names = list(SIZES)
    many, large = hetero([(names[i % 3], names[i // 3 % 3]) for i in range(140)], 5000)
    paths, twice = hetero([("a", "a")] * 2, 500_000)
    size = "3 types of 50k nodes, 7 relations, 600k edges"
    return [
        Case(
            "RGAT, additive: 20k nodes, 400k edges, 8 relations, 4 heads of 16", rgat, typed, (15, 40), (1 / 20, 1 / 50)
        ),
        Case(f"HGT, 2 layers, 4 heads of 16: {size}", hgt, graph, (5, 10), (1 / 4, 1 / 8)),
        *(
            Case(f"HeteroConv of 7 {name}, 4 heads of 16: {where}", layer, data, (5, 10), of_layers=(1.5, 2))
            for name, layer in kinds.items()
            for where, data in ((size, graph), ("3 types of 600 nodes, 7 relations, 2,100 edges", batch))
        ),
        Case(
            "to_hetero of 2 TransformerConv, 4 heads of 16: 3 types of 600 nodes, 7 relations, 2,100 edges",
            shared,
            batch,
            (5, 10),
            of_layers=(1.5, 2),
        ),
        Case(
            "HAN, 4 heads of 16: two meta-paths of 500k edges",
            HANConv(WIDTH, WIDTH, paths, heads=HEADS),
            twice,
            (5, 10),
        ),
        Case(
            "HGT, 4 heads of 16: 140 relations of 5,000 edges",
            HGTConv(WIDTH, WIDTH, many, heads=HEADS),
            large,
            (8, 20),
            is_slow=True,
        ),
    ]


def step(layer: torch.nn.Module, arguments: tuple) -> Callable[[], None]:
    """Forward and backward."""

    def run() -> None:
        layer.zero_grad()
        out = layer(*arguments)
        sum(x.sum() for x in (out.values() if isinstance(out, dict) else [out]) if x is not None).backward()

    return run


def measure(case: Case) -> list[Line]:
    """Time of both, and peak memory where there is an aim."""
    ours = copy.deepcopy(case.layer)
    graphattn.accelerate(ours)
    systems = {"PyG": step(case.layer, case.arguments), "graphattn": step(ours, case.arguments)}
    if case.of_layers is not None:
        each = copy.deepcopy(case.layer)
        for layer in each.modules():
            if isinstance(layer, MessagePassing):
                graphattn.accelerate(layer)
        systems["each layer"] = step(each, case.arguments)
    work = f"{case.work}, forward and backward"
    if case.is_slow:
        start = time.perf_counter()
        systems["PyG"]()
        theirs = time.perf_counter() - start
        taken = {"PyG": [theirs], **race({"graphattn": systems["graphattn"]}, 10)}
        speedup = theirs / statistics.median(taken["graphattn"])
    else:
        taken = race(systems, 15)
        speedup = ratio(taken, "PyG", "graphattn")
    detail = ", ".join(f"{name} {in_ms(seconds)}" for name, seconds in taken.items())
    lines = [Line(work, "PyG", "x", *case.speedup, speedup, detail)]
    if case.of_layers is not None:
        speedup = ratio(taken, "each layer", "graphattn")
        lines.append(Line(work, "PyG, each layer accelerated", "x", *case.of_layers, speedup, detail))
    if case.memory is not None:
        peaks = {name: peak_memory(run) for name, run in systems.items()}
        part = peaks["graphattn"] / peaks["PyG"]
        detail = ", ".join(f"{name} {format_bytes(peak)}" for name, peak in peaks.items())
        lines.append(Line(f"{work}, peak memory", "PyG", "x", *case.memory, part, detail, more_is_better=False))
    return lines


def main() -> None:
    """Measure all cases."""
    word = sys.argv[1] if len(sys.argv) > 1 else None
    about, lines = {} if word else machine_and_gather(), []
    for case in cases():
        if word is None or word in case.work:
            lines += measure(case)
            print(lines[-1].work, lines[-1].detail, flush=True)
    if word is not None:
        print("\n".join(line.row() for line in lines))
        return
    print(write("relations", "Several relations, accelerated", about, lines, {}))


if __name__ == "__main__":
    main()

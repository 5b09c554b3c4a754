"""Scores of one's own, traced and fused: against plain torch on the same call, and against the built-in dot product.

    python benchmarks/own_scores.py

Writes results/own_scores.json, results/own_scores.md and results/own_scores.png.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from gather import machine_and_gather
from harness import RESULTS, Line, in_ms, race, ratio, write
from systems import random_edges
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from graphattn import Additive, DotProduct, Edges, attention
from graphattn.memory import format_bytes, peak_memory

NODES, EDGES, HEADS, WIDTH = 100_000, 1_000_000, 4, 32


def gaussian(query_i: Tensor, key_j: Tensor, edge_key: Tensor | None) -> Tensor:
    """Minus the squared distance."""
    return -(query_i - key_j).square().sum(-1)


def cosine(query_i: Tensor, key_j: Tensor, edge_key: Tensor | None) -> Tensor:
    """The cosine of the angle between both."""
    return F.cosine_similarity(query_i, key_j, dim=-1)


class SuperGAT(torch.nn.Module):
    """The mixed score of Kim and Oh, 2021: an additive one, times the sigmoid of the product."""

    def __init__(self) -> None:
        super().__init__()
        self.of_target = torch.nn.Parameter(torch.randn(HEADS, WIDTH) / WIDTH)
        self.of_source = torch.nn.Parameter(torch.randn(HEADS, WIDTH) / WIDTH)

    def forward(self, query_i: Tensor, key_j: Tensor, edge_key: Tensor | None) -> Tensor:
        """Score edges."""
        ends = (query_i * self.of_target).sum(-1) + (key_j * self.of_source).sum(-1)
        return F.leaky_relu(ends * (query_i * key_j).sum(-1).sigmoid(), 0.2)


def gated(query_i: Tensor, key_j: Tensor, edge_key: Tensor | None) -> Tensor:
    """A dot product whose terms the edge weighs."""
    return (query_i * key_j * edge_key.sigmoid()).sum(-1)


class LearnedWidth(torch.nn.Module):
    """A Gaussian with a width per head."""

    def __init__(self) -> None:
        super().__init__()
        self.width = torch.nn.Parameter(torch.ones(HEADS))

    def forward(self, query_i: Tensor, key_j: Tensor, edge_key: Tensor | None) -> Tensor:
        """Score edges."""
        return -(query_i - key_j).square().sum(-1) * self.width


class AdditiveScore(torch.nn.Module):
    """What `Additive` computes, written as a function."""

    def __init__(self, vector: Tensor, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.vector, self.activation = torch.nn.Parameter(vector.clone()), activation

    def forward(self, query_i: Tensor, key_j: Tensor, edge_key: Tensor | None) -> Tensor:
        """Score edges."""
        return (self.activation(query_i + key_j) * self.vector).sum(-1)


def leaky(x: Tensor) -> Tensor:
    """As in `Additive(vector, "leaky_relu")`."""
    return F.leaky_relu(x, 0.2)


class Case(NamedTuple):
    """A score, and whether it reads a tensor of edges."""

    score: object
    has_edges: bool = False


CASES = {
    "Gaussian": Case(gaussian),
    "cosine": Case(cosine),
    "SuperGAT's mixed score": Case(SuperGAT()),
    "learned width": Case(LearnedWidth()),
    "gate over edge_key [E, H, D]": Case(gated, has_edges=True),
}


class Graph:
    """A random graph, and calls of attention on it, forward and backward."""

    def __init__(self, nodes: int = NODES, edges: int = EDGES, heads: int = HEADS, width: int = WIDTH) -> None:
        torch.manual_seed(0)
        self.pattern = Edges(random_edges(nodes, edges), nodes)
        self.rows = [torch.randn(nodes, heads, width, requires_grad=True) for _ in range(3)]
        self.of_edges = torch.randn(edges, heads, width, requires_grad=True)
        self.grad = torch.randn(nodes, heads, width)

    def step(self, score: object, has_edges: bool, backend: str) -> Callable[[], object]:
        """Output and all gradients."""
        own = list(score.parameters()) if isinstance(score, torch.nn.Module) else []
        own += [score.vector] if isinstance(score, Additive) else []
        leaves = [*self.rows, *([self.of_edges] if has_edges else []), *own]
        options = dict(score=score, edge_key=self.of_edges if has_edges else None, backend=backend)
        return lambda: torch.autograd.grad(attention(*self.rows, self.pattern, **options), leaves, self.grad)


def speeds(graph: Graph) -> tuple[list[Line], dict[str, dict[str, float]]]:
    """Each score against scatter, and against the dot product."""
    size = "100k nodes, 1M edges, H4 D32, forward and backward"
    lines, found = [], {}
    for name, (score, has_edges) in CASES.items():
        systems = {
            "scatter": graph.step(score, has_edges, "scatter"),
            "fused": graph.step(score, has_edges, "numba"),
            "dot product": graph.step(DotProduct(), has_edges, "numba"),
        }
        taken = race(systems, 25)
        found[name] = {system: statistics.median(seconds) for system, seconds in taken.items()}
        detail = ", ".join(f"{system} {in_ms(seconds)}" for system, seconds in taken.items())
        lines.append(Line(f"{name}: {size}", "scatter", "x", 8, 20, ratio(taken, "scatter", "fused"), detail))
        against = "the dot product with the same edge_key" if has_edges else "the dot product"
        part = ratio(taken, "fused", "dot product")
        lines.append(Line(f"{name}: {size}", against, "x", 2, 1.3, part, detail, more_is_better=False))
    return lines, found


def additive(large: Graph) -> list[Line]:
    """Additive scores written as functions, against the built-in ones."""
    lines = []
    for size, graph in (
        ("100k nodes, 1M edges, H4 D32", large),
        ("100k nodes, 1M edges, H8 D1, as in GAT", Graph(heads=8, width=1)),
        ("2,708 nodes, 13,264 edges, H8 D8", Graph(2708, 13_264, 8, 8)),
        ("30 nodes, 60 edges, H4 D16", Graph(30, 60, 4, 16)),
    ):
        vector = torch.randn(graph.grad.shape[1:])
        for name, activation in (("tanh", torch.tanh), ("leaky_relu", leaky)):
            systems = {
                "written as a function": graph.step(AdditiveScore(vector, activation), False, "numba"),
                "Additive": graph.step(Additive(vector.clone().requires_grad_(), name), False, "numba"),
            }
            taken = race(systems, 12)
            detail = ", ".join(f"{system} {in_ms(seconds)}" for system, seconds in taken.items())
            part = ratio(taken, "written as a function", "Additive")
            work = f"additive score with {name}: {size}, forward and backward"
            lines.append(Line(work, "Additive", "x", 1.05, 1, part, detail, more_is_better=False))
    return lines


def memory(graph: Graph) -> Line:
    """Peak memory of the Gaussian beyond its inputs, against what it returns."""
    returned = sum(x.nbytes for x in graph.rows) + graph.grad.nbytes
    peaks = {system: peak_memory(graph.step(gaussian, False, system)) for system in ("numba", "scatter")}
    sizes = {"fused": peaks["numba"], "scatter": peaks["scatter"], "output and gradients": returned}
    sizes["one tensor [E, H, D]"] = graph.of_edges.nbytes
    detail = ", ".join(f"{name} {format_bytes(size)}" for name, size in sizes.items())
    part = peaks["numba"] / returned
    work = "Gaussian: peak memory of forward and backward"
    return Line(work, "output and gradients", "x", 1.5, 1.2, part, detail, more_is_better=False)


FIRST = """
import time, torch
from graphattn import Edges, attention
edges = Edges(torch.randint(1000, (2, 20_000)), 1000)
x = [torch.randn(1000, 4, 32, requires_grad=True) for _ in range(3)]
bias = torch.randn(20_000, 4, requires_grad=True)
attention(*x, edges, edge_bias=bias, backend="numba").sum().backward()
begin = time.perf_counter()
score = lambda query_i, key_j, edge_key: -(query_i - key_j).square().sum(-1)
attention(*x, edges, score=score, backend="numba").sum().backward()
print(time.perf_counter() - begin)
"""


def first_calls() -> list[Line]:
    """The first call of a new score, forward and backward, and the same in the next process."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        command = [sys.executable, "-c", FIRST]
        taken = [
            float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
            for _ in range(2)
        ]
    return [
        Line(f"first call of a new score{where}, forward and backward", "", "s", limit, aim, seconds, "", False)
        for where, limit, aim, seconds in zip(("", ", next process"), (15, 2), (6, 0.5), taken, strict=True)
    ]


def overhead() -> Line:
    """What a call on ten nodes takes longer than with a built-in score."""
    pattern = Edges(torch.randint(10, (2, 30)), 10)
    x = torch.randn(10, HEADS, 8)
    taken = race(
        {
            "Gaussian": lambda: attention(x, x, x, pattern, score=gaussian, backend="numba"),
            "dot product": lambda: attention(x, x, x, pattern, backend="numba"),
        },
        5,
    )
    more = statistics.median(a - b for a, b in zip(taken["Gaussian"], taken["dot product"], strict=True)) * 1e6
    detail = ", ".join(f"{system} {in_ms(seconds)}" for system, seconds in taken.items())
    work = "10 nodes, forward: time beyond a built-in score's"
    return Line(work, "", "us", 20, 5, more, detail, more_is_better=False)


def flex() -> Line:
    """The Gaussian under FlexAttention, whose score_mod sees the dot product alone: its norms are captured."""
    nodes, edges = 20_000, 400_000
    pattern = Edges(random_edges(nodes, edges), nodes)
    query, key, value = torch.randn(3, nodes, HEADS, WIDTH).unbind()
    source, target = pattern.edge_index
    is_edge = torch.zeros(nodes, nodes, dtype=torch.bool)
    is_edge[target, source] = True
    of_query, of_key = (x.square().sum(-1).T.contiguous() for x in (query, key))
    score_mod = lambda score, b, h, i, j: 2 * score - of_query[h, i] - of_key[h, j]
    mask = create_block_mask(lambda b, h, i, j: is_edge[i, j], None, None, nodes, nodes, device="cpu")
    compiled, rows = torch.compile(flex_attention), [x.transpose(0, 1)[None] for x in (query, key, value)]
    systems = {
        "FlexAttention": lambda: compiled(*rows, score_mod=score_mod, block_mask=mask, scale=1.0),
        "fused": lambda: attention(query, key, value, pattern, score=gaussian, backend="numba"),
    }
    with torch.no_grad():
        theirs, ours = systems["FlexAttention"]()[0].transpose(0, 1), systems["fused"]()
        # An edge that is there twice counts once in a mask.
        is_same = (theirs - ours).abs().amax((1, 2)) < 1e-3
        assert is_same.float().mean() > 0.95, "the results differ"
        taken = race(systems, 30)
    detail = ", ".join(f"{system} {in_ms(seconds)}" for system, seconds in taken.items())
    work = "Gaussian: 20k nodes, 400k edges, H4 D32, forward"
    return Line(work, "FlexAttention with a mask of the edges", "x", 1, None, ratio(taken, *systems), detail)


def picture(found: dict[str, dict[str, float]]) -> None:
    """Milliseconds of each score by system."""
    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    colors = {"scatter": "tab:gray", "fused": "tab:blue", "dot product": "tab:green"}
    for shift, (system, color) in enumerate(colors.items()):
        at = [i + (shift - 1) * 0.27 for i in range(len(found))]
        bars = axes.barh(at, [seconds[system] * 1e3 for seconds in found.values()], 0.25, color=color, label=system)
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set_xlabel("ms, forward and backward: 100k nodes, 1M edges, H4 D32")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.margins(x=0.1)
    figure.savefig(RESULTS / "own_scores.png", dpi=150)
    plt.close(figure)


def main() -> None:
    """Measure all scores."""
    matplotlib.use("Agg")
    about, graph = machine_and_gather(), Graph()
    lines, found = speeds(graph)
    lines += [*additive(graph), memory(graph), flex(), *first_calls(), overhead()]
    print(write("own_scores", "Scores of one's own", about, lines, {}))
    picture(found)


if __name__ == "__main__":
    main()

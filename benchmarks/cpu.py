"""Targets of the fused CPU kernel, line by line, and time and memory from a thousand to a hundred million edges.

    make bench

Writes results/cpu.json, results/cpu.md and results/cpu.png; takes about seven minutes on two cores.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import torch
from gather import gather_loop
from harness import RESULTS, Line, in_ms, machine, race, ratio, write
from systems import (
    compiled_pyg_attention,
    gat_pair,
    gatv2_pair,
    orderings,
    ours,
    power_law_edges,
    pyg_attention,
    random_edges,
    with_backward,
    without_gradients,
)
from torch import Tensor

from graphattn import Edges
from graphattn.memory import format_bytes

SMALL, LARGE, CORA, NARROW = (
    (20_000, 400_000, 4, 32),
    (100_000, 1_000_000, 4, 32),
    (2_708, 13_264, 8, 8),
    (100_000, 1_000_000, 8, 8),
)
DECADES = [10**k for k in range(3, 9)]
# Edges per node, heads and width of the pictures.
DEGREE, HEADS, WIDTH = 50, 4, 16
# Limits of a system in the pictures: larger sizes aren't tried.
ROOM, PATIENCE = 12e9, 60
COLORS = {"PyG": "tab:red", "PyG, compiled": "tab:orange", "graphattn": "tab:blue"}


def say(nodes: int, edges: int, heads: int, width: int) -> str:
    """Name a size."""
    short = lambda n: f"{n // 1_000_000}M" if n >= 1_000_000 else f"{n // 1000}k" if n % 1000 == 0 else f"{n:,}"
    return f"{short(nodes)} nodes, {short(edges)} edges, H{heads} D{width}"


def draw(nodes: int, edges: int, heads: int, width: int) -> tuple[Tensor, Edges, list[Tensor]]:
    """Edges, their pattern, and query, key and value."""
    torch.manual_seed(0)
    edge_index = random_edges(nodes, edges)
    inputs = [torch.randn(nodes, heads, width, requires_grad=True) for _ in range(3)]
    return edge_index, Edges(edge_index, nodes), inputs


def line(work: str, against: str, taken: dict, slow: str, fast: str, at_least: float, aim: float | None) -> Line:
    """How many times as fast one system is as another."""
    detail = f"{slow} {in_ms(taken[slow])}, {fast} {in_ms(taken[fast])}"
    return Line(work, against, "x", at_least, aim, ratio(taken, slow, fast), detail)


def against_pyg(size: tuple, wanted: dict[str, tuple[float, float]]) -> list[Line]:
    """Forward, and forward with backward, against PyG's formulation on its best ordering of the edges."""
    edge_index, pattern, inputs = draw(*size)
    orders = orderings(edge_index)
    tried = race({name: without_gradients(lambda e=e: pyg_attention(*inputs, e)) for name, e in orders.items()}, 4, 3)
    best = min(orders, key=lambda name: statistics.median(tried[name]))
    torch.testing.assert_close(ours(*inputs, pattern), pyg_attention(*inputs, edge_index), rtol=1e-3, atol=1e-4)
    sides = {"PyG": lambda: pyg_attention(*inputs, orders[best]), "graphattn": lambda: ours(*inputs, pattern)}
    lines = []
    for what, (at_least, aim) in wanted.items():
        wrap = without_gradients if what == "forward" else lambda side: with_backward(side, inputs)
        taken = race({name: wrap(side) for name, side in sides.items()})
        lines.append(line(f"{say(*size)}: {what}", f"PyG, edges {best}", taken, "PyG", "graphattn", at_least, aim))
    return lines


def against_compiled() -> list[Line]:
    """Against PyG's formulation under torch.compile."""
    edge_index, pattern, inputs = draw(*SMALL)
    theirs = compiled_pyg_attention()
    sides = {"compiled": lambda: theirs(*inputs, edge_index), "graphattn": lambda: ours(*inputs, pattern)}
    forward = race({name: without_gradients(side) for name, side in sides.items()})
    both = race({name: with_backward(side, inputs) for name, side in sides.items()})
    against = "PyG under torch.compile"
    return [
        line(f"{say(*SMALL)}: forward", against, forward, "compiled", "graphattn", 4, 6),
        line(f"{say(*SMALL)}: forward + backward", against, both, "compiled", "graphattn", 5, 8),
    ]


def against_layers() -> list[Line]:
    """GAT's and GATv2's scores against the message paths of PyG's layers."""
    nodes, edges, heads, width = NARROW
    edge_index = random_edges(nodes, edges)
    lines = []
    for name, pair, wanted in (("GATConv", gat_pair, (12, 20)), ("GATv2Conv", gatv2_pair, (16, 25))):
        inputs, theirs, mine = pair(nodes, heads, width, edge_index)
        torch.testing.assert_close(theirs().view(nodes, heads, width), mine(), rtol=1e-3, atol=1e-4)
        taken = race({"PyG": with_backward(theirs, inputs), "graphattn": with_backward(mine, inputs)})
        work = f"{say(*NARROW)}: {name.removesuffix('Conv')}, forward + backward"
        lines.append(line(work, f"PyG {name}'s message path", taken, "PyG", "graphattn", *wanted))
    return lines


def against_the_gather() -> tuple[list[Line], float]:
    """Against a loop that only gathers and sums the same rows; and the bytes it gathers per second."""
    lines, bandwidth = [], 0.0
    for size, at_least, aim in ((LARGE, 75, 95), (NARROW, 30, 45)):
        _, pattern, inputs = draw(*size)
        forward = without_gradients(functools.partial(ours, *inputs, pattern))
        taken = race({"gather": gather_loop(inputs[1], inputs[2], pattern), "graphattn": forward}, 4, 15)
        found = line(
            f"{say(*size)}: forward", "a loop that only gathers the rows", taken, "gather", "graphattn", at_least, aim
        )
        found.unit, found.measured = "%", 100 * found.measured
        lines.append(found)
        if size == LARGE:
            bandwidth = 2 * size[1] * size[2] * size[3] * 4 / statistics.median(taken["gather"])
    return lines, bandwidth


def skew() -> Line:
    """A graph whose hub has more than 50,000 edges each way, against a uniform one."""
    nodes, edges, *_ = LARGE
    _, pattern, inputs = draw(*LARGE)
    edge_index = power_law_edges(nodes, edges, 50_000)
    degree = min(int(row.bincount().max()) for row in edge_index)
    skewed = Edges(edge_index, nodes)
    sides = {"uniform": pattern, "power law": skewed}
    taken = race({name: with_backward(lambda p=p: ours(*inputs, p), inputs) for name, p in sides.items()})
    found = line(
        f"{say(*LARGE)}, power law, hub of {degree:,} edges: forward + backward",
        "a uniform graph",
        taken,
        "power law",
        "uniform",
        1.3,
        1.1,
    )
    found.more_is_better = False
    return found


def threads() -> Line:
    """The gain of a second thread, against its gain for the bare gather."""
    _, pattern, inputs = draw(*LARGE)
    loop = gather_loop(inputs[1], inputs[2], pattern)
    forward = without_gradients(lambda: ours(*inputs, pattern))

    def on(count: int, function):
        def run() -> None:
            torch.set_num_threads(count)
            function()

        return run

    before = torch.get_num_threads()
    taken = race(
        {"gather 1": on(1, loop), "gather 2": on(2, loop), "ours 1": on(1, forward), "ours 2": on(2, forward)}, 15
    )
    torch.set_num_threads(before)
    gain, bare = ratio(taken, "ours 1", "ours 2"), ratio(taken, "gather 1", "gather 2")
    detail = f"gains {gain:.2f}x (gather {bare:.2f}x)"
    return Line(
        f"{say(*LARGE)}: forward, 2 threads",
        "1 thread, as a part of the gather's gain",
        "x",
        0.95,
        None,
        gain / bare,
        detail,
    )


def backward() -> list[Line]:
    """The backward against the forward."""
    lines = []
    for size in (SMALL, LARGE, NARROW, CORA):
        _, pattern, inputs = draw(*size)
        side = lambda inputs=inputs, pattern=pattern: ours(*inputs, pattern)
        taken = race({"forward": without_gradients(side), "both": with_backward(side, inputs)}, 4, 15)
        measured = statistics.median((b - f) / f for f, b in zip(taken["forward"], taken["both"], strict=True))
        detail = f"forward {in_ms(taken['forward'])}, with backward {in_ms(taken['both'])}"
        # The backward pass reads twice the rows of the forward pass: source and target sides.
        lines.append(Line(f"{say(*size)}: backward", "forward", "x", 2.4, 2, measured, detail, more_is_better=False))
    return lines


def halves() -> Line:
    """Forward in bfloat16 against float32."""
    _, pattern, inputs = draw(*LARGE)
    half = [x.detach().bfloat16() for x in inputs]
    sides = {"float32": lambda: ours(*inputs, pattern), "bfloat16": lambda: ours(*half, pattern)}
    taken = race({name: without_gradients(side) for name, side in sides.items()}, 4, 15)
    return line(f"{say(*LARGE)}: forward in bfloat16", "float32", taken, "float32", "bfloat16", 1.25, 1.5)


def first_calls() -> list[Line]:
    """Seconds of the first call of a process: with nothing compiled, and with compiled code on disk."""
    command = [sys.executable, str(Path(__file__).with_name("first_call.py"))]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        run = lambda: subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        cold, warm = float(run()), float(run())
    work = "first forward + backward of a process (dot product, softmax, float32)"
    return [
        Line(work, "nothing compiled before", "s", 15, None, cold, "", more_is_better=False),
        Line(work, "compiled by another process", "s", 1, None, warm, "", more_is_better=False),
    ]


def child(
    system: str, edges: int, nodes: int, heads: int = HEADS, width: int = WIDTH, limit: float = 120
) -> dict | None:
    """Run scaling.py; None where memory or time ran out."""
    command = [sys.executable, str(Path(__file__).with_name("scaling.py")), system, str(edges)]
    command += ["--nodes", str(nodes), "--heads", str(heads), "--width", str(width)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return None
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def large() -> tuple[list[Line], dict | None]:
    """Memory at 20 and at 100 million edges."""
    found = child("numba", 20_000_000, 1_000_000, 4, 32)
    work, against = "20M edges, 1M nodes, H4 D32: forward + backward", "inputs + outputs + gradients + CSR/CSC"
    measured, detail = None, "did not finish"
    if found is not None:
        measured = found["resident bytes"] / found["bytes of tensors"]
        resident, asked = (format_bytes(found[name]) for name in ("resident bytes", "bytes of tensors"))
        detail = f"{resident} of {asked}, {found['seconds']:.2f} s"
    lines = [Line(work, against, "x", 1.3, 1.1, measured, detail, more_is_better=False)]
    most = child("numba", 100_000_000, 2_000_000, limit=240)
    detail, measured = "did not finish", None
    if most is not None:
        measured, detail = most["resident bytes"] / 2**30, f"{most['seconds']:.1f} s"
    work = "100M edges, 2M nodes, H4 D16: forward + backward"
    lines.append(Line(work, "peak of resident memory", "GiB", 20, None, measured, detail, more_is_better=False))
    return lines, most


def scaling(most: dict | None) -> list[dict]:
    """All systems over all sizes; a system that did not finish one size isn't tried at the next."""
    found = [] if most is None else [most]
    for system in ("numba", "pyg", "compiled"):
        for edges in DECADES:
            if system == "numba" and edges == DECADES[-1]:
                continue
            # Ten times as many edges take more than ten times the time and memory.
            last = next((x for x in found if x["system"] == system and x["edges"] * 10 == edges), None)
            too_much = last is None or 10 * last["peak bytes"] > ROOM or 10 * last["seconds"] > PATIENCE
            if edges > DECADES[0] and system != "numba" and too_much:
                break
            result = child(system, edges, edges // DEGREE)
            if result is None:
                break
            found.append(result)
    return found


def picture(found: list[dict], path: Path, threads: object) -> None:
    """Time and peak memory over the number of edges, one line per system, on logarithmic axes."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.9), layout="constrained")
    names = {"pyg": "PyG", "compiled": "PyG, compiled", "numba": "graphattn"}
    quantities = (("seconds", 1, "seconds"), ("peak bytes", 2**20, "peak memory beyond the inputs, MiB"))
    for axes, (key, unit, label) in zip(panels, quantities, strict=True):
        for system, name in names.items():
            points = sorted((x["edges"], x[key] / unit) for x in found if x["system"] == system)
            if points:
                axes.loglog(*zip(*points, strict=True), "o-", color=COLORS[name], label=name, markersize=4)
        axes.set(xlabel="edges", ylabel=label, xticks=DECADES)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    about = f"Forward + backward, {HEADS} heads of {WIDTH}, {DEGREE} edges per node, float32, {threads} threads.\n"
    about += f"A line ends where the next size would take more than {format_bytes(ROOM)} or {PATIENCE} s."
    figure.suptitle(about, fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Measure everything."""
    matplotlib.use("Agg")
    # A virtual machine backs its memory at the first touch, which must not count for any system.
    torch.ones(2**30)
    gathers, bandwidth = against_the_gather()
    about = machine(bandwidth)
    both = "forward + backward"
    lines = against_pyg(SMALL, {"forward": (14, 24), both: (14, 24)})
    lines += against_pyg(LARGE, {"forward": (11, 16), both: (11, 16)})
    lines += against_compiled()
    lines += against_pyg(CORA, {both: (12, 20)})
    lines += against_layers()
    lines += [*gathers, skew(), threads(), *backward(), halves(), *first_calls()]
    earlier = RESULTS / "dgl.json"
    if earlier.exists():
        lines += [Line(**fields) for fields in json.loads(earlier.read_text())["lines"]]
    sizes, most = large()
    lines += sizes
    found = scaling(most)
    print(write("cpu", "The fused CPU kernel", about, lines, {"scaling": found}))
    picture(found, RESULTS / "cpu.png", about["threads"])


if __name__ == "__main__":
    main()

"""The fused CPU kernel, and HGT on it, against DGL's, which needs an old torch and therefore a separate environment.

    make bench-dgl

Processes take turns: DGL's rounds, ours, DGL's, ours. Writes results/dgl.json, whose lines `make bench` copies.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import relations
import torch
from cpu import LARGE, SMALL, draw, say
from harness import RESULTS, Line, in_ms, race
from systems import ours, with_backward, without_gradients
from torch_geometric.nn import HGTConv

import graphattn

TURNS, ROUNDS = 3, 5
Runs = dict[str, Callable[[], object]]


class Case(NamedTuple):
    """What is timed: its name, the words of DGL's half, ours, and for each of ours the least and intended speedup."""

    work: str
    theirs: tuple[object, ...]
    ours: Runs
    wanted: tuple[tuple[float, float | None], ...]


def cases() -> list[Case]:
    """The operator at two sizes, and a layer of HGT."""
    found = []
    for size in (SMALL, LARGE):
        _, pattern, inputs = draw(*size)
        side = lambda inputs=inputs, pattern=pattern: ours(*inputs, pattern)
        runs: Runs = {"forward": without_gradients(side), "forward + backward": with_backward(side, inputs)}
        found.append(Case(say(*size), ("attention", ROUNDS, *size), runs, ((3, 4.5), (2.5, 4))))
    torch.manual_seed(0)
    edges, heads, pairs = 600_000, relations.HEADS, relations.SEVEN
    metadata, graph = relations.hetero(pairs, edges // len(pairs))
    layer = HGTConv(relations.WIDTH, relations.WIDTH, metadata, heads=heads)
    graphattn.accelerate(layer)
    nodes, kinds = sum(relations.SIZES.values()), (len(relations.SIZES), len(pairs))
    theirs = ("hgt", ROUNDS, nodes, edges, heads, relations.WIDTH // heads, *kinds)
    work = f"HGTConv, {kinds[0]} types of {nodes // 1000}k nodes, {kinds[1]} relations, {edges // 1000}k edges"
    runs = {"forward + backward": relations.step(layer, graph)}
    found.append(Case(f"{work}, {heads} heads of {relations.WIDTH // heads}", theirs, runs, ((1, None),)))
    return found


def main() -> None:
    """Measure both sides of all cases."""
    python = sys.argv[1]
    lines, versions = [], {}
    for case in cases():
        found: dict[str, list[tuple[float, float]]] = {what: [] for what in case.ours}
        for _ in range(TURNS):
            command = [python, str(Path(__file__).with_name("dgl_side.py")), *map(str, case.theirs)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            # The first import of DGL prints which backend it chose.
            theirs = json.loads(done.stdout.splitlines()[-1])
            versions = {name: theirs[name] for name in ("dgl", "torch", "threads")}
            mine = race(case.ours, 60, ROUNDS)
            for what in case.ours:
                found[what].append((statistics.median(theirs[what]), statistics.median(mine[what])))
        for what, (at_least, aim) in zip(case.ours, case.wanted, strict=True):
            measured = statistics.median(theirs / mine for theirs, mine in found[what])
            dgl, here = (in_ms(list(side)) for side in zip(*found[what], strict=True))
            against = f"DGL {versions['dgl']} (torch {versions['torch']})"
            detail = f"DGL {dgl}, graphattn {here}"
            lines.append(Line(f"{case.work}: {what}", against, "x", at_least, aim, measured, detail))
            print(lines[-1].row(), flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "dgl.json").write_text(
        json.dumps({"lines": [vars(line) for line in lines], **versions}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()

"""The gain of renumbering nodes: attention, forward and backward, with each order of `Pattern.reorder`.

    make bench

Real graphs are read from $GRAPHATTN_DATASETS/scale; missing ones are skipped, and the output says so.
Writes results/locality.json and results/locality.md.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from harness import RESULTS, in_ms, race, ratio, versions
from systems import ours, random_edges, with_backward
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import FaceToEdge

from graphattn import Edges
from graphattn.datasets.roots import dataset_root

HEADS, WIDTH = 4, 16
SCALE = dataset_root() / "scale"
# The given numbers and shuffled ones, which say nothing about the structure, come before the offered orders.
ORDERS = ("as given", "shuffled", "degree", "rcm", "metis")


def road() -> Tensor:
    """Streets of New York, sources above targets."""
    return torch.from_numpy(np.load(SCALE / "usa_road_ny.npz")["edge_index"]).long()


def mesh() -> Tensor:
    """Edges of the triangles of a surface."""
    file = np.load(SCALE / "mesh_igea.npz")
    face = torch.from_numpy(file["face"]).long()
    return FaceToEdge()(Data(face=face, num_nodes=len(file["pos"]))).edge_index


def enron() -> Tensor:
    """Senders and receivers of mails: degrees by a power law."""
    return torch.from_numpy(np.loadtxt(SCALE / "email-Enron.txt.gz", dtype=np.int64)).t().contiguous()


def communities() -> Tensor:
    """Groups of 128 nodes, numbered at random: four of five edges are within a group."""
    generator = torch.Generator().manual_seed(0)
    nodes, edges = 2**18, 2**22
    node = torch.randperm(nodes, generator=generator)
    target = torch.randint(nodes, (edges,), generator=generator)
    near = target // 128 * 128 + torch.randint(128, (edges,), generator=generator)
    is_near = torch.rand(edges, generator=generator) < 0.8
    source = torch.where(is_near, near, torch.randint(nodes, (edges,), generator=generator))
    return node[torch.stack([source, target])]


# Name of a graph, its file if there is one, and its edges.
GRAPHS: dict[str, tuple[str | None, Callable[[], Tensor]]] = {
    "road network": ("usa_road_ny.npz", road),
    "mesh": ("mesh_igea.npz", mesh),
    "Enron": ("email-Enron.txt.gz", enron),
    "communities": (None, communities),
    "random": (None, lambda: random_edges(200_000, 2_000_000)),
}


def measure(name: str, edge_index: Tensor, seconds: float) -> dict[str, object]:
    """Time of a step in each order, all in turns, and the time to compute the order."""
    given = Edges(edge_index)
    patterns, finding = {"as given": given}, {}
    for order in ORDERS[1:]:
        # Not the seed that numbers the communities, because the same permutation would undo it.
        by = torch.randperm(given.num_targets, generator=torch.Generator().manual_seed(1))
        start = time.process_time()
        patterns[order], _ = given.reorder(by if order == "shuffled" else order)
        finding[order] = time.process_time() - start
    inputs = [torch.randn(given.num_targets, HEADS, WIDTH, requires_grad=True) for _ in range(3)]
    runs = {
        order: with_backward(lambda pattern=pattern: ours(*inputs, pattern), inputs)
        for order, pattern in patterns.items()
    }
    taken = race(runs, seconds, clock=time.process_time)
    print(f"{name}: " + ", ".join(f"{order} {in_ms(times)} ms" for order, times in taken.items()), flush=True)
    return {
        "graph": name,
        "nodes": given.num_targets,
        "edges": given.num_edges,
        "seconds": {order: statistics.median(times) for order, times in taken.items()},
        "gain": {order: ratio(taken, "as given", order) for order in ORDERS},
        "gain over shuffled": {order: ratio(taken, "shuffled", order) for order in ORDERS},
        "seconds to reorder": finding,
    }


def write(about: dict[str, object], found: list[dict]) -> None:
    """Write both files, the table one row per graph."""
    (RESULTS / "locality.json").write_text(json.dumps({"machine": about, "graphs": found}, indent=1) + "\n")
    head = ["graph", "nodes", "edges", *ORDERS, *(f"finding {order}" for order in ORDERS[2:])]
    rows = [head, ["---"] * len(head)]
    for case in found:
        cells = [case["graph"], f"{case['nodes']:,}", f"{case['edges']:,}"]
        for order in ORDERS:
            gains = [f"{case[key][order]:.2f}x" for key in ("gain", "gain over shuffled")]
            cells.append(f"{in_ms([case['seconds'][order]])} ({', '.join(gains)})")
        rows.append([*cells, *(in_ms([case["seconds to reorder"][order]]) for order in ORDERS[2:])])
    text = f"""# Renumbering nodes: what it gains

{", ".join(f"{key} {value}" for key, value in about.items())}

Attention of {HEADS} heads of {WIDTH} in float32, forward and backward, Numba kernel: milliseconds of one
thread, by the clock of its process. In brackets how many times as fast that is as with the numbers given, and as with
shuffled ones, which say nothing about the graph. All orders take turns; numbers are medians, gains those of each round.
The last columns are the milliseconds that `pattern.reorder` takes, once. Communities and the random graph come numbered
at random: what differs between their first two columns is noise, from other work on the machine.

"""
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    (RESULTS / "locality.md").write_text(f"{text}{table}\n")
    print(table)


def main() -> None:
    """Measure the available graphs."""
    torch.manual_seed(0)
    # One thread, whose clock doesn't count while other processes have its core.
    torch.set_num_threads(1)
    found = []
    for name, (file, read) in GRAPHS.items():
        if file is not None and not (SCALE / file).exists():
            print(f"{name}: skipped, because {SCALE / file} is missing. Set GRAPHATTN_DATASETS to where it is.")
            continue
        found.append(measure(name, read(), 15))
    write(versions(), found)


if __name__ == "__main__":
    main()

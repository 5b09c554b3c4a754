"""Ranks that share a graph against one process that holds it: whole steps of training, exchanged rows, memory.

    python benchmarks/distributed.py

One process with as many threads as there are cores, and two ranks with their share of them, take turns; then the same
graphs on three and four ranks, for the cost model of docs/scaling.md. Writes results/distributed.json and .md. Real
graphs are read from $GRAPHATTN_DATASETS; without it, they are left out.

    python benchmarks/distributed.py --page

prints the tables of docs/scaling.md from these results: predictions and measurements, halos, and predictions for a
graph with 1.6 billion edges.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from harness import RESULTS, Line, ratio, versions, write
from scipy.optimize import nnls
from systems import random_edges
from torch import Tensor

from graphattn import Edges, Grid
from graphattn.datasets import dataset_root
from graphattn.distributed import load_part, read_graph, save_parts, split_graph, sum_gradients
from graphattn.memory import format_bytes, peak_memory
from graphattn.nn import GraphTransformer
from graphattn.patterns import metis_parts

CHANNELS, HEADS, LAYERS, CLASSES = 64, 4, 2, 16
ROAD = dataset_root() / "scale" / "usa_road_ny.npz"
ENRON = dataset_root() / "scale" / "email-Enron.txt.gz"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def grid() -> Tensor:
    return Grid((160, 160), radius=1).edge_index


def road() -> Tensor:
    with np.load(ROAD) as arrays:
        return torch.from_numpy(arrays["edge_index"]).to(torch.int64)


def enron() -> Tensor:
    return read_graph(str(ENRON)).edge_index


GRAPHS: dict[str, Callable[[], Tensor]] = {
    "grid of 160 x 160, 9 neighbors": grid,
    "New York's roads": road,
    "Enron's mails": enron,
    "25k nodes, 250k random edges": lambda: random_edges(25_000, 250_000),
}


@dataclass
class Worker:
    """One process, and the pipe to it."""

    process: Any
    pipe: Any

    def ask(self, *job: Any) -> None:
        """Start a job."""
        self.pipe.send(job)

    def answer(self) -> Any:
        """Wait for the result."""
        return self.pipe.recv()


def start(size: int, threads: int, folder: str) -> list[Worker]:
    """Start the ranks of one world size."""
    context = multiprocessing.get_context("spawn")
    workers = []
    for rank in range(size):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(rank, size, threads, folder, theirs), daemon=True)
        process.start()
        workers.append(Worker(process, ours))
    return workers


def all_do(workers: list[Worker], *job: Any) -> list[Any]:
    """Let all ranks do a job together."""
    for worker in workers:
        worker.ask(*job)
    return [worker.answer() for worker in workers]


def work(rank: int, size: int, threads: int, folder: str, pipe: Any) -> None:
    """One rank, or, of a size of 1, the process that holds the whole graph."""
    torch.set_num_threads(threads)
    if size > 1:
        store = f"file://{folder}/store-{size}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    session: Session | None = None
    while True:
        name, *arguments = pipe.recv()
        if name == "stop":
            return
        if name == "load":
            session = Session(size, *arguments)
            pipe.send(None)
        else:
            pipe.send(getattr(session, name)(*arguments))


class Session:
    """A model and this rank's share of a graph."""

    def __init__(self, size: int, graph: str, folder: str) -> None:
        self.size = size
        torch.manual_seed(0)
        self.model = GraphTransformer(CHANNELS, CHANNELS, CLASSES, LAYERS, heads=HEADS)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        if size > 1:
            data = load_part(folder)
            self.pattern, nodes, self.total = data.pattern, data.n_id, data.pattern.part.num_nodes
        else:
            self.pattern = Edges(GRAPHS[graph]())
            self.total = self.pattern.num_targets
            nodes = torch.arange(self.total)
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(self.total, CHANNELS, generator=generator)[nodes]
        self.y = torch.randint(CLASSES, (self.total,), generator=generator)[nodes]

    def step(self) -> float:
        """Train once, and return the loss of this rank's nodes."""
        self.optimizer.zero_grad()
        out = self.model(self.x, self.pattern)
        loss = torch.nn.functional.cross_entropy(out, self.y, reduction="sum") / self.total
        loss.backward()
        if self.size > 1:
            sum_gradients(self.model)
        self.optimizer.step()
        return loss.item()

    def seconds(self, runs: int) -> tuple[float, float]:
        """Time of a step, from the start of all ranks to the end of all, and processor time of this rank."""
        return self._timed(self.step, runs)

    def exchange_seconds(self, runs: int) -> tuple[float, float]:
        """The same for receiving the halo of one layer, forward only."""
        rows = torch.randn(self.pattern.num_targets, HEADS, CHANNELS // HEADS)
        return self._timed(lambda: self.pattern.fetch(rows, rows), runs)

    def _timed(self, run: Callable[[], object], runs: int) -> tuple[float, float]:
        self._wait()
        begin, worked = time.perf_counter(), time.process_time()
        for _ in range(runs):
            run()
        worked = time.process_time() - worked
        self._wait()
        return (time.perf_counter() - begin) / runs, worked / runs

    def _wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def facts(self) -> dict[str, Any]:
        """Sizes of this rank's share, bytes that one step sends in exchanges, and its peak memory."""
        if self.size == 1:
            return {"loss": self.step(), "peak": peak_memory(self.step)}
        part, sent = self.pattern.part, [0]
        send = dist.all_to_all_single

        def counting(out: Tensor, rows: Tensor, *rest: Any, **options: Any) -> Any:
            sent[0] += rows.nbytes
            return send(out, rows, *rest, **options)

        dist.all_to_all_single = counting
        loss = self.step()
        dist.all_to_all_single = send
        sizes = {name: getattr(part, name).numel() for name in ("nodes", "edges", "halo", "send")}
        return {"loss": loss, "sent bytes": sent[0], "peak": peak_memory(self.step), **sizes}


def median(values: list[float]) -> float:
    return statistics.median(values)


def in_turns(teams: dict[str, list[Worker]], rounds: int) -> dict[str, list[float]]:
    """Seconds per step of each team, in turns, and processor seconds of all of its ranks together."""
    taken: dict[str, list[float]] = {}
    for workers in teams.values():
        all_do(workers, "seconds", 1)
    for _ in range(rounds):
        for name, workers in teams.items():
            times, worked = zip(*all_do(workers, "seconds", 2), strict=True)
            taken.setdefault(name, []).append(max(times))
            taken.setdefault(f"{name}, processor", []).append(sum(worked))
            taken.setdefault(f"{name}, busiest", []).append(max(worked))
    return taken


def measure(
    graph: str, teams: dict[int, list[Worker]], folder: Path, rounds: int
) -> tuple[list[Line], list[dict[str, Any]]]:
    """One graph on one process and on all world sizes: the lines of two ranks, and a record of each size."""
    pattern = Edges(GRAPHS[graph]())
    records: list[dict[str, Any]] = []
    alone = {name: teams[name] for name in ("one process", "one thread")}
    for workers in alone.values():
        all_do(workers, "load", graph, "")
    whole = all_do(alone["one process"], "facts")[0]
    single: dict[str, list[float]] = {}
    for size in sorted(set(teams) - set(alone)):
        ranks = teams[size]
        begin = time.perf_counter()
        parts = split_graph(pattern, metis_parts(pattern, size), size)
        cut = time.perf_counter() - begin
        save_parts(folder / str(size), parts)
        all_do(ranks, "load", graph, str(folder / str(size)))
        facts = all_do(ranks, "facts")
        # More than two ranks run separately, only for the model.
        taken = single | in_turns({**alone, "ranks": ranks} if not single else {"ranks": ranks}, rounds)
        single = {name: times for name, times in taken.items() if not name.startswith("ranks")}
        exchange = median([max(all_do(ranks, "exchange_seconds", 3))[0] for _ in range(rounds)])
        record = {
            "graph": graph,
            "ranks": size,
            "nodes": pattern.num_targets,
            "edges": pattern.num_edges,
            "cut seconds": round(cut, 2),
            "own nodes": [fact["nodes"] for fact in facts],
            "own edges": [fact["edges"] for fact in facts],
            "halo rows": [fact["halo"] for fact in facts],
            "sent bytes": [fact["sent bytes"] for fact in facts],
            # Key and value of CHANNELS float32 numbers in each layer, and their gradients the other way.
            "predicted sent bytes": [LAYERS * 8 * CHANNELS * (fact["send"] + fact["halo"]) for fact in facts],
            "exchange ms": exchange * 1e3,
            **{f"{name} ms": median(times) * 1e3 for name, times in taken.items()},
            "speed": ratio(taken, "one process", "ranks"),
            "speed by processor time": ratio(taken, "one thread, processor", "ranks, processor"),
            "peak bytes of a rank": max(fact["peak"] for fact in facts),
            "peak bytes of one process": whole["peak"],
            "difference of losses": abs(sum(fact["loss"] for fact in facts) - whole["loss"]),
        }
        records.append(record)
        print(record, flush=True)
    two = next(record for record in records if record["ranks"] == 2)
    halo = sum(two["halo rows"]) / pattern.num_targets
    detail = f"one process {two['one process ms']:.0f}, ranks {two['ranks ms']:.0f}; {halo:.1%} of rows in halos, "
    detail += f"exchange of one layer {two['exchange ms']:.3g}, at a rank's peak "
    detail += f"{format_bytes(two['peak bytes of a rank'])} of {format_bytes(whole['peak'])}"
    work = f"{graph}: one step of {LAYERS} transformer blocks of {HEADS} heads of {CHANNELS // HEADS}, 2 ranks"
    lines = [Line(work, "one process, as many threads", "x", 0.85, 1.0, two["speed"], detail)]
    return lines, records


def predict(records: list[dict[str, Any]]) -> tuple[float, float]:
    """Add the predictions of docs/scaling.md, and return the microseconds of one thread per node and per edge."""
    sizes = np.array([[record["nodes"], record["edges"]] for record in records], float)
    taken = np.array([record["one thread, processor ms"] for record in records])
    (per_node, per_edge), _ = nnls(sizes / taken[:, None], np.ones(len(taken)))
    for record, (nodes, edges) in zip(records, sizes, strict=True):
        shares = zip(record["own nodes"], record["own edges"], strict=True)
        slowest = max(per_node * n + per_edge * e for n, e in shares) / (per_node * nodes + per_edge * edges)
        record["predicted busiest ms"] = record["one thread, processor ms"] * slowest
        # Nodes take nearly all memory; each layer keeps its halo's keys and values for the backward pass.
        kept = LAYERS * 8 * CHANNELS * max(record["halo rows"])
        share = max(record["own nodes"]) / nodes
        record["predicted peak bytes of a rank"] = round(share * record["peak bytes of one process"] + kept)
    return per_node * 1e3, per_edge * 1e3


COLUMNS = {
    "graph": "graph",
    "ranks": "ranks",
    "own edges": "most edges of a rank",
    "halo rows": "most halo rows",
    "sent bytes": "sent per step by a rank",
    "predicted sent bytes": "predicted",
    "exchange ms": "ms of one exchange",
    "one process ms": "ms of a step, one process",
    "ranks ms": "ranks",
    "one thread, processor ms": "processor ms, one thread",
    "ranks, processor ms": "all ranks",
    "ranks, busiest ms": "busiest rank",
    "predicted busiest ms": "predicted",
    "peak bytes of one process": "peak memory, one process",
    "peak bytes of a rank": "a rank",
    "predicted peak bytes of a rank": "predicted",
    "difference of losses": "difference of losses",
}
# The same for docs/scaling.md: predicted, then measured.
CHECKED = {
    "graph": "graph",
    "ranks": "ranks",
    "halo rows": "most halo rows",
    "predicted sent bytes": "sent per step by a rank: predicted",
    "sent bytes": "counted",
    "predicted peak bytes of a rank": "peak memory of a rank: predicted",
    "peak bytes of a rank": "measured",
    "predicted busiest ms": "processor ms of the busiest rank: predicted",
    "ranks, busiest ms": "measured",
}
PARTS = (2, 4, 8, 16, 32, 64)


def halos(graphs: list[str]) -> list[dict[str, Any]]:
    """The number of rows that all ranks receive, per node of the graph, over the number of parts."""
    found = []
    for graph in graphs:
        pattern = Edges(GRAPHS[graph]())
        degree = pattern.num_edges / pattern.num_targets
        record: dict[str, Any] = {"graph": graph}
        for parts in PARTS:
            cut = split_graph(pattern, metis_parts(pattern, parts), parts)
            record[str(parts)] = sum(part.halo.numel() for part in cut) / pattern.num_targets
        found.append(record)
        # Each other part has an edge from a node with this probability if edges and parts are drawn at random.
        expected = {str(parts): (parts - 1) * (1 - math.exp(-degree / parts)) for parts in PARTS}
        found.append({"graph": f"{graph}, if random", **expected})
    return found


def table(records: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """One line for each record, as Markdown; lists are replaced by their largest number."""
    lines = [f"| {' | '.join(columns.values())} |", "|---" * len(columns) + "|"]
    for record in records:
        cells = []
        for name in columns:
            value = max(record[name]) if isinstance(record[name], list) else record[name]
            text = format_bytes(value) if "bytes" in name else f"{value:,}" if isinstance(value, int) else value
            cells.append(f"{text:.3g}" if isinstance(text, float) else str(text))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# A graph like ogbn-papers100M, a model for it, and assumed rates of a GPU and its links: see docs/scaling.md.
NODES, EDGES, FEATURES, WIDTH, DEPTH, ITEM = 111_059_956, 1_615_685_872, 128, 128, 3, 2
GPU_READS, GPU_FLOPS, LINK_INSIDE, LINK_BETWEEN = 2e12, 200e12, 300e9, 25e9


def page() -> str:
    """The tables of docs/scaling.md."""
    held = json.loads((RESULTS / "distributed.json").read_text())
    return "\n\n".join([table(held["records"], CHECKED), table_of_halos(held["halos"]), foresee(held)])


def table_of_halos(rows: list[dict[str, Any]]) -> str:
    return table(rows, {name: name if name == "graph" else f"{name} parts" for name in rows[0]})


def foresee(held: dict[str, Any]) -> str:
    """Table of predictions for NODES and EDGES on 8 to 64 GPUs, from the measured bytes per node and halos."""
    # Numbers of a width that one layer keeps for a node, from the peak memory of a step of one process.
    numbers = statistics.median(
        r["peak bytes of one process"] / (4 * CHANNELS * LAYERS * r["nodes"]) for r in held["records"]
    )
    halo_per_node = next(record for record in held["halos"] if record["graph"] == "Enron's mails")
    titles = (
        "GPUs",
        "rows from others",
        "features",
        "activations",
        "edges",
        "halo",
        "sum",
        "linear layers",
        "edges",
        "exchange",
    )
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for ranks in PARTS[2:]:
        nodes, edges = NODES / ranks, EDGES / ranks
        random = (ranks - 1) * (1 - math.exp(-EDGES / NODES / ranks))
        for kind, halo in (("as Enron", halo_per_node[str(ranks)] * nodes), ("random", random * nodes)):
            rows = 2 * WIDTH * ITEM * halo
            # edge_index and positions of 8 bytes; index and permutation of 4 bytes for rows and for columns.
            memory = [nodes * FEATURES * ITEM, nodes * numbers * WIDTH * ITEM * DEPTH, edges * 40, rows * DEPTH]
            # 12 C^2 weights per block; key and value of an edge, read once forward and about three times backward.
            flops = nodes * 12 * WIDTH**2 * 2 * 3 * DEPTH / GPU_FLOPS
            gathers = edges * 2 * WIDTH * ITEM * 4 * DEPTH / GPU_READS
            link = LINK_INSIDE if ranks <= 8 else LINK_BETWEEN
            seconds = [flops, gathers, 2 * DEPTH * rows / link]
            cells = [format_bytes(x) for x in (*memory, sum(memory))] + [f"{x * 1e3:.3g} ms" for x in seconds]
            lines.append(f"| {ranks} | {kind}: {halo / 1e6:.3g}M | {' | '.join(cells)} |")
    return "\n".join([f"{numbers:.3g} numbers of the width per node and layer at the peak.\n", *lines])


def main() -> None:
    """Measure all graphs and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="print the tables of docs/scaling.md from the results")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 3, 4], help="numbers of ranks (default 2 3 4)")
    there = [
        graph
        for graph in GRAPHS
        if ("roads" not in graph or ROAD.exists()) and ("Enron" not in graph or ENRON.exists())
    ]
    parser.add_argument("--graphs", nargs="+", default=there, choices=there)
    options = parser.parse_args()
    if options.page:
        print(page())
        return
    sizes, load = sorted({2, *options.sizes}), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        teams: dict[Any, list[Worker]] = {size: start(size, max(1, CORES // size), folder) for size in sizes}
        teams |= {"one process": start(1, CORES, folder), "one thread": start(1, 1, folder)}
        # Only the halo for the roads, whose nodes take minutes.
        trained = [graph for graph in options.graphs if "roads" not in graph]
        found = [measure(graph, teams, Path(folder), options.rounds) for graph in trained]
        for worker in (worker for workers in teams.values() for worker in workers):
            worker.ask("stop")
    records = [record for _, more in found for record in more]
    per_node, per_edge = predict(records)
    rates = f"one thread takes {per_node:.2f} us for a node and {per_edge:.3f} us for an edge"
    rows = halos(options.graphs)
    tables = [
        "Ranks that wait for each other spin, so that their processor time includes waiting. Under other load, wall "
        "time favors the ranks, because then threads of one process wait and spin, too.",
        f"More ranks than {CORES} share the cores. Predictions are those of docs/scaling.md: {rates}.",
        table(records, COLUMNS),
        "Rows that all ranks receive for one layer, per node, after METIS, and what random edges and parts would need:",
        table_of_halos(rows),
    ]
    about = {**versions(), "cores": CORES, "load before": round(load, 1), "backend": "gloo"}
    title = "Ranks that share a graph, on one machine"
    write(
        "distributed", title, about, [line for lines, _ in found for line in lines], {"records": records, "halos": rows}
    )
    path = RESULTS / "distributed.md"
    path.write_text("\n\n".join([path.read_text().rstrip(), *tables]) + "\n")
    print(*tables, sep="\n\n")


if __name__ == "__main__":
    main()

"""Memory and time of training steps on the whole of a graph with 100 million edges, in one process.

    python benchmarks/large.py                                     writes results/large.json and results/large.md
    python benchmarks/large.py --edges 1000000 --nodes 20000       another size only prints its numbers

Two layers of attention, 4 heads of 16, ELU and a linear layer for 16 classes; 64 features to a node. Sources and
targets are drawn uniformly and not sorted, the hardest case for memory and caches. The process is limited to `--limit`
GiB of address space, so that a computation that needs more fails without affecting other processes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import psutil
import torch
import torch.nn.functional as F
from harness import RESULTS, Line, versions, write
from scaling import peak_resident, run_tiny
from torch import Tensor

from graphattn import Edges
from graphattn.memory import format_bytes
from graphattn.nn import GraphAttention

HEADS, WIDTH, CLASSES = 4, 16, 16


class Network(torch.nn.Module):
    """Two layers of attention and a linear one."""

    def __init__(self) -> None:
        super().__init__()
        channels = HEADS * WIDTH
        self.layers = torch.nn.ModuleList(GraphAttention(channels, channels, heads=HEADS) for _ in range(2))
        self.classify = torch.nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor, pattern: Edges) -> Tensor:
        """Scores of the classes."""
        for layer in self.layers:
            x = F.elu(layer(x, pattern))
        return self.classify(x)


class Stages:
    """Seconds and memory of consecutive stages."""

    def __init__(self) -> None:
        self.found: list[dict[str, object]] = []

    def run(self, name: str, function: Callable[[], Tensor | None]) -> Tensor | None:
        """Run a stage; the peak is that of the process so far."""
        start = time.perf_counter()
        result = function()
        seconds, now = time.perf_counter() - start, psutil.Process().memory_info().rss
        self.found.append({"stage": name, "seconds": seconds, "resident": now, "peak": peak_resident()})
        print(f"{name}: {seconds:.1f} s, {format_bytes(now)} now, {format_bytes(peak_resident())} at most", flush=True)
        return result


def measure(nodes: int, edges: int, steps: int) -> list[dict[str, object]]:
    """Stages of training on a random graph, beginning with drawing its edges."""
    torch.manual_seed(0)
    run_tiny(HEADS, WIDTH)
    stages = Stages()
    stages.run("libraries and compiled code", lambda: None)
    edge_index = stages.run("drawing edges, int64", lambda: torch.randint(nodes, (2, edges)))
    pattern = Edges(edge_index, nodes)

    def sort() -> None:
        pattern.csr(), pattern.csc()

    stages.run("CSR and CSC", sort)
    x, y = torch.randn(nodes, HEADS * WIDTH), torch.randint(CLASSES, (nodes,))
    model = Network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for step in range(1, steps + 1):
        loss = stages.run(f"step {step}, forward", lambda: F.cross_entropy(model(x, pattern), y))
        stages.run(f"step {step}, backward", loss.backward)
        stages.run(f"step {step}, update", optimizer.step)
        optimizer.zero_grad()
        del loss
    return stages.found


def main() -> None:
    """Measure, and write the results of the default size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2_000_000)
    parser.add_argument("--edges", type=int, default=100_000_000)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--limit", type=float, default=20, help="GiB of address space")
    options = parser.parse_args()
    import resource  # Windows has none.

    resource.setrlimit(resource.RLIMIT_AS, (int(options.limit * 2**30),) * 2)
    found = measure(options.nodes, options.edges, options.steps)
    if (options.nodes, options.edges) != (parser.get_default("nodes"), parser.get_default("edges")):
        return
    work = "100M edges, 2M nodes: 2 layers of 4 heads of 16, one training step on the whole graph"
    last = {
        stage["stage"].split(", ")[1]: stage["seconds"] for stage in found if f"step {options.steps}" in stage["stage"]
    }
    detail = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in last.items())
    peak = found[-1]["peak"] / 2**30
    lines = [Line(f"{work}, peak resident memory", "the machine", "GiB", 20, None, peak, detail, more_is_better=False)]
    write("large", "A graph of 100 million edges in one process", versions(), lines, {"stages": found})
    cells = lambda stage: f"{stage['seconds']:.1f} | {format_bytes(stage['resident'])} | {format_bytes(stage['peak'])}"
    rows = [f"| {stage['stage']} | {cells(stage)} |" for stage in found]
    table = ["", "| stage | seconds | resident after it | peak so far |", "|---|---|---|---|", *rows, ""]
    with (RESULTS / "large.md").open("a") as file:
        file.write("\n".join(table))


if __name__ == "__main__":
    main()

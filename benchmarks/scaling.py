"""Time and peak memory of one forward and backward, for one system and size, in a separate process.

    python benchmarks/scaling.py numba 1000000 --nodes 20000

Prints one line of JSON. `cpu.py` starts one such process after another: a size that doesn't fit into memory ends only
its own process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import psutil
import torch
from systems import compiled_pyg_attention, ours, pyg_attention, random_edges, with_backward

from graphattn import Edges
from graphattn.memory import peak_memory


def main() -> None:
    """Measure the system and size of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=["numba", "pyg", "compiled"])
    parser.add_argument("edges", type=int)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    run_tiny(options.heads, options.width)
    process = psutil.Process()
    before = process.memory_info().rss

    edge_index = random_edges(options.nodes, options.edges)
    shape = (options.nodes, options.heads, options.width)
    inputs = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    grad_out = torch.randn(shape)
    pattern = Edges(edge_index, options.nodes)
    graph = pattern if options.system == "numba" else edge_index
    system = {"numba": ours, "pyg": pyg_attention, "compiled": compiled_pyg_attention()}[options.system]
    run = lambda: torch.autograd.grad(system(*inputs, graph), inputs, grad_out)
    if options.edges < 10_000_000:
        run()
    peak = peak_memory(run)
    taken = []
    while not taken or (sum(taken) < options.seconds and len(taken) < 20):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)

    # The peak of the process, including the sorting of edges.
    resident = peak_resident() - before
    kept = [edge_index, *inputs, grad_out]
    # As large as the output and the gradients.
    made = [grad_out, *inputs]
    if options.system == "numba":
        kept += [x for side in (pattern.csr(), pattern.csc()) for x in side if x is not None]
    size = sum(x.nbytes for x in [*kept, *made])
    print(
        json.dumps(
            {
                "system": options.system,
                "edges": options.edges,
                "nodes": options.nodes,
                "heads": options.heads,
                "width": options.width,
                "seconds": statistics.median(taken),
                "peak bytes": peak,
                "resident bytes": resident,
                "bytes of tensors": size,
            }
        )
    )


def run_tiny(heads: int, width: int) -> None:
    """Load and compile everything, so that later memory is that of the work."""
    edge_index = random_edges(10, 600)
    inputs = [torch.randn(10, heads, width, requires_grad=True) for _ in range(3)]
    with_backward(lambda: ours(*inputs, Edges(edge_index, 10)), inputs)()
    with_backward(lambda: pyg_attention(*inputs, edge_index), inputs)()


def peak_resident() -> int:
    """Highest resident memory of this process so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()

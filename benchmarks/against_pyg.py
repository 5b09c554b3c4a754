"""The fused CPU kernel beside PyG's own formulation, gather-score-softmax-scatter, on random graphs.

    python benchmarks/against_pyg.py

Dot product and softmax, float32, edges sorted by target; medians of runs in turns, in one process, in milliseconds.
"""

import statistics
import time

import torch
from torch_geometric.utils import scatter, softmax

from graphattn import Edges, attention

CASES = [(20_000, 400_000, 4, 32), (100_000, 1_000_000, 4, 32), (2_708, 13_264, 8, 8), (100_000, 1_000_000, 8, 8)]


def gather_and_scatter(query, key, value, edge_index):
    """What PyG's attention layers compute, in their way."""
    source, target = edge_index
    score = (query[target] * key[source]).sum(-1) * query.size(-1) ** -0.5
    weight = softmax(score, target, num_nodes=query.size(0))
    return scatter(value[source] * weight.unsqueeze(-1), target, dim=0, dim_size=query.size(0))


def medians(functions, repeats=5):
    """Milliseconds of each function; the first run of each, which compiles, doesn't count."""
    taken = [[] for _ in functions]
    for run in range(repeats + 1):
        for function, times in zip(functions, taken, strict=True):
            start = time.perf_counter()
            function()
            times += [time.perf_counter() - start] if run else []
    return [statistics.median(times) * 1e3 for times in taken]


def measure(nodes, edges, heads, width):
    """Forward, and forward with backward, of both."""
    edge_index = torch.randint(nodes, (2, edges))
    edge_index = edge_index[:, edge_index[1].argsort(stable=True)]
    pattern = Edges(edge_index, nodes)
    inputs = [torch.randn(nodes, heads, width, requires_grad=True) for _ in range(3)]
    grad_out = torch.randn(nodes, heads, width)
    sides = (lambda: gather_and_scatter(*inputs, edge_index)), (lambda: attention(*inputs, pattern, backend="numba"))
    with torch.no_grad():
        forward = medians(sides)
    both = medians([lambda side=side: torch.autograd.grad(side(), inputs, grad_out) for side in sides])
    return forward, both


def main():
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| nodes / edges, heads x width | forward: PyG, ours | with backward: PyG, ours | backward / forward |")
    print("|---|---|---|---|")
    for nodes, edges, heads, width in CASES:
        (pyg, ours), (pyg_both, ours_both) = measure(nodes, edges, heads, width)
        forward = f"{pyg:.1f}, {ours:.1f}: {pyg / ours:.1f}x"
        both = f"{pyg_both:.1f}, {ours_both:.1f}: {pyg_both / ours_both:.1f}x"
        ratio = (ours_both - ours) / ours
        print(f"| {nodes:,} / {edges:,}, {heads} x {width} | {forward} | {both} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()

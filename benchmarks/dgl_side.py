"""DGL's half of `make bench-dgl`: runs in a separate environment, which has DGL and not this library.

    python benchmarks/dgl_side.py 20000 400000 4 32 5

Prints one line of JSON: versions, and seconds of forward, and of forward with backward, in each round.
"""

import json
import sys
import time

import dgl
import torch


def attention(graph, query, key, value):
    """Dot product, softmax and weighted sum by DGL's three fused operators."""
    score = dgl.ops.v_dot_u(graph, query, key) * query.size(-1) ** -0.5
    return dgl.ops.u_mul_e_sum(graph, value, dgl.ops.edge_softmax(graph, score))


def main():
    """Measure one size."""
    nodes, edges, heads, width, rounds = map(int, sys.argv[1:])
    torch.manual_seed(0)
    edge_index = torch.randint(nodes, (2, edges), generator=torch.Generator().manual_seed(0))
    source, target = edge_index[:, edge_index[1].argsort(stable=True)]
    graph = dgl.graph((source, target), num_nodes=nodes)
    # Both formats are built once, so that no run includes that.
    graph.create_formats_()
    inputs = [torch.randn(nodes, heads, width, requires_grad=True) for _ in range(3)]
    grad_out = torch.randn(nodes, heads, width)

    def forward():
        with torch.no_grad():
            attention(graph, *inputs)

    taken = {"forward": [], "forward + backward": []}
    runs = {
        "forward": forward,
        "forward + backward": lambda: torch.autograd.grad(attention(graph, *inputs), inputs, grad_out),
    }
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                taken[name].append(time.perf_counter() - start)
    print(json.dumps({"dgl": dgl.__version__, "torch": torch.__version__, "threads": torch.get_num_threads(), **taken}))


if __name__ == "__main__":
    main()

"""DGL's half of `make bench-dgl`: runs in a separate environment, which has DGL and not this library.

    python benchmarks/dgl_side.py attention 5 20000 400000 4 32
    python benchmarks/dgl_side.py hgt 5 50000 600000 4 16 3 7

The numbers are rounds, nodes, edges, heads and their width; and for a layer of HGT types of nodes and relations.
Prints one line of JSON: versions, and seconds of forward, and of forward with backward, in each round.
"""

import json
import sys
import time

import dgl
import torch


def draw_graph(nodes, edges):
    """A random graph, its edges by target, with both formats built, so that no run includes that."""
    edge_index = torch.randint(nodes, (2, edges), generator=torch.Generator().manual_seed(0))
    source, target = edge_index[:, edge_index[1].argsort(stable=True)]
    graph = dgl.graph((source, target), num_nodes=nodes)
    graph.create_formats_()
    return graph


def attention(nodes, edges, heads, width):
    """Dot product, softmax and weighted sum by DGL's three fused operators; and what has gradients."""
    graph = draw_graph(nodes, edges)
    query, key, value = inputs = [torch.randn(nodes, heads, width, requires_grad=True) for _ in range(3)]

    def run():
        score = dgl.ops.v_dot_u(graph, query, key) * width**-0.5
        return dgl.ops.u_mul_e_sum(graph, value, dgl.ops.edge_softmax(graph, score))

    return run, inputs


def hgt(nodes, edges, heads, width, types, relations):
    """DGL's layer, types sorted; and what has gradients."""
    graph = draw_graph(nodes, edges)
    layer = dgl.nn.HGTConv(heads * width, width, heads, types, relations)
    kinds = torch.arange(nodes) * types // nodes, torch.arange(edges) * relations // edges
    x = torch.randn(nodes, heads * width, requires_grad=True)
    return lambda: layer(graph, x, *kinds, presorted=True), [x, *layer.parameters()]


def main():
    """Measure one size."""
    what, rounds, *sizes = sys.argv[1:]
    torch.manual_seed(0)
    run, inputs = {"attention": attention, "hgt": hgt}[what](*map(int, sizes))
    grad_out = torch.randn_like(run())

    def forward():
        with torch.no_grad():
            run()

    taken = {"forward": [], "forward + backward": []}
    runs = {
        "forward": forward,
        "forward + backward": lambda: torch.autograd.grad(run(), inputs, grad_out, allow_unused=True),
    }
    for turn in range(int(rounds) + 1):
        for name, each in runs.items():
            start = time.perf_counter()
            each()
            if turn:
                taken[name].append(time.perf_counter() - start)
    print(json.dumps({"dgl": dgl.__version__, "torch": torch.__version__, "threads": torch.get_num_threads(), **taken}))


if __name__ == "__main__":
    main()

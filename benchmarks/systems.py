"""The timed systems: PyG's formulations and ours, and how edges are drawn."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch_geometric.nn import GATConv, GATv2Conv
from torch_geometric.utils import scatter, softmax

from graphattn import Additive, Edges, attention


def random_edges(nodes: int, edges: int, seed: int = 0) -> Tensor:
    """Sources and targets drawn uniformly, sorted by target."""
    edge_index = torch.randint(nodes, (2, edges), generator=torch.Generator().manual_seed(seed))
    return edge_index[:, edge_index[1].argsort(stable=True)]


def power_law_edges(nodes: int, edges: int, hub: int, seed: int = 0) -> Tensor:
    """Sources and targets by a power law whose first node has at least `hub` edges each way, sorted by target."""
    generator = torch.Generator().manual_seed(seed)
    rank = torch.arange(1, nodes + 1, dtype=torch.float64)
    exponent = 1.0
    while True:
        mass = rank**-exponent
        if edges * mass[0] / mass.sum() > 1.05 * hub:
            break
        exponent += 0.01
    # Nodes of high degree are anywhere, and sources of high degree aren't targets of high degree.
    ends = [
        torch.randperm(nodes, generator=generator)[torch.multinomial(mass, edges, True, generator=generator)]
        for _ in range(2)
    ]
    edge_index = torch.stack(ends)
    return edge_index[:, edge_index[1].argsort(stable=True)]


def orderings(edge_index: Tensor) -> dict[str, Tensor]:
    """The same edges in the orders in which a PyG user may have them."""
    shuffled = edge_index[:, torch.randperm(edge_index.size(1), generator=torch.Generator().manual_seed(1))]
    by_source = edge_index[:, edge_index[0].argsort(stable=True)]
    return {"sorted by target": edge_index, "sorted by source": by_source, "shuffled": shuffled}


def pyg_attention(query: Tensor, key: Tensor, value: Tensor, edge_index: Tensor) -> Tensor:
    """Gather, score, softmax, scatter: what PyG's TransformerConv computes between its projections."""
    source, target = edge_index
    score = (query[target] * key[source]).sum(-1) * query.size(-1) ** -0.5
    weight = softmax(score, target, num_nodes=query.size(0))
    return scatter(value[source] * weight.unsqueeze(-1), target, dim=0, dim_size=query.size(0))


@functools.cache
def compiled_pyg_attention() -> Callable[..., Tensor]:
    """The same under torch.compile."""
    return torch.compile(pyg_attention, fullgraph=True, dynamic=False)


def ours(query: Tensor, key: Tensor, value: Tensor, pattern: Edges) -> Tensor:
    """Our kernel."""
    return attention(query, key, value, pattern, backend="numba")


def gat_pair(nodes: int, heads: int, width: int, edge_index: Tensor) -> tuple[list[Tensor], Callable, Callable]:
    """Inputs, and GAT's scores and weighted sums by GATConv's own message path and by ours."""
    layer = GATConv(1, width, heads=heads, add_self_loops=False)
    by_target, by_source = (torch.randn(nodes, heads, requires_grad=True) for _ in range(2))
    value = torch.randn(nodes, heads, width, requires_grad=True)
    pattern, ones = Edges(edge_index, nodes), torch.ones(heads, 1)

    def theirs() -> Tensor:
        alpha = layer.edge_updater(edge_index, alpha=(by_source, by_target), edge_attr=None, size=(nodes, nodes))
        return layer.propagate(edge_index, x=(value, value), alpha=alpha, size=(nodes, nodes))

    def mine() -> Tensor:
        score = Additive(ones, "leaky_relu", layer.negative_slope)
        return attention(by_target.unsqueeze(-1), by_source.unsqueeze(-1), value, pattern, score=score)

    return [by_target, by_source, value], theirs, mine


def gatv2_pair(nodes: int, heads: int, width: int, edge_index: Tensor) -> tuple[list[Tensor], Callable, Callable]:
    """Inputs, and GATv2's scores and weighted sums by GATv2Conv's own message path and by ours."""
    layer = GATv2Conv(1, width, heads=heads, add_self_loops=False)
    of_target, of_source = (torch.randn(nodes, heads, width, requires_grad=True) for _ in range(2))
    pattern = Edges(edge_index, nodes)

    def theirs() -> Tensor:
        both = (of_source, of_target)
        alpha = layer.edge_updater(edge_index, x=both, edge_attr=None, size=(nodes, nodes))
        return layer.propagate(edge_index, x=both, alpha=alpha, size=(nodes, nodes))

    def mine() -> Tensor:
        score = Additive(layer.att[0], "leaky_relu", layer.negative_slope)
        return attention(of_target, of_source, of_source, pattern, score=score)

    return [of_target, of_source, layer.att], theirs, mine


def with_backward(function: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    """The function and its gradients by all inputs, for one drawn gradient of the output."""
    grad_out = torch.randn_like(function())
    return lambda: torch.autograd.grad(function(), inputs, grad_out)


def without_gradients(function: Callable[[], Tensor]) -> Callable[[], object]:
    """The function without gradients."""

    def run() -> Tensor:
        with torch.no_grad():
            return function()

    return run

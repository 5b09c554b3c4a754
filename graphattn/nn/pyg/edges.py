"""What PyG's layers derive from edges: features of a sparse adjacency and of renewed self-loops, number of targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.typing import Size
from torch_geometric.utils.loop import compute_loop_attr

from ...errors import check_no_batch, message, shape_of
from ...patterns import Pattern
from ...patterns.containers import read_edges
from ...patterns.edges import Loops


def sides_of(where: str, x: Any) -> tuple[Tensor, Tensor | None]:
    """Features of sources and of targets, which are the same if x is one tensor."""
    pair = tuple(x) if isinstance(x, tuple | list) else (x, x)
    if len(pair) != 2 or not isinstance(pair[0], Tensor) or not isinstance(pair[1], Tensor | None):
        got = ", ".join(type(side).__name__ for side in pair)
        rule = "must be a tensor or a pair (x_source, x_target)"
        raise TypeError(message(where, "x", rule, f"({got})" if isinstance(x, tuple | list) else type(x).__name__))
    return pair


def check_one_graph(where: str, *sides: Tensor | None) -> None:
    """Raise, as PyG does, unless features belong to the nodes of one graph."""
    for side in sides:
        if side is not None and side.dim() != 2:
            fix = "Use x.squeeze(0)." if side.shape[:-2] == (1,) else "Use GraphAttention for x of [*B, N, F]."
            raise AssertionError(message(where, "x", "must have shape [N, F]", shape_of(side), fix))


def edge_values(edge_index: Any) -> Tensor | None:
    """Edge features in a sparse adjacency, as PyG reads them: those of more than one dimension."""
    if not isinstance(edge_index, Tensor) or edge_index.layout == torch.strided:
        return None
    values = read_edges("edge_index", edge_index).values
    return None if values is None or values.dim() == 1 else values


def check_edge_attr(where: str, edge_attr: Any, lin_edge: Any, num_edges: int, num_nodes: int) -> None:
    """Raise unless features of edges, if given, have a row per edge, of the width that the layer projects.

    `lin_edge` is the projection, the width itself, or None for any.
    """
    if edge_attr is None:
        return
    if not isinstance(edge_attr, Tensor):
        raise TypeError(message(where, "edge_attr", "must be a tensor", type(edge_attr).__name__))
    columns = lin_edge if isinstance(lin_edge, int) else lin_edge.in_channels if isinstance(lin_edge, Linear) else -1
    has_rows = edge_attr.shape[:1] == (num_edges,)
    if has_rows and (columns == -1 or edge_attr.numel() == num_edges * columns):
        return
    if not has_rows:
        check_no_batch(where, edge_attr, num_nodes)
    rule = f"must have shape [{num_edges}, {'C' if columns == -1 else columns}], one row per edge"
    raise ValueError(message(where, "edge_attr", rule, shape_of(edge_attr)))


def with_loops(
    pattern: Pattern, renewed: Loops | None, edge_index: Any, edge_attr: Tensor | None, fill_value: Any
) -> Tensor | None:
    """Features of the remaining edges, then those of the renewed loops."""
    edge_attr = edge_values(edge_index) if edge_attr is None else edge_attr
    if edge_attr is None or renewed is None:
        return edge_attr
    edge_attr = edge_attr if renewed.kept is None else edge_attr[renewed.kept]
    kept = pattern.edge_index[:, : edge_attr.size(0)]
    loops = compute_loop_attr(kept, edge_attr, pattern.num_edges - edge_attr.size(0), False, fill_value)
    return torch.cat([edge_attr, loops])


def rows_of_nothing(edge_index: Tensor, size: Size, num_sources: int) -> int:
    """The number of targets without features."""
    if size is not None:
        return num_sources if size[1] is None else size[1]
    if isinstance(edge_index, EdgeIndex):
        return num_sources if edge_index.num_cols is None else edge_index.num_cols
    return edge_index.size(0) if edge_index.layout != torch.strided else num_sources

"""What PyG's layers read off their edges: features of a sparse adjacency, of renewed self-loops, missing targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.typing import Size
from torch_geometric.utils.loop import compute_loop_attr

from ..patterns import Pattern
from ..patterns.edges import Loops, read_edges


def edge_values(edge_index: Any) -> Tensor | None:
    """Edge features that lie in a sparse adjacency, as PyG reads them: those of more than one dimension."""
    if not isinstance(edge_index, Tensor) or edge_index.layout == torch.strided:
        return None
    values = read_edges("edge_index", edge_index).values
    return None if values is None or values.dim() == 1 else values


def with_loops(
    pattern: Pattern, renewed: Loops | None, edge_index: Any, edge_attr: Tensor | None, fill_value: Any
) -> Tensor | None:
    """Features of the edges that remain, then those of the renewed loops."""
    edge_attr = edge_values(edge_index) if edge_attr is None else edge_attr
    if edge_attr is None or renewed is None:
        return edge_attr
    edge_attr = edge_attr if renewed.kept is None else edge_attr[renewed.kept]
    kept = pattern.edge_index[:, : edge_attr.size(0)]
    loops = compute_loop_attr(kept, edge_attr, pattern.num_edges - edge_attr.size(0), False, fill_value)
    return torch.cat([edge_attr, loops])


def rows_of_nothing(edge_index: Tensor, size: Size, num_sources: int) -> int:
    """How many targets there are where they have no features."""
    if size is not None:
        return num_sources if size[1] is None else size[1]
    if isinstance(edge_index, EdgeIndex):
        return num_sources if edge_index.num_cols is None else edge_index.num_cols
    return edge_index.size(0) if edge_index.layout != torch.strided else num_sources

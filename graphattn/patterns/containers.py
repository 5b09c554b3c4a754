"""Edges read from any container that users of PyG have."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch_geometric.typing
from torch import Tensor
from torch_geometric import EdgeIndex

from ..errors import EdgeDtypeError, message, shape_of


class EdgeList(NamedTuple):
    """What a container holds: [2, E] int64 indices, sizes where it knows them, and [E, ...] values if it has any."""

    edge_index: Tensor
    num_sources: int | None = None
    num_targets: int | None = None
    values: Tensor | None = None


def read_edges(where: str, container: Any) -> EdgeList:
    """Read any container that `Edges` takes; `where` names the function in error messages."""
    if isinstance(container, EdgeIndex):
        num_sources, num_targets = container.sparse_size()
        return EdgeList(_check_sorted(where, container), num_sources, num_targets)
    if isinstance(container, Tensor) and container.layout != torch.strided:
        return _read_sparse(where, container)
    if isinstance(container, Tensor):
        return EdgeList(_read_index(where, container))
    if torch_geometric.typing.WITH_TORCH_SPARSE and isinstance(container, torch_geometric.typing.SparseTensor):
        target, source, values = container.coo()
        return EdgeList(torch.stack([source, target]), container.size(1), container.size(0), values)
    package = type(container).__module__.partition(".")[0]
    if package == "scipy" and hasattr(container, "tocoo"):
        return _read_scipy(container)
    if hasattr(container, "is_directed") and hasattr(container, "adjacency"):
        return _read_networkx(container)
    rule = "must be a [2, E] tensor, EdgeIndex, sparse adjacency, scipy.sparse matrix, networkx graph or pattern"
    fixes = {"ndarray": "Use torch.from_numpy(edge_index).", "Data": "Use data.edge_index."}
    kind = type(container).__name__
    raise TypeError(message(where, "edge_index", rule, kind, fixes.get(kind, "")))


def check_index(where: str, edge_index: Tensor) -> None:
    """Raise unless a tensor has the dtype and the shape of an edge_index."""
    if edge_index.is_floating_point() or edge_index.is_complex() or edge_index.dtype == torch.bool:
        is_matrix = edge_index.dim() == 2 and edge_index.size(0) == edge_index.size(1) != 2
        fix = "Use Edges.from_mask(mask.bool())." if is_matrix else "Use edge_index.long()."
        fix = "Use Edges.from_mask(mask)." if edge_index.dtype == torch.bool else fix
        raise EdgeDtypeError(message(where, "edge_index", "must have an integer dtype", edge_index.dtype, fix))
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        fix = "Use edge_index.t()." if edge_index.dim() == 2 and edge_index.size(1) == 2 else ""
        raise ValueError(message(where, "edge_index", "must have shape [2, E]", shape_of(edge_index), fix))


def _read_index(where: str, edge_index: Tensor) -> Tensor:
    check_index(where, edge_index)
    # Patterns outlive inference mode, and its tensors can't be used in autograd.
    with torch.inference_mode(False):
        edge_index = edge_index.clone() if edge_index.is_inference() else edge_index
        return edge_index.to(torch.int64).contiguous()


def _check_sorted(where: str, edge_index: EdgeIndex) -> Tensor:
    plain = _read_index(where, edge_index.as_tensor())
    if edge_index.sort_order is not None:
        order = edge_index.sort_order
        key = plain[0 if order == "row" else 1]
        falls = (key[1:] < key[:-1]).nonzero()
        if len(falls):
            rule = f"declares sort_order={order!r} and must be sorted by it"
            fix = "Drop sort_order, or use edge_index.sort_by(...)."
            raise ValueError(message(where, "edge_index", rule, f"edge {int(falls[0]) + 1} out of order", fix))
    return plain


def _read_sparse(where: str, adjacency: Tensor) -> EdgeList:
    layouts = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)
    if adjacency.layout not in layouts or adjacency.sparse_dim() != 2:
        got = f"{adjacency.layout} of shape {shape_of(adjacency)}"
        rule = "must be a sparse matrix in COO, CSR or CSC layout"
        raise ValueError(message(where, "edge_index", rule, got, "Use adjacency.to_sparse_coo()."))
    num_targets, num_sources = adjacency.shape[:2]
    if adjacency.layout == torch.sparse_coo:
        # Without coalescing, so that parallel edges stay separate.
        target, source = adjacency._indices()[:2]
        values = adjacency._values()
    else:
        is_csr = adjacency.layout == torch.sparse_csr
        ptr = adjacency.crow_indices() if is_csr else adjacency.ccol_indices()
        within = adjacency.col_indices() if is_csr else adjacency.row_indices()
        line = torch.repeat_interleave(torch.arange(ptr.numel() - 1, device=ptr.device), ptr.diff())
        target, source = (line, within) if is_csr else (within, line)
        values = adjacency.values()
    return EdgeList(torch.stack([source, target]).to(torch.int64), num_sources, num_targets, values)


def _read_scipy(matrix: Any) -> EdgeList:
    entries = matrix.tocoo()
    edge_index = torch.stack([torch.from_numpy(entries.row), torch.from_numpy(entries.col)]).to(torch.int64)
    num_sources, num_targets = entries.shape
    return EdgeList(edge_index, num_sources, num_targets, torch.from_numpy(entries.data))


def _read_networkx(graph: Any) -> EdgeList:
    number = {node: position for position, node in enumerate(graph.nodes)}
    pairs = [(number[u], number[v]) for u, v in graph.edges()]
    if not graph.is_directed():
        pairs += [(v, u) for u, v in pairs if u != v]
    edge_index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t().contiguous()
    return EdgeList(edge_index, len(number), len(number))

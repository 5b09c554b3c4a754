"""Patterns of the edge tensors that callers pass again and again, so that each is read and sorted once."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from .base import OF_ATTENTION, Sides
from .edges import Edges


class _Known(NamedTuple):
    tensor: weakref.ref[Tensor]
    state: tuple[Any, ...]
    pattern: Edges


# By the tensor's id. An entry goes when its tensor does, so that nothing outlives the caller's own reference.
_known: dict[int, _Known] = {}
_compared: dict[int, _Known] = {}


def known_edges(
    where: str, edge_index: Tensor, num_sources: int, num_targets: int, sides: Sides = OF_ATTENTION
) -> Edges:
    """Return the pattern of an edge_index between these numbers of rows: the one made before, if nobody wrote to it.

    Writes that torch doesn't count, through numpy, `.data` or in-place collectives, go unseen. Tensors of inference
    mode count none at all, and are read anew each time.
    """
    tensor: Tensor = edge_index
    state: tuple[Any, ...] = (num_sources, num_targets)
    if isinstance(edge_index, EdgeIndex):
        # The wrapper is made anew by many operations that keep what it wraps.
        tensor = edge_index.as_tensor()
        state = (*state, edge_index.sort_order, *edge_index.sparse_size())
    if type(tensor) is not Tensor or tensor.is_inference():
        return Edges.between(where, edge_index, num_sources, num_targets, sides)
    state = (*state, tensor._version)
    known = _known.get(id(tensor))
    if known is not None and known.tensor() is tensor and known.state == state:
        return known.pattern
    pattern = Edges.between(where, edge_index, num_sources, num_targets, sides)
    # The same memory by another tensor: else the pattern would keep its own key alive.
    pattern._kept["edge_index"] = pattern.edge_index.detach()
    _remember(_known, tensor, state, pattern)
    return pattern


def remember_edges(edge_index: Tensor, pattern: Edges) -> None:
    """Let `known_edges` find a pattern that someone has made of these edges, in another tensor, already."""
    if type(edge_index) is Tensor and not edge_index.is_inference():
        state = (pattern.num_sources, pattern.num_targets, edge_index._version)
        _remember(_known, edge_index, state, pattern)


def compared_edges(where: str, edge_index: Tensor, num_sources: int, num_targets: int) -> Edges:
    """Return the same for an operator in a compiled graph, which must look at every edge.

    Compiled code writes into memory that it uses again, by ways that no count sees, and may leave the tensor as it was.
    So the pattern has a copy of the edges, and serves as long as that is equal.
    """
    state = (num_sources, num_targets, edge_index.dtype)
    known = _compared.get(id(edge_index))
    if known is not None and known.tensor() is edge_index and known.state == state:
        kept = known.pattern.edge_index
        if torch.equal(kept if kept.dtype == edge_index.dtype else kept.to(edge_index.dtype), edge_index):
            return known.pattern
    pattern = Edges.between(where, edge_index.clone(), num_sources, num_targets)
    if type(edge_index) is Tensor:
        _remember(_compared, edge_index, state, pattern)
    return pattern


def _remember(table: dict[int, _Known], tensor: Tensor, state: tuple[Any, ...], pattern: Edges) -> None:
    name = id(tensor)

    def forget(tensor: weakref.ref[Tensor]) -> None:
        known = table.get(name)
        if known is not None and known.tensor is tensor:
            del table[name]

    table[name] = _Known(weakref.ref(tensor, forget), state, pattern)

"""Patterns of edge tensors that are passed repeatedly, so that each is read and sorted once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary
from torch_geometric import EdgeIndex

from .base import OF_ATTENTION, Pattern, Sides
from .edges import Edges


class _Known(NamedTuple):
    tensor: weakref.ref[Tensor]
    state: tuple[Any, ...]
    pattern: Edges


# By the tensor's id. An entry is deleted with its tensor, so that nothing outlives the caller's own reference.
_known: dict[int, _Known] = {}
_compared: dict[int, _Known] = {}
_joined: dict[tuple[int, ...], tuple[Sequence[weakref.ref[Pattern]], Pattern | None]] = {}
MOST_JOINED = 16
_by_index: Any = WeakIdKeyDictionary()
AnyPattern = TypeVar("AnyPattern", bound=Pattern)


def known_edges(
    where: str, edge_index: Tensor, num_sources: int, num_targets: int, sides: Sides = OF_ATTENTION
) -> Edges:
    """Return the pattern of an edge_index between these numbers of rows: the earlier one if the tensor wasn't written
    to.

    Writes that torch doesn't count, through NumPy, `.data` or in-place collectives, are not noticed. Tensors of
    inference mode count none, and are compared each time.
    """
    tensor: Tensor = edge_index
    state: tuple[Any, ...] = (num_sources, num_targets)
    if isinstance(edge_index, EdgeIndex):
        # Many operations make a new wrapper around the same tensor.
        tensor = edge_index.as_tensor()
        state = (*state, edge_index.sort_order, *edge_index.sparse_size())
    if type(tensor) is not Tensor:
        return Edges.between(where, edge_index, num_sources, num_targets, sides)
    if tensor.is_inference():
        return _compared_edges(tensor, state, lambda: Edges.between(where, edge_index, num_sources, num_targets, sides))
    state = (*state, tensor._version)
    known = _known.get(id(tensor))
    if known is not None and known.tensor() is tensor and known.state == state:
        return known.pattern
    pattern = Edges.between(where, edge_index, num_sources, num_targets, sides)
    # Another tensor on the same memory; otherwise the pattern would keep its own key alive.
    pattern._kept["edge_index"] = pattern.edge_index.detach()
    _remember(_known, tensor, state, pattern)
    return pattern


def known_join(patterns: Sequence[Pattern]) -> Pattern:
    """Return the disjoint union of patterns: the earlier one if they are the same objects, as in the next layer."""
    if len(patterns) == 1 or torch.compiler.is_compiling():
        return Pattern.join(patterns)
    ids = tuple(map(id, patterns))
    parts, known = _joined.get(ids, ((), None))
    if known is not None and all(part() is pattern for part, pattern in zip(parts, patterns, strict=True)):
        return known
    # A tensor made in inference mode can't be used in autograd later.
    with torch.inference_mode(False):
        joined = Pattern.join(patterns)

    def forget(_: weakref.ref[Pattern]) -> None:
        _joined.pop(ids, None)

    if len(_joined) >= MOST_JOINED:
        # Patterns of a data set stay alive, and a loader that shuffles joins others in each epoch.
        _joined.clear()
    _joined[ids] = ([weakref.ref(pattern, forget) for pattern in patterns], joined)
    return joined


def remember_edges(edge_index: Tensor, pattern: Edges) -> None:
    """Let `known_edges` find an existing pattern of these edges, made from another tensor."""
    if type(edge_index) is Tensor and not edge_index.is_inference():
        state = (pattern.num_sources, pattern.num_targets, edge_index._version)
        _remember(_known, edge_index, state, pattern)


def compared_edges(where: str, edge_index: Tensor, num_sources: int, num_targets: int) -> Edges:
    """Return the same for an operator in a compiled graph, which must compare every edge.

    Compiled code reuses memory without counting its writes, so that the same tensor may hold other edges. Therefore the
    pattern has a copy of the edges, and is reused as long as they are equal.
    """
    read = lambda: Edges.between(where, edge_index.clone(), num_sources, num_targets)
    return _compared_edges(edge_index, (num_sources, num_targets), read)


def _compared_edges(edge_index: Tensor, state: tuple[Any, ...], read: Callable[[], Edges]) -> Edges:
    state = (*state, edge_index.dtype)
    known = _compared.get(id(edge_index))
    if known is not None and known.tensor() is edge_index and known.state == state:
        kept = known.pattern.edge_index
        if torch.equal(kept if kept.dtype == edge_index.dtype else kept.to(edge_index.dtype), edge_index):
            return known.pattern
    pattern = read()
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


def known_by_index(index: Tensor, kind: tuple[Any, ...], build: Callable[[], AnyPattern]) -> AnyPattern:
    """Return the pattern that follows from a tensor of one number per node, and from nothing else but its `kind`.

    Made once for all layers that a tensor reaches, and again if it was written to. It must not hold the tensor.
    """
    if torch.compiler.is_compiling() or index.is_inference():
        return build()
    version, found = _by_index.get(index, (None, {}))
    if version != index._version:
        found = {}
        _by_index[index] = (index._version, found)
    if kind not in found:
        found[kind] = build()
    pattern: AnyPattern = found[kind]
    return pattern

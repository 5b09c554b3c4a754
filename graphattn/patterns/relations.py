"""Edges of several relations between nodes of several types, as one bipartite pattern."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from ..errors import check_int, message
from .annotations import EdgesLike
from .base import Sides
from .containers import read_edges
from .edges import Edges, check_indices

T = TypeVar("T")
# (type of the sources, relation, type of the targets), as PyG writes it.
Relation = tuple[Any, Any, Any]


class Pairs(NamedTuple):
    """What pairs of a relation and a node edges have at one of their ends, each once, relation by relation.

    Attributes:
        node: [rows] int64, the node of each row, in the numbering of all types.
        ptr: where the rows of each relation begin: [relations + 1].
        index: [E] int64, the row of each edge.
    """

    node: Tensor
    ptr: list[int]
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


class Relations:
    """Edges of several relations between nodes of several types.

    A source of a relation is a row of its own, (relation, source), so that attention over relations is attention over
    one bipartite pattern: rows of keys and values are made once per row, with the relation's own weights, and never per
    edge. Types and relations are numbered in the order of their names, so that a dictionary's order changes nothing.

    Args:
        edges: for each (source type, relation, target type) its edges, [2, E] or anything that `Edges` takes.
        num_nodes: number of nodes of each type; of a type that is missing, the largest index + 1.

    Attributes:
        num_nodes: number of nodes of each type.
        relations: the keys of `edges`, in order.
        num_edges: number of edges of each relation.

    Raises:
        TypeError: `edges` is not a dictionary with such keys.
        ValueError: an index is out of range.

    Example:
        >>> edges = {
        ...     ("author", "writes", "paper"): torch.tensor([[0, 0, 1], [0, 1, 1]]),
        ...     ("paper", "cites", "paper"): torch.tensor([[1], [0]]),
        ... }
        >>> relations = Relations(edges)
        >>> relations
        Relations(num_nodes={'author': 2, 'paper': 2}, num_edges=[3, 1])
        >>> relations.across  # targets are the nodes of all types, sources the pairs of a relation and a source
        Edges(num_sources=3, num_targets=4, num_edges=4)
        >>> relations.within  # targets are pairs, too
        Edges(num_nodes=3, num_edges=4)

    References:
        Schlichtkrull et al., "Modeling Relational Data with Graph Convolutional Networks", 2018; Hu et al.,
        "Heterogeneous Graph Transformer", 2020.
    """

    num_nodes: dict[Any, int]
    relations: list[Relation]
    num_edges: list[int]

    def __init__(self, edges: Mapping[Relation, EdgesLike], num_nodes: Mapping[Any, int] | None = None) -> None:
        where = "Relations"
        if not isinstance(edges, Mapping):
            fix = "Use Relations.from_data(data), or Relations.from_types(edge_index, edge_type, num_nodes)."
            raise TypeError(message(where, "edges", "must be a dictionary", type(edges).__name__, fix))
        for relation in edges:
            if not isinstance(relation, tuple) or len(relation) != 3:
                rule = "must have keys (source type, relation, target type)"
                raise TypeError(message(where, "edges", rule, repr(relation)))
        names = sorted(edges, key=_order)
        sizes = dict(num_nodes or {})
        for name, size in sizes.items():
            check_int(where, f"num_nodes[{name!r}]", size, 0)
        lists = {}
        for name in names:
            listed = read_edges(f"{where}, edges[{name!r}]", edges[name])
            lists[name] = listed.edge_index
            for side, kind, known in ((0, name[0], listed.num_sources), (1, name[2], listed.num_targets)):
                if kind in (num_nodes or {}):
                    continue
                largest = int(listed.edge_index[side].max()) + 1 if listed.edge_index.numel() else 0
                sizes[kind] = max(sizes.get(kind, 0), largest, known or 0)
        self._set({name: sizes[name] for name in sorted(sizes, key=_order)}, names)
        fix = "Give num_nodes." if num_nodes is None else ""
        for name, edge_index in lists.items():
            (source, _, target), reasons = name, (f"{name[0]} has {{}} nodes", f"{name[2]} has {{}} nodes")
            place = f"{where}, edges[{name!r}]"
            check_indices(place, edge_index, sizes[source], sizes[target], reasons, fix)
        begins = self.begins
        shifts = [torch.tensor([[begins[name[0]]], [begins[name[2]]]], dtype=torch.int64) for name in names]
        nothing = torch.empty(2, 0, dtype=torch.int64)
        parts = [x + shift.to(x.device) for x, shift in zip(lists.values(), shifts, strict=True)]
        self.num_edges = [x.size(1) for x in parts]
        self._edge_index = torch.cat(parts, 1) if parts else nothing
        counts = torch.tensor(self.num_edges, dtype=torch.int64)
        self._edge_type = torch.repeat_interleave(torch.arange(len(names)), counts).to(self._edge_index.device)
        self._is_flat = False

    @classmethod
    def from_data(cls, data: Any) -> Self:
        """Read a `torch_geometric.data.HeteroData`: types, numbers of nodes, and the edges of each relation.

        A relation without edge_index and adj_t, which may have labels alone, is left out, as of `edge_index_dict`.
        """
        if not hasattr(data, "edge_types") or not hasattr(data, "node_types"):
            rule = "must be a HeteroData"
            raise TypeError(message("Relations.from_data", "data", rule, type(data).__name__))
        edges = {}
        for relation in data.edge_types:
            store = data[relation]
            if "edge_index" in store:
                edges[relation] = store.edge_index
            elif "adj_t" in store:
                edges[relation] = store.adj_t
        if data.edge_types and not edges:
            fix, got = "Place edges in edge_index or adj_t.", list(data.edge_types)
            raise ValueError(
                message("Relations.from_data", "data", "must have edges in one relation at least", got, fix)
            )
        sizes = {name: data[name].num_nodes for name in data.node_types}
        return cls(edges, {name: size for name, size in sizes.items() if size is not None})

    @classmethod
    def from_types(
        cls, edge_index: EdgesLike, edge_type: Tensor, num_nodes: int, num_relations: int | None = None
    ) -> Self:
        """Read edges between nodes of one type, with the number of each edge's relation.

        Args:
            edge_index: [2, E] or anything that `Edges` takes. Edges keep this order.
            edge_type: [E] integers.
            num_nodes: N.
            num_relations: R; the largest type + 1 if omitted.

        Raises:
            TypeError: types are not integers.
            ValueError: a type or an index is out of range.
        """
        where = "Relations.from_types"
        check_int(where, "num_nodes", num_nodes, 0)
        listed = Edges.between(where, edge_index, num_nodes, num_nodes, Sides("x", "x")).edge_index
        if not isinstance(edge_type, Tensor) or edge_type.is_floating_point() or edge_type.dtype == torch.bool:
            kind = str(edge_type.dtype) if isinstance(edge_type, Tensor) else type(edge_type).__name__
            raise TypeError(message(where, "edge_type", "must be a tensor of integers", kind))
        if edge_type.shape != (listed.size(1),):
            rule = f"must have shape [{listed.size(1)}], one type per edge"
            raise ValueError(message(where, "edge_type", rule, list(edge_type.shape)))
        least, most = (0, -1) if edge_type.numel() == 0 else (int(edge_type.min()), int(edge_type.max()))
        count = most + 1 if num_relations is None else check_int(where, "num_relations", num_relations, 0)
        if least < 0 or most >= count:
            rule = f"must lie in [0, {count})"
            raise ValueError(message(where, "edge_type", rule, least if least < 0 else most))
        self = cls.__new__(cls)
        self._set({"node": num_nodes}, [("node", number, "node") for number in range(count)])
        self.num_edges = torch.bincount(edge_type, minlength=count).tolist()
        # Copies: what is derived of them must not change when the caller writes to his own.
        self._edge_index, self._edge_type, self._is_flat = listed.clone(), edge_type.to(torch.int64, copy=True), True
        return self

    def _set(self, num_nodes: dict[Any, int], relations: list[Relation]) -> None:
        self.num_nodes, self.relations = num_nodes, relations
        self._kept: dict[str, Any] = {}

    @property
    def begins(self) -> dict[Any, int]:
        """The number of each type's first node, where nodes of all types are counted one type after another."""
        found, total = {}, 0
        for name, size in self.num_nodes.items():
            found[name] = total
            total += size
        return found

    @property
    def total(self) -> int:
        """Number of nodes of all types."""
        return sum(self.num_nodes.values())

    @property
    def device(self) -> torch.device:
        """The device of edges and patterns."""
        return self._edge_index.device

    @property
    def edge_index(self) -> Tensor:
        """[2, E] nodes at the ends of each edge, numbered over all types, in the order of the patterns' edges."""
        return self._edge_index

    @property
    def edge_type(self) -> Tensor:
        """[E] number of each edge's relation, in the order of the patterns' edges."""
        return self._edge_type

    @property
    def source_rows(self) -> Pairs:
        """Pairs of a relation and a source."""
        return self._keep("sources", lambda: self._rows(0))

    @property
    def target_rows(self) -> Pairs:
        """Pairs of a relation and a target."""
        return self._keep("targets", lambda: self._rows(1))

    @property
    def across(self) -> Edges:
        """Source rows attended to by nodes, which normalize over the edges of all relations."""
        return self._keep("across", lambda: self._pattern(self._edge_index[1], self.total))

    @property
    def within(self) -> Edges:
        """Source rows attended to by target rows, which normalize over the edges of one relation."""
        return self._keep("within", lambda: self._pattern(self.target_rows.index, len(self.target_rows.node)))

    def join_nodes(self, of_types: Mapping[Any, Tensor]) -> Tensor:
        """Concatenate a tensor per type, [N, ...] each, as nodes are numbered."""
        return torch.cat([of_types[name] for name in self.num_nodes])

    def split_nodes(self, of_nodes: Tensor) -> dict[Any, Tensor]:
        """The rows of each type."""
        return dict(zip(self.num_nodes, of_nodes.split(list(self.num_nodes.values())), strict=True))

    def join_edges(self, of_relations: Mapping[Relation, Tensor]) -> Tensor:
        """Concatenate a tensor per relation, [E, ...] each, in the order of the patterns' edges."""
        joined = torch.cat([of_relations[name] for name in self.relations])
        return joined[self._edge_type.argsort(stable=True).argsort()] if self._is_flat else joined

    def split_edges(self, of_edges: Tensor) -> dict[Relation, Tensor]:
        """The edges of each relation, in the caller's order; of edges with types, those of each type."""
        if not self._is_flat:
            return dict(zip(self.relations, of_edges.split(self.num_edges), strict=True))
        return {name: of_edges[self._edge_type == number] for number, name in enumerate(self.relations)}

    def to(self, device: torch.device | str) -> Self:
        """The same on another device; patterns are made there."""
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        other._kept = {}
        other._edge_index, other._edge_type = self._edge_index.to(device), self._edge_type.to(device)
        return other

    def __getstate__(self) -> dict[str, Any]:
        # Files hold what defines the edges.
        return {**vars(self), "_kept": {}}

    def __repr__(self) -> str:
        return f"Relations(num_nodes={self.num_nodes}, num_edges={self.num_edges})"

    def _keep(self, name: str, build: Any) -> Any:
        if name not in self._kept:
            with torch.inference_mode(False):
                self._kept[name] = build()
        return self._kept[name]

    def _rows(self, side: int) -> Pairs:
        count, total = len(self.relations), self.total
        key = self._edge_type * total + self._edge_index[side]
        found, index = _number(key, count * total)
        ends = torch.arange(count + 1, device=key.device) * total
        return Pairs(found % max(total, 1), torch.searchsorted(found, ends).tolist(), index)

    def _pattern(self, target: Tensor, num_targets: int) -> Edges:
        rows = self.source_rows
        return Edges(torch.stack([rows.index, target]), num_sources=len(rows.node), num_targets=num_targets)


def _order(name: Hashable) -> Any:
    return tuple(map(str, name)) if isinstance(name, tuple) else str(name)


def _number(key: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    """The keys that occur, rising, and the place of each among them."""
    if bound > 16 * key.numel() + 2**20:
        found, index = torch.unique(key, return_inverse=True)
        return found, index
    occurs = torch.zeros(bound, dtype=torch.bool, device=key.device)
    occurs[key] = True
    return occurs.nonzero().flatten(), (occurs.cumsum(0) - 1)[key]


class _Known(NamedTuple):
    tensors: list[weakref.ref[Tensor]]
    state: tuple[Any, ...]
    relations: Relations


_known: dict[tuple[int, ...], _Known] = {}


@torch.compiler.disable(reason="reading edges depends on their values, which a compiled graph can't hold")
def known_relations(edges: Mapping[Relation, Any], num_nodes: Mapping[Any, int]) -> Relations:
    """Return the relations of a layer's call: the earlier ones if no tensor was written to since.

    Tensors of inference mode, whose writes torch doesn't count, are read each time.
    """
    tensors = list(edges.values())
    if not tensors or any(type(x) is not Tensor or x.is_inference() for x in tensors):
        return Relations(edges, num_nodes)
    ids = tuple(map(id, tensors))
    state = (tuple(edges), tuple(num_nodes.items()), tuple(x._version for x in tensors))
    return _lookup(ids, tensors, state, lambda: Relations(edges, num_nodes))


@torch.compiler.disable(reason="reading edges depends on their values, which a compiled graph can't hold")
def known_types(edge_index: Tensor, edge_type: Tensor, num_nodes: int, num_relations: int) -> Relations:
    """The same for edges with types."""
    tensors = [edge_index, edge_type]
    read = lambda: Relations.from_types(edge_index, edge_type, num_nodes, num_relations)
    if any(type(x) is not Tensor or x.is_inference() for x in tensors):
        return read()
    state = (num_nodes, num_relations, edge_index._version, edge_type._version)
    return _lookup(tuple(map(id, tensors)), tensors, state, read)


def _lookup(ids: tuple[int, ...], tensors: Iterable[Tensor], state: tuple[Any, ...], read: Any) -> Relations:
    known = _known.get(ids)
    if (
        known is not None
        and known.state == state
        and all(x() is y for x, y in zip(known.tensors, tensors, strict=True))
    ):
        return known.relations
    relations: Relations = read()

    def forget(_: weakref.ref[Tensor]) -> None:
        _known.pop(ids, None)

    _known[ids] = _Known([weakref.ref(x, forget) for x in tensors], state, relations)
    return relations

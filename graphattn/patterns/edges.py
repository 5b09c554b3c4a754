"""Patterns given edge by edge, read from any container of edges that PyG users have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
import torch_geometric.typing
from torch import Tensor
from torch_geometric import EdgeIndex

from ..errors import EdgeDtypeError, EdgeRangeError, check_int, message, shape_of
from .annotations import EdgesLike
from .base import OF_ATTENTION, Pattern, Sides, check_square
from .reorder import NodeOrder, find_order

# Why an index of a call must lie in its range.


class Edges(Pattern):
    """An explicit list of edges, parallel ones included, in the caller's order.

    Args:
        edge_index: one of
            a [2, E] integer tensor (sources above targets) or PyG's `EdgeIndex`;
            a `torch.sparse` adjacency [T, S] in COO, CSR or CSC layout, or a `SparseTensor`, in PyG's transposed
            convention (rows are targets);
            a `scipy.sparse` matrix [S, T] as PyG's `from_scipy_sparse_matrix` reads it (rows are sources);
            a `networkx` graph, whose nodes are numbered in its own order (an undirected edge counts both ways).
        num_nodes: number of nodes if sources and targets are the same; the container's own size, or else the largest
            index + 1, if omitted.
        num_sources: S, for a bipartite pattern, together with `num_targets`.
        num_targets: T.

    The tensor is not copied: don't write to it afterwards.

    Raises:
        TypeError: the container is of another kind, or indices aren't integers.
        ValueError: an index is out of range, or an `EdgeIndex` isn't sorted as it declares.

    Example:
        >>> pattern = Edges(torch.tensor([[0, 1, 1], [1, 0, 1]]))
        >>> pattern
        Edges(num_nodes=2, num_edges=3)
        >>> pattern.mask()
        tensor([[False,  True],
                [ True,  True]])
    """

    # While torch.compile is tracing: the number of nodes whose self-loops are renewed, if any.
    traced_loops: int | None = None

    def __init__(
        self,
        edge_index: EdgesLike,
        num_nodes: int | None = None,
        *,
        num_sources: int | None = None,
        num_targets: int | None = None,
    ) -> None:
        if num_nodes is not None and not (num_sources is None and num_targets is None):
            raise ValueError(message("Edges", "num_nodes", "excludes num_sources and num_targets", num_nodes))
        if (num_sources is None) != (num_targets is None):
            raise ValueError(message("Edges", "num_sources and num_targets", "must be given together"))
        listed = read_edges("Edges", edge_index)
        reasons = ("num_sources is {}", "num_targets is {}")
        if num_nodes is not None:
            num_sources = num_targets = check_int("Edges", "num_nodes", num_nodes, 0)
            reasons = ("num_nodes is {}", "num_nodes is {}")
        elif num_sources is None:
            num_sources, num_targets = listed.num_sources, listed.num_targets
        if num_sources is None or num_targets is None:
            bound = int(listed.edge_index.max()) + 1 if listed.edge_index.numel() else 0
            num_sources, num_targets = max(bound, num_sources or 0), max(bound, num_targets or 0)
        sizes = (
            check_int("Edges", "num_sources", num_sources, 0),
            check_int("Edges", "num_targets", num_targets, 0),
        )
        if max(sizes) >= 2**62:
            raise ValueError(message("Edges", "nodes", "must number less than 2^62", max(sizes)))
        self._set("Edges", listed.edge_index, *sizes, reasons)

    @classmethod
    def from_csr(cls, ptr: Tensor, index: Tensor, num_sources: int | None = None) -> Self:
        """Read compressed rows: target i attends to the sources index[ptr[i] : ptr[i + 1]].

        Args:
            ptr: [T + 1] integers from 0 to E, never falling.
            index: [E] integers.
            num_sources: S; if omitted, as many as targets, or more if `index` names more.

        Raises:
            ValueError: `ptr` does not begin at 0, falls, or does not end at E.
        """
        for argument, x in (("ptr", ptr), ("index", index)):
            if not isinstance(x, Tensor) or x.is_floating_point() or x.dtype == torch.bool:
                kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
                raise TypeError(message("Edges.from_csr", argument, "must be a tensor of an integer dtype", kind))
        if ptr.dim() != 1 or index.dim() != 1 or ptr.numel() == 0:
            got = f"shapes {shape_of(ptr)} and {shape_of(index)}"
            raise ValueError(message("Edges.from_csr", "ptr and index", "must be [T + 1] and [E]", got))
        degree = ptr[1:] - ptr[:-1]
        if int(ptr[0]) != 0 or int(ptr[-1]) != index.numel() or bool((degree < 0).any()):
            rule = f"must rise from 0 to the {index.numel()} entries of index"
            raise ValueError(message("Edges.from_csr", "ptr", rule, f"{int(ptr[0])} to {int(ptr[-1])}"))
        num_targets = degree.numel()
        if num_sources is None:
            num_sources = max(num_targets, int(index.max()) + 1 if index.numel() else 0)
        target = torch.repeat_interleave(torch.arange(num_targets, device=ptr.device), degree)
        return cls(torch.stack([index.to(torch.int64), target]), num_sources=num_sources, num_targets=num_targets)

    @classmethod
    def from_mask(cls, mask: Tensor) -> Self:
        """Read a boolean mask [T, S], True where the target (row) may attend to the source (column)."""
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() != 2:
            got = f"{mask.dtype} of shape {shape_of(mask)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(message("Edges.from_mask", "mask", "must be boolean of shape [T, S]", got))
        target, source = mask.nonzero().unbind(1)
        return cls(torch.stack([source, target]), num_sources=mask.size(1), num_targets=mask.size(0))

    @classmethod
    def between(
        cls, where: str, edge_index: Any, num_sources: int, num_targets: int, sides: Sides = OF_ATTENTION
    ) -> Self:
        """Read a container as the pattern of a call of `where`, whose `sides` have these numbers of rows."""
        listed = read_edges(where, edge_index)
        for kind, argument, has, rows in (
            ("sources", sides.source, listed.num_sources, num_sources),
            ("targets", sides.target, listed.num_targets, num_targets),
        ):
            if has is not None and has != rows:
                rule = f"must have as many {kind} as {argument} has rows, {rows}"
                raise ValueError(message(where, "edge_index", rule, f"a container with {has}", sides.fix))
        pattern = cls.__new__(cls)
        pattern._set(where, listed.edge_index, num_sources, num_targets, sides.reasons, sides.fix)
        return pattern

    @classmethod
    def traced(
        cls,
        where: str,
        edge_index: Tensor,
        num_sources: int,
        num_targets: int,
        loops: int | None = None,
        sides: Sides = OF_ATTENTION,
    ) -> Self:
        """Take the edges of a graph that torch.compile is tracing unchecked, because no index can be read there.

        Fused kernels pass them to their operator, which reads them when the graph runs: see `compared_edges`. It can
        then also renew the self-loops of the first `loops` nodes; other kernels can't.
        """
        check_index(where, edge_index)
        pattern = cls.__new__(cls)
        Pattern.__init__(pattern, num_sources, num_targets)
        pattern._kept["edge_index"] = edge_index
        pattern.traced_loops = loops
        pattern._late_check = lambda: _check_indices(
            where, edge_index, num_sources, num_targets, sides.reasons, sides.fix
        )
        return pattern

    def _set(
        self,
        where: str,
        edge_index: Tensor,
        num_sources: int,
        num_targets: int,
        reasons: tuple[str, str],
        fix: str = "",
    ) -> None:
        _check_indices(where, edge_index, num_sources, num_targets, reasons, fix)
        super().__init__(num_sources, num_targets)
        self._kept["edge_index"] = edge_index

    @property
    def num_edges(self) -> int:
        """E, parallel edges counted once each."""
        return self.edge_index.size(1)

    @property
    def device(self) -> torch.device:
        """The device of edges, mask and CSR."""
        return self.edge_index.device

    def allows(self, target: Tensor | int, source: Tensor | int) -> Tensor:
        """The definition: True where `target` may attend to `source`; both are indices that broadcast together."""
        ptr, index, _ = self.csr()
        row = torch.repeat_interleave(torch.arange(self.num_targets, device=self.device), ptr.diff())
        # Every pair as one number, increasing along the compressed rows; the last one is a sentinel.
        held = torch.nn.functional.pad(row * self.num_sources + index, (0, 1), value=-1)
        target, source = (torch.as_tensor(node, device=self.device) for node in (target, source))
        pair = target * self.num_sources + source
        return held[torch.searchsorted(held[:-1], pair)] == pair

    def mask(self) -> Tensor:
        """[T, S] boolean, True where the target may attend to the source. Parallel edges are one entry."""
        mask = torch.zeros(self.num_targets, self.num_sources, dtype=torch.bool, device=self.device)
        mask[self.edge_index[1], self.edge_index[0]] = True
        return mask

    def with_self_loops(self) -> Edges:
        """Let every node attend to itself. Edges keep their order; new loops come after them, by node."""
        check_square(self)
        source, target = self.edge_index
        is_lonely = torch.ones(self.num_targets, dtype=torch.bool, device=self.device)
        is_lonely[target[source == target]] = False
        loops = is_lonely.nonzero().flatten()
        edge_index = torch.cat([self.edge_index, loops.expand(2, -1)], 1)
        return Edges(edge_index, self.num_targets)

    def reorder(self, order: str | Tensor | NodeOrder | Sequence[int]) -> tuple[Edges, NodeOrder]:
        """Renumber the nodes, so that nodes that are read one after another are close together in memory.

        This pays if rows of key and value don't fit into the processor's caches and the graph has a structure that its
        numbering doesn't reflect. It doesn't help a graph without structure. Attention stays the same: with `pattern,
        order = pattern.reorder("rcm")`, `order.undo(attention(order.apply(query), ..., pattern))` equals what it was,
        up to the order in which numbers are added. Edges, and with them edge features and weights, keep the caller's
        order. Dropout depends on the new numbers, and drops other edges.

        Args:
            order: "degree", nodes of most edges first;
                "rcm", reverse Cuthill-McKee, which puts neighbors close together on meshes and roads;
                "metis", parts of some 500 nodes with few edges between them, which needs pymetis;
                or a permutation: a NodeOrder, or [N] integers, the old number of each node in the new order, such as
                `metis_parts(pattern, num_parts).argsort(stable=True)`.

        Returns:
            The pattern, and the order, whose `apply` reorders features and whose `undo` reorders results back. The same
            arguments give the same order.

        Raises:
            TypeError: a permutation has no integer dtype.
            ValueError: sources and targets aren't the same nodes, or a tensor is not a permutation of them.
            ImportError: order is "metis" and pymetis isn't installed.

        Example:
            >>> from graphattn import Edges
            >>> pattern, order = Edges(torch.tensor([[0, 3], [3, 1]])).reorder("degree")
            >>> order.perm, pattern.edge_index
            (tensor([3, 0, 1, 2]), tensor([[1, 0],
                                           [0, 2]]))

        References:
            Cuthill and McKee, "Reducing the Bandwidth of Sparse Symmetric Matrices", 1969; Karypis and Kumar, "A Fast
            and High Quality Multilevel Scheme for Partitioning Irregular Graphs", 1998.
        """
        check_square(self, "reorder")
        found = find_order(self.edge_index, self.num_targets, order)
        return Edges(found.inverse[self.edge_index], self.num_targets), found

    def renew_self_loops(self, num_nodes: int) -> Loops:
        """Edges between different nodes, in their order, then a loop for each of the first nodes, as GAT needs them.

        The result is cached, so that the loops of a graph are renewed once.
        """
        return self.keep(f"loops of {num_nodes} nodes", lambda: self._renew_self_loops(num_nodes))

    def _renew_self_loops(self, num_nodes: int) -> Loops:
        source, target = self.edge_index
        nodes = torch.arange(num_nodes, device=self.device)
        is_loop = source == target
        edge_index = torch.cat([self.edge_index[:, ~is_loop], nodes.expand(2, -1)], 1)
        pattern = Edges(edge_index, num_sources=self.num_sources, num_targets=self.num_targets)
        looped = source[is_loop]
        if looped.numel() == 0:
            return Loops(pattern, None, None)
        kept, order = (~is_loop).nonzero().flatten(), None
        is_missing = torch.ones_like(nodes, dtype=torch.bool)
        if int(looped.max()) < num_nodes and looped.unique().numel() == looped.numel():
            is_missing[looped] = False
            place = torch.empty_like(source)
            place[kept] = torch.arange(kept.numel(), device=self.device)
            place[is_loop] = kept.numel() + looped
            order = torch.cat([place, kept.numel() + nodes[is_missing]])
        return Loops(pattern, kept, order)

    def offsets(self) -> Tensor:
        """Nodes of an edge list have no coordinates: raises NotImplementedError."""
        raise no_coordinates("offsets", "Edges")

    @property
    def num_offsets(self) -> int:
        """Nodes of an edge list have no coordinates: raises NotImplementedError."""
        raise no_coordinates("num_offsets", "Edges")

    def offset_index(self) -> Tensor:
        """Nodes of an edge list have no coordinates: raises NotImplementedError."""
        raise no_coordinates("offset_index", "Edges")

    def _definition(self) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
        return (self.num_edges, self.traced_loops), (self.edge_index,)

    def _list_edges(self) -> Tensor:
        raise AssertionError("an edge list is stored by the constructor")

    @classmethod
    def _join(cls, patterns: Sequence[Edges]) -> Self:
        num_sources = num_targets = 0
        shifted = []
        for pattern in patterns:
            shift = torch.tensor([[num_sources], [num_targets]], device=pattern.device)
            shifted.append(pattern.edge_index + shift)
            num_sources += pattern.num_sources
            num_targets += pattern.num_targets
        return cls(torch.cat(shifted, 1), num_sources=num_sources, num_targets=num_targets)

    def __repr__(self) -> str:
        is_square = self.num_sources == self.num_targets
        sizes = f"num_sources={self.num_sources}, num_targets={self.num_targets}"
        return f"Edges({f'num_nodes={self.num_targets}' if is_square else sizes}, num_edges={self.num_edges})"


class Loops(NamedTuple):
    """A pattern whose self-loops were renewed.

    Attributes:
        pattern: edges between different nodes, then the loops.
        kept: which of the given edges those are; None for all.
        order: the edges of `pattern` in the given order, with given loops in their places, then the new ones; None if
            that is the pattern's own order, or if a loop was given twice.
    """

    pattern: Pattern
    kept: Tensor | None
    order: Tensor | None


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


def no_coordinates(where: str, pattern: object) -> NotImplementedError:
    """Make the error of a pattern whose nodes have no coordinates."""
    fix = "Use Full, Window or Grid."
    return NotImplementedError(message(where, "pattern", "must have coordinates", pattern, fix))


def _check_indices(
    where: str, edge_index: Tensor, num_sources: int, num_targets: int, reasons: tuple[str, str], fix: str
) -> None:
    """Raise ValueError at the first index that lies outside of its range; `reasons` say why the range is what it is."""
    if edge_index.numel() == 0:
        return
    lowest, highest = (bound.tolist() for bound in torch.aminmax(edge_index, dim=1))
    sizes = (num_sources, num_targets)
    for row, size in enumerate(sizes):
        if lowest[row] >= 0 and highest[row] < size:
            continue
        outside = (edge_index[row] < 0) | (edge_index[row] >= size)
        edge = int(outside.nonzero()[0])
        would_fit = min(lowest) >= 0 and highest[0] < num_targets and highest[1] < num_sources
        rule = f"must lie in [0, {size}) because {reasons[row].format(size)}"
        fix = "Were the rows swapped?" if would_fit else fix
        raise EdgeRangeError(
            message(where, f"edge_index[{row}]", rule, f"{int(edge_index[row, edge])} at edge {edge}", fix)
        )


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

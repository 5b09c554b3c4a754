"""Patterns given edge by edge, read from any container of edges that PyG users have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ..errors import EdgeRangeError, check_int, message, shape_of
from .annotations import EdgesLike
from .base import OF_ATTENTION, Pattern, Sides, check_square
from .containers import check_index, read_edges
from .reorder import NodeOrder, find_order


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
    # While torch.export is recording: [E] bool, edges that count as absent, because their number depends on the edges.
    absent: Tensor | None = None

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
        if torch.compiler.is_exporting() and loops is not None:
            source, target = edge_index
            pattern._add_loops(loops, is_absent=(source == target, edge_index.new_zeros(loops, dtype=torch.bool)))
        else:
            pattern.traced_loops = loops
        pattern._late_check = lambda: check_indices(
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
        check_indices(where, edge_index, num_sources, num_targets, reasons, fix)
        super().__init__(num_sources, num_targets)
        self._kept["edge_index"] = edge_index

    def _with_edges(self, edge_index: Tensor) -> Edges:
        """Other edges between the same nodes, which are known to be in range."""
        pattern = Edges.__new__(Edges)
        Pattern.__init__(pattern, self.num_sources, self.num_targets)
        pattern._kept["edge_index"] = edge_index
        return pattern

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
        if self.is_traced:
            pattern = Edges.traced("Edges", self.edge_index, self.num_sources, self.num_targets)
            none = torch.zeros_like(target, dtype=torch.bool)
            looped = target.new_zeros(self.num_targets).scatter_add(0, target, (source == target).to(target.dtype)) > 0
            pattern._add_loops(self.num_targets, is_absent=(none, looped))
            return pattern
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

    def _add_loops(self, count: int, is_absent: tuple[Tensor, Tensor]) -> None:
        """Append a loop for each of the first nodes; say which of the edges and which of the loops are absent."""
        nodes = torch.arange(count, device=self.device)
        self._kept["edge_index"] = torch.cat([self.edge_index, nodes.expand(2, -1)], 1)
        self.absent = torch.cat(is_absent)

    def renew_self_loops(self, num_nodes: int) -> Loops:
        """Edges between different nodes, in their order, then a loop for each of the first nodes, as GAT needs them.

        The result is cached, so that the loops of a graph are renewed once.
        """
        return self.keep(f"loops of {num_nodes} nodes", lambda: self._renew_self_loops(num_nodes))

    def _renew_self_loops(self, num_nodes: int) -> Loops:
        source, target = self.edge_index.unbind()
        nodes = torch.arange(num_nodes, device=self.device)
        is_loop = source == target
        if not bool(is_loop.any()):
            return Loops(self._with_edges(torch.cat([self.edge_index, nodes.expand(2, -1)], 1)), None, None)
        pattern = self._with_edges(torch.cat([self.edge_index[:, ~is_loop], nodes.expand(2, -1)], 1))
        looped = source[is_loop]
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

    def _to_edges(self, edge_index: Tensor) -> Edges:
        return Edges(edge_index, num_sources=self.num_sources, num_targets=self.num_targets)

    @classmethod
    def _join(cls, patterns: Sequence[Edges]) -> Self:
        edges = [pattern.edge_index for pattern in patterns]
        sizes = [
            (part.num_sources, part.num_targets, edge_index.size(1))
            for part, edge_index in zip(patterns, edges, strict=True)
        ]
        # One addition for all, as a batch has hundreds of graphs.
        counts = torch.tensor(sizes).t()
        before = counts.cumsum(1) - counts
        shift = before[:2].repeat_interleave(counts[2], 1).to(edges[0].device)
        num_sources, num_targets, _ = counts.sum(1).tolist()
        return cls(torch.cat(edges, 1) + shift, num_sources=num_sources, num_targets=num_targets)

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


def no_coordinates(where: str, pattern: object) -> NotImplementedError:
    """Make the error of a pattern whose nodes have no coordinates."""
    fix = "Use Full, Window or Grid."
    return NotImplementedError(message(where, "pattern", "must have coordinates", pattern, fix))


def check_indices(
    where: str, edge_index: Tensor, num_sources: int, num_targets: int, reasons: tuple[str, str], fix: str
) -> None:
    """Raise ValueError at the first index that lies outside of its range; `reasons` say why the range is what it is."""
    if edge_index.numel() == 0:
        return
    is_plain = edge_index.device.type == "cpu" and edge_index.dtype == torch.int64
    if is_plain and not torch.compiler.is_compiling():
        # Without a sign, negative numbers are the largest ones: one pass of NumPy takes less time than torch's two.
        highest = edge_index.numpy().view(np.uint64).max(1)
        if highest[0] < num_sources and highest[1] < num_targets:
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

"""Patterns in which every target attends to a box of coordinates within its own component."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..csr import build_csr
from ..errors import check_int, message
from .base import Pattern, check_square
from .edges import Edges
from .global_tokens import GlobalTokens

# A batch may leave this many graphs empty, and so many more per node: more are a number that isn't a graph's.
MOST_GRAPHS, EMPTY_PER_NODE = 2**24, 64


class Box(Pattern):
    """One or more disjoint components, each an n-dimensional array of nodes in row-major order.

    Attributes:
        shape: [components, n] int64, extents of each component's targets.
        source_shape: the same for its sources.
        ptr, source_ptr: [components + 1] int64, first node of each component.
    """

    # Arguments of the constructor besides the sizes; they are also attributes.
    _options: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        shape: Tensor,
        source_shape: Tensor | None = None,
        *,
        is_cyclic: bool = False,
        tokens: GlobalTokens | None = None,
    ) -> None:
        self.shape = shape
        self.source_shape = shape if source_shape is None else source_shape
        self.ptr = _pointers(self.shape)
        self.source_ptr = _pointers(self.source_shape)
        # Whether coordinates wrap around, and whom nodes attend to outside their box.
        self._is_cyclic = is_cyclic
        self._tokens = tokens
        self._has_own_targets = self.source_shape is shape or torch.equal(self.source_shape, shape)
        super().__init__(int(self.source_ptr[-1]), int(self.ptr[-1]))
        for extents in (self.shape, self.source_shape):
            if float(extents.double().prod(1).sum()) >= 2**62:
                got, fix = write_sizes(extents), "Split the array."
                raise ValueError(message(type(self).__name__, "nodes", "must number less than 2^62", got, fix))

    @abstractmethod
    def _span(self, position: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
        """First source coordinate and number of sources, per target and dimension; the sources lie a step apart.

        `position` is the target's coordinate, `extent` the size of its component's sources, both [T, n].
        """

    @abstractmethod
    def _is_near(self, offset: Tensor, position: Tensor, extent: Tensor) -> Tensor:
        """Whether an offset from `position` lies in the box along each dimension: [..., n] boolean."""

    @abstractmethod
    def _offset_ranges(self) -> Sequence[range]:
        """Offsets that the box can have along each dimension."""

    @property
    def device(self) -> torch.device:
        """The device of edges, mask and CSR."""
        return self.ptr.device

    @property
    def num_edges(self) -> int:
        """E, computed from the extents and the global tokens."""
        return self.keep("num_edges", self._count_edges)

    def allows(self, target: Tensor | int, source: Tensor | int) -> Tensor:
        """The definition: True where `target` may attend to `source`; both are indices that broadcast together."""
        component, position = _locate(torch.as_tensor(target, device=self.device), self.ptr, self.shape)
        other, source_position = _locate(
            torch.as_tensor(source, device=self.device), self.source_ptr, self.source_shape
        )
        extent = self.source_shape[component]
        allowed = self._is_near(self._offset(position, source_position, extent), position, extent).all(-1)
        if self._tokens is not None:
            allowed |= self._tokens.allow(position[..., 0], source_position[..., 0])
        return (component == other) & allowed

    def _definition(self) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
        return tuple(getattr(self, option) for option in self._options), (self.shape, self.source_shape)

    def with_self_loops(self) -> Pattern:
        """Every box contains its own target, so this is the pattern itself if that is among the sources."""
        check_square(self)
        return self if self._has_own_targets else Edges(self.edge_index, self.num_targets).with_self_loops()

    def offsets(self) -> Tensor:
        """Coordinates of the source relative to the target: [E, dimensions] int64, in the caller's order."""
        source, target = self.edge_index
        component, position = _locate(target, self.ptr, self.shape)
        _, source_position = _locate(source, self.source_ptr, self.source_shape)
        return self._offset(position, source_position, self.source_shape[component])

    def positions(self) -> tuple[Tensor, Tensor]:
        """Coordinates of each target and of each source in its own component: [T, n] and [S, n] int64."""
        sides = ((self.num_targets, self.ptr, self.shape), (self.num_sources, self.source_ptr, self.source_shape))

        def build() -> tuple[Tensor, Tensor]:
            target, source = (_locate(torch.arange(rows, device=self.device), *side)[1] for rows, *side in sides)
            return target, source

        return self.keep("positions", build)

    @property
    def num_offsets(self) -> int:
        """R, how many offsets the pattern can have: rows of an `OffsetBias` table."""
        # Cached, because the sizes depend on data, which a compiled graph can't read.
        return self.keep("num_offsets", self._count_offsets)

    def offset_index(self) -> Tensor:
        """Which of the `num_offsets` offsets each edge has: [E] int64, row-major from the lowest offset.

        Offsets count in steps of the dilation. With global tokens the last row is for the edges that exist only because
        of a token, whatever their offset.
        """
        offsets, ranges = self.offsets(), self._offset_ranges()
        index = torch.zeros_like(offsets[:, 0])
        for dim, along in enumerate(ranges):
            index = index * len(along) + (offsets[:, dim] - along.start) // along.step
        if self._tokens is None:
            return index
        return torch.where(is_within(offsets, ranges).all(-1), index, self.num_offsets - 1)

    def _offset(self, position: Tensor, source_position: Tensor, extent: Tensor) -> Tensor:
        """Source minus target, all [..., n]; wrapped around the array if that is shorter."""
        offset = source_position - position
        if not self._is_cyclic:
            return offset
        lowest = torch.tensor([along.start for along in self._offset_ranges()], device=offset.device)
        return (offset - lowest) % extent + lowest

    def _spans(self) -> tuple[Tensor, Tensor, Tensor]:
        """Component of each target, [T]; its first source coordinate and its number of sources, [T, n]."""
        component, position = _locate(torch.arange(self.num_targets, device=self.device), self.ptr, self.shape)
        return component, *self._span(position, self.source_shape[component])

    def _count_offsets(self) -> int:
        return math.prod(len(along) for along in self._offset_ranges()) + (self._tokens is not None)

    def _count_edges(self) -> int:
        count = int(self._spans()[2].prod(1).sum())
        return count if self._tokens is None else count + self._list_beyond(self._tokens).size(1)

    def _to_edges(self, edge_index: Tensor) -> Edges:
        return Edges(edge_index, num_sources=self.num_sources, num_targets=self.num_targets)

    def _list_edges(self) -> Tensor:
        edge_index = self._list_boxes()
        if self._tokens is not None:
            edge_index = torch.cat([edge_index, self._list_beyond(self._tokens)], 1)
        elif not self._is_cyclic:
            return edge_index
        source, target = edge_index
        perm = build_csr(target, source, self.num_targets, self.num_sources).perm
        return edge_index if perm is None else edge_index[:, perm]

    def _list_boxes(self) -> Tensor:
        """[2, E] by target, then in the order of the box, which is by source unless the box wraps around."""
        component, first, count = self._spans()
        degree = count.prod(1)
        target = torch.repeat_interleave(torch.arange(self.num_targets, device=self.device), degree)
        rank = torch.arange(target.numel(), device=self.device) - (degree.cumsum(0) - degree)[target]
        source = self.source_ptr[component][target]
        stride = torch.ones_like(source)
        for dim, along in reversed(list(enumerate(self._offset_ranges()))):
            extent = self.source_shape[component, dim][target]
            coordinate = first[target, dim] + rank % count[target, dim] * along.step
            source += (coordinate % extent if self._is_cyclic else coordinate) * stride
            rank //= count[target, dim]
            stride *= extent
        return torch.stack([source, target])

    def _list_beyond(self, tokens: GlobalTokens) -> Tensor:
        """[2, X] edges that exist only because of a global token, in no particular order."""
        component, position = tokens.present(self.shape[:, 0])
        extent = self.shape[component, 0]
        token = torch.repeat_interleave(position, extent)
        begins = torch.repeat_interleave(extent.cumsum(0) - extent, extent)
        other = torch.arange(token.numel(), device=self.device) - begins
        # As a target each token has all nodes; as a source only those that aren't tokens, because edges between tokens
        # exist already.
        target = torch.stack([token, other], 1)
        source = target.flip(1)
        is_near = is_within((source - target)[..., None], self._offset_ranges()).all(-1)
        is_new = tokens.allow(target, source) & ~is_near
        is_new[:, 1] &= ~tokens.hold(other)
        shift = torch.repeat_interleave(self.ptr[component], extent)[:, None]
        return torch.stack([(source + shift)[is_new], (target + shift)[is_new]])


def reach(radius: int, dilation: int, causal: bool) -> range:
    """Offsets up to `radius` steps of the dilation away, in both directions or only back."""
    return range(-radius * dilation, (0 if causal else radius * dilation) + 1, dilation)


def is_within(offset: Tensor, ranges: Sequence[range]) -> Tensor:
    """Whether an offset is in the range of its dimension: [..., n] boolean."""
    lowest, highest, step = _columns(ranges, offset.device)
    near = (offset >= lowest) & (offset <= highest)
    return near if all(along.step == 1 for along in ranges) else near & (offset % step == 0)


def clipped_span(position: Tensor, extent: Tensor, ranges: Sequence[range]) -> tuple[Tensor, Tensor]:
    """First source coordinate and number of sources where the box is cut off at the border."""
    lowest, highest, step = _columns(ranges, position.device)
    before = torch.minimum(position, -lowest) // step
    after = torch.minimum(extent - 1 - position, highest) // step
    return position - before * step, before + after + 1


def check_reach(where: str, radius: int, dilation: int) -> None:
    """Raise ValueError if the offsets of a box are too large for an integer of 64 bits."""
    fix = "Use the longest extent: no offset is longer."
    if dilation >= 2**62:
        raise ValueError(message(where, "dilation", "must be less than 2^62", dilation, fix))
    if radius * dilation >= 2**62:
        raise ValueError(message(where, "radius", "times dilation must be less than 2^62", radius, fix))


def check_bool(where: str, argument: str, value: object, rule: str = "must be a bool") -> bool:
    """Return `value`, or raise TypeError unless it is a bool."""
    if not isinstance(value, bool):
        raise TypeError(message(where, argument, rule, repr(value)))
    return value


def same_options(patterns: Sequence[Box]) -> dict[str, Any]:
    """Return the options of the patterns to be joined; raise ValueError unless all have the same."""
    options = {}
    for option in patterns[0]._options:
        values = {getattr(pattern, option) for pattern in patterns}
        if len(values) > 1:
            raise ValueError(message("join", f"patterns' {option}", "must be the same for all", sorted(values)))
        options[option] = values.pop()
    return options


def parse_sizes(where: str, sizes: int | Sequence[int] | np.ndarray | Tensor) -> Tensor:
    """Read the sizes of one or more sequences: [components, 1] int64."""
    if isinstance(sizes, np.ndarray):
        sizes = torch.from_numpy(sizes)
    if isinstance(sizes, Tensor):
        if sizes.dim() > 1 or sizes.is_floating_point() or sizes.dtype == torch.bool:
            got = f"{sizes.dtype} of shape {list(sizes.shape)}"
            raise TypeError(message(where, "sizes", "must be one-dimensional and of an integer dtype", got))
        sizes = sizes.to(torch.int64)
        if bool((sizes < 0).any()):
            raise ValueError(message(where, "sizes", "must be at least 0", int(sizes.min())))
        return sizes.reshape(-1, 1)
    listed = [check_int(where, "sizes", size, 0) for size in (sizes if isinstance(sizes, Sequence) else [sizes])]
    # Of smaller sizes, the sum is checked later.
    if max(listed, default=0) >= 2**63:
        raise ValueError(message(where, "nodes", "must number less than 2^62", max(listed), "Split the array."))
    return torch.tensor(listed, dtype=torch.int64).reshape(-1, 1)


def sizes_of_batch(where: str, argument: str, batch: Tensor, num_graphs: int | None = None) -> Tensor:
    """Count the nodes of each graph from PyG's `batch` vector: [graphs] int64."""
    if not isinstance(batch, Tensor):
        raise TypeError(message(where, argument, "must be a tensor", type(batch).__name__))
    if batch.dim() != 1 or batch.is_floating_point() or batch.dtype == torch.bool:
        got = f"{batch.dtype} of shape {list(batch.shape)}"
        raise TypeError(message(where, argument, "must be one-dimensional and of an integer dtype", got))
    if bool((batch[1:] < batch[:-1]).any()) or bool((batch < 0).any()):
        rule = "must be sorted and not negative, one graph's nodes after another's"
        raise ValueError(message(where, argument, rule, fix="Sort the nodes by graph first."))
    graphs = max(int(batch[-1]) + 1 if len(batch) else 0, num_graphs or 0)
    if graphs > MOST_GRAPHS + EMPTY_PER_NODE * len(batch):
        got, fix = f"graph {graphs - 1} with {len(batch)} nodes", "Number the graphs that have nodes: 0, 1, 2, ..."
        raise ValueError(message(where, argument, "must not leave almost all graphs empty", got, fix))
    return torch.bincount(batch, minlength=num_graphs or 0)


def write_sizes(shape: Tensor) -> str:
    """Write component sizes as the constructors take them: tuples of extents, or lengths where they are flat."""
    rows = shape.tolist()
    listed = [str(tuple(row)) if isinstance(row, list) else str(row) for row in rows[:6]]
    if len(rows) == 1:
        return listed[0]
    more = f", ... {len(rows)} in all" if len(rows) > 6 else ""
    return f"[{', '.join(listed)}{more}]"


def _columns(ranges: Sequence[range], device: torch.device) -> Tensor:
    """Lowest, highest and step of each dimension: three rows of [n]."""
    return torch.tensor([[along[0], along[-1], along.step] for along in ranges], device=device).t()


def _pointers(shape: Tensor) -> Tensor:
    return torch.nn.functional.pad(shape.prod(1).cumsum(0), (1, 0))


def _locate(node: Tensor, ptr: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    """Component of each node, and its coordinates there, [..., n]."""
    component = torch.searchsorted(ptr, node.contiguous(), right=True) - 1
    rank = node - ptr[component]
    extents = shape[component]
    coordinates = []
    for dim in reversed(range(shape.size(1))):
        coordinates.append(rank % extents[..., dim])
        rank = rank // extents[..., dim]
    return component, torch.stack(coordinates[::-1], -1)

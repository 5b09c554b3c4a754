"""Patterns in which every target attends to a box of coordinates within its own component."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import check_int, message
from .base import Pattern, check_square


class Box(Pattern):
    """One or more disjoint components, each an n-dimensional array of nodes in row-major order.

    Attributes:
        shape: [components, n] int64, extents of each component's targets.
        source_shape: the same for its sources.
        ptr, source_ptr: [components + 1] int64, first node of each component.
    """

    def __init__(self, shape: Tensor, source_shape: Tensor | None = None) -> None:
        self.shape = shape
        self.source_shape = shape if source_shape is None else source_shape
        self.ptr = _pointers(self.shape)
        self.source_ptr = _pointers(self.source_shape)
        super().__init__(int(self.source_ptr[-1]), int(self.ptr[-1]))
        if float(self.shape.double().prod(1).sum()) >= 2**62:
            fix = "Split the array."
            raise ValueError(
                message(type(self).__name__, "nodes", "must number less than 2^62", write_sizes(shape), fix)
            )

    @abstractmethod
    def _span(self, position: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
        """First source coordinate and number of sources, per target and dimension.

        `position` is the target's coordinate, `extent` the size of its component's sources, both [T, n].
        """

    @abstractmethod
    def _is_near(self, offset: Tensor) -> Tensor:
        """Whether an offset, source minus target, may be attended to along each dimension: [..., n] boolean."""

    @abstractmethod
    def _offset_bounds(self) -> tuple[list[int], list[int]]:
        """Lowest and highest offset that the pattern can have along each dimension."""

    @property
    def device(self) -> torch.device:
        """Where edges, mask and CSR live."""
        return self.ptr.device

    @property
    def num_edges(self) -> int:
        """E, from the extents alone."""
        return self.keep("num_edges", lambda: int(self._spans()[2].prod(1).sum()))

    def allows(self, target: Tensor | int, source: Tensor | int) -> Tensor:
        """The definition: True where `target` may attend to `source`; both are indices that broadcast together."""
        component, position = _locate(torch.as_tensor(target, device=self.device), self.ptr, self.shape)
        other, source_position = _locate(
            torch.as_tensor(source, device=self.device), self.source_ptr, self.source_shape
        )
        return (component == other) & self._is_near(source_position - position).all(-1)

    def with_self_loops(self) -> Pattern:
        """Every box holds its own target already, so this is the pattern itself."""
        check_square(self)
        return self

    def offsets(self) -> Tensor:
        """Coordinates of the source relative to the target: [E, dimensions] int64, in the caller's order."""
        source, target = self.edge_index
        _, position = _locate(target, self.ptr, self.shape)
        _, source_position = _locate(source, self.source_ptr, self.source_shape)
        return source_position - position

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
        lowest, highest = self.keep("offset bounds", self._offset_bounds)
        # A list, because a graph that torch.compile traces takes no generator here.
        return math.prod([max(high - low + 1, 0) for low, high in zip(lowest, highest, strict=True)])

    def offset_index(self) -> Tensor:
        """Which of the `num_offsets` offsets each edge has: [E] int64, row-major from the lowest offset."""
        lowest, highest = self._offset_bounds()
        offsets = self.offsets()
        index = torch.zeros_like(offsets[:, 0])
        for dim, (low, high) in enumerate(zip(lowest, highest, strict=True)):
            index = index * (high - low + 1) + offsets[:, dim] - low
        return index

    def _spans(self) -> tuple[Tensor, Tensor, Tensor]:
        """Component of each target, [T]; its first source coordinate and its number of sources, [T, n]."""
        component, position = _locate(torch.arange(self.num_targets, device=self.device), self.ptr, self.shape)
        return component, *self._span(position, self.source_shape[component])

    def _list_edges(self) -> Tensor:
        component, first, count = self._spans()
        degree = count.prod(1)
        target = torch.repeat_interleave(torch.arange(self.num_targets, device=self.device), degree)
        rank = torch.arange(target.numel(), device=self.device) - (degree.cumsum(0) - degree)[target]
        source = self.source_ptr[component][target]
        stride = torch.ones_like(source)
        for dim in reversed(range(count.size(1))):
            source += (first[target, dim] + rank % count[target, dim]) * stride
            rank //= count[target, dim]
            stride *= self.source_shape[component, dim][target]
        return torch.stack([source, target])


def parse_sizes(where: str, sizes: int | Sequence[int] | np.ndarray | Tensor) -> Tensor:
    """Read the sizes of one or more sequences: [components, 1] int64."""
    if isinstance(sizes, np.ndarray):
        sizes = torch.from_numpy(sizes)
    if isinstance(sizes, Tensor):
        if sizes.dim() > 1 or sizes.is_floating_point() or sizes.dtype == torch.bool:
            got = f"{sizes.dtype} of shape {list(sizes.shape)}"
            raise TypeError(message(where, "sizes", "must be one-dimensional and of an integer dtype", got))
        if bool((sizes < 0).any()):
            raise ValueError(message(where, "sizes", "must be at least 0", int(sizes.min())))
        return sizes.to(torch.int64).reshape(-1, 1)
    listed = list(sizes) if isinstance(sizes, Sequence) else [sizes]
    return torch.tensor([check_int(where, "sizes", size, 0) for size in listed], dtype=torch.int64).reshape(-1, 1)


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
    return torch.bincount(batch, minlength=num_graphs or 0)


def write_sizes(shape: Tensor) -> str:
    """Write component sizes as the constructors take them: tuples of extents, or lengths where they are flat."""
    rows = shape.tolist()
    listed = [str(tuple(row)) if isinstance(row, list) else str(row) for row in rows[:6]]
    if len(rows) == 1:
        return listed[0]
    more = f", ... {len(rows)} in all" if len(rows) > 6 else ""
    return f"[{', '.join(listed)}{more}]"


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

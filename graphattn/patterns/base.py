"""What every pattern offers: sizes, edges, mask, CSR, on any device."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ..csr import CSR, build_csr
from ..errors import message

if TYPE_CHECKING:
    from .edges import Edges

T = TypeVar("T")


class Sides(NamedTuple):
    """How the caller names the tensors with a row per source and per target, and a fix if their rows don't fit."""

    source: str = "key"
    target: str = "query"
    fix: str = ""

    @classmethod
    def of(cls, x: object) -> Sides:
        """The sides of a layer's x, which is one tensor for both or a pair."""
        return cls("x[0]", "x[1]") if isinstance(x, tuple | list) else cls("x", "x")

    @property
    def reasons(self) -> tuple[str, str]:
        """Why indices must lie in their ranges."""
        return f"{self.source} has {{}} rows", f"{self.target} has {{}} rows"


OF_ATTENTION = Sides()


class Pattern(ABC):
    """The set of (source j, target i) pairs that may attend.

    A pattern is immutable: derived data (edges, CSR, CSC) is computed once, on first use, and cached. Subclasses say
    how many sources, targets and edges there are, which pairs are allowed, and list the edges.

    Two patterns are equal if they are interchangeable: of one class, with equal sizes and options (`Edges`: the same
    edges in the same order), and on one device. Patterns of different classes differ even if they allow the same pairs;
    one that spans processes equals only itself. Comparing `Edges` of equal sizes reads both lists; hashing reads none.

    Attributes:
        num_sources: S, rows of key and value.
        num_targets: T, rows of query.
    """

    num_sources: int
    num_targets: int

    def __init__(self, num_sources: int, num_targets: int) -> None:
        self.num_sources = num_sources
        self.num_targets = num_targets
        self._kept: dict[str, Any] = {}
        # A check of the caller's indices that was postponed; it must run before anything is derived from them.
        self._late_check: Callable[[], None] | None = None

    @property
    @abstractmethod
    def num_edges(self) -> int:
        """E. Structured patterns compute it without listing their edges."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of edges, mask and CSR."""

    @abstractmethod
    def allows(self, target: Tensor | int, source: Tensor | int) -> Tensor:
        """The definition: True where `target` may attend to `source`; both are indices that broadcast together."""

    @abstractmethod
    def with_self_loops(self) -> Pattern:
        """Let every node attend to itself. Edges keep their order; new loops come after them, by node.

        Raises:
            ValueError: sources and targets aren't the same nodes.
        """

    @abstractmethod
    def offsets(self) -> Tensor:
        """Coordinates of the source relative to the target: [E, dimensions] int64, in the caller's order.

        Raises:
            NotImplementedError: the pattern has no coordinates.
        """

    @property
    @abstractmethod
    def num_offsets(self) -> int:
        """R, how many offsets the pattern can have: rows of an `OffsetBias` table; one more where tokens are global.

        Raises:
            NotImplementedError: the pattern has no coordinates.
        """

    @abstractmethod
    def offset_index(self) -> Tensor:
        """Which of the `num_offsets` offsets each edge has: [E] int64, in the caller's order.

        Raises:
            NotImplementedError: the pattern has no coordinates.
        """

    @abstractmethod
    def _list_edges(self) -> Tensor:
        """[2, E] int64."""

    @abstractmethod
    def _to_edges(self, edge_index: Tensor) -> Edges:
        """An edge list between the same nodes. (Edge lists are patterns: this module can't make one.)"""

    @classmethod
    @abstractmethod
    def _join(cls, patterns: Sequence[Any]) -> Self:
        """Disjoint union of patterns of this class."""

    @abstractmethod
    def __repr__(self) -> str: ...

    def _definition(self) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
        """Options and tensors that define the pattern together with its sizes. By default it equals only itself."""
        return (id(self),), ()

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Pattern) or type(self) is not type(other):
            return NotImplemented
        (options, tensors), (other_options, other_tensors) = self._definition(), other._definition()
        if (self.num_sources, self.num_targets, options) != (other.num_sources, other.num_targets, other_options):
            return False
        # Meta tensors can't be compared.
        is_comparable = self.device == other.device and self.device.type != "meta"
        return is_comparable and all(map(torch.equal, tensors, other_tensors))

    def __hash__(self) -> int:
        return hash((type(self), self.num_sources, self.num_targets, self._definition()[0]))

    @property
    def edge_index(self) -> Tensor:
        """[2, E] int64, sources above targets, in the caller's order (structured patterns: by target, then source)."""
        return self.keep("edge_index", self._list_edges)

    def mask(self) -> Tensor:
        """[T, S] boolean, True where the target may attend to the source. Parallel edges are one entry."""
        target = torch.arange(self.num_targets, device=self.device)
        source = torch.arange(self.num_sources, device=self.device)
        return self.allows(target[:, None], source)

    def csr(self) -> CSR:
        """Rows are targets, columns are sources."""
        return self.keep("csr", lambda: self._sort(1, 0))

    def csc(self) -> CSR:
        """Rows are sources, columns are targets: the transposed pattern's CSR."""
        return self.keep("csc", lambda: self._sort(0, 1))

    def occurrence(self) -> Tensor | None:
        """[E] int64 in the caller's order: how many edges of the same pair come before; None without parallel edges."""
        return self.keep("occurrence", self._count_parallel)

    def keep(self, name: str, build: Callable[[], T]) -> T:
        """Return the cached result of `build` under this name. Kernels cache their index structures here."""
        if name not in self._kept:
            # Torch's decorator takes longer than to sort the edges of a small graph.
            (self._build_untraced if torch.compiler.is_compiling() else self._build)(name, build)
        return self._kept[name]

    def has_kept(self, name: str) -> bool:
        """Whether `keep` has cached this name."""
        return name in self._kept

    @property
    def is_traced(self) -> bool:
        """Whether the edges are an input of what torch.compile or torch.export is tracing, and can't be read."""
        return self._late_check is not None

    @torch.compiler.disable(reason="derived data depends on the edges: run the pattern once before compiling")
    def _build_untraced(self, name: str, build: Callable[[], Any]) -> None:
        if self.is_traced and torch.compiler.is_exporting():
            rule = f"must not be an input where a layer derives data from it, here {name!r}"
            fix = "Use a Pattern, which becomes a constant of the program."
            raise NotImplementedError(message("torch.export", "edge_index", rule, fix=fix))
        # A constant of the program: torch.export records operators, and must not see these.
        with _disable_current_modes():
            self._build(name, build)

    def _build(self, name: str, build: Callable[[], Any]) -> None:
        if self._late_check is not None:
            self._late_check()
        if not (torch.is_inference_mode_enabled() or torch._C._are_functorch_transforms_active()):
            self._kept[name] = build()
            return
        # A tensor made in inference mode can't be used in autograd later, and one of torch.func can't outlive the
        # transform.
        with torch.inference_mode(False), torch._C._DisableFuncTorch():
            self._kept[name] = build()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the pattern on another device, with everything it has computed so far."""
        if torch.device(device) == self.device:
            return self
        other = copy.copy(self)
        vars(other).update(_move(vars(self), device, non_blocking))
        return other

    def __copy__(self) -> Self:
        # Within one process all derived data is copied, too; `saving` decides what files hold.
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        other = copy.copy(self)
        vars(other).update(copy.deepcopy(vars(self), memo))
        return other

    @staticmethod
    def join(patterns: Sequence[Pattern]) -> Pattern:
        """Disjoint union of patterns of one class: the pattern of a batch.

        Raises:
            TypeError: the patterns are of different classes, or there are none.
            ValueError: they differ in more than size (another radius, say).
        """
        classes = {type(pattern) for pattern in patterns}
        if len(classes) != 1 or not issubclass(next(iter(classes)), Pattern):
            names = sorted(cls.__name__ for cls in classes)
            raise TypeError(message("join", "patterns", "must be one or more patterns of one class", names))
        return patterns[0] if len(patterns) == 1 else patterns[0]._join(patterns)

    def __or__(self, other: Pattern) -> Edges:
        """Set union as an edge list: all edges of this pattern in its order, then those of the other that it lacks.

        Parallel edges within either stay parallel.

        Raises:
            ValueError: the patterns have different sizes, or lie on different devices.

        Example:
            >>> from graphattn import Edges, Window
            >>> (Window(3, radius=0) | Edges(torch.tensor([[2, 1], [0, 1]]), 3)).edge_index
            tensor([[0, 1, 2, 2],
                    [0, 1, 2, 0]])
        """
        if not isinstance(other, Pattern):
            return NotImplemented
        if (self.num_sources, self.num_targets) != (other.num_sources, other.num_targets):
            raise ValueError(message("union", "patterns", "must have the same nodes", f"{self} and {other}"))
        if self.device != other.device:
            fix = f"Use other.to('{self.device}')."
            raise ValueError(
                message("union", "patterns", "must be on one device", f"{self.device} and {other.device}", fix)
            )
        source, target = other.edge_index
        is_new = ~self.allows(target, source)
        return self._to_edges(torch.cat([self.edge_index, other.edge_index[:, is_new]], 1))

    def reorder(self, order: Any) -> tuple[Pattern, Any]:
        """Raise NotImplementedError: only `Edges` can be renumbered, see `Edges.reorder`."""
        rule = "must be Edges, because fast kernels of windows and grids need their nodes in order"
        fix = "Use Edges(pattern.edge_index, pattern.num_targets).reorder(...)."
        raise NotImplementedError(message("reorder", "pattern", rule, self, fix))

    def _sort(self, row: int, column: int) -> CSR:
        sizes = (self.num_sources, self.num_targets)
        return build_csr(self.edge_index[row], self.edge_index[column], sizes[row], sizes[column])

    def _count_parallel(self) -> Tensor | None:
        ptr, index, perm = self.csr()
        position = torch.arange(index.numel(), device=index.device)
        is_first = torch.ones_like(position, dtype=torch.bool)
        is_first[1:] = index[1:] != index[:-1]
        # A row without edges begins at the same position as the next one; position E doesn't exist.
        begins = ptr[:-1]
        is_first[begins[begins < index.numel()]] = True
        if bool(is_first.all()):
            return None
        count = position - torch.where(is_first, position, 0).cummax(0).values
        return count if perm is None else torch.empty_like(count).index_copy_(0, perm.to(torch.int64), count)


def check_square(pattern: Pattern, where: str = "with_self_loops") -> None:
    """Raise ValueError unless sources and targets can be the same nodes."""
    if pattern.num_sources != pattern.num_targets:
        got = f"{pattern.num_sources} sources and {pattern.num_targets} targets"
        raise ValueError(message(where, "pattern", "must have as many sources as targets", got))


def _move(value: Any, device: torch.device | str, non_blocking: bool) -> Any:
    if isinstance(value, Tensor | Pattern):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, dict):
        return {key: _move(item, device, non_blocking) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_move(item, device, non_blocking) for item in value))
    if isinstance(value, tuple):
        return tuple(_move(item, device, non_blocking) for item in value)
    return value

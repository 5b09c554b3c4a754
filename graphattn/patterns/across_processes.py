"""Patterns that span processes: what `attention` and the layers need to know about them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor

from ..csr import CSR
from ..errors import message
from .base import Pattern
from .edges import Edges, Loops, no_coordinates


class RemotePattern(Pattern):
    """A pattern with some sources in other processes, so that it runs the attention itself.

    Its numbers of sources and targets count the rows in this process. Anything that needs the other sources, such as a
    mask or compressed rows, raises.
    """

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
        """Receive the missing rows of key and value, and run `attention` with these options."""

    @abstractmethod
    def renew_self_loops(self, num_nodes: int) -> Loops:
        """See `Edges.renew_self_loops`."""

    def allows(self, target: Tensor | int, source: Tensor | int) -> Tensor:
        """Raise NotImplementedError, because not every source is in this process."""
        raise _not_at_hand("mask", self)

    def offsets(self) -> Tensor:
        """Nodes have no coordinates: raises NotImplementedError."""
        raise no_coordinates("offsets", self)

    @property
    def num_offsets(self) -> int:
        """Nodes have no coordinates: raises NotImplementedError."""
        raise no_coordinates("num_offsets", self)

    def offset_index(self) -> Tensor:
        """Nodes have no coordinates: raises NotImplementedError."""
        raise no_coordinates("offset_index", self)

    def _sort(self, row: int, column: int) -> CSR:
        raise _not_at_hand("csr", self)

    def _to_edges(self, edge_index: Tensor) -> Edges:
        raise _not_at_hand("union", self)

    @classmethod
    def _join(cls, patterns: Sequence[Any]) -> Self:
        raise NotImplementedError(
            message("join", "patterns", "must lie in one process", f"{len(patterns)} of {cls.__name__}")
        )


def check_at_hand(where: str, pattern: Pattern) -> None:
    """Raise NotImplementedError if some sources of the pattern are in other processes."""
    if isinstance(pattern, RemotePattern):
        raise _not_at_hand(where, pattern)


def _not_at_hand(where: str, pattern: RemotePattern) -> NotImplementedError:
    return NotImplementedError(message(where, "pattern", "must have all its sources in this process", pattern))

"""Types of everything that is accepted as a pattern, for annotations only: nothing checks them at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from .base import Pattern


class ScipyMatrix(Protocol):
    """A `scipy.sparse` matrix or array of any format."""

    def tocoo(self) -> Any:
        """Row, column and value of each entry."""


class SparseTensorLike(Protocol):
    """A `SparseTensor` of torch_sparse."""

    def coo(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Row, column and value of each entry."""


class NetworkxGraph(Protocol):
    """A graph of networkx, directed or not."""

    def is_directed(self) -> bool:
        """Whether edges have a direction."""

    def adjacency(self) -> Any:
        """The neighbors of each node."""


# PyG's EdgeIndex and torch's sparse adjacencies are tensors.
EdgesLike = Tensor | ScipyMatrix | SparseTensorLike | NetworkxGraph
PatternLike = Pattern | Sequence[Pattern] | EdgesLike

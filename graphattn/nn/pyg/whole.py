"""What our versions of PyG's layers share whose whole `forward` is ours, or else PyG's."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ...call import is_transformed
from ...functional import attention
from ...patterns import Edges, Pattern
from ...patterns.lookup import known_edges
from ...scores import DotProduct, Score
from .fused import Fused, why_not_fused
from .sums import share_by_source


class FusedWhole(Fused):
    """What our versions share whose whole `forward` is ours, or else PyG's."""

    node_dims = (0, -2)
    # Arguments with which PyG's class can be made, so that it generates its code.
    example: tuple[Any, ...] = ()
    # Whether it is PyG's under torch.compile, which compiles that as a whole.
    compiles_as_pygs = False

    def _set_jittable_templates(self, raise_on_error: bool = False) -> None:
        if "_jinja_propagate" not in vars(self.theirs):
            with torch.random.fork_rng(devices=[]):
                self.theirs(*self.example)

    def _is_pygs(self, x: Any, *edges: Any, of_edges: Any = None) -> bool:
        """Whether PyG computes everything: with hooks, explainers, for edges that only PyG reads, and for few of them.

        `of_edges` has a row for each of them.
        """
        if self._is_small(x, *edges, of_edges=of_edges) or (self.compiles_as_pygs and torch.compiler.is_compiling()):
            return True
        if torch.jit.is_scripting() or torch.jit.is_tracing() or torch.compiler.is_exporting() or is_transformed():
            return True
        if why_not_fused(self) is not None or self.explain or self._is_watched():
            return True
        return any(not isinstance(index, Tensor) or index.layout != torch.strided or index.is_meta for index in edges)


class FusedConv(FusedWhole):
    """One that is a single call on one graph."""

    compiles_as_pygs = True

    def _edges(self, x: Tensor, edge_index: Tensor) -> Edges:
        """The edges of a graph with a row of features per node."""
        return known_edges(type(self).__name__, edge_index, x.size(0), x.size(0))

    def _attended(self, x: Tensor, edge_index: Tensor) -> Pattern:
        """The same, with one loop at each node if the layer adds them."""
        given = self._edges(x, edge_index)
        return given.renew_self_loops(x.size(0)).pattern if self.add_self_loops else given

    def _attend_to(self, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, **options: Any) -> Any:
        """Attend without autocast, whose operators have cast what they should, in the dtype of PyG's own result."""
        given = [x for x in (query, key, value, *options.values()) if isinstance(x, Tensor)]
        dtype = functools.reduce(torch.promote_types, {x.dtype for x in given})
        options = {name: x.to(dtype) if isinstance(x, Tensor | Score) else x for name, x in options.items()}
        with torch.autocast(query.device.type, enabled=False):
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
            return attention(query, key, value, pattern, backend=self.backend, **options)

    def _share(self, score: Tensor, value: Tensor, pattern: Pattern) -> Tensor:
        """Softmax over each target's sources of their scores, times their values, for each channel: [S, C] to [T, C].

        Two sums of rows, on a CPU and unless exponents overflow; else channels are heads of one number.
        """
        in_loops = self.backend != "scatter"
        found = share_by_source(score, value, pattern, in_loops) if value.device.type == "cpu" else None
        if found is not None:
            return found
        ones = value.new_ones(()).expand(pattern.num_targets, value.size(1), 1)
        rows = (ones, score.unsqueeze(-1), value.unsqueeze(-1))
        out: Tensor = self._attend_to(*rows, pattern, score=DotProduct(1.0)).squeeze(-1)
        return out


def is_matrix(x: Any) -> bool:
    """Whether it is what most layers take: floating point [N, C]."""
    return isinstance(x, Tensor) and x.dim() == 2 and x.is_floating_point()

"""PyG's convolutions whose weights of edges no pair of rows gives: the same parameters, arguments and numbers."""

from __future__ import annotations

from typing import Any

import torch
import torch_geometric.nn.conv as conv
from torch import Tensor
from torch.nn.functional import dropout, leaky_relu
from torch_geometric.nn.aggr import MeanAggregation, SumAggregation

from ...errors import message, shape_of
from ...normalizers import Softmax
from ...patterns import Edges
from ...patterns.lookup import known_edges
from ...scores import DotProduct
from ...segments import gather
from ..ends import ends_of
from ..products import products_with
from .edges import check_edge_attr
from .sums import sum_sources
from .whole import FusedConv, is_matrix

# What PyG adds to a variance.
EPSILON = 1e-15


class WeightedConv(FusedConv):
    """What they share: sums of rows by given weights."""

    def _sum_by(self, weights: Tensor, value: Tensor, pattern: Edges) -> Tensor:
        """Sum over j -> i of weights_ij,h value_j,h: weights [E, H] and rows [S, H, V] to [T, H, V]."""
        query, key = (value.new_zeros(rows, value.size(1), 1) for rows in (pattern.num_targets, pattern.num_sources))
        options: dict[str, Any] = dict(score=DotProduct(1.0), edge_bias=weights, normalizer="identity")
        out: Tensor = self._attend_to(query, key, value, pattern, **options)
        return out


class GMMConv(WeightedConv, conv.GMMConv):
    """`torch_geometric.nn.GMMConv`, fused unless it has `separate_gaussians`: see there for arguments and references.

    Each Gaussian is a head.
    """

    theirs = conv.GMMConv
    small = 2**19
    example = (1, 1, 1, 1)
    aggregation = (SumAggregation, MeanAggregation)
    # propagate_type: (x: OptPairTensor, edge_attr: OptTensor)

    def _is_small(self, x: Any, *edges: Any, of_edges: Any = None) -> bool:
        # PyG's needs a root.
        return self.root_weight and super()._is_small(x, *edges, of_edges=of_edges)

    def forward(self, x: Any, edge_index: Any, edge_attr: Tensor | None = None, size: Any = None) -> Tensor:
        """See PyG."""
        source, target = x if isinstance(x, tuple) else (x, x)
        is_plain = is_matrix(source) and is_matrix(target) and size is None and edge_attr is not None
        if self._is_pygs(x, edge_index, of_edges=edge_attr) or self.separate_gaussians or not is_plain:
            return conv.GMMConv.forward(self, x, edge_index, edge_attr, size)
        pattern = known_edges("GMMConv", edge_index, source.size(0), target.size(0))
        check_edge_attr("GMMConv", edge_attr, self.dim, pattern.num_edges, target.size(0))
        assert edge_attr is not None
        rows = (source @ self.g).view(-1, self.kernel_size, self.out_channels)
        out = self._sum_by(self._gaussians(edge_attr.view(-1, self.dim)), rows, pattern).sum(1)
        if isinstance(self.aggr_module, MeanAggregation):
            out = out / pattern.csr().ptr.diff().clamp(min=1).to(out.dtype).unsqueeze(1)
        if self.root_weight:
            out = out + self.root(target)
        return out if self.bias is None else out + self.bias

    def _gaussians(self, edge_attr: Tensor) -> Tensor:
        """[E, K], the exponential of the sum over dimensions of squares, each divided by its variance."""
        mean, variance = self.mu.t(), self.sigma.t().square() + EPSILON
        # One dimension at a time: all of them would be [E, K, dim].
        parts = (
            (column - center).square() / spread
            for column, center, spread in zip(edge_attr.split(1, 1), mean, variance, strict=True)
        )
        return (-0.5 * torch.stack(tuple(parts)).sum(0)).exp()


class HypergraphConv(WeightedConv, conv.HypergraphConv):
    """`torch_geometric.nn.HypergraphConv`, fused: see there for arguments, shapes, results and references.

    Nodes and hyperedges are the two sides of a pattern, which is read in both directions.

    Example:
        >>> layer = HypergraphConv(8, 4, use_attention=True, heads=2)
        >>> nodes_and_hyperedges = torch.tensor([[0, 1, 2, 1, 2, 3], [0, 0, 0, 1, 1, 1]])
        >>> layer(torch.randn(4, 8), nodes_and_hyperedges, hyperedge_attr=torch.randn(2, 8)).shape
        torch.Size([4, 8])
    """

    theirs = conv.HypergraphConv
    small = 2**17
    example = (1, 1)
    # propagate_type: (x: Tensor, norm: Tensor, alpha: Tensor, size: Tensor)

    def forward(
        self,
        x: Tensor,
        hyperedge_index: Any,
        hyperedge_weight: Tensor | None = None,
        hyperedge_attr: Tensor | None = None,
        num_edges: int | None = None,
    ) -> Tensor:
        """See PyG."""
        is_plain = is_matrix(x) and (not self.use_attention or is_matrix(hyperedge_attr))
        if self._is_pygs(x, hyperedge_index) or not is_plain:
            return conv.HypergraphConv.forward(
                self, x, hyperedge_index, hyperedge_weight, hyperedge_attr, num_edges=num_edges
            )
        if num_edges is None:
            num_edges = int(hyperedge_index[1].max()) + 1 if hyperedge_index.numel() else 0
        into = known_edges("HypergraphConv", hyperedge_index, x.size(0), num_edges)
        build = lambda: Edges(into.edge_index.flip(0), num_sources=num_edges, num_targets=into.num_sources)
        back: Edges = into.keep("reversed", build)
        rows = self.lin(x)
        members, degree = (pattern.csr().ptr.diff().to(rows.dtype) for pattern in (into, back))
        if hyperedge_weight is not None:
            hyperedge_weight = _of_hyperedges("hyperedge_weight", hyperedge_weight, num_edges)
            degree = sum_sources(hyperedge_weight.unsqueeze(1), back).squeeze(1)
        # One direction, then the other; each divides by the weight of what it sums.
        weights = self._weights(rows, hyperedge_attr, into) if self.use_attention else None
        rows = rows.view(x.size(0), self.heads, self.out_channels)
        for pattern, total in ((into, members), (back, degree)):
            factor = torch.where(total == 0, 0, 1 / total).view(-1, 1, 1)
            if weights is None:
                summed = sum_sources(rows.flatten(1), pattern).view(-1, self.heads, self.out_channels)
            else:
                summed = self._sum_by(weights, rows, pattern)
            rows = factor * summed
        out = rows.flatten(1) if self.concat else rows.mean(1)
        return out if self.bias is None else out + self.bias

    def _weights(self, rows: Tensor, hyperedge_attr: Any, into: Edges) -> Tensor:
        """[E, H] after dropout: softmax over the nodes of a hyperedge, or over the hyperedges of a node."""
        given = _of_hyperedges("hyperedge_attr", hyperedge_attr, into.num_targets)
        by_hyperedge, by_node = ends_of(into)
        of_node, of_hyperedge = (
            products_with(part.view(-1, self.heads, self.out_channels), vector[0])[0]
            for part, vector in zip((rows, self.lin(given)), self.att.chunk(2, -1), strict=True)
        )
        both = gather(of_node, by_node, -2) + gather(of_hyperedge, by_hyperedge, -2)
        over = by_hyperedge if self.attention_mode == "node" else by_node
        weights = Softmax().on_rows(leaky_relu(both, self.negative_slope), over)
        return dropout(weights, self.dropout, self.training)


def _of_hyperedges(argument: str, given: Tensor, num_edges: int) -> Tensor:
    """Numbers or rows of hyperedges; PyG takes more than there are."""
    if given.size(0) < num_edges:
        raise ValueError(message("HypergraphConv", argument, f"must have {num_edges} rows", shape_of(given)))
    return given[:num_edges]

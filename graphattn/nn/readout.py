"""One row of features per graph: learned queries that attend to all of its nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch.nn import Parameter
from torch_geometric.nn.aggr import Aggregation

from ..errors import check_float_tensor, check_int, check_keywords, message, shape_of
from ..normalizers import UserNormalizer
from ..patterns import Full, Pattern
from ..scores import Score, ScoreFunction
from .attention import GraphAttention
from .dense import DenseGraphAttention
from .projections import check_heads, fits
from .typed import Maybe, No, Yes, typed_as

# Options of an attention layer that a readout doesn't have: edges from nodes to queries have no features.
WITHOUT_MEANING = ("edge_dim", "add_self_loops", "encoding")


class AttentionReadout(Aggregation):
    """Attention of learned queries to all nodes of a graph, as one of PyG's aggregations.

        out_g = concat_q attend(query_q, {x_j : node j of graph g})

    The order of nodes doesn't matter, and `index` need not be sorted. Under softmax, weights sum to 1 whatever the
    number of nodes: a graph and two copies of it give the same output. Those of "sigmoid", "relu" and "identity" grow
    with the number of nodes, and can count.

    Args:
        in_channels: features per node; -1 is found at the first call.
        out_channels: features per query, split over the heads.
        heads: H; must divide `out_channels`, unless `head_channels` is given.
        num_queries: Q.
        score, normalizer, dropout: as in `GraphAttention`.
        layer: `GraphAttention`, or `DenseGraphAttention` to verify: parameters and their names are the same.
        options: further options of the layer: `kv_heads`, `head_channels`, `bias`, `backend`.

    Raises:
        TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.

    Example:
        >>> readout = AttentionReadout(8, 16, heads=4, num_queries=2)
        >>> batch = torch.tensor([0, 0, 0, 1, 1])
        >>> readout(torch.randn(5, 8), batch).shape
        torch.Size([2, 32])
        >>> _, weights = readout(torch.randn(5, 8), batch, return_attention_weights=True)
        >>> weights[:3].sum(0).allclose(torch.ones(2, 4))
        True

    References:
        Lee et al., "Set Transformer", 2019: pooling by multi-head attention, there with a feed-forward network behind;
        Li et al., "Gated Graph Sequence Neural Networks", 2016, for a sum with sigmoid weights.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int = 1,
        *,
        num_queries: int = 1,
        score: str | Score | ScoreFunction = "dot_product",
        normalizer: str | UserNormalizer = "softmax",
        dropout: float = 0.0,
        layer: type[GraphAttention] | type[DenseGraphAttention] = GraphAttention,
        **options: Any,
    ) -> None:
        super().__init__()
        where = "AttentionReadout"
        self.in_channels = check_int(where, "in_channels", in_channels, -1)
        self.out_channels = check_int(where, "out_channels", out_channels, 1)
        self.num_queries = check_int(where, "num_queries", num_queries, 1)
        for name in WITHOUT_MEANING:
            if name in options:
                raise TypeError(message(where, name, "has no meaning in a readout", fix="Leave it out."))
        check_keywords(where, options, AttentionReadout, layer)
        check_heads(where, "out_channels", self.out_channels, heads, options.get("head_channels"))
        sides = (in_channels, out_channels)
        options = {"score": score, "normalizer": normalizer, "dropout": dropout, **options}
        self.attention = layer(sides, out_channels, heads, **options)
        self.query = Parameter(torch.empty(self.num_queries, self.out_channels))
        torch.nn.init.normal_(self.query)

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        self.attention.reset_parameters()
        torch.nn.init.normal_(self.query)

    @overload
    def forward(
        self,
        x: Tensor,
        index: Tensor | None = ...,
        ptr: Tensor | None = ...,
        dim_size: int | None = ...,
        dim: int = ...,
        return_attention_weights: No = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        x: Tensor,
        index: Tensor | None = ...,
        ptr: Tensor | None = ...,
        dim_size: int | None = ...,
        dim: int = ...,
        return_attention_weights: Yes = ...,
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(
        self,
        x: Tensor,
        index: Tensor | None = ...,
        ptr: Tensor | None = ...,
        dim_size: int | None = ...,
        dim: int = ...,
        return_attention_weights: Maybe = ...,
    ) -> Tensor | tuple[Tensor, Tensor]: ...
    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
        return_attention_weights: Maybe = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Read out every graph.

        Args:
            x: [*B, N, in_channels].
            index: [N] int64, the graph of each node, in any order. Without it and `ptr`, all nodes are one graph;
                without nodes there is no graph, as in PyG.
            ptr: [G + 1] int64, the nodes ptr[g] to ptr[g + 1] - 1 are graph g; takes precedence over `index`.
            dim_size: G; the largest index plus 1 if omitted.
            dim: the dimension of the nodes; must be that before the last.
            return_attention_weights: also return the weights.

        Returns:
            [*B, G, num_queries * out_channels]; or that and the weights before dropout, [*B, N, num_queries, H], in the
            order of the given nodes. The output of a graph without nodes is the bias of the output matrix.

        Raises:
            TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.
        """
        where = "AttentionReadout"
        check_float_tensor(where, "x", x)
        if x.dim() < 2 or dim not in (-2, x.dim() - 2) or not fits(self.in_channels, x):
            columns = "C" if self.in_channels == -1 else self.in_channels
            rule = f"must have shape [*B, N, {columns}], with dim=-2"
            raise ValueError(message(where, "x", rule, f"{shape_of(x)} with dim={dim}"))
        order, graphs = None, 0 if dim_size is None else dim_size
        if torch.compiler.is_compiling() and isinstance(self.attention, GraphAttention):
            pattern: Any = self._edges(x, index, ptr)
        else:
            pattern, order = _pattern(x, index, ptr, dim_size, self.num_queries)
            graphs = pattern.num_targets // self.num_queries
        if order is not None:
            x = x.index_select(-2, order)
        query = self.query.to(x.dtype).repeat(graphs, 1).expand(*x.shape[:-2], -1, -1)
        result = self.attention((x, query), pattern, return_attention_weights=return_attention_weights)
        out, weights = result if isinstance(result, tuple) else (result, None)
        out = out.reshape(*x.shape[:-2], graphs, self.num_queries * self.out_channels)
        return out if weights is None else (out, self._by_node(weights, pattern, order))

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None:
            """See `forward`."""

    def _edges(self, x: Tensor, index: Tensor | None, ptr: Tensor | None) -> Tensor:
        """Return the same pattern as edges, whose number depends only on shapes, so that torch.compile can trace it."""
        node = torch.arange(x.size(-2), device=x.device)
        graph = torch.bucketize(node, ptr[1:], right=True) if ptr is not None else index
        query = torch.arange(self.num_queries, device=x.device)
        target = (graph[:, None] * self.num_queries + query).flatten()  # type: ignore[index]
        return torch.stack([node.repeat_interleave(self.num_queries), target])

    def _by_node(self, given: Any, pattern: Tensor | Pattern, order: Tensor | None) -> Tensor:
        """Arrange the layer's weights as [*B, N, num_queries, H]."""
        if isinstance(pattern, Tensor):
            return given[1].unflatten(-2, (-1, self.num_queries))
        source, target = pattern.edge_index
        weights = given[..., target, source].movedim(-2, -1) if isinstance(given, Tensor) else given[1]
        node = source if order is None else order[source]
        first = (node * self.num_queries + target % self.num_queries).argsort()
        return weights.index_select(-2, first).unflatten(-2, (pattern.num_sources, self.num_queries))

    def __repr__(self) -> str:
        queries = f", num_queries={self.num_queries}" if self.num_queries > 1 else ""
        kind = type(self.attention)
        layer = "" if kind is GraphAttention else f", layer={kind.__name__}"
        options = self.attention._write_options()
        return f"AttentionReadout({self.in_channels}, {self.out_channels}, {options}{queries}{layer})"


@torch.compiler.disable(reason="how many nodes a graph has depends on the data")
def _pattern(
    x: Tensor, index: Tensor | None, ptr: Tensor | None, dim_size: int | None, queries: int
) -> tuple[Full, Tensor | None]:
    """Return the pattern, and the order that sorts the nodes by graph unless they are sorted."""
    where, nodes, order = "AttentionReadout", x.size(-2), None
    if ptr is not None:
        _check_graphs("ptr", ptr)
        counts = ptr.diff()
        if ptr.numel() == 0 or int(ptr[0]) != 0 or int(ptr[-1]) != nodes or bool((counts < 0).any()):
            rule = f"must run from 0 to the {nodes} rows of x without falling"
            raise ValueError(message(where, "ptr", rule, ptr.tolist() if ptr.numel() < 9 else f"{ptr[:9].tolist()}..."))
    elif index is not None:
        _check_graphs("index", index)
        if index.shape != (nodes,):
            rule = f"must have one graph for each of the {nodes} rows of x"
            raise ValueError(message(where, "index", rule, f"shape {shape_of(index)}"))
        if bool((index < 0).any()):
            raise ValueError(message(where, "index", "must be at least 0", int(index.min())))
        counts = torch.bincount(index, minlength=dim_size or 0)
        if dim_size is not None and counts.numel() > dim_size:
            rule = f"must lie in [0, {dim_size}) because dim_size is {dim_size}"
            raise ValueError(message(where, "index", rule, int(index.max())))
        if bool((index[1:] < index[:-1]).any()):
            order = index.argsort(stable=True)
    else:
        raise ValueError(message(where, "index", "must be given if ptr is not", "None"))
    return Full(torch.full_like(counts, queries), source_sizes=counts), order


def _check_graphs(argument: str, value: object) -> None:
    """Raise TypeError unless `value` is a tensor of integers."""
    if not isinstance(value, Tensor) or value.is_floating_point() or value.dtype == torch.bool:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(message("AttentionReadout", argument, "must be a tensor of integers", got))

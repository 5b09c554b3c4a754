"""Multi-head self-attention on the edges of a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing
from torch_geometric.typing import OptTensor

from ..call import Options, as_pattern, can_be_fused
from ..dropout import draw_seed, keep_edges_of_heads, keep_scale
from ..errors import check_choice, check_device, message, shape_of
from ..functional import attention
from ..kernels import KERNELS
from ..normalizers import UserNormalizer
from ..offset_bias import OffsetBias
from ..patterns import Pattern, PatternLike
from ..patterns.across_processes import check_at_hand
from ..patterns.base import Sides
from ..patterns.containers import read_edges
from ..scores import Score, ScoreFunction, as_score, repeat_heads
from .edge_products import edge_products
from .encodings import Encoding
from .feature_maps import FeatureMap, attend_by_features
from .joined import project
from .projections import Projections
from .typed import Features, Maybe, No, Weights, Yes, typed_as


class GraphAttention(Projections, MessagePassing):
    """Multi-head self-attention in which each node attends to the sources of its incoming edges.

        out = W_o concat_h( sum over j -> i of weight_ij,h (W_v x_j)_h )
        weight_ij,h = normalizer over j -> i of score((W_q x_i)_h, (W_k x_j)_h)

    `out_channels` is split among the heads, as in a transformer, unless `head_channels` is given. With the
    full pattern this is `torch.nn.MultiheadAttention`.

    Args:
        in_channels: features per node, or a pair (source, target) for a bipartite graph; -1 is found at the first call.
        out_channels: features of the output, split over the heads.
        heads: H; must divide `out_channels`, unless `head_channels` is given.
        kv_heads: heads of key and value; must divide `heads`; as many as `heads` if omitted.
        head_channels: width of each head's query, key and value; `out_channels / heads` if omitted.
        score: "dot_product", "additive" (tanh), "gatv2" (leaky_relu); or a `Score` or a callable
            `(query_i, key_j, edge_key) -> [*B, E, H]`, which may be a module with parameters.
        normalizer: "softmax", "relu", "sigmoid", "identity", "sparsemax", "entmax15", or an object as in `attention`.
        edge_dim: features per edge; projected once, then added to the key and to the value of the edge.
        dropout: probability with which a weight is dropped in training.
        bias: whether the projections of queries, keys, values and output have a bias.
        add_self_loops: let every node attend to itself; new loops come after the given edges, with zero features.
        encoding: a positional encoding, see `graphattn.nn.encodings`; one that changes features doesn't support a pair.
        feature_map: "elu" (elu + 1), "relu", or a function or module from [*B, N, H, D] to positive features
            [*B, N, H, F], such as `RandomFeatures`: weights are products of features over their sum, and full patterns
            take linear time. It excludes other scores and normalizers, edge features, dropout and biases of pairs.
        update_edges: also return features of edges, a linear map of concat_h(W_q x_i * (W_k x_j + W_e e_ij) / sqrt(D)),
            elementwise: the products whose sum is a head's score.
        backend: as in `attention`.

    Raises:
        TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix. Example:
        >>> layer = GraphAttention(8, 32, heads=4)
        >>> layer(torch.randn(3, 8), torch.tensor([[0, 1, 2], [1, 2, 0]])).shape
        torch.Size([3, 32])

    References:
        Vaswani et al., "Attention Is All You Need", 2017; Shi et al., "Masked Label Prediction", 2021, for edge
        features in key and value.
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        *,
        kv_heads: int | None = None,
        head_channels: int | None = None,
        score: str | Score | ScoreFunction = "dot_product",
        normalizer: str | UserNormalizer = "softmax",
        edge_dim: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        add_self_loops: bool = False,
        encoding: Encoding | None = None,
        feature_map: str | FeatureMap | None = None,
        update_edges: bool = False,
        backend: str = "auto",
    ) -> None:
        MessagePassing.__init__(self, aggr="add", node_dim=-3)
        check_choice("GraphAttention", "backend", backend, ["auto", *(kernel.name for kernel in KERNELS)])
        self.add_self_loops = add_self_loops
        self.backend = backend
        widths = (in_channels, out_channels, heads, kv_heads, head_channels)
        self._build(*widths, score, normalizer, edge_dim, dropout, bias, encoding, feature_map, update_edges)

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        Projections.reset_parameters(self)

    @overload
    def forward(
        self, x: Features, edge_index: PatternLike, edge_attr: Tensor | None = ..., return_attention_weights: No = ...
    ) -> Tensor: ...
    @overload
    def forward(
        self, x: Features, edge_index: PatternLike, edge_attr: Tensor | None = ..., return_attention_weights: Yes = ...
    ) -> tuple[Tensor, Weights]: ...
    @overload
    def forward(
        self,
        x: Features,
        edge_index: PatternLike,
        edge_attr: Tensor | None = ...,
        return_attention_weights: Maybe = ...,
    ) -> Tensor | tuple[Tensor, Weights]: ...
    def forward(
        self,
        x: Features,
        edge_index: PatternLike,
        edge_attr: Tensor | None = None,
        return_attention_weights: Maybe = None,
    ) -> Tensor | tuple[Tensor, Weights]:
        """Attend along the edges.

        Args:
            x: [*B, N, in_channels], or a pair (x_source [*B, S, C_source], x_target [*B, T, C_target]).
            edge_index: a `Pattern`, a list of patterns as from a DataLoader, or anything that `Edges` takes.
            edge_attr: [E, edge_dim] (also [E] for an edge_dim of 1), in the order of the edges; if omitted, the values
                of a sparse adjacency.
            return_attention_weights: also return the weights.

        Returns:
            [*B, T, out_channels]; with `update_edges` then [*B, E, edge_dim]; with `return_attention_weights` then a
            pair of the edges [2, E] and their weights [*B, E, H] before dropout, in the order of the given edges.

        Raises:
            TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.
        """
        x_source, x_target = self._check_features(x)
        if edge_attr is None and self.edge_dim is not None and not isinstance(edge_index, Pattern | list | tuple):
            values = read_edges("GraphAttention", edge_index).values
            edge_attr = None if values is None else values.to(self.lin_out.weight.dtype)
        fused = can_be_fused(as_score("GraphAttention", self._own_score()), self.normalizer)
        # These read the edges of a pattern, which must be recognized later.
        fused = fused and not self.add_self_loops and self.encoding is None and self.lin_edge_out is None
        rows = (x_source.size(-2), x_target.size(-2))
        if isinstance(edge_index, Tensor | Pattern):
            check_device("GraphAttention", "edge_index", edge_index.device, x_target, "x")
        pattern = as_pattern("GraphAttention", edge_index, *rows, sides=Sides.of(x), may_trace=fused)
        edge_attr = self._check_edge_dim(edge_attr, (pattern.num_edges,), x_target)
        self._check_mask(pattern.num_edges)
        given = pattern
        if self.add_self_loops:
            if pattern.num_sources != pattern.num_targets:
                got = f"{pattern.num_sources} sources and {pattern.num_targets} targets"
                rule = "needs the same nodes as sources and targets"
                raise ValueError(message("GraphAttention", "add_self_loops", rule, got, "Use add_self_loops=False."))
            if pattern.is_traced:
                if return_attention_weights:
                    rule = "must be left out with add_self_loops, as the number of loops depends on the edges"
                    raise NotImplementedError(message("torch.export", "return_attention_weights", rule))
                pattern = pattern.with_self_loops()
            else:
                pattern = given.keep("with_self_loops", given.with_self_loops)
            if edge_attr is not None:
                edge_attr = torch.nn.functional.pad(edge_attr, (0, 0, 0, pattern.num_edges - given.num_edges))

        x_source, x_target = self._encode_input(x_source, x_target, pattern)
        linears = (self.lin_query, self.lin_key, self.lin_value)
        if x_source is x_target:
            projected = project(x_source, linears)
        else:
            projected = [linear(x) for linear, x in zip(linears, (x_target, x_source, x_source), strict=True)]
        query, key, value = map(self._split, projected, (self.heads, self.kv_heads, self.kv_heads))
        query, key, bias = self._encode_scores(query, key, pattern)
        edge = None
        if self.lin_edge is not None and edge_attr is not None:
            edge = self._split(self.lin_edge(edge_attr), self.kv_heads)

        route = self._attend
        if self._is_observed():
            check_at_hand("GraphAttention", pattern)
            route = self._pass_messages
        out, weights = route(query, key, value, pattern, edge, bias, bool(return_attention_weights))
        found: Any = (self.lin_out(out.flatten(-2)),)
        if self.lin_edge_out is not None:
            found += (self._update_edges(query, key, edge, given),)
        if weights is None:
            return found if len(found) > 1 else found[0]
        # A copy, because data derived by the pattern would be stale if the caller wrote to its edges.
        listed = pattern.edge_index.clone() if self.add_self_loops else pattern.edge_index
        return *found, (listed, weights)

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None:
            """See `forward`."""

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pattern: Pattern,
        edge: Tensor | None,
        bias: Tensor | OffsetBias | None,
        return_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        if self.feature_map is not None and not return_weights:
            return attend_by_features(query, key, value, pattern, self.backend), None
        options: Options = {
            "score": self._own_score(),
            "normalizer": self.normalizer,
            "edge_bias": bias,
            "edge_key": edge,
            "edge_value": edge,
            "dropout_p": self.dropout if self.training else 0.0,
        }
        if return_weights:
            return attention(query, key, value, pattern, backend=self.backend, **options, return_weights=True)
        return attention(query, key, value, pattern, backend=self.backend, **options), None

    def _update_edges(self, query: Tensor, key: Tensor, edge: Any, pattern: Pattern) -> Tensor:
        """New features [*B, E, edge_dim] of the given edges."""
        check_at_hand("GraphAttention", pattern)
        linear: Any = self.lin_edge_out
        query = query * query.size(-1) ** -0.5
        key, edge = (repeat_heads(x, self.heads) for x in (key, edge[..., : pattern.num_edges, :, :]))
        is_plain = self.backend == "scatter"
        return edge_products(query, key, edge, linear.weight, linear.bias, pattern, is_plain=is_plain)

    def _pass_messages(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pattern: Pattern,
        edge: Tensor | None,
        bias: Tensor | OffsetBias | None,
        return_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """PyG's own path, for hooks and explainers: the same result, through `message` and `aggregate`."""
        dtype = query.dtype
        if dtype in (torch.float16, torch.bfloat16):
            query, key, value = query.float(), key.float(), value.float()
            edge = None if edge is None else edge.float()
        source, target = edge_index = pattern.edge_index
        size = (pattern.num_sources, pattern.num_targets)
        keep = None
        if self.training and self.dropout > 0:
            edges = (target, source, pattern.occurrence())
            seed = draw_seed(query.device)
            keep = keep_edges_of_heads(seed, self.dropout, query.shape[:-3], self.heads, *edges)
        if isinstance(bias, OffsetBias):
            bias = bias.of_edges(pattern)
        # edge_updater_type: (query: Tensor, key: Tensor, edge: OptTensor, bias: OptTensor)
        alpha = self.edge_updater(edge_index, size=size, query=query, key=key, edge=edge, bias=bias)  # type: ignore[operator]
        # propagate_type: (value: Tensor, alpha: Tensor, edge: OptTensor, keep: OptTensor)
        out = self.propagate(edge_index, size=size, value=value, alpha=alpha, edge=edge, keep=keep)  # type: ignore[operator]
        return out.to(dtype), alpha if return_weights else None

    def edge_update(
        self,
        query_i: Tensor,
        key_j: Tensor,
        edge: OptTensor,
        bias: OptTensor,
        index: Tensor,
        size_i: int,
    ) -> Tensor:
        """Weights before dropout, [*B, E, H]."""
        if edge is not None:
            edge = edge.view(*[1] * (key_j.dim() - edge.dim()), *edge.shape)
        score = as_score("GraphAttention", self._own_score()).to(query_i.dtype).edgewise(query_i, key_j, edge)
        if bias is not None:
            score = score + bias
        return self.normalizer.edgewise(score, index, size_i)

    def message(self, value_j: Tensor, alpha: Tensor, edge: OptTensor, keep: OptTensor) -> Tensor:
        """Weighted values, [*B, E, H, V]."""
        if edge is not None:
            value_j = value_j + edge
        if keep is not None:
            alpha = alpha * keep * keep_scale(self.dropout)
        return repeat_heads(value_j, self.heads) * alpha.unsqueeze(-1)

    def explain_message(self, inputs: Tensor, size_i: int) -> Tensor:
        """Multiply messages by an explainer's edge mask; loops that the layer added come last, and are not masked."""
        mask: Tensor | None = self._edge_mask  # type: ignore[assignment]
        if mask is None:
            raise ValueError(message("GraphAttention", "_edge_mask", "must be set to explain messages"))
        mask = mask.sigmoid() if self._apply_sigmoid else mask
        mask = torch.cat([mask, mask.new_ones(inputs.size(-3) - mask.size(0))])
        return inputs * mask.view(-1, 1, 1)

    def _check_mask(self, num_edges: int) -> None:
        """Raise unless an explainer's mask, if there is one, has a number for each given edge."""
        mask: Any = self._edge_mask if self.explain else None
        if mask is not None and mask.shape != (num_edges,):
            rule = f"must have shape [{num_edges}], one number per edge"
            raise ValueError(message("GraphAttention", "_edge_mask", rule, shape_of(mask)))

    def _is_observed(self) -> bool:
        """Whether PyG's path is needed: a hook on one of its steps, or an explainer."""
        kinds = ("propagate", "message", "aggregate", "edge_update", "message_and_aggregate")
        hooks = (getattr(self, f"_{kind}_forward{when}_hooks", None) for kind in kinds for when in ("_pre", ""))
        return bool(self.explain) or any(hooks)

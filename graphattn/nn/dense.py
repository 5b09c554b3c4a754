"""The dense reference of GraphAttention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from ..dense import attend_matrix
from ..dropout import draw_seed, keep_edges
from ..errors import message, shape_of
from ..normalizers import UserNormalizer
from ..offset_bias import OffsetBias
from ..patterns import Pattern
from ..scores import Score, ScoreFunction, as_score, repeat_heads
from .encodings import Encoding
from .feature_maps import FeatureMap
from .projections import Projections
from .typed import Features, Maybe, No, Yes, typed_as


class DenseGraphAttention(Projections):
    """`GraphAttention` computed with matrices: the same parameters, the same result, memory proportional to T x S.

    Arguments are those of `GraphAttention`, without `add_self_loops` and `backend`; `state_dict`s are interchangeable.

    Example:
        >>> from graphattn import Window
        >>> from graphattn.nn import GraphAttention
        >>> sparse, dense = GraphAttention(4, 4), DenseGraphAttention(4, 4)
        >>> _ = dense.load_state_dict(sparse.state_dict())
        >>> x, window = torch.randn(5, 4), Window(5, radius=1)
        >>> torch.allclose(sparse(x, window), dense(x, window.mask()), atol=1e-6)
        True
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
        encoding: Encoding | None = None,
        feature_map: str | FeatureMap | None = None,
        update_edges: bool = False,
    ) -> None:
        torch.nn.Module.__init__(self)
        widths = (in_channels, out_channels, heads, kv_heads, head_channels)
        self._build(*widths, score, normalizer, edge_dim, dropout, bias, encoding, feature_map, update_edges)

    @overload
    def forward(
        self, x: Features, mask: Tensor | Pattern, edge_attr: Tensor | None = ..., return_attention_weights: No = ...
    ) -> Tensor: ...
    @overload
    def forward(
        self, x: Features, mask: Tensor | Pattern, edge_attr: Tensor | None = ..., return_attention_weights: Yes = ...
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(
        self, x: Features, mask: Tensor | Pattern, edge_attr: Tensor | None = ..., return_attention_weights: Maybe = ...
    ) -> Tensor | tuple[Tensor, Tensor]: ...
    def forward(
        self,
        x: Features,
        mask: Tensor | Pattern,
        edge_attr: Tensor | None = None,
        return_attention_weights: Maybe = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend where the mask allows it.

        Args:
            x: [*B, N, in_channels], or a pair (x_source [*B, S, C_source], x_target [*B, T, C_target]).
            mask: boolean [T, S] or [*B, T, S], True where the target may attend to the source; or a pattern without
                parallel edges. For graphs of different sizes padded to [B, N, C], with `valid` [B, N] from PyG's
                `to_dense_batch`, that is `valid[:, :, None] & valid[:, None, :]`.
            edge_attr: [T, S, edge_dim] with a mask, [E, edge_dim] with a pattern.
            return_attention_weights: also return the weights.

        Returns:
            [*B, T, out_channels]; with `update_edges` then features of pairs, [*B, T, S, edge_dim] with a mask and
            [*B, E, edge_dim] with a pattern; with `return_attention_weights` then the weights before dropout,
            [*B, H, T, S].

        Raises:
            TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.
        """
        x_source, x_target = self._check_features(x)
        pattern = mask if isinstance(mask, Pattern) else None
        mask = self._check_mask(mask, x_source, x_target)
        if pattern is not None:
            edge_attr = self._check_edge_dim(edge_attr, (pattern.num_edges,), x_target, may_have_batch=False)
            edge_attr = self._to_matrix(edge_attr, pattern)
        else:
            edge_attr = self._check_edge_dim(edge_attr, (x_target.size(-2), x_source.size(-2)), x_target)
        if self.encoding is not None and pattern is None:
            rule = "must be a pattern because the layer has an encoding"
            raise TypeError(message("DenseGraphAttention", "mask", rule, "a tensor"))
        if pattern is not None:
            x_source, x_target = self._encode_input(x_source, x_target, pattern)
        query = self._split(self.lin_query(x_target), self.heads)
        key = self._split(self.lin_key(x_source), self.kv_heads)
        value = self._split(self.lin_value(x_source), self.kv_heads)
        pair_bias = None
        if pattern is not None:
            query, key, bias = self._encode_scores(query, key, pattern)
            bias = bias.of_edges(pattern) if isinstance(bias, OffsetBias) else bias
            pair_bias = self._to_matrix(bias, pattern)
        elif self.feature_map is not None:
            query, key = self._map_features(query, True), self._map_features(key)
        edge = None
        if self.lin_edge is not None and edge_attr is not None:
            edge = self._split(self.lin_edge(edge_attr), self.kv_heads)
            edge = edge.view(*[1] * (query.dim() + 1 - edge.dim()), *edge.shape)

        dropout_p = self.dropout if self.training else 0.0
        result = attend_matrix(
            query,
            key,
            value,
            mask if mask.dim() == 2 else mask.unsqueeze(-3),
            as_score("DenseGraphAttention", self._own_score()),
            self.normalizer,
            pair_bias=pair_bias,
            pair_key=edge,
            pair_value=edge,
            keep=self._keep(query, key) if dropout_p > 0 else None,
            dropout_p=dropout_p,
        )
        found: Any = (self.lin_out(result.out.flatten(-2)),)
        if self.lin_edge_out is not None:
            found += (self._update_edges(query, key, edge, pattern),)
        found += (result.weights,) if return_attention_weights else ()
        return found if len(found) > 1 else found[0]

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None:
            """See `forward`."""

    def _update_edges(self, query: Tensor, key: Tensor, edge: Any, pattern: Pattern | None) -> Tensor:
        linear: Any = self.lin_edge_out
        key, edge = (repeat_heads(x, self.heads) for x in (key, edge))
        products = query.unsqueeze(-3) * (key.unsqueeze(-4) + edge) * query.size(-1) ** -0.5
        found: Tensor = linear(products.flatten(-2))
        if pattern is None:
            return found
        source, target = pattern.edge_index
        return found[..., target, source, :]

    def _check_mask(self, mask: Tensor | Pattern, x_source: Tensor, x_target: Tensor) -> Tensor:
        where = "DenseGraphAttention"
        if isinstance(mask, Pattern):
            if mask.occurrence() is not None:
                fix = "Use dense_attention or GraphAttention."
                raise ValueError(message(where, "mask", "must not have parallel edges", mask, fix))
            mask = mask.mask()
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            fix = "Use mask.bool(), or Edges(edge_index, num_nodes) for edges."
            raise TypeError(message(where, "mask", "must be a pattern or a boolean tensor", got, fix))
        pairs = (x_target.size(-2), x_source.size(-2))
        if mask.shape not in (pairs, (*x_target.shape[:-2], *pairs)):
            rule = f"must have shape [T, S] = {list(pairs)}, with or without x's batch dimensions in front"
            raise ValueError(message(where, "mask", rule, shape_of(mask)))
        return mask

    def _to_matrix(self, x: Tensor | None, pattern: Pattern) -> Tensor | None:
        """Arrange one row per edge as a matrix [T, S, ...]."""
        if x is None:
            return None
        source, target = pattern.edge_index
        empty = x.new_zeros(pattern.num_targets, pattern.num_sources, *x.shape[1:])
        return empty.index_put((target, source), x)

    def _keep(self, query: Tensor, key: Tensor) -> Tensor:
        device = query.device
        batch = query.shape[:-3]
        return keep_edges(
            draw_seed(device),
            self.dropout,
            batch=torch.arange(batch.numel(), device=device).view(*batch, 1, 1, 1),
            target=torch.arange(query.size(-3), device=device)[:, None],
            source=torch.arange(key.size(-3), device=device),
            occurrence=0,
            head=torch.arange(self.heads, device=device)[:, None, None],
        )

"""One block of a transformer whose attention follows a pattern."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch.nn import Dropout, LayerNorm
from torch.utils._python_dispatch import _disable_current_modes
from torch_geometric.nn.dense.linear import Linear

from ..call import as_pattern
from ..errors import (
    check_choice,
    check_finite,
    check_float_tensor,
    check_int,
    check_keywords,
    check_probability,
    message,
    shape_of,
)
from ..patterns import Full, Pattern, PatternLike
from ..patterns.base import Sides
from ..patterns.box import Box
from ..patterns.lookup import known_by_index
from .attention import GraphAttention
from .dense import DenseGraphAttention
from .projections import check_heads, fits
from .typed import Maybe, No, Yes, typed_as

# How a node's own features reach the feed-forward network, in addition to the output of attention.
EGO = ("add", "concat", "none")
GLOBAL = ("full", "linear")


class TransformerBlock(torch.nn.Module):
    """Attention along a pattern, then a feed-forward network in every node, with residual connections.

        ego="add":      h = x + attend(norm(x)),    out = h + feed(norm(h))        the pre-norm transformer
        ego="concat":   h = norm(x),                out = x + feed([h, attend(h)])        own features and attention
        separate ego="none":     h = norm(x),                out = x + feed(attend(h))             as in a GAT

    With `memory_channels`, targets also attend to a memory in between: h = h + cross(norm(h), memory). With
    `global_attention`, every node also attends to all nodes of its graph: attend(h) = local(h) + everywhere(h). With
    `update_edges`, attention reads norm(e) in place of features e of edges, and e + update(h, norm(e)) is returned.

    Args:
        channels: features per node, in and out.
        heads: H; must divide `channels`.
        feed_forward: width of the feed-forward network's hidden layer, in multiples of `channels`.
        dropout: probability with which a feature is dropped in training, after attention and twice in `feed`.
        attention_dropout: probability with which a weight is dropped in training.
        ego: how a node's own features reach the feed-forward network: "add", "concat" or "none".
        memory_channels: features of the memory, -1 to be found at the first call; no cross-attention if omitted.
        global_attention: "full" for softmax over all nodes of a graph, "linear" for elu + 1 as `feature_map`, in time
            proportional to the nodes, or None.
        layer: `GraphAttention`, or `DenseGraphAttention` to verify: parameters and their names are the same.
        options: for the attention along the pattern, as in `GraphAttention`: `score`, `normalizer`, `encoding`,
            `edge_dim`, `update_edges`, `kv_heads`, `head_channels`, `add_self_loops`, `backend`. Of these,
            cross-attention uses the normalizer, the width of heads, the backend and a score given by name.

    Raises:
        TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.

    Example:
        >>> from graphattn import Full, Window
        >>> TransformerBlock(16, heads=4)(torch.randn(12, 16), Window([5, 7], radius=2)).shape
        torch.Size([12, 16])
        >>> decoder = TransformerBlock(16, heads=4, memory_channels=8)
        >>> own, across = Full([2, 3], causal=True), Full([2, 3], source_sizes=[5, 7])
        >>> decoder(torch.randn(5, 16), own, memory=torch.randn(12, 8), memory_pattern=across).shape
        torch.Size([5, 16])

    References:
        Vaswani et al., "Attention Is All You Need", 2017; Xiong et al., "On Layer Normalization in the Transformer
        Architecture", 2020, for pre-norm; Platonov et al., "A Critical Look at the Evaluation of GNNs under
        Heterophily", 2023, whose GT, GAT-sep and GAT are the three kinds of `ego`.
    """

    def __init__(
        self,
        channels: int,
        heads: int = 1,
        *,
        feed_forward: float = 4,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        ego: str = "add",
        memory_channels: int | None = None,
        global_attention: str | None = None,
        layer: type[GraphAttention] | type[DenseGraphAttention] = GraphAttention,
        **options: Any,
    ) -> None:
        super().__init__()
        where = "TransformerBlock"
        self.channels = check_int(where, "channels", channels, 1)
        check_keywords(where, options, TransformerBlock, layer)
        check_heads(where, "channels", self.channels, heads, options.get("head_channels"))
        check_choice(where, "ego", ego, EGO)
        check_probability(where, "dropout", dropout)
        check_finite(where, "feed_forward", feed_forward)
        if feed_forward * self.channels < 1:
            raise ValueError(message(where, "feed_forward", "must leave at least one hidden channel", feed_forward))
        if memory_channels is not None:
            check_channels(where, "memory_channels", memory_channels)
            if ego != "add":
                rule = "must be 'add' where memory_channels is given"
                raise ValueError(message(where, "ego", rule, repr(ego)))
        self.ego = ego
        self.norm = LayerNorm(self.channels)
        self.attention = layer(self.channels, self.channels, heads, dropout=attention_dropout, **options)
        self.global_attention = None
        if global_attention is not None:
            common: dict[str, Any] = {name: options[name] for name in ("head_channels", "backend") if name in options}
            feature_map, dropped = read_global(where, global_attention, attention_dropout)
            common |= dict(dropout=dropped, feature_map=feature_map)
            self.global_attention = layer(self.channels, self.channels, heads, **common)
        self.edge_norm = None
        if self.attention.lin_edge_out is not None:
            self.edge_norm = LayerNorm(self.attention.lin_edge_out.out_channels)
        self.cross_norm = self.cross_attention = None
        if memory_channels is not None:
            names = ("score", "normalizer", "head_channels", "backend")
            shared = {name: options[name] for name in names if name in options}
            if not isinstance(shared.get("score"), str):
                shared.pop("score", None)
            sides = (memory_channels, self.channels)
            self.cross_norm = LayerNorm(self.channels)
            self.cross_attention = layer(sides, self.channels, heads, dropout=attention_dropout, **shared)
        self.feed_norm = LayerNorm(self.channels) if ego == "add" else None
        hidden = math.floor(feed_forward * self.channels)
        self.feed_in = Linear(2 * self.channels if ego == "concat" else self.channels, hidden)
        self.feed_out = Linear(hidden, self.channels)
        self.drop = Dropout(dropout)

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        for module in self.children():
            if not isinstance(module, Dropout):
                module.reset_parameters()  # type: ignore[operator]

    @overload
    def forward(
        self,
        x: Tensor,
        edge_index: PatternLike,
        edge_attr: Tensor | None = ...,
        *,
        memory: Tensor | None = ...,
        memory_pattern: PatternLike | None = ...,
        batch: Tensor | None = ...,
        return_attention_weights: No = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        x: Tensor,
        edge_index: PatternLike,
        edge_attr: Tensor | None = ...,
        *,
        memory: Tensor | None = ...,
        memory_pattern: PatternLike | None = ...,
        batch: Tensor | None = ...,
        return_attention_weights: Yes = ...,
    ) -> tuple[Tensor, *tuple[Any, ...]]: ...
    @overload
    def forward(
        self,
        x: Tensor,
        edge_index: PatternLike,
        edge_attr: Tensor | None = ...,
        *,
        memory: Tensor | None = ...,
        memory_pattern: PatternLike | None = ...,
        batch: Tensor | None = ...,
        return_attention_weights: Maybe = ...,
    ) -> Tensor | tuple[Tensor, *tuple[Any, ...]]: ...
    def forward(
        self,
        x: Tensor,
        edge_index: PatternLike,
        edge_attr: Tensor | None = None,
        *,
        memory: Tensor | None = None,
        memory_pattern: PatternLike | None = None,
        batch: Tensor | None = None,
        return_attention_weights: Maybe = None,
    ) -> Tensor | tuple[Tensor, *tuple[Any, ...]]:
        """Apply attention, then the feed-forward network.

        Args:
            x: [*B, N, channels].
            edge_index: a `Pattern`, or anything that `GraphAttention` takes.
            edge_attr: [E, edge_dim], in the order of the edges.
            memory: [*B, M, memory_channels]; needed if the block has cross-attention.
            memory_pattern: with the M rows of `memory` as sources and the N rows of `x` as targets.
            batch: [N] int64, sorted: the graph of each node, for global attention; the sequences or arrays of the
                pattern if omitted, or else one graph.
            return_attention_weights: also return the weights, as the layers do.

        Returns:
            [*B, N, channels]; with `update_edges` then the updated [*B, E, edge_dim]; with `return_attention_weights`
            then the pair of edges [2, E] and weights [*B, E, H]; with cross-attention, then those of the memory.

        Raises:
            TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.
        """
        check_features("TransformerBlock", "x", x, self.channels, "channels")
        self._check_memory(memory, memory_pattern, x)
        h = self.norm(x)
        gathered, *given = _attend(self.attention, h, edge_index, self._norm_edges(edge_attr), return_attention_weights)
        if self.edge_norm is not None:
            given[0] = edge_attr + self.drop(given[0])
        if self.global_attention is not None:
            gathered = gathered + self.global_attention(h, everywhere(h, edge_index, batch))
        elif batch is not None:
            raise ValueError(
                message("TransformerBlock", "batch", "needs global_attention", "a tensor", "Use 'full' or 'linear'.")
            )
        if self.feed_norm is not None:
            x = x + self.drop(gathered)
            if self.cross_attention is not None and self.cross_norm is not None:
                pair = (memory, self.cross_norm(x))
                gathered, *across = _attend(self.cross_attention, pair, memory_pattern, None, return_attention_weights)
                given += across
                x = x + self.drop(gathered)
            h = self.feed_norm(x)
        else:
            h = torch.cat([h, gathered], -1) if self.ego == "concat" else gathered
        x = x + self.drop(self.feed_out(self.drop(torch.nn.functional.gelu(self.feed_in(h)))))
        return (x, *given) if given else x

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None:
            """See `forward`."""

    def _norm_edges(self, edge_attr: Tensor | None) -> Tensor | None:
        if self.edge_norm is None:
            return edge_attr
        if edge_attr is None:
            raise ValueError(message("TransformerBlock", "edge_attr", "must be given with update_edges", "None"))
        width = self.edge_norm.normalized_shape[0]
        if edge_attr.dim() < 2 or edge_attr.size(-1) != width:
            rule = f"must have shape [*B, E, {width}] with update_edges"
            raise ValueError(message("TransformerBlock", "edge_attr", rule, shape_of(edge_attr)))
        found: Tensor = self.edge_norm(edge_attr)
        return found

    def _check_memory(self, memory: Tensor | None, pattern: object, x: Tensor) -> None:
        """Raise unless both are given, or neither if the block has no cross-attention."""
        for argument, value in (("memory", memory), ("memory_pattern", pattern)):
            if (value is None) != (self.cross_attention is None):
                rule = "must be given exactly where the block has memory_channels"
                got = "None" if value is None else shape_of(value) if isinstance(value, Tensor) else value
                raise ValueError(message("TransformerBlock", argument, rule, got))
        if self.cross_attention is not None:
            channels = self.cross_attention.lin_key.in_channels
            check_features("TransformerBlock", "memory", memory, channels, "memory_channels")
            if isinstance(pattern, Pattern) and memory is not None:
                sides = Sides("memory", "x")
                as_pattern("TransformerBlock", pattern, memory.size(-2), x.size(-2), sides=sides)

    def extra_repr(self) -> str:
        """Arguments of the constructor."""
        return f"{self.channels}, ego={self.ego!r}"


def read_global(where: str, kind: str, dropout: float) -> tuple[str | None, float]:
    """The feature map of attention to all nodes, and the dropout of its weights, of which feature maps compute none."""
    check_choice(where, "global_attention", kind, GLOBAL)
    return ("elu", 0.0) if kind == "linear" else (None, dropout)


def everywhere(x: Tensor, pattern: Any, batch: Tensor | None) -> Full:
    """All nodes of each graph."""
    if torch.compiler.is_exporting() and not isinstance(pattern, Box):
        if batch is not None or not isinstance(x.size(-2), int):
            rule = "needs a number of nodes that doesn't change, and no batch: it is a pattern of its own"
            fix = "Leave the nodes out of dynamic_shapes."
            raise NotImplementedError(message("torch.export", "global_attention", rule, fix=fix))
        # A constant of the program.
        with _disable_current_modes():
            return Full(x.size(-2))
    if batch is not None:
        if batch.shape != (x.size(-2),):
            rule = f"must have shape [{x.size(-2)}], the graph of each node"
            raise ValueError(message("TransformerBlock", "batch", rule, shape_of(batch)))
        return known_by_index(batch, ("full",), lambda: Full.from_batch(batch))
    if isinstance(pattern, Box):
        sizes: Full = pattern.keep("everywhere", lambda: Full(pattern.shape.prod(1)))
        return sizes
    return Full(x.size(-2)).to(x.device)


def _attend(
    layer: GraphAttention | DenseGraphAttention, x: Any, pattern: Any, edge_attr: Tensor | None, is_wanted: bool | None
) -> tuple[Any, ...]:
    """Return the layer's output, and what else it returns: updated features of edges, and weights if requested."""
    found: Any = layer(x, pattern, edge_attr, return_attention_weights=is_wanted)
    return found if isinstance(found, tuple) else (found,)


def check_channels(where: str, argument: str, channels: int) -> int:
    """Return a number of features that is positive or -1."""
    if check_int(where, argument, channels, -1) == 0:
        raise ValueError(message(where, argument, "must be positive, or -1 to be found at the first call", 0))
    return channels


def check_features(where: str, argument: str, x: Any, channels: int, option: str) -> None:
    """Raise unless `x` is [*B, N, channels], with `channels` from the constructor's `option`; -1 is any."""
    check_float_tensor(where, argument, x)
    if x.dim() < 2 or not fits(channels, x):
        columns = "C" if channels == -1 else channels
        fix = f"Use {option}={x.size(-1)}." if x.dim() > 1 else ""
        raise ValueError(message(where, argument, f"must have shape [*B, N, {columns}]", shape_of(x), fix))

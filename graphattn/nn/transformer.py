"""Transformers whose attention follows a pattern: one block, and a stack of them."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch.nn import Dropout, LayerNorm
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
from .encodings import Encoding
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
    `global_attention`, every node also attends to all nodes of its graph: attend(h) = local(h) + everywhere(h).

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
            `edge_dim`, `kv_heads`, `head_channels`, `add_self_loops`, `backend`. Of these, cross-attention uses the
            normalizer, the width of heads, the backend and a score given by name.

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
        if global_attention is not None:
            check_choice(where, "global_attention", global_attention, GLOBAL)
        self.channels = check_int(where, "channels", channels, 1)
        check_keywords(where, options, TransformerBlock, layer)
        check_heads(where, "channels", self.channels, heads, options.get("head_channels"))
        check_choice(where, "ego", ego, EGO)
        check_probability(where, "dropout", dropout)
        check_finite(where, "feed_forward", feed_forward)
        if feed_forward * self.channels < 1:
            raise ValueError(message(where, "feed_forward", "must leave at least one hidden channel", feed_forward))
        if memory_channels is not None:
            _check_channels(where, "memory_channels", memory_channels)
            if ego != "add":
                rule = "must be 'add' where memory_channels is given"
                raise ValueError(message(where, "ego", rule, repr(ego)))
        self.ego = ego
        self.norm = LayerNorm(self.channels)
        self.attention = layer(self.channels, self.channels, heads, dropout=attention_dropout, **options)
        self.global_attention = None
        if global_attention is not None:
            common: dict[str, Any] = {name: options[name] for name in ("head_channels", "backend") if name in options}
            feature_map = "elu" if global_attention == "linear" else None
            dropped = 0.0 if global_attention == "linear" else attention_dropout
            self.global_attention = layer(
                self.channels, self.channels, heads, dropout=dropped, feature_map=feature_map, **common
            )
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
            [*B, N, channels]; or that and the pair of edges [2, E] and weights [*B, E, H]; with cross-attention, a
            third entry has those of the memory.

        Raises:
            TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.
        """
        _check_features("TransformerBlock", "x", x, self.channels, "channels")
        self._check_memory(memory, memory_pattern, x)
        h = self.norm(x)
        gathered, weights = _attend(self.attention, h, edge_index, edge_attr, return_attention_weights)
        if self.global_attention is not None:
            gathered = gathered + self.global_attention(h, _everywhere(h, edge_index, batch))
        elif batch is not None:
            raise ValueError(message("TransformerBlock", "batch", "needs a block with global_attention", "a tensor"))
        across: tuple[Any, ...] = ()
        if self.feed_norm is not None:
            x = x + self.drop(gathered)
            if self.cross_attention is not None and self.cross_norm is not None:
                pair = (memory, self.cross_norm(x))
                gathered, across = _attend(self.cross_attention, pair, memory_pattern, None, return_attention_weights)
                x = x + self.drop(gathered)
            h = self.feed_norm(x)
        else:
            h = torch.cat([h, gathered], -1) if self.ego == "concat" else gathered
        x = x + self.drop(self.feed_out(self.drop(torch.nn.functional.gelu(self.feed_in(h)))))
        return (x, *weights, *across) if return_attention_weights else x

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None:
            """See `forward`."""

    def _check_memory(self, memory: Tensor | None, pattern: object, x: Tensor) -> None:
        """Raise unless both are given, or neither if the block has no cross-attention."""
        for argument, value in (("memory", memory), ("memory_pattern", pattern)):
            if (value is None) != (self.cross_attention is None):
                rule = "must be given exactly where the block has memory_channels"
                got = "None" if value is None else shape_of(value) if isinstance(value, Tensor) else value
                raise ValueError(message("TransformerBlock", argument, rule, got))
        if self.cross_attention is not None:
            channels = self.cross_attention.lin_key.in_channels
            _check_features("TransformerBlock", "memory", memory, channels, "memory_channels")
            if isinstance(pattern, Pattern) and memory is not None:
                sides = Sides("memory", "x")
                as_pattern("TransformerBlock", pattern, memory.size(-2), x.size(-2), sides=sides)

    def extra_repr(self) -> str:
        """Arguments of the constructor."""
        return f"{self.channels}, ego={self.ego!r}"


class GraphTransformer(torch.nn.Module):
    """A stack of transformer blocks on any pattern: a graph, sentences, pixels.

        h = W_in x,    h = block_l(h) for l = 1, ..., L,    out = W_out norm(h)

    The graph transformer GT of Platonov et al. is `ego="add"` on the graph with self-loops, their GAT-sep is
    `ego="concat", score="gatv2"`; a sentence encoder is `Full(sizes)` with an encoding.

    Args:
        in_channels: features per node; -1 is found at the first call; if None, x already has `hidden_channels`, and
            there is no W_in.
        hidden_channels: features per node between the blocks.
        out_channels: features of the output; if None, the output is norm(h) with `hidden_channels`.
        num_layers: L.
        heads: H; must divide `hidden_channels`.
        dropout: as in `TransformerBlock`; features are also dropped once before the first block.
        encoding: one that only changes features, such as `Sinusoidal(hidden_channels)`, is applied once, after W_in;
            any other, such as `Rotary` or `RelativeBias`, is copied into each layer, with separate parameters.
        options: as in `TransformerBlock`: `feed_forward`, `attention_dropout`, `ego`, `layer`, `score`, `normalizer`,
            `edge_dim`, `memory_channels`, `global_attention`, ...

    Raises:
        TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.

    Example:
        >>> from graphattn import Window
        >>> from graphattn.nn import RelativeBias
        >>> tagger = GraphTransformer(8, 16, 5, num_layers=2, heads=4, encoding=RelativeBias(4, 3))
        >>> tagger(torch.randn(12, 8), Window([5, 7], radius=3)).shape
        torch.Size([12, 5])
        >>> out, weights = tagger(torch.randn(12, 8), Window([5, 7], radius=3), return_attention_weights=True)
        >>> [list(weight.shape) for edges, weight in weights]
        [[60, 4], [60, 4]]

    References:
        See `TransformerBlock`.
    """

    def __init__(
        self,
        in_channels: int | None,
        hidden_channels: int,
        out_channels: int | None,
        num_layers: int,
        heads: int = 1,
        *,
        dropout: float = 0.0,
        encoding: Encoding | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        where = "GraphTransformer"
        self.in_channels = None if in_channels is None else _check_channels(where, "in_channels", in_channels)
        self.hidden_channels = check_int(where, "hidden_channels", hidden_channels, 1)
        self.num_layers = check_int(where, "num_layers", num_layers, 1)
        self.out_channels = None if out_channels is None else check_int(where, "out_channels", out_channels, 1)
        check_probability(where, "dropout", dropout)
        check_keywords(where, options, GraphTransformer, TransformerBlock, options.get("layer", GraphAttention))
        check_heads(where, "hidden_channels", self.hidden_channels, heads, options.get("head_channels"))
        kind: Any = type(encoding)
        enters_once = isinstance(encoding, Encoding) and (kind.rotate, kind.bias) == (Encoding.rotate, Encoding.bias)
        self.encoding = encoding if enters_once else None
        if self.encoding is not None:
            width = options.get("head_channels")
            width = hidden_channels // heads if width is None else width
            self.encoding.check(where, self.hidden_channels, heads, width)
        self.lin_in = None if self.in_channels is None else Linear(self.in_channels, hidden_channels)
        self.drop = Dropout(dropout)
        self.blocks = torch.nn.ModuleList()
        for _ in range(num_layers):
            own = None if enters_once else copy.deepcopy(encoding)
            block = TransformerBlock(hidden_channels, heads, dropout=dropout, encoding=own, **options)
            self.blocks.append(block)
        self.norm = LayerNorm(hidden_channels)
        self.lin_out = None if self.out_channels is None else Linear(hidden_channels, self.out_channels)

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        for module in (self.lin_in, self.encoding, *self.blocks, self.norm, self.lin_out):
            if module is not None:
                module.reset_parameters()

    @overload
    def forward(
        self,
        x: Tensor,
        edge_index: PatternLike,
        edge_attr: Tensor | None = ...,
        return_attention_weights: No = ...,
        *,
        memory: Tensor | None = ...,
        memory_pattern: PatternLike | None = ...,
        batch: Tensor | None = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        x: Tensor,
        edge_index: PatternLike,
        edge_attr: Tensor | None = ...,
        return_attention_weights: Yes = ...,
        *,
        memory: Tensor | None = ...,
        memory_pattern: PatternLike | None = ...,
        batch: Tensor | None = ...,
    ) -> tuple[Tensor, list[Any]]: ...
    @overload
    def forward(
        self,
        x: Tensor,
        edge_index: PatternLike,
        edge_attr: Tensor | None = ...,
        return_attention_weights: Maybe = ...,
        *,
        memory: Tensor | None = ...,
        memory_pattern: PatternLike | None = ...,
        batch: Tensor | None = ...,
    ) -> Tensor | tuple[Tensor, list[Any]]: ...
    def forward(
        self,
        x: Tensor,
        edge_index: PatternLike,
        edge_attr: Tensor | None = None,
        return_attention_weights: Maybe = None,
        *,
        memory: Tensor | None = None,
        memory_pattern: PatternLike | None = None,
        batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, list[Any]]:
        """Run the stack.

        Args:
            x: [*B, N, in_channels].
            edge_index: a `Pattern`, or anything that `GraphAttention` takes.
            edge_attr: [E, edge_dim], in the order of the edges.
            return_attention_weights: also return the weights.
            memory, memory_pattern, batch: for each block, as in `TransformerBlock`.

        Returns:
            [*B, N, out_channels]; or that and a list with the edges [2, E] and weights [*B, E, H] of each layer;
            with a memory, a pair of that and the same for the memory.

        Raises:
            TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.
        """
        if self.lin_in is None:
            _check_features("GraphTransformer", "x", x, self.hidden_channels, "hidden_channels")
        else:
            _check_features("GraphTransformer", "x", x, self.lin_in.in_channels, "in_channels")
            x = self.lin_in(x)
        if isinstance(edge_index, list | tuple):
            edge_index = as_pattern("GraphTransformer", edge_index, x.size(-2), x.size(-2), sides=Sides.of(x))
        if self.encoding is not None:
            # The layers get the edges as given, because those of a sparse adjacency may have values.
            pattern = as_pattern("GraphTransformer", edge_index, x.size(-2), x.size(-2), sides=Sides.of(x))
            x = self.encoding.input(x, pattern)
        x = self.drop(x)
        weights: list[Any] = []
        across = {"memory": memory, "memory_pattern": memory_pattern, "batch": batch}
        for block in self.blocks:
            if return_attention_weights:
                x, *given = block(x, edge_index, edge_attr, **across, return_attention_weights=True)
                weights.append(given[0] if len(given) == 1 else tuple(given))
            else:
                x = block(x, edge_index, edge_attr, **across)
        x = self.norm(x)
        x = x if self.lin_out is None else self.lin_out(x)
        return (x, weights) if return_attention_weights else x

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None:
            """See `forward`."""


def _everywhere(x: Tensor, pattern: Any, batch: Tensor | None) -> Full:
    """All nodes of each graph."""
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
) -> tuple[Tensor, tuple[Any, ...]]:
    """Return the layer's output and a tuple of its weights, which is empty if they aren't requested."""
    if not is_wanted:
        return layer(x, pattern, edge_attr), ()
    out, weights = layer(x, pattern, edge_attr, return_attention_weights=True)
    return out, (weights,)


def _check_channels(where: str, argument: str, channels: int) -> int:
    """Return a number of features that is positive or -1."""
    if check_int(where, argument, channels, -1) == 0:
        raise ValueError(message(where, argument, "must be positive, or -1 to be found at the first call", 0))
    return channels


def _check_features(where: str, argument: str, x: Any, channels: int, option: str) -> None:
    """Raise unless `x` is [*B, N, channels], with `channels` from the constructor's `option`; -1 is any."""
    check_float_tensor(where, argument, x)
    if x.dim() < 2 or not fits(channels, x):
        columns = "C" if channels == -1 else channels
        fix = f"Use {option}={x.size(-1)}." if x.dim() > 1 else ""
        raise ValueError(message(where, argument, f"must have shape [*B, N, {columns}]", shape_of(x), fix))

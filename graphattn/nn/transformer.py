"""A stack of transformer blocks on any pattern."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch.nn import Dropout, LayerNorm
from torch_geometric.nn.dense.linear import Linear

from ..call import as_pattern
from ..errors import check_int, check_keywords, check_probability, message
from ..patterns import PatternLike
from ..patterns.base import Sides
from .attention import GraphAttention
from .block import TransformerBlock, check_channels, check_features, everywhere, read_global
from .encodings import Encoding
from .projections import check_heads
from .typed import Maybe, No, Yes, typed_as


class GraphTransformer(torch.nn.Module):
    """A stack of transformer blocks on any pattern: a graph, sentences, pixels.

        h = W_in x,    h = block_l(h) for l = 1, ..., L,    out = W_out norm(h)

    With `global_attention`, each block adds attention to all nodes of a graph (GPS); with `num_global_layers` as well,
    blocks of that alone follow instead (Polynormer's order).

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
        num_global_layers: blocks of attention to all nodes after the L blocks along the pattern, of the kind that
            `global_attention` says, which these then lack; of `options`, they have those of the feed-forward network.
        options: as in `TransformerBlock`: `feed_forward`, `attention_dropout`, `ego`, `layer`, `score`, `normalizer`,
            `edge_dim`, `update_edges`, `memory_channels`, `global_attention`, ...

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
        num_global_layers: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        where = "GraphTransformer"
        self.in_channels = None if in_channels is None else check_channels(where, "in_channels", in_channels)
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
        last = {} if num_global_layers is None else _take_global(num_global_layers, options)
        for _ in range(num_layers):
            own = None if enters_once else copy.deepcopy(encoding)
            block = TransformerBlock(hidden_channels, heads, dropout=dropout, encoding=own, **options)
            self.blocks.append(block)
        blocks = (
            TransformerBlock(hidden_channels, heads, dropout=dropout, **last) for _ in range(num_global_layers or 0)
        )
        self.global_blocks = torch.nn.ModuleList(blocks)
        self.norm = LayerNorm(hidden_channels)
        self.lin_out = None if self.out_channels is None else Linear(hidden_channels, self.out_channels)

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        for module in (self.lin_in, self.encoding, *self.blocks, *self.global_blocks, self.norm, self.lin_out):
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
            [*B, N, out_channels]; with `update_edges` then the features of edges after the last block; with
            `return_attention_weights` then a list with the edges [2, E] and weights [*B, E, H] of each layer along the
            pattern; with a memory, a pair of that and the same for the memory.

        Raises:
            TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.
        """
        if self.lin_in is None:
            check_features("GraphTransformer", "x", x, self.hidden_channels, "hidden_channels")
        else:
            check_features("GraphTransformer", "x", x, self.lin_in.in_channels, "in_channels")
            x = self.lin_in(x)
        if isinstance(edge_index, list | tuple):
            edge_index = as_pattern("GraphTransformer", edge_index, x.size(-2), x.size(-2), sides=Sides.of(x))
        if self.encoding is not None:
            # The layers get the edges as given, because those of a sparse adjacency may have values.
            pattern = as_pattern("GraphTransformer", edge_index, x.size(-2), x.size(-2), sides=Sides.of(x))
            x = self.encoding.input(x, pattern)
        x = self.drop(x)
        weights: list[Any] = []
        across: dict[str, Any] = {"memory": memory, "memory_pattern": memory_pattern}
        if not self.global_blocks:
            across["batch"] = batch
        for block in self.blocks:
            given = block(x, edge_index, edge_attr, **across, return_attention_weights=return_attention_weights)
            x, *given = given if isinstance(given, tuple) else (given,)
            edge_attr = given.pop(0) if block.edge_norm is not None else edge_attr
            if given:
                weights.append(given[0] if len(given) == 1 else tuple(given))
        for block in self.global_blocks:
            x = block(x, everywhere(x, edge_index, batch))
        x = self.norm(x)
        x = x if self.lin_out is None else self.lin_out(x)
        found: Any = (x,) if self.blocks[0].edge_norm is None else (x, edge_attr)
        found += (weights,) if return_attention_weights else ()
        return found if len(found) > 1 else x

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None:
            """See `forward`."""


def _take_global(count: int, options: dict[str, Any]) -> dict[str, Any]:
    """Take `global_attention` from the blocks' options, and return those of blocks of nothing else."""
    check_int("GraphTransformer", "num_global_layers", count, 0)
    kind = options.pop("global_attention", None)
    if kind is None:
        rule, fix = "needs global_attention", "Use global_attention='full' or 'linear'."
        raise ValueError(message("GraphTransformer", "num_global_layers", rule, count, fix))
    feature_map, dropped = read_global("GraphTransformer", kind, options.get("attention_dropout", 0.0))
    names = ("feed_forward", "ego", "layer", "head_channels", "backend")
    found = {name: options[name] for name in names if name in options}
    return found | {"feature_map": feature_map, "attention_dropout": dropped}

"""PyG's attention layers with our kernels: same parameters, same arguments, same numbers."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, overload

import torch
import torch_geometric.nn.conv as conv
from torch import Tensor
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.typing import Adj, OptPairTensor, OptTensor, PairTensor, Size

from ...errors import check_no_batch, message
from ...patterns import Pattern
from ...patterns.annotations import SparseTensorLike
from ...scores import Additive, DotProduct
from ..joined import project
from ..products import products_with
from ..typed import Features, Maybe, No, Weights, Yes, typed_as
from .edges import check_one_graph, edge_values, rows_of_nothing, sides_of, with_loops
from .fused import Fused, Graph, has_hooks, writable

# For type checkers, which can't read PyG's own types: the arguments of its layers, and the patterns that ours accept.
Edges = Tensor | SparseTensorLike | Pattern
Sizes = tuple[int, int] | None
OptFeatures = Tensor | tuple[Tensor, Tensor | None]


class TransformerConv(Fused, conv.TransformerConv):
    """`torch_geometric.nn.TransformerConv`, fused: see there for arguments, shapes, results and references.

    It accepts patterns, too, and has the same `state_dict`. Calls that the fused kernels don't support run as in PyG.

    Example:
        >>> import torch
        >>> from torch_geometric import nn
        >>> x, edge_index = torch.randn(5, 16), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
        >>> ours, theirs = TransformerConv(16, 8, heads=4), nn.TransformerConv(16, 8, heads=4)
        >>> _ = ours.load_state_dict(theirs.state_dict())
        >>> torch.allclose(ours(x, edge_index), theirs(x, edge_index), atol=1e-5)
        True
    """

    theirs = conv.TransformerConv
    # PyG's inspector reads these, and stops at the first class of this name.
    # propagate_type: (query: Tensor, key: Tensor, value: Tensor, edge_attr: OptTensor)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.root_weight:
            # PyG has this projection but never uses it, which DistributedDataParallel reports as an error.
            self.lin_skip.requires_grad_(False)

    @overload
    def forward(
        self, x: Features, edge_index: Edges, edge_attr: Tensor | None = ..., return_attention_weights: None = ...
    ) -> Tensor: ...
    @overload
    def forward(
        self, x: Features, edge_index: Edges, edge_attr: Tensor | None = ..., return_attention_weights: bool = ...
    ) -> tuple[Tensor, Weights]: ...
    @overload
    def forward(
        self, x: Features, edge_index: Edges, edge_attr: Tensor | None = ..., return_attention_weights: Maybe = ...
    ) -> Tensor | tuple[Tensor, Weights]: ...
    def forward(
        self,
        x: Tensor | PairTensor,
        edge_index: Adj,
        edge_attr: OptTensor = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """See PyG."""
        if return_attention_weights is None and self._is_small(x, edge_index, of_edges=edge_attr):
            return conv.TransformerConv.forward(self, x, edge_index, edge_attr)
        source, target = sides_of("TransformerConv", x)
        edge_index = self._plain(x, edge_index)
        return_weights = isinstance(return_attention_weights, bool)
        theirs = (x, edge_index, edge_attr, return_attention_weights)
        if self._is_theirs(edge_index, return_weights, False, False):
            return conv.TransformerConv.forward(self, *theirs)
        edge_attr = edge_values(edge_index) if edge_attr is None else edge_attr
        if (edge_attr is None) != (self.lin_edge is None):
            if edge_attr is None:
                fix = "Pass edge_attr, or make the layer without edge_dim."
                raise AssertionError(message("TransformerConv", "edge_attr", "must be given with edge_dim", None, fix))
            check_no_batch("TransformerConv", edge_attr, source.size(0))
            return conv.TransformerConv.forward(self, *theirs)
        if target is None or source.dim() != 2:
            return conv.TransformerConv.forward(self, *theirs)
        graph = self._read(x, edge_index, edge_attr, target.size(0), None, return_weights)
        edge_attr = edge_attr.view(-1, 1) if edge_attr is not None and edge_attr.dim() == 1 else edge_attr
        if isinstance(x, Tensor) and not torch.compiler.is_compiling():
            out = self._of_nodes(x, graph, edge_attr)
        else:
            out = conv.TransformerConv.forward(self, x, graph, edge_attr)
        out = writable(out, self.concat and not self.root_weight)
        return (out, (graph.listed(edge_index), graph.weights)) if return_weights else out

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None:
            """See `forward`."""

    def _of_nodes(self, x: Tensor, graph: Graph, edge_attr: Tensor | None) -> Tensor:
        """What PyG's `forward` computes where sources and targets are the same nodes, in fewer products."""
        projected = project(x, (self.lin_query, self.lin_key, self.lin_value))
        query, key, value = (rows.view(-1, self.heads, self.out_channels) for rows in projected)
        out = self.propagate(graph, query=query, key=key, value=value, edge_attr=edge_attr)
        out = out.flatten(1) if self.concat else out.mean(1)
        if not self.root_weight:
            return out
        skip = self.lin_skip(x)
        if self.lin_beta is None:
            return out + skip
        beta = self.lin_beta(torch.cat([out, skip, out - skip], -1)).sigmoid()
        return beta * skip + (1 - beta) * out

    def _attend(self, graph: Graph, given: dict[str, Any], bias: Tensor | None) -> Tensor:
        edge = given["edge_attr"]
        if edge is not None:
            edge = self.lin_edge(edge).view(-1, self.heads, self.out_channels)
        options = dict(edge_key=edge, edge_value=edge, edge_bias=bias, dropout_p=self._drops(), backend=self.backend)
        return graph.attend(given["query"], given["key"], given["value"], DotProduct(), **options)


# Not a decorator, which would hide the class from a type checker.
functools.update_wrapper(TransformerConv.__init__, conv.TransformerConv.__init__)


class GATConv(Fused, conv.GATConv):
    """`torch_geometric.nn.GATConv`, fused: see there for arguments, shapes, results and references.

    It accepts patterns, too, and has the same `state_dict`. Calls that the fused kernels don't support run as in PyG.

    Example:
        >>> import torch
        >>> from torch_geometric import nn
        >>> x, edge_index = torch.randn(5, 16), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
        >>> ours, theirs = GATConv(16, 8, heads=4), nn.GATConv(16, 8, heads=4)
        >>> _ = ours.load_state_dict(theirs.state_dict())
        >>> torch.allclose(ours(x, edge_index), theirs(x, edge_index), atol=1e-5)
        True
    """

    theirs = conv.GATConv
    # PyG's inspector reads these, and stops at the first class of this name.
    # edge_updater_type: (alpha: OptPairTensor, edge_attr: OptTensor)
    # propagate_type: (x: OptPairTensor, alpha: Tensor)

    @overload
    def forward(
        self,
        x: OptFeatures,
        edge_index: Edges,
        edge_attr: Tensor | None = ...,
        size: Sizes = ...,
        return_attention_weights: No = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        x: OptFeatures,
        edge_index: Edges,
        edge_attr: Tensor | None = ...,
        size: Sizes = ...,
        return_attention_weights: Yes = ...,
    ) -> tuple[Tensor, Weights]: ...
    @overload
    def forward(
        self,
        x: OptFeatures,
        edge_index: Edges,
        edge_attr: Tensor | None = ...,
        size: Sizes = ...,
        return_attention_weights: Maybe = ...,
    ) -> Tensor | tuple[Tensor, Weights]: ...
    def forward(
        self,
        x: Tensor | OptPairTensor,
        edge_index: Adj,
        edge_attr: OptTensor = None,
        size: Size = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """See PyG."""
        if return_attention_weights is None and self._is_small(x, edge_index, of_edges=edge_attr):
            return conv.GATConv.forward(self, x, edge_index, edge_attr, size)
        if size is None and isinstance(edge_index, Pattern):
            size = (edge_index.num_sources, edge_index.num_targets)
        source, target = sides_of("GATConv", x)
        check_one_graph("GATConv", source, target)
        edge_index = self._plain(x, edge_index)
        return_weights = bool(return_attention_weights)
        has_edge_attr = self.lin_edge is not None and (edge_attr is not None or edge_values(edge_index) is not None)
        if self._is_theirs(edge_index, return_weights, self.add_self_loops, has_edge_attr):
            return conv.GATConv.forward(self, x, edge_index, edge_attr, size, return_attention_weights)
        num_sources = source.size(0)
        num_targets = rows_of_nothing(edge_index, size, num_sources) if target is None else target.size(0)
        if size is not None and any(
            n is not None and n != m for n, m in zip(size, (num_sources, num_targets), strict=True)
        ):
            rule = f"must be ({num_sources}, {num_targets}) like x"
            raise ValueError(message("GATConv", "size", rule, tuple(size)))
        loops = min(num_sources, num_targets) if self.add_self_loops else None
        graph = self._read(x, edge_index, edge_attr, num_targets, loops, return_weights)
        edge_attr = (
            with_loops(graph.pattern, graph.renewed, edge_index, edge_attr, self.fill_value) if has_edge_attr else None
        )
        is_plain = isinstance(x, Tensor) and self.lin is not None and not graph.by_messages
        if is_plain and not torch.compiler.is_compiling():
            out = self._of_nodes(x, graph, edge_attr)
        else:
            out = conv.GATConv.forward(self, x, graph, edge_attr, size)
        out = writable(out, self.concat and self.bias is None and self.res is None)
        return (out, (graph.listed(edge_index), graph.weights)) if return_weights else out

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None:
            """See `forward`."""

    def _attend(self, graph: Graph, given: dict[str, Any], bias: Tensor | None) -> Tensor:
        by_source, by_target = self._scores(given)
        value = given["x"][0]
        if by_target is None:
            by_target = by_source.new_zeros(graph.pattern.num_targets, self.heads)
        score = Additive(by_source.new_ones(self.heads, 1), "leaky_relu", self.negative_slope)
        edge = given["edge_attr"]
        if edge is not None:
            edge = self._score_edges(edge.view(-1, 1) if edge.dim() == 1 else edge).view(-1, self.heads, 1)
        return graph.attend(
            by_target.unsqueeze(-1),
            by_source.unsqueeze(-1),
            value,
            score,
            edge_key=edge,
            edge_bias=bias,
            dropout_p=self._drops(),
            backend=self.backend,
        )

    def _of_nodes(self, x: Tensor, graph: Graph, edge_attr: Tensor | None) -> Tensor:
        """What PyG's `forward` computes where sources and targets are the same nodes, with one product for scores."""
        rows = self.lin(x).view(-1, self.heads, self.out_channels)
        graph.given = {"alpha": products_with(rows, self.att_src[0], self.att_dst[0]), "edge_attr": edge_attr}
        out = self.propagate(graph, x=(rows, rows))
        out = out.flatten(1) if self.concat else out.mean(1)
        out = out if self.res is None else out + self.res(x)
        return out if self.bias is None else out + self.bias

    def _scores(self, given: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        return given["alpha"]

    def _score_edges(self, edge_attr: Tensor) -> Tensor:
        """[E, H], the edges' part of the scores: projection and vector as one matrix, so that no [E, H, C] is built."""
        lin_edge, att_edge = self.lin_edge, self.att_edge
        if type(lin_edge) is Linear and not has_hooks(lin_edge):
            weight = lin_edge.weight.view(self.heads, self.out_channels, -1)
            return edge_attr @ (weight * att_edge.view(self.heads, self.out_channels, 1)).sum(1).t()
        return (lin_edge(edge_attr).view(-1, self.heads, self.out_channels) * att_edge).sum(-1)


class GATv2Conv(Fused, conv.GATv2Conv):
    """`torch_geometric.nn.GATv2Conv`, fused: see there for arguments, shapes, results and references.

    It accepts patterns, too, and has the same `state_dict`. Calls that the fused kernels don't support run as in PyG.

    Example:
        >>> import torch
        >>> from torch_geometric import nn
        >>> x, edge_index = torch.randn(5, 16), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
        >>> ours, theirs = GATv2Conv(16, 8, heads=4), nn.GATv2Conv(16, 8, heads=4)
        >>> _ = ours.load_state_dict(theirs.state_dict())
        >>> torch.allclose(ours(x, edge_index), theirs(x, edge_index), atol=1e-5)
        True
    """

    theirs = conv.GATv2Conv
    # PyG's inspector reads these, and stops at the first class of this name.
    # edge_updater_type: (x: PairTensor, edge_attr: OptTensor)
    # propagate_type: (x: PairTensor, alpha: Tensor)

    @overload
    def forward(
        self, x: Features, edge_index: Edges, edge_attr: Tensor | None = ..., return_attention_weights: No = ...
    ) -> Tensor: ...
    @overload
    def forward(
        self, x: Features, edge_index: Edges, edge_attr: Tensor | None = ..., return_attention_weights: Yes = ...
    ) -> tuple[Tensor, Weights]: ...
    @overload
    def forward(
        self, x: Features, edge_index: Edges, edge_attr: Tensor | None = ..., return_attention_weights: Maybe = ...
    ) -> Tensor | tuple[Tensor, Weights]: ...
    def forward(
        self,
        x: Tensor | PairTensor,
        edge_index: Adj,
        edge_attr: OptTensor = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """See PyG."""
        if return_attention_weights is None and self._is_small(x, edge_index, of_edges=edge_attr):
            return conv.GATv2Conv.forward(self, x, edge_index, edge_attr)
        source, target = sides_of("GATv2Conv", x)
        check_one_graph("GATv2Conv", source, target)
        edge_index = self._plain(x, edge_index)
        return_weights = bool(return_attention_weights)
        has_edge_attr = edge_attr is not None or edge_values(edge_index) is not None
        if self._is_theirs(edge_index, return_weights, self.add_self_loops, has_edge_attr):
            return conv.GATv2Conv.forward(self, x, edge_index, edge_attr, return_attention_weights)
        if has_edge_attr and self.lin_edge is None:
            check_no_batch("GATv2Conv", edge_attr, source.size(0))
            fix = "Make the layer with edge_dim, or leave edge_attr out."
            got = "a tensor" if edge_attr is None else list(edge_attr.shape)
            raise AssertionError(message("GATv2Conv", "edge_attr", "needs a layer with edge_dim", got, fix))
        if target is None:
            rule = "must be a tensor, or a pair of tensors"
            raise AssertionError(
                message("GATv2Conv", "x", rule, "(x, None)", "Use GATConv for targets without features.")
            )
        num_targets = target.size(0)
        loops = min(source.size(0), num_targets) if self.add_self_loops else None
        graph = self._read(x, edge_index, edge_attr, num_targets, loops, return_weights)
        edge_attr = (
            with_loops(graph.pattern, graph.renewed, edge_index, edge_attr, self.fill_value) if has_edge_attr else None
        )
        out = conv.GATv2Conv.forward(self, x, graph, edge_attr)
        out = writable(out, self.concat and self.bias is None and self.res is None)
        return (out, (graph.listed(edge_index), graph.weights)) if return_weights else out

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None:
            """See `forward`."""

    def _attend(self, graph: Graph, given: dict[str, Any], bias: Tensor | None) -> Tensor:
        source, target = given["x"]
        edge = given["edge_attr"]
        if edge is not None:
            edge = self.lin_edge(edge.view(-1, 1) if edge.dim() == 1 else edge)
            edge = edge.view(-1, self.heads, self.out_channels)
        score = Additive(self.att[0], "leaky_relu", self.negative_slope)
        options = dict(edge_key=edge, edge_bias=bias, dropout_p=self._drops(), backend=self.backend)
        return graph.attend(target, source, source, score, **options)

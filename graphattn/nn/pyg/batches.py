"""What attends within the graphs of a batch: PyG's `GPSConv` without padding, and aggregations with attention."""

from __future__ import annotations

from typing import Any

import torch
import torch_geometric.nn.conv as conv
from torch import Tensor
from torch.nn.functional import dropout, linear
from torch_geometric.nn import aggr
from torch_geometric.nn.dense.linear import Linear

from ...errors import message, shape_of
from ...functional import attention
from ...patterns import Edges, Full
from ...patterns.lookup import known_by_index
from ...scores import DotProduct
from .channelwise import can_loop, gated_mean_of_groups, softmax_of_groups
from .fused import FusedModule, has_hooks, is_traced
from .hetero import attend_by_scores
from .linear_attention import attend_in_graphs, why_not_performer
from .sums import groups_of, share_by_source


def _why_not_multihead(inner: Any) -> str | None:
    """Why torch's attention can't run without padding."""
    if inner.bias_k is not None or inner.add_zero_attn or inner.in_proj_weight is None:
        return "its attention has add_bias_kv, add_zero_attn, or keys of another width"
    return None


def _multihead(
    inner: Any, x: Tensor, y: Tensor, pattern: Full, backend: str, pair_bias: Tensor | None = None
) -> Tensor:
    """Torch's `MultiheadAttention` from the rows of x [T, C] to those of y [S, C], along a pattern: [T, C]."""
    split = lambda rows, parts: rows.view(rows.size(0), parts, inner.num_heads, inner.head_dim).unbind(1)
    weight, bias = inner.in_proj_weight, inner.in_proj_bias
    if x is y:
        query, key, value = split(linear(x, weight, bias), 3)
    else:
        width = x.size(1)
        of_query, of_rest = (None, None) if bias is None else (bias[:width], bias[width:])
        (query,) = split(linear(x, weight[:width], of_query), 1)
        key, value = split(linear(y, weight[width:], of_rest), 2)
    dropped = inner.dropout if inner.training else 0.0
    out = attention(query, key, value, pattern, edge_bias=pair_bias, dropout_p=dropped, backend=backend)
    projected: Tensor = inner.out_proj(out.flatten(1))
    return projected


def _is_plain(x: Any, index: Any, ptr: Any, dim: int) -> bool:
    """Whether an aggregation gets rows [N, C] and the group of each, and isn't recorded."""
    is_plain = isinstance(x, Tensor) and x.dim() == 2 and dim in (-2, 0) and x.is_floating_point()
    is_plain = is_plain and isinstance(index, Tensor) and ptr is None and not is_traced()
    return is_plain and index.shape == x.shape[:1] and not index.is_floating_point() and len(index) > 0


def _is_sorted(batch: Tensor | None) -> bool:
    """Whether PyG pads the right rows: it takes those of a batch that isn't sorted for rows of other graphs."""
    return batch is None or not bool((batch.diff() < 0).any())


class GPSConv(FusedModule, conv.GPSConv):
    """`torch_geometric.nn.GPSConv` whose global attention runs within each graph, without padding to the largest.

    See there for arguments, shapes, results and references. It has the same `state_dict`. Its calls take one argument
    more: `pair_bias` [P] or [P, heads], added to the scores of the P pairs of nodes of the same graph, in the order of
    `Full.from_batch(batch).edge_index`, as Graphormer does for distances.

    Example:
        >>> layer = GPSConv(8, None, heads=2, norm=None)
        >>> batch = torch.tensor([0, 0, 0, 1, 1])
        >>> layer(torch.randn(5, 8), None, batch).shape
        torch.Size([5, 8])
    """

    theirs = conv.GPSConv
    small = 2**17

    @staticmethod
    def why_not(layer: Any) -> str | None:
        """What its attention has that needs padded batches."""
        return (_why_not_multihead if layer.attn_type == "multihead" else why_not_performer)(layer.attn)

    def forward(
        self, x: Tensor, edge_index: Any, batch: Tensor | None = None, *, pair_bias: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """See PyG."""
        is_plain = x.dim() == 2 and x.is_floating_point() and self.why_not(self) is None
        if pair_bias is not None and self.attn_type != "multihead":
            rule = "needs attn_type='multihead', as linear attention scores no pairs"
            raise ValueError(message("GPSConv", "pair_bias", rule, shape_of(pair_bias)))
        is_plain = is_plain and not is_traced() and not any(map(has_hooks, self.attn.modules()))
        if not is_plain or (pair_bias is None and self._is_small(x) and _is_sorted(batch)):
            if pair_bias is not None:
                rule = "needs a layer that runs here: PyG computes this call, for x, a hook or torch.compile"
                raise ValueError(message("GPSConv", "pair_bias", rule, shape_of(pair_bias)))
            return conv.GPSConv.forward(self, x, edge_index, batch, **kwargs)
        norm = lambda layer, h: h if layer is None else layer(h, batch=batch) if self.norm_with_batch else layer(h)
        drop = lambda h: dropout(h, self.dropout, self.training)
        found = self._attend(x, batch, pair_bias)
        out = norm(self.norm2, drop(found) + x)
        if self.conv is not None:
            out = norm(self.norm1, drop(self.conv(x, edge_index, **kwargs)) + x) + out
        return norm(self.norm3, out + self.mlp(out))

    def _attend(self, x: Tensor, batch: Tensor | None, pair_bias: Tensor | None) -> Tensor:
        if batch is not None and len(batch) != len(x):
            rule = f"must have one number per node, {len(x)}"
            raise ValueError(message("GPSConv", "batch", rule, shape_of(batch)))
        pattern = Full(x.size(0)) if batch is None else known_by_index(batch, ("full",), lambda: Full.from_batch(batch))
        if pair_bias is not None:
            pairs, heads = pattern.num_edges, self.attn.num_heads
            if pair_bias.shape not in ((pairs,), (pairs, heads)):
                rule = f"must have shape [{pairs}] or [{pairs}, {heads}], a number for each pair of a graph's nodes"
                raise ValueError(message("GPSConv", "pair_bias", rule, shape_of(pair_bias)))
            pair_bias = pair_bias.view(pairs, -1).expand(-1, heads)
        if self.attn_type != "multihead":
            return attend_in_graphs(self.attn, x, pattern, self.backend)
        return _multihead(self.attn, x, x, pattern, self.backend, pair_bias)


class _Aggregation(FusedModule):
    """One that sums with weights that rows alone determine."""

    def _groups(self, x: Any, index: Any, ptr: Any, dim_size: int | None, dim: int) -> Edges | None:
        """The pattern of each group's rows; None if PyG computes the call."""
        if not _is_plain(x, index, ptr, dim) or x.device.type != "cpu" or self._is_small(x):
            return None
        size = int(index.max()) + 1 if dim_size is None else dim_size
        try:
            return known_by_index(index, ("groups", size), lambda: groups_of(index, size))
        except IndexError:
            row = int(((index < 0) | (index >= size)).nonzero()[0])
            rule = "must be at least 0" if index[row] < 0 else f"must be less than {size}"
            got = f"{int(index[row])} at row {row}"
            raise IndexError(message(type(self).__name__, "index", rule, got)) from None


class SoftmaxAggregation(_Aggregation, aggr.SoftmaxAggregation):
    """`torch_geometric.nn.aggr.SoftmaxAggregation` as two sums: see there for arguments and references."""

    theirs = aggr.SoftmaxAggregation

    @staticmethod
    def why_not(layer: Any) -> str | None:
        """A gradient that PyG leaves out on purpose."""
        return "semi_grad=True leaves out a part of the gradient" if layer.semi_grad else None

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
    ) -> Tensor:
        """See PyG."""
        pattern = None if self.semi_grad else self._groups(x, index, ptr, dim_size, dim)
        if pattern is None:
            return aggr.SoftmaxAggregation.forward(self, x, index, ptr, dim_size, dim)
        factor = self.t if isinstance(self.t, Tensor) else x.new_tensor([self.t])
        if self.backend != "scatter" and can_loop(x, factor):
            return softmax_of_groups(x, factor.expand(x.size(1)), pattern)
        found = share_by_source(x * self.t, x, pattern)
        return aggr.SoftmaxAggregation.forward(self, x, index, ptr, dim_size, dim) if found is None else found


class AttentionalAggregation(_Aggregation, aggr.AttentionalAggregation):
    """`torch_geometric.nn.aggr.AttentionalAggregation`, fused: see there for arguments and references."""

    theirs = aggr.AttentionalAggregation

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
    ) -> Tensor:
        """See PyG."""
        pattern = self._groups(x, index, ptr, dim_size, dim)
        if pattern is not None:
            if self._has_vector(x):
                return gated_mean_of_groups(x, self.gate_nn.weight[0], self.gate_nn.bias, pattern)
            gate = self.gate_nn(x) if self.gate_mlp is None else self.gate_mlp(x, batch=index, batch_size=dim_size)
            value = x
            if self.mlp is not None:
                value = self.mlp(x, batch=index, batch_size=dim_size)
            elif self.nn is not None:
                value = self.nn(x)
            if gate.dim() == 2 and gate.size(1) == 1 and value.dim() == 2:
                dtype = torch.promote_types(gate.dtype, value.dtype)
                with torch.autocast(x.device.type, enabled=False):
                    rows = value.to(dtype).unsqueeze(1)
                    return attend_by_scores(gate.to(dtype), rows, pattern, backend=self.backend).squeeze(1)
            found = share_by_source(gate, value, pattern) if gate.dim() == 2 and value.dim() == 2 else None
            if found is not None:
                return found
        return aggr.AttentionalAggregation.forward(self, x, index, ptr, dim_size, dim)

    def _has_vector(self, x: Tensor) -> bool:
        """Whether the gate is a product with a vector [C], and values are the rows themselves: loops do both."""
        gate = self.gate_nn
        if type(gate) not in (torch.nn.Linear, Linear) or has_hooks(gate) or self.backend == "scatter":
            return False
        is_alone = self.nn is None and self.mlp is None
        return is_alone and gate.weight.shape == (1, x.size(1)) and can_loop(x, gate.weight)


class Set2Set(_Aggregation, aggr.Set2Set):
    """`torch_geometric.nn.aggr.Set2Set`, fused: each step is one query per group. See there for arguments.

    Example:
        >>> layer = Set2Set(4, processing_steps=2)
        >>> layer(torch.randn(5, 4), torch.tensor([0, 0, 0, 1, 1]), dim_size=2).shape
        torch.Size([2, 8])
    """

    theirs = aggr.Set2Set

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
    ) -> Tensor:
        """See PyG."""
        pattern = self._groups(x, index, ptr, dim_size, dim)
        if pattern is None:
            return aggr.Set2Set.forward(self, x, index, ptr, dim_size, dim)
        size, rows = pattern.num_targets, x.unsqueeze(1)
        state = (x.new_zeros(self.lstm.num_layers, size, x.size(1)),) * 2
        found = x.new_zeros(size, self.out_channels)
        for _ in range(self.processing_steps):
            query, state = self.lstm(found.unsqueeze(0), state)
            query = query.view(size, 1, self.in_channels)
            read = attention(query, rows, rows, pattern, score=DotProduct(1.0), backend=self.backend)
            found = torch.cat([query, read], -1).flatten(1)
        return found


class _SetAggregation(FusedModule):
    """One of attention blocks, of which those that read nodes run within each graph, without padding."""

    small = 2**18

    def _graphs(self, x: Any, index: Any, ptr: Any, dim_size: int | None, dim: int) -> Tensor | None:
        """Nodes of each graph; None if PyG computes the call."""
        if not _is_plain(x, index, ptr, dim) or self._is_small(x):
            return None
        if any(has_hooks(module) for module in self.modules() if module is not self):
            return None
        first, last = int(index[0]), int(index[-1])
        if bool((index.diff() < 0).any()) or first < 0 or (dim_size is not None and last >= dim_size):
            return None
        return index.bincount(minlength=0 if dim_size is None else dim_size)

    def _block(self, block: Any, x: Tensor, y: Tensor, pattern: Full) -> Tensor:
        """PyG's `MultiheadAttentionBlock` from rows to rows."""
        out = _multihead(block.attn, x, y, pattern, self.backend) + x
        out = out if block.layer_norm1 is None else block.layer_norm1(out)
        out = out + block.lin(out).relu()
        return out if block.layer_norm2 is None else block.layer_norm2(out)

    def _pool(self, pool: Any, x: Tensor, sizes: Tensor) -> Tensor:
        """PyG's `PoolingByMultiheadAttention`: [graphs, seeds, C]."""
        graphs, seeds = len(sizes), pool.seed.size(1)
        pattern = Full(torch.full_like(sizes, seeds), source_sizes=sizes)
        rows = pool.seed.expand(graphs, -1, -1).flatten(0, 1)
        return self._block(pool.mab, rows, pool.lin(x).relu(), pattern).view(graphs, seeds, -1)


class SetTransformerAggregation(_SetAggregation, aggr.SetTransformerAggregation):
    """`torch_geometric.nn.aggr.SetTransformerAggregation` without padding: see there for arguments and references."""

    theirs = aggr.SetTransformerAggregation

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
        max_num_elements: int | None = None,
    ) -> Tensor:
        """See PyG."""
        sizes = self._graphs(x, index, ptr, dim_size, dim)
        if sizes is None:
            theirs = aggr.SetTransformerAggregation.forward
            return theirs(self, x, index, ptr, dim_size, dim, max_num_elements=max_num_elements)
        pattern = Full(sizes)
        for encoder in self.encoders:
            x = self._block(encoder.mab, x, x, pattern)
        x = self._pool(self.pma, x, sizes)
        for decoder in self.decoders:
            x = decoder(x)
        x = x.nan_to_num()
        return x.flatten(1, 2) if self.concat else x.mean(1)


class GraphMultisetTransformer(_SetAggregation, aggr.GraphMultisetTransformer):
    """`torch_geometric.nn.aggr.GraphMultisetTransformer` without padding.

    Arguments, parameters and results are those of `torch_geometric.nn.aggr.GraphMultisetTransformer`.
    """

    theirs = aggr.GraphMultisetTransformer

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
        max_num_elements: int | None = None,
    ) -> Tensor:
        """See PyG."""
        sizes = self._graphs(x, index, ptr, dim_size, dim)
        if sizes is None:
            theirs = aggr.GraphMultisetTransformer.forward
            return theirs(self, x, index, ptr, dim_size, dim, max_num_elements=max_num_elements)
        x = self._pool(self.pma1, x, sizes)
        for encoder in self.encoders:
            x = encoder(x)
        return self.pma2(x).squeeze(1)

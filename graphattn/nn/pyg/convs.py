"""PyG's other convolutions that attend, on our kernels: the same parameters, arguments and numbers."""

from __future__ import annotations

from typing import Any

import torch
import torch_geometric.nn.conv as conv
from torch import Tensor
from torch.nn.functional import leaky_relu, normalize
from torch_geometric.nn.aggr import SoftmaxAggregation
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.nn.models.attentive_fp import GATEConv as PyGsGATEConv

from ...patterns import Edges
from ...patterns.lookup import known_edges
from ...scores import Additive, DotProduct
from ...segments import gather
from ..ends import ends_of
from ..products import products_with, unit_rows
from .channelwise import can_loop, sum_through_gates
from .edges import check_edge_attr
from .fused import SMALL_IF_TRACED, has_hooks, writable
from .sums import groups_of
from .whole import FusedConv, is_matrix


def _channels(x: Tensor) -> Tensor:
    """[N, C] as C heads of one number each."""
    return x.unsqueeze(-1)


def _sum_of_both(like: Tensor, channels: int) -> Additive:
    """A score that is query plus key, for heads of one number."""
    return Additive(like.new_ones(channels, 1), "leaky_relu", 1.0)


class AGNNConv(FusedConv, conv.AGNNConv):
    """`torch_geometric.nn.AGNNConv`, fused: see there for arguments, shapes, results and references.

    Example:
        >>> x, edge_index = torch.randn(3, 8), torch.tensor([[0, 1, 2], [1, 2, 0]])
        >>> AGNNConv()(x, edge_index).shape
        torch.Size([3, 8])
    """

    theirs = conv.AGNNConv
    small = 2**18
    # propagate_type: (x: Tensor, x_norm: Tensor)

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        """See PyG."""
        if self._is_pygs(x, edge_index) or not is_matrix(x):
            return conv.AGNNConv.forward(self, x, edge_index)
        pattern = self._attended(x, edge_index)
        scaled, unit = unit_rows(x, self.beta)
        out = self._attend_to(scaled.unsqueeze(1), unit.unsqueeze(1), x.unsqueeze(1), pattern, score=DotProduct(1.0))
        return writable(out.squeeze(1), True)


class FAConv(FusedConv, conv.FAConv):
    """`torch_geometric.nn.FAConv`, fused: see there for arguments, shapes, results and references.

    Degrees scale nodes before and after, so that nothing is computed for edges.
    """

    theirs = conv.FAConv
    small = 2**19
    example = (1,)
    # propagate_type: (x: Tensor, alpha: PairTensor, edge_weight: OptTensor)

    def forward(
        self,
        x: Tensor,
        x_0: Tensor,
        edge_index: Any,
        edge_weight: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """See PyG."""
        is_plain = self.normalize and not self.cached and edge_weight is None and is_matrix(x)
        if self._is_pygs(x, edge_index) or not is_plain:
            return conv.FAConv.forward(self, x, x_0, edge_index, edge_weight, return_attention_weights)
        pattern = self._attended(x, edge_index)
        degree = pattern.csr().ptr.diff().to(x.dtype).unsqueeze(1)
        factor = torch.where(degree > 0, degree, 1).rsqrt().masked_fill(degree == 0, 0)
        by_target, by_source = (end.unsqueeze(1) for end in self._scores(x))
        score, return_weights = Additive(x.new_ones(1, 1), "tanh"), isinstance(return_attention_weights, bool)
        options: dict[str, Any] = dict(score=score, normalizer="identity", dropout_p=self._drops())
        result = self._attend_to(
            by_target, by_source, (factor * x).unsqueeze(1), pattern, return_weights=return_weights, **options
        )
        out, alpha = result if return_weights else (result, None)
        out = factor * out.squeeze(1)
        out = torch.add(out, x_0, alpha=self.eps) if self.eps != 0.0 else out
        return out if alpha is None else (out, (pattern.edge_index.clone(), alpha.squeeze(-1)))

    def _scores(self, x: Tensor) -> tuple[Tensor, ...]:
        """What each node says as a target and as a source, [N, 1]: one product, unless someone watches the layers."""
        layers = (self.att_r, self.att_l)
        if any(type(layer) is not Linear or layer.bias is not None or has_hooks(layer) for layer in layers):
            return self.att_r(x), self.att_l(x)
        both: Tensor = x @ torch.cat([layer.weight for layer in layers]).t()
        return both.split(1, 1)


class SuperGATConv(FusedConv, conv.SuperGATConv):
    """`torch_geometric.nn.SuperGATConv`, fused: see there for arguments, shapes, results and references.

    What it learns from sampled edges is PyG's.
    """

    theirs = conv.SuperGATConv
    small = SMALL_IF_TRACED
    example = (1, 1)
    # propagate_type: (x: Tensor)

    def forward(
        self, x: Tensor, edge_index: Any, neg_edge_index: Tensor | None = None, batch: Tensor | None = None
    ) -> Tensor:
        """See PyG."""
        if self._is_pygs(x, edge_index) or not is_matrix(x):
            return conv.SuperGATConv.forward(self, x, edge_index, neg_edge_index, batch)
        pattern = self._attended(x, edge_index)
        rows = self.lin(x).view(-1, self.heads, self.out_channels)
        out = self._attend_to(rows, rows, rows, pattern, score=self._score(), dropout_p=self._drops())
        if self.training:
            self._learn_from_samples(rows, pattern.edge_index, neg_edge_index, batch)
        out = out.flatten(1) if self.concat else out.mean(1)
        return writable(out, self.concat) if self.bias is None else out + self.bias

    def _score(self) -> Any:
        slope = self.negative_slope
        if self.attention_type == "SD":
            scale = self.out_channels**-0.5
            return lambda query_i, key_j, edge_key: leaky_relu((query_i * key_j).sum(-1) * scale, slope)
        of_key, of_query = self.att_l[0], self.att_r[0]

        def mixed(query_i: Tensor, key_j: Tensor, edge_key: Tensor | None) -> Tensor:
            both = (key_j * of_key).sum(-1) + (query_i * of_query).sum(-1)
            return leaky_relu(both * (query_i * key_j).sum(-1).sigmoid(), slope)

        return mixed

    def _learn_from_samples(
        self, rows: Tensor, edge_index: Tensor, neg_edge_index: Tensor | None, batch: Tensor | None
    ) -> None:
        positive = self.positive_sampling(edge_index)
        negative = neg_edge_index
        if negative is None:
            negative = self.negative_sampling(edge_index, len(rows), batch)
        logits = [
            self.get_attention(target, rows[target], rows[source], num_nodes=len(rows), return_logits=True)
            for source, target in (positive, negative)
        ]
        self.att_x = torch.cat(logits)
        self.att_y = self.att_x.new_zeros(len(self.att_x))
        self.att_y[: positive.size(1)] = 1.0


class GATEConv(FusedConv, PyGsGATEConv):
    """The first layer of `torch_geometric.nn.AttentiveFP`, fused.

    Arguments, parameters and results are those of `torch_geometric.nn.models.attentive_fp.GATEConv`.
    """

    theirs = PyGsGATEConv
    small = SMALL_IF_TRACED
    example = (1, 1, 1)
    # edge_updater_type: (x: Tensor, edge_attr: Tensor)
    # propagate_type: (x: Tensor, alpha: Tensor)

    def forward(self, x: Tensor, edge_index: Any, edge_attr: Tensor) -> Tensor:
        """See PyG."""
        is_plain = is_matrix(x) and is_matrix(edge_attr)
        if self._is_pygs(x, edge_index, of_edges=edge_attr) or not is_plain or has_hooks(self.lin1):
            return PyGsGATEConv.forward(self, x, edge_index, edge_attr)
        pattern = self._edges(x, edge_index)
        columns = self.lin1.weight.size(1) - x.size(1)
        check_edge_attr("GATEConv", edge_attr, columns, pattern.num_edges, x.size(0))
        edge_attr = edge_attr.to(torch.promote_types(edge_attr.dtype, x.dtype))
        of_node, of_edge = self.lin1.weight.split([x.size(1), edge_attr.size(1)], 1)
        key, edge = (x @ of_node.t()).unsqueeze(1), (edge_attr @ of_edge.t()).unsqueeze(1)
        # One number per target, in a row as wide as a key, of which a score reads the sum.
        query = torch.nn.functional.pad(x @ self.att_r.t(), (0, key.size(2) - 1)).unsqueeze(1)
        vector = self.att_l

        def score(query_i: Tensor, key_j: Tensor, edge_key: Tensor) -> Tensor:
            of_pair = (leaky_relu(key_j + edge_key) * vector).sum(-1)
            return leaky_relu(of_pair + query_i.sum(-1))

        value = self.lin2(x).unsqueeze(1)
        options: dict[str, Any] = dict(score=score, edge_key=edge, dropout_p=self._drops())
        return self._attend_to(query, key, value, pattern, **options).squeeze(1) + self.bias


class GeneralConv(FusedConv, conv.GeneralConv):
    """`torch_geometric.nn.GeneralConv`, fused with `attention=True`: see there for arguments and references."""

    theirs = conv.GeneralConv
    small = 2**17
    example = (1, 1)
    # propagate_type: (x: OptPairTensor, edge_attr: OptTensor)

    def forward(self, x: Any, edge_index: Any, edge_attr: Tensor | None = None, size: Any = None) -> Tensor:
        """See PyG."""
        source, target = x if isinstance(x, tuple) else (x, x)
        is_plain = self.attention and self.directed_msg and is_matrix(source) and is_matrix(target) and size is None
        has_edges = edge_attr is not None and self.in_edge_channels is not None
        if self._is_pygs(x, edge_index, of_edges=edge_attr) or not is_plain or (edge_attr is None) == has_edges:
            return conv.GeneralConv.forward(self, x, edge_index, edge_attr, size)
        pattern = known_edges("GeneralConv", edge_index, source.size(0), target.size(0))
        heads = lambda rows: rows.view(-1, self.heads, self.out_channels)
        value, edge = heads(self.lin_msg(source)), None
        if edge_attr is not None:
            check_edge_attr("GeneralConv", edge_attr, self.lin_edge, pattern.num_edges, target.size(0))
            edge = heads(self.lin_edge(edge_attr))
        if self.attention_type == "additive":
            vector = self.att_msg
            of_key = products_with(value, vector[0])[0].unsqueeze(-1)
            of_edge = None if edge is None else products_with(edge, vector[0])[0].unsqueeze(-1)
            score: Any = Additive(value.new_ones(self.heads, 1), "leaky_relu", 0.2)
            query = value.new_zeros(target.size(0), self.heads, 1)
            out = self._attend_to(query, of_key, value, pattern, score=score, edge_key=of_edge, edge_value=edge)
        else:
            scale = 1 / float(self.scaler)
            query = heads(self.lin_msg(target))
            if edge is None:
                score = lambda query_i, key_j, edge_key: leaky_relu((query_i * key_j).sum(-1) * scale, 0.2)
            else:
                score = lambda query_i, key_j, edge_key: leaky_relu(
                    ((query_i + edge_key) * (key_j + edge_key)).sum(-1) * scale, 0.2
                )
            out = self._attend_to(query, value, value, pattern, score=score, edge_key=edge, edge_value=edge)
        out = out.mean(1) + self.lin_self(target)
        return normalize(out, p=2, dim=-1) if self.normalize_l2 else out


class ResGatedGraphConv(FusedConv, conv.ResGatedGraphConv):
    """`torch_geometric.nn.ResGatedGraphConv`, fused with its sigmoid: see there for arguments and references.

    Each channel is a head of one number; features of edges are projected once, not with those of nodes again.
    """

    theirs = conv.ResGatedGraphConv
    example = (1, 1)
    # propagate_type: (k: Tensor, q: Tensor, v: Tensor, edge_attr: OptTensor)

    def forward(self, x: Any, edge_index: Any, edge_attr: Tensor | None = None) -> Tensor:
        """See PyG."""
        if self._is_pygs(x, edge_index, of_edges=edge_attr):
            return conv.ResGatedGraphConv.forward(self, x, edge_index, edge_attr)
        source, target = x if isinstance(x, tuple) else (x, x)
        linears = (self.lin_key, self.lin_query, self.lin_value)
        is_plain = type(self.act) is torch.nn.Sigmoid and is_matrix(source) and is_matrix(target)
        is_plain = is_plain and (edge_attr is None) == (self.edge_dim is None)
        if not is_plain or any(map(has_hooks, (self.act, *linears))):
            return conv.ResGatedGraphConv.forward(self, x, edge_index, edge_attr)
        pattern = known_edges("ResGatedGraphConv", edge_index, source.size(0), target.size(0))
        edge = edge_value = None
        if edge_attr is None:
            query, key, value = self.lin_key(target), self.lin_query(source), self.lin_value(source)
            if self.backend != "scatter" and can_loop(query, key, value):
                return self._finish(sum_through_gates(query, key, value, pattern), target)
        else:
            check_edge_attr("ResGatedGraphConv", edge_attr, self.edge_dim, pattern.num_edges, target.size(0))
            edge_attr = edge_attr.to(torch.promote_types(edge_attr.dtype, target.dtype))
            parts = [linear.weight.split([linear.in_channels - self.edge_dim, self.edge_dim], 1) for linear in linears]
            query, key, value = (
                torch.nn.functional.linear(rows, of_node, linear.bias)
                for rows, (of_node, _), linear in zip((target, source, source), parts, linears, strict=True)
            )
            (_, of_key), (_, of_query), (_, of_value) = parts
            edge, edge_value = _channels(edge_attr @ (of_key + of_query).t()), _channels(edge_attr @ of_value.t())
        options: dict[str, Any] = dict(score=_sum_of_both(query, self.out_channels), normalizer="sigmoid")
        query, key, value = map(_channels, (query, key, value))
        out = self._attend_to(query, key, value, pattern, edge_key=edge, edge_value=edge_value, **options).squeeze(-1)
        return self._finish(out, target)

    def _finish(self, out: Tensor, target: Tensor) -> Tensor:
        out = out + self.lin_skip(target) if self.root_weight else out
        return writable(out, not self.root_weight) if self.bias is None else out + self.bias


class PointTransformerConv(FusedConv, conv.PointTransformerConv):
    """`torch_geometric.nn.PointTransformerConv`, fused: see there for arguments, shapes, results and references.

    With its own `pos_nn`, which is linear, and no `attn_nn`, positions enter as a term of each node, counted from their
    mean, and nothing is computed for edges.
    """

    theirs = conv.PointTransformerConv
    example = (1, 1)
    # propagate_type: (x: PairTensor, pos: PairTensor, alpha: PairTensor)

    def forward(self, x: Any, pos: Any, edge_index: Any) -> Tensor:
        """See PyG."""
        source, target = x if isinstance(x, tuple) else (x, x)
        of_source, of_target = pos if isinstance(pos, tuple) else (pos, pos)
        is_plain = all(map(is_matrix, (source, target, of_source, of_target)))
        is_plain = is_plain and (len(source), len(target)) == (len(of_source), len(of_target))
        if self._is_pygs(x, edge_index) or not is_plain:
            return conv.PointTransformerConv.forward(self, x, pos, edge_index)
        given: Edges = known_edges("PointTransformerConv", edge_index, source.size(0), target.size(0))
        loops = min(of_source.size(0), of_target.size(0))
        pattern: Any = given.renew_self_loops(loops).pattern if self.add_self_loops else given
        key, query, value = -self.lin_src(source), self.lin_dst(target), self.lin(source)
        is_linear = type(self.pos_nn) in (Linear, torch.nn.Linear) and not has_hooks(self.pos_nn)
        if is_linear and self.attn_nn is None:
            center = of_source.mean(0) if len(of_source) else of_target.new_zeros(of_target.size(1))
            shift, term = ((rows - center) @ self.pos_nn.weight.t() for rows in (of_source, of_target))
            bias = self.pos_nn.bias
            term = term if bias is None else term + bias
            # What all sources of a target share cancels where weights are normalized.
            out = self._share(key - shift, value - shift, pattern)
            has_edges = (pattern.csr().ptr.diff() > 0).unsqueeze(1)
            out = (out + torch.where(has_edges, term, 0)).to(value.dtype)
            # So that the weights of queries have a gradient, which is zero.
            return out + query[:0].sum()
        by_target, by_source = ends_of(pattern)
        delta = self.pos_nn(gather(of_target, by_target, -2) - gather(of_source, by_source, -2))
        if self.attn_nn is None:
            options: dict[str, Any] = dict(score=_sum_of_both(query, value.size(1)), edge_key=_channels(delta))
        else:
            scores = self.attn_nn(gather(query, by_target, -2) + gather(key, by_source, -2) + delta)
            options = dict(score=DotProduct(1.0), edge_bias=scores)
            query, key = torch.zeros_like(query), torch.zeros_like(key)
        rows = (_channels(query), _channels(key), _channels(value))
        return writable(self._attend_to(*rows, pattern, edge_value=_channels(delta), **options).squeeze(-1), True)


class GENConv(FusedConv, conv.GENConv):
    """`torch_geometric.nn.GENConv`, fused with `aggr="softmax"`: see there for arguments, shapes and references.

    Each channel is a head of one number.
    """

    theirs = conv.GENConv
    example = (1, 1)
    aggregation = (SoftmaxAggregation,)
    # propagate_type: (x: OptPairTensor, edge_attr: OptTensor)

    def forward(self, x: Any, edge_index: Any, edge_attr: Tensor | None = None, size: Any = None) -> Tensor:
        """See PyG."""
        source, target = x if isinstance(x, tuple) else (x, x)
        is_plain = is_matrix(source) and is_matrix(target) and size is None
        aggregation = self.aggr_module
        is_plain = is_plain and not (aggregation.semi_grad and not aggregation.learn) and aggregation.channels == 1
        if self._is_pygs(x, edge_index, of_edges=edge_attr) or not is_plain or has_hooks(aggregation):
            return conv.GENConv.forward(self, x, edge_index, edge_attr, size)
        pattern = known_edges("GENConv", edge_index, source.size(0), target.size(0))
        rows = self.lin_src(source) if hasattr(self, "lin_src") else source
        if edge_attr is not None:
            columns = self.lin_edge if hasattr(self, "lin_edge") else rows.size(1)
            check_edge_attr("GENConv", edge_attr, columns, pattern.num_edges, target.size(0))
            edge_attr = self.lin_edge(edge_attr) if hasattr(self, "lin_edge") else edge_attr
            # A message for each edge: the edges are what is attended to.
            rows = gather(rows, ends_of(pattern)[1], -2) + edge_attr
            pattern = _by_edge(pattern)
        messages = rows.relu() + self.eps
        out = self._share(messages * aggregation.t, messages, pattern)
        if hasattr(self, "msg_norm"):
            out = self.msg_norm(target, out)
        out = out + (self.lin_dst(target) if hasattr(self, "lin_dst") else target)
        return self.mlp(out)


def _by_edge(pattern: Edges) -> Edges:
    """The pattern whose sources are another's edges, each of which its target attends to."""
    build = lambda: groups_of(pattern.edge_index[1], pattern.num_targets)
    found: Edges = pattern.keep("edges as sources", build)
    return found

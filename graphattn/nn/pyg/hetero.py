"""PyG's attention layers over several relations on our kernels: the same parameters, arguments and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch_geometric.nn.conv as conv
from torch import Tensor
from torch.nn.functional import gelu, leaky_relu
from torch_geometric.nn.conv.han_conv import group

from ...errors import message, shape_of
from ...functional import attention
from ...normalizers import Softmax
from ...patterns import Edges
from ...patterns.lookup import known_edges
from ...patterns.relations import known_relations, known_types
from ...scores import Additive, DotProduct
from ...segments import Rows, gather, segment_sum
from ..ends import ends_of
from ..project import project_rows
from .edges import check_edge_attr
from .whole import FusedWhole


def attend_by_scores(scores: Tensor, value: Tensor, pattern: Edges, **options: Any) -> Any:
    """Attention by given scores [E, H] of the pattern's edges, to values [S, H_kv, V]."""
    query = value.new_zeros(pattern.num_targets, scores.size(-1), 1)
    key = value.new_zeros(pattern.num_sources, value.size(-2), 1)
    scores = scores if scores.dtype in (value.dtype, torch.float32) else scores.to(value.dtype)
    return attention(query, key, value, pattern, score=DotProduct(1.0), edge_bias=scores, **options)


class _OfTypes(FusedWhole):
    """One whose rows are in dictionaries by type."""

    def _is_small(self, x: Any, *edges: Any, of_edges: Any = None) -> bool:
        return super()._is_small(next(iter(x.values()), None), *edges, of_edges=of_edges)

    def _message_width(self, x: Any) -> int:
        # All heads together.
        width: int = self.out_channels
        return width


class HGTConv(_OfTypes, conv.HGTConv):
    """`torch_geometric.nn.HGTConv`, fused: see there for arguments, shapes, results and references.

    It has the same `state_dict`. PyG takes relations to come in the metadata's order; here any order of the dictionary
    gives the same result.

    Example:
        >>> metadata = (["a", "b"], [("a", "to", "b"), ("b", "to", "a")])
        >>> layer = HGTConv(8, 16, metadata, heads=2)
        >>> edges = {("a", "to", "b"): torch.tensor([[0], [1]]), ("b", "to", "a"): torch.tensor([[1], [0]])}
        >>> out = layer({"a": torch.randn(2, 8), "b": torch.randn(3, 8)}, edges)
        >>> {name: list(x.shape) for name, x in out.items()}
        {'a': [2, 16], 'b': [3, 16]}
    """

    theirs = conv.HGTConv
    example = (1, 1, (["a"], [("a", "to", "a")]))
    # propagate_type: (k: Tensor, q: Tensor, v: Tensor, edge_attr: Tensor)

    def forward(self, x_dict: dict[str, Tensor], edge_index_dict: Mapping[Any, Any]) -> dict[str, Any]:
        """See PyG."""
        # PyG multiplies by the weights of relations as if they came in this order.
        edges = {name: edge_index_dict[name] for name in self.edge_types if name in edge_index_dict}
        if self._is_pygs(x_dict, *edges.values()) or len(edges) != len(edge_index_dict) or not edges:
            return conv.HGTConv.forward(self, x_dict, edges if len(edges) == len(edge_index_dict) else edge_index_dict)
        heads, width = self.heads, self.out_channels // self.heads
        of_types = {name: x.view(-1, 3, heads, width) for name, x in self.kqv_lin(x_dict).items()}
        relations = known_relations(edges, {name: x.size(0) for name, x in of_types.items()})
        kqv = relations.join_nodes(of_types)
        key, value = self._rows(kqv, relations)
        found = relations.split_nodes(
            attention(kqv[:, 1], key, value, relations.across, backend=self.backend).flatten(1)
        )
        out_dict = {name: found[name] for name in of_types if name in self.dst_node_types}
        projected = self.out_lin({name: gelu(x) for name, x in out_dict.items()})
        for name in out_dict:
            out, x = projected[name], x_dict[name]
            if out.size(-1) == x.size(-1):
                alpha = self.skip[name].sigmoid()
                out = alpha * out + (1 - alpha) * x
            out_dict[name] = out
        return out_dict

    def _rows(self, kqv: Tensor, relations: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of the pairs of a relation and a source; a key is scaled by its relation's prior."""
        heads, width = self.heads, self.out_channels // self.heads
        places = torch.tensor([self.edge_types_map[name] for name in relations.relations], device=kqv.device)
        of_key, of_value = (
            x.weight.view(heads, -1, width, width)[:, places].transpose(0, 1) for x in (self.k_rel, self.v_rel)
        )
        prior = torch.cat([self.p_rel["__".join(name)] for name in relations.relations])
        rows, is_plain = relations.source_rows, self.backend == "scatter"
        of_key = of_key * prior.view(-1, heads, 1, 1).to(of_key.dtype)
        keys, _, values = kqv.unbind(1)
        key = project_rows(keys, of_key, rows, is_plain=is_plain)
        return key, project_rows(values, of_value, rows, is_plain=is_plain)


class HANConv(_OfTypes, conv.HANConv):
    """`torch_geometric.nn.HANConv`, fused: see there for arguments, shapes, results and references.

    It has the same `state_dict`.
    """

    theirs = conv.HANConv
    small = 2**18
    example = (1, 1, (["a"], [("a", "to", "a")]))
    # propagate_type: (x: PairTensor, alpha: PairTensor)

    def forward(
        self,
        x_dict: dict[str, Tensor],
        edge_index_dict: Mapping[Any, Any],
        return_semantic_attention_weights: bool = False,
    ) -> Any:
        """See PyG."""
        if self._is_pygs(x_dict, *edge_index_dict.values()):
            return conv.HANConv.forward(self, x_dict, edge_index_dict, return_semantic_attention_weights)
        heads, width = self.heads, self.out_channels // self.heads
        rows = {name: self.proj[name](x).view(-1, heads, width) for name, x in x_dict.items()}
        halves = self._halves(rows, list(edge_index_dict))
        found: dict[str, list[Tensor]] = {name: [] for name in x_dict}
        for relation, edge_index in edge_index_dict.items():
            source, _, target = relation
            key, query = halves[relation, 0], halves[relation, 1]
            pattern = known_edges("HANConv", edge_index, rows[source].size(0), rows[target].size(0))
            score = Additive(key.new_ones(heads, 1), "leaky_relu", self.negative_slope)
            options: dict[str, Any] = dict(score=score, dropout_p=self._drops(), backend=self.backend)
            out = attention(query, key, rows[source], pattern, **options)
            found[target].append(out.flatten(1).relu())
        grouped = {name: group(outs, self.q, self.k_lin) for name, outs in found.items()}
        outs = {name: out for name, (out, _) in grouped.items()}
        if not return_semantic_attention_weights:
            return outs
        return outs, {name: weights for name, (_, weights) in grouped.items()}

    def _halves(self, rows: dict[str, Tensor], relations: list[Any]) -> dict[tuple[Any, int], Tensor]:
        """[N, H, 1], what sources (0) and targets (1) of each relation add to the scores.

        One product for each type of nodes, so that its rows are read once for all relations.
        """
        columns: dict[str, list[tuple[tuple[Any, int], Tensor]]] = {name: [] for name in rows}
        for relation in relations:
            for end, weights in enumerate((self.lin_src, self.lin_dst)):
                weight = weights["__".join(relation)][0]
                matrix = torch.diag_embed(weight.t()).transpose(0, 1).flatten(0, 1)
                columns[relation[2 * end]].append(((relation, end), matrix))
        found: dict[tuple[Any, int], Tensor] = {}
        for name, some in columns.items():
            if some:
                parts = (rows[name].flatten(1) @ torch.cat([matrix for _, matrix in some], 1)).split(self.heads, 1)
                found |= {of: part.unsqueeze(-1) for (of, _), part in zip(some, parts, strict=True)}
        return found


class RGATConv(FusedWhole, conv.RGATConv):
    """`torch_geometric.nn.RGATConv`, fused: see there for arguments, shapes, results and references.

    It has the same `state_dict`, and makes a row of values per relation and source, where PyG multiplies each edge by a
    matrix of its own.

    Example:
        >>> layer = RGATConv(8, 4, num_relations=3, heads=2)
        >>> edge_index, edge_type = torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.tensor([0, 2, 2])
        >>> layer(torch.randn(3, 8), edge_index, edge_type).shape
        torch.Size([3, 8])
    """

    theirs = conv.RGATConv
    example = (1, 1, 1)
    # propagate_type: (x: Tensor, edge_type: OptTensor, edge_attr: OptTensor)

    def reset_parameters(self) -> None:
        """Initialize all parameters again; PyG leaves those that scale by degrees as the memory happens to be."""
        conv.RGATConv.reset_parameters(self)
        torch.nn.init.constant_(self.l2, 1 / self.out_channels)

    def forward(
        self,
        x: Tensor,
        edge_index: Any,
        edge_type: Tensor | None = None,
        edge_attr: Tensor | None = None,
        size: Any = None,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """See PyG."""
        is_plain = isinstance(x, Tensor) and x.dim() == 2 and x.is_floating_point() and edge_type is not None
        if self._is_pygs(x, edge_index, of_edges=edge_attr) or not is_plain or size is not None:
            return conv.RGATConv.forward(self, x, edge_index, edge_type, edge_attr, size, return_attention_weights)
        relations = known_types(edge_index, edge_type, x.size(0), self.num_relations)
        values, scores = self._scores(x, relations, edge_attr)
        out, alpha = self._combine(relations, scores, values, isinstance(return_attention_weights, bool))
        out = out.view(x.size(0), self.heads, self.dim * self.out_channels)
        out = out.flatten(1) if self.concat else out.mean(1)
        out = out if self.bias is None else out + self.bias
        return out if alpha is None else (out, (edge_index, alpha))

    def _scores(self, x: Tensor, relations: Any, edge_attr: Tensor | None) -> tuple[Tensor, Tensor]:
        """Values [rows, H, C] of source rows, and scores [E, H * dim]."""
        weight = self._weights()
        plain = self.backend == "scatter"
        values = project_rows(x.unsqueeze(1), weight.unsqueeze(1), relations.source_rows, is_plain=plain).squeeze(1)
        of_query = (weight @ self.q).unsqueeze(1)
        queries = project_rows(x.unsqueeze(1), of_query, relations.target_rows, is_plain=plain).squeeze(1)
        by_target, by_source = ends_of(relations.within)
        query, key = gather(queries, by_target, -2), gather(values @ self.k, by_source, -2)
        of_edges = None
        if edge_attr is not None:
            edge_attr = edge_attr.view(-1, 1) if edge_attr.dim() == 1 else edge_attr
            check_edge_attr("RGATConv", edge_attr, self.lin_edge, len(relations.edge_type), x.size(0))
            edge_attr = edge_attr.flatten(1)
            assert self.lin_edge is not None, (
                "Please set 'edge_dim = edge_attr.size(-1)' while calling the RGATConv layer"
            )
            of_edges = edge_attr @ (self.e.t() @ self.lin_edge.weight).t()
        if self.attention_mode == "additive-self-attention":
            total = query + key if of_edges is None else query + key + of_edges
            scores = leaky_relu(total, self.negative_slope)
        else:
            scores = query * key if of_edges is None else query * key * of_edges
        return values.view(-1, self.heads, self.out_channels), scores

    def _weights(self) -> Tensor:
        """[R, in, H * C]; of a block-diagonal decomposition with its zeros."""
        if self.num_bases is not None:
            weight = self.att @ self.basis.view(self.num_bases, -1)
            return weight.view(self.num_relations, self.in_channels, -1)
        if self.num_blocks is None:
            return self.weight
        blocks = self.weight.new_zeros(
            self.num_relations, self.num_blocks, self.weight.size(2), self.num_blocks, self.weight.size(3)
        )
        place = torch.arange(self.num_blocks, device=blocks.device)
        blocks[:, place, :, place] = self.weight.transpose(0, 1)
        return blocks.view(self.num_relations, self.in_channels, -1)

    def _combine(
        self, relations: Any, scores: Tensor, values: Tensor, return_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Weighted sums [N, H * dim, C], and the weights."""
        is_within = self.attention_mechanism == "within-relation"
        pattern = relations.within if is_within else relations.across
        out: Tensor
        alpha: Tensor | None = None
        if self.mod != "f-additive":
            options: dict[str, Any] = dict(dropout_p=self._drops(), backend=self.backend)
            result = attend_by_scores(scores, values, pattern, return_weights=return_weights, **options)
            out, alpha = result if return_weights else (result, None)
        else:
            # Whether a weight is 0 decides about a jump of 1, and the loops' exponential is 0 below normal numbers.
            alpha = Softmax().on_rows(scores, ends_of(pattern)[0])
            lifted = torch.where(alpha > 0, alpha + 1, alpha)
            out = attend_by_scores(lifted, values, pattern, normalizer="identity", backend=self.backend)
        if is_within:
            # Rows of targets are added up node by node, relation after relation.
            rows = relations.target_rows
            out = segment_sum(out, Rows.from_index(rows.node, relations.total), -3)
        if self.mod == "additive":
            ones = scores.new_ones(scores.shape)
            sums = attend_by_scores(ones, values, relations.across, normalizer="identity", backend=self.backend)
            out = out + self.w * sums
        elif self.mod in ("scaled", "f-scaled"):
            degree = relations.across.csr().ptr.diff().to(out.dtype).view(-1, 1)
            if self.mod == "scaled":
                degree = self.activation(degree @ self.l1 + self.b1) @ self.l2 + self.b2
            out = out * degree.unsqueeze(1)
        return out, alpha if return_weights else None


class HEATConv(FusedWhole, conv.HEATConv):
    """`torch_geometric.nn.HEATConv`, fused: see there for arguments, shapes, results and references.

    It has the same `state_dict`.
    """

    theirs = conv.HEATConv
    small = 2**18
    example = (1, 1, 1, 1, 1, 1, 1)
    # propagate_type: (x: Tensor, edge_type_emb: Tensor, edge_attr: OptTensor)

    def forward(
        self,
        x: Tensor,
        edge_index: Any,
        node_type: Tensor,
        edge_type: Tensor,
        edge_attr: Tensor | None = None,
    ) -> Tensor:
        """See PyG."""
        if self._is_pygs(x, edge_index, of_edges=edge_attr) or edge_attr is None or x.dim() != 2:
            return conv.HEATConv.forward(self, x, edge_index, node_type, edge_type, edge_attr)
        pattern = known_edges("HEATConv", edge_index, x.size(0), x.size(0))
        _check_types("node_type", node_type, x.size(0), self.hetero_lin.num_types)
        _check_types("edge_type", edge_type, pattern.num_edges, self.edge_type_emb.num_embeddings)
        check_edge_attr("HEATConv", edge_attr, self.edge_attr_emb, pattern.num_edges, x.size(0))
        x = self.hetero_lin(x, node_type)
        slope, width = self.negative_slope, self.out_channels
        of_types = leaky_relu(self.edge_type_emb.weight, slope)
        of_edges = leaky_relu(self.edge_attr_emb(edge_attr), slope)
        # The vector of the scores acts on each part of what PyG joins for each edge.
        sizes = [width, width, of_types.size(-1), of_edges.size(-1)]
        of_target, of_source, of_type, of_edge = self.att.weight.split(sizes, 1)
        by_target, by_source = ends_of(pattern)
        ends = gather(x @ of_target.t(), by_target, -2) + gather(x @ of_source.t(), by_source, -2)
        scores = leaky_relu(ends + (of_types @ of_type.t())[edge_type] + of_edges @ of_edge.t(), slope)
        to_value, to_edge_value = self.lin.weight.split([width, of_edges.size(-1)], 1)
        value = torch.nn.functional.linear(x, to_value, self.lin.bias).unsqueeze(1)
        edge_value = (of_edges @ to_edge_value.t()).unsqueeze(1)
        options: dict[str, Any] = dict(edge_value=edge_value, dropout_p=self._drops(), backend=self.backend)
        out = attend_by_scores(scores, value, pattern, **options)
        if self.concat:
            out = out + x.unsqueeze(1) if self.root_weight else out
            return out.flatten(1)
        return out.mean(1) + x if self.root_weight else out.mean(1)


def _check_types(argument: str, types: Tensor, count: int, bound: int) -> None:
    """Raise unless there is a type for each node, or edge, in its range."""
    if types.is_floating_point() or types.dtype == torch.bool or types.shape != (count,):
        rule, got = f"must be integers of shape [{count}]", f"{types.dtype} of shape {shape_of(types)}"
        raise ValueError(message("HEATConv", argument, rule, got))
    if count and not (int(types.min()) >= 0 and int(types.max()) < bound):
        got = f"{int(types.min())} to {int(types.max())}"
        raise ValueError(message("HEATConv", argument, f"must lie in [0, {bound})", got))

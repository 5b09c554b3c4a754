"""Attention over several relations between nodes of several types, and its dense reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.dense import Linear
from torch_geometric.nn.dense.linear import is_uninitialized_parameter
from torch_geometric.nn.inits import glorot, ones
from torch_geometric.nn.module_dict import ModuleDict

from ..dense import attend_matrix
from ..dropout import draw_seed, keep_edges
from ..errors import check_choice, check_float_tensor, check_int, check_probability, message, shape_of
from ..kernels import KERNELS
from ..normalizers import UserNormalizer, as_normalizer
from ..patterns.relations import Pairs, Relation, Relations, known_relations
from ..scores import Score, ScoreFunction, as_score
from ..segments import Rows, gather, segment_sum
from .attention import GraphAttention
from .project import project_rows
from .projections import ACTIVATIONS, SCORE_NAMES, Projections, check_heads

Outputs = dict[Any, Tensor]
WeightsByRelation = dict[Relation, Tensor]


class _Hetero(Projections):
    """The parameters that the sparse layer and its dense reference share."""

    def _build_hetero(
        self,
        in_channels: int | Mapping[Any, int],
        out_channels: int,
        metadata: tuple[list[Any], list[Relation]],
        heads: int,
        across: bool,
        per_relation: bool,
        shared: bool,
        score: str | Score | ScoreFunction,
        normalizer: Any,
        edge_dim: int | None,
        dropout: float,
        bias: bool,
    ) -> None:
        where = type(self).__name__
        self.node_types, self.edge_types = _read_metadata(where, metadata)
        self.out_channels = check_int(where, "out_channels", out_channels, 1)
        self.heads = self.kv_heads = check_int(where, "heads", heads, 1)
        check_heads(where, "out_channels", self.out_channels, self.heads)
        check_probability(where, "dropout", dropout)
        self.dropout = float(dropout)
        self.across, self.per_relation, self.shared = bool(across), bool(per_relation), bool(shared)
        self.edge_dim = None if edge_dim is None else check_int(where, "edge_dim", edge_dim, 1)
        if isinstance(score, str):
            check_choice(where, "score", score, SCORE_NAMES)
        else:
            as_score(where, score)
        self.score, self.normalizer = score, as_normalizer(where, normalizer)
        self.own_normalizer = normalizer if isinstance(normalizer, torch.nn.Module) else None
        self.encoding = self.head_channels = self.feature_map = None
        if not isinstance(in_channels, Mapping):
            in_channels = dict.fromkeys(self.node_types, in_channels)
        missing = [name for name in self.node_types if name not in in_channels]
        if missing:
            raise ValueError(message(where, "in_channels", "must have every node type", f"none for {missing[0]!r}"))
        self.channels = {name: check_int(where, "in_channels", in_channels[name], -1) for name in self.node_types}
        self._check_shared("in_channels", self.channels)

        options: dict[str, Any] = dict(bias=bias, weight_initializer="glorot", bias_initializer="zeros")
        inner = dict.fromkeys(self.node_types, self.out_channels)
        self.query_lin, self.key_lin, self.value_lin, self.out_lin = (
            ModuleDict(
                {key: Linear(width, self.out_channels, **options) for key, width in self._keys_of(channels).items()}
            )
            for channels in (self.channels, self.channels, self.channels, inner)
        )
        self.edge_lin = None
        if self.edge_dim is not None:
            self.edge_lin = Linear(self.edge_dim, self.out_channels, bias=False, weight_initializer="glorot")
        width, count = self.out_channels // self.heads, len(self.edge_types)
        shape = (count, self.heads, width, width)
        self.key_weight = Parameter(torch.empty(shape)) if per_relation else None
        self.value_weight = Parameter(torch.empty(shape)) if per_relation else None
        self.prior = Parameter(torch.empty(count, self.heads))
        is_named = isinstance(score, str) and score in ACTIVATIONS
        self.score_vector = Parameter(torch.empty(self.heads, width)) if is_named else None
        self._draw()

    def _check_shared(self, argument: str, channels: Mapping[Any, int]) -> None:
        if self.shared and len(set(channels.values())) > 1:
            rule = "must be as wide for each type of node, because they share their projections"
            raise ValueError(message(type(self).__name__, argument, rule, dict(channels), "Use shared=False."))

    def _key(self, name: Any) -> Any:
        """The name of a type's projections."""
        return "shared" if self.shared else name

    def _keys_of(self, channels: Mapping[Any, int]) -> dict[Any, int]:
        return {self._key(name): width for name, width in channels.items()}

    def _draw(self) -> None:
        for linears in (self.query_lin, self.key_lin, self.value_lin, self.out_lin):
            for linear in linears.values():
                linear.reset_parameters()
        if self.edge_lin is not None:
            self.edge_lin.reset_parameters()
        for parameter in (self.key_weight, self.value_weight, self.score_vector):
            glorot(parameter)
        ones(self.prior)

    def _read(self, x_dict: Mapping[Any, Tensor], edge_index_dict: Any) -> tuple[dict[Any, Tensor], Relations]:
        """Check a call's features and edges."""
        where = type(self).__name__
        if not isinstance(x_dict, Mapping):
            raise TypeError(message(where, "x_dict", "must be a dictionary by node type", type(x_dict).__name__))
        for name, x in x_dict.items():
            if name not in self.channels:
                rule = f"must have the metadata's node types, {self.node_types}"
                raise ValueError(message(where, "x_dict", rule, repr(name)))
            check_float_tensor(where, f"x_dict[{name!r}]", x)
            channels = self.channels[name]
            if x.dim() != 2 or channels not in (-1, x.size(-1)):
                rule = f"must have shape [N, {'C' if channels == -1 else channels}]"
                raise ValueError(message(where, f"x_dict[{name!r}]", rule, shape_of(x)))
        self._check_shared("x_dict", {name: x.size(-1) for name, x in x_dict.items()})
        is_read = isinstance(edge_index_dict, Relations)
        for relation in edge_index_dict.relations if is_read else edge_index_dict:
            if relation not in self.edge_types:
                rule = "must have relations of the metadata"
                raise ValueError(message(where, "edge_index_dict", rule, repr(relation)))
            for kind in (relation[0], relation[2]):
                if kind not in x_dict:
                    rule = f"must have the node types of {relation}"
                    raise ValueError(message(where, "x_dict", rule, f"none for {kind!r}"))
        sizes = {name: x.size(0) for name, x in x_dict.items()}
        if not is_read:
            return dict(x_dict), known_relations(edge_index_dict, sizes)
        given = {name: size for name, size in edge_index_dict.num_nodes.items() if sizes.get(name) != size}
        if given or len(sizes) != len(edge_index_dict.num_nodes):
            rule = f"must have the numbers of nodes of x_dict, {sizes}"
            raise ValueError(message(where, "edge_index_dict", rule, edge_index_dict.num_nodes))
        return dict(x_dict), edge_index_dict

    def _read_edges(self, relations: Relations, edge_attr_dict: Mapping[Relation, Tensor] | None) -> Tensor | None:
        """[E, H, D], the projected features of all edges."""
        where = type(self).__name__
        if (edge_attr_dict is None) != (self.edge_lin is None):
            rule = "must be given with edge_dim" if edge_attr_dict is None else "needs a layer with edge_dim"
            raise ValueError(message(where, "edge_attr_dict", rule, None if edge_attr_dict is None else "a dictionary"))
        if edge_attr_dict is None or self.edge_lin is None:
            return None
        for name, count in zip(relations.relations, relations.num_edges, strict=True):
            x = edge_attr_dict.get(name)
            if not isinstance(x, Tensor) or x.shape != (count, self.edge_dim):
                rule = f"must have shape [{count}, {self.edge_dim}]"
                got = shape_of(x) if isinstance(x, Tensor) else None
                raise ValueError(message(where, f"edge_attr_dict[{name!r}]", rule, got))
        of_edges: Tensor = self.edge_lin(relations.join_edges(edge_attr_dict))
        return of_edges.unflatten(-1, (self.heads, -1))

    def _places(self, relations: Relations) -> list[int]:
        """The place of each relation among the parameters."""
        return [self.edge_types.index(name) for name in relations.relations]

    def _heads_of(self, linears: ModuleDict, x_dict: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
        """[N, H, D] of each type."""
        found = {}
        for name, x in x_dict.items():
            linear = linears[self._key(name)]
            is_lazy = is_uninitialized_parameter(linear.weight)
            # PyG finds the number of channels in the first row, which a type without nodes hasn't.
            x = linear(x.new_zeros(1, x.size(-1)))[:0] if is_lazy and len(x) == 0 else linear(x)
            found[name] = x.unflatten(-1, (self.heads, self.out_channels // self.heads))
        return found

    def _project_out(self, out: Mapping[Any, Tensor], relations: Relations) -> Outputs:
        """The output of each type that a relation ends in."""
        targets = {name[2] for name in relations.relations}
        return {name: self.out_lin[self._key(name)](x.flatten(-2)) for name, x in out.items() if name in targets}

    def __repr__(self) -> str:
        shared = ", shared=True" if self.shared else ""
        return f"{type(self).__name__}({self.channels}, {self.out_channels}, heads={self.heads}{shared})"


class HeteroGraphAttention(_Hetero, GraphAttention):
    """Multi-head attention of each node over its edges of all relations, or of each relation apart.

        out_i = W_o,t concat_h( sum over r, j -r-> i of weight_rij,h (V_r W_v x_j)_h ),      t the type of i
        weight_rij,h = normalizer over r, j of score((W_q,t x_i)_h, prior_r,h (K_r W_k x_j)_h)

    W_q, W_k, W_v and W_o belong to types of nodes, K and V to relations.

    Args:
        in_channels: features of every type of node, or a dictionary of them; -1 is found at the first call.
        out_channels: features of the output, split over the heads.
        metadata: types of nodes, and relations (source type, name, target type), as `HeteroData.metadata()` gives them.
        heads: H; must divide `out_channels`.
        across: normalize over the edges of all relations; if False, over those of each relation, and add the results.
        per_relation: whether K_r and V_r are learned, a matrix per relation and head; if not, they are identities.
        shared: whether all types of nodes, which must have equally many features, share W_q, W_k, W_v and W_o.
        score: as in `GraphAttention`.
        normalizer: as in `GraphAttention`.
        edge_dim: features per edge, added to key and value of the edge; the same for all relations.
        dropout: probability with which a weight is dropped in training.
        bias: whether projections have a bias.
        backend: as in `attention`.

    Raises:
        TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.

    Example:
        >>> metadata = (["author", "paper"], [("author", "writes", "paper"), ("paper", "cites", "paper")])
        >>> layer = HeteroGraphAttention({"author": 8, "paper": 5}, 16, metadata, heads=2)
        >>> x = {"author": torch.randn(2, 8), "paper": torch.randn(3, 5)}
        >>> edges = {
        ...     ("author", "writes", "paper"): torch.tensor([[0, 0, 1], [0, 1, 2]]),
        ...     ("paper", "cites", "paper"): torch.tensor([[1], [0]]),
        ... }
        >>> layer(x, edges)["paper"].shape
        torch.Size([3, 16])

    References:
        Hu et al., "Heterogeneous Graph Transformer", 2020; Busbridge et al., "Relational Graph Attention Networks",
        2019, for normalizing across and within relations.
    """

    def __init__(
        self,
        in_channels: int | Mapping[Any, int],
        out_channels: int,
        metadata: tuple[list[Any], list[Relation]],
        heads: int = 1,
        *,
        across: bool = True,
        per_relation: bool = True,
        shared: bool = False,
        score: str | Score | ScoreFunction = "dot_product",
        normalizer: str | UserNormalizer = "softmax",
        edge_dim: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        backend: str = "auto",
    ) -> None:
        MessagePassing.__init__(self, aggr="add", node_dim=-3)
        check_choice("HeteroGraphAttention", "backend", backend, ["auto", *(kernel.name for kernel in KERNELS)])
        self.backend, self.add_self_loops = backend, False
        shapes = (in_channels, out_channels, metadata, heads, across, per_relation, shared)
        self._build_hetero(*shapes, score, normalizer, edge_dim, dropout, bias)

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        self._draw()

    def forward(  # type: ignore[override]
        self,
        x_dict: Mapping[Any, Tensor],
        edge_index_dict: Mapping[Relation, Any] | Relations,
        edge_attr_dict: Mapping[Relation, Tensor] | None = None,
        return_attention_weights: bool | None = None,
    ) -> Outputs | tuple[Outputs, WeightsByRelation]:
        """Attend along the edges of all relations.

        Args:
            x_dict: [N, C] features of each type.
            edge_index_dict: the edges of each relation, [2, E] or anything that `Edges` takes; or `Relations`.
            edge_attr_dict: [E, edge_dim] features of the edges of each relation.
            return_attention_weights: also return the weights.

        Returns:
            [N, out_channels] for each type that a relation ends in; or that and the weights [E, H] of each relation.

        Raises:
            TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.
        """
        x_dict, relations = self._read(x_dict, edge_index_dict)
        edge = self._read_edges(relations, edge_attr_dict)
        query = relations.join_nodes(self._heads_of(self.query_lin, x_dict))
        key, value = (
            relations.join_nodes(self._heads_of(linears, x_dict)) for linears in (self.key_lin, self.value_lin)
        )
        key, value = self._of_rows(key, value, relations)
        pattern = relations.across
        if not self.across:
            rows = _segments(relations.target_rows, relations.total)
            query, pattern = gather(query, rows, -3), relations.within
        route = self._pass_messages if self._is_observed() else self._attend
        out, weights = route(query, key, value, pattern, edge, None, bool(return_attention_weights))
        if not self.across:
            out = segment_sum(out, rows, -3)
        found = self._project_out(relations.split_nodes(out), relations)
        return found if weights is None else (found, relations.split_edges(weights))

    def _of_rows(self, key: Tensor, value: Tensor, relations: Relations) -> tuple[Tensor, Tensor]:
        """Keys and values of the pairs of a relation and a source, of those of nodes."""
        rows, places = relations.source_rows, self._places(relations)
        prior = self.prior[places]
        if self.key_weight is None or self.value_weight is None:
            segments = _segments(rows, relations.total)
            counts = torch.tensor(rows.ptr, device=key.device).diff()
            scale = torch.repeat_interleave(prior, counts, 0, output_size=len(rows.node)).unsqueeze(-1)
            return gather(key, segments, -3) * scale, gather(value, segments, -3)
        of_key = self.key_weight[places] * prior[:, :, None, None]
        is_plain, of_value = self.backend == "scatter", self.value_weight[places]
        key = project_rows(key, of_key, rows, is_plain=is_plain)
        return key, project_rows(value, of_value, rows, is_plain=is_plain)

    def __repr__(self) -> str:
        return _Hetero.__repr__(self)


class DenseHeteroGraphAttention(_Hetero):
    """`HeteroGraphAttention` computed with matrices: the same parameters, the same result, memory T x S per relation.

    Arguments are those of `HeteroGraphAttention`, without `backend`; `state_dict`s are interchangeable.
    """

    def __init__(
        self,
        in_channels: int | Mapping[Any, int],
        out_channels: int,
        metadata: tuple[list[Any], list[Relation]],
        heads: int = 1,
        *,
        across: bool = True,
        per_relation: bool = True,
        shared: bool = False,
        score: str | Score | ScoreFunction = "dot_product",
        normalizer: str | UserNormalizer = "softmax",
        edge_dim: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        shapes = (in_channels, out_channels, metadata, heads, across, per_relation, shared)
        self._build_hetero(*shapes, score, normalizer, edge_dim, dropout, bias)

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        self._draw()

    def forward(
        self,
        x_dict: Mapping[Any, Tensor],
        edge_index_dict: Mapping[Relation, Any] | Relations,
        edge_attr_dict: Mapping[Relation, Tensor] | None = None,
        return_attention_weights: bool | None = None,
    ) -> Outputs | tuple[Outputs, WeightsByRelation]:
        """See `HeteroGraphAttention.forward`; a relation must not have parallel edges."""
        x_dict, relations = self._read(x_dict, edge_index_dict)
        joined = self._read_edges(relations, edge_attr_dict)
        of_edges = {} if joined is None else relations.split_edges(joined)
        query, key, value = (
            self._heads_of(linears, x_dict) for linears in (self.query_lin, self.key_lin, self.value_lin)
        )
        edges = relations.split_edges(relations.edge_index.t())
        seed = draw_seed(relations.device) if self.training and self.dropout > 0 else None
        out: dict[Any, Tensor] = {}
        weights: WeightsByRelation = {}
        for target, queries in query.items():
            ending = [(r, name) for r, name in enumerate(relations.relations) if name[2] == target]
            for group in [ending] if self.across else [[one] for one in ending]:
                parts = [self._matrices(relations, name, edges[name], of_edges.get(name)) for _, name in group]
                rows = [self._rows_of(self.edge_types.index(name), name[0], key, value) for _, name in group]
                if not rows:
                    continue
                keys, values = (torch.cat(side) for side in zip(*rows, strict=True))
                masks, pairs = zip(*parts, strict=True)
                pair = None if joined is None else torch.cat(pairs, 1)
                keep = None if seed is None else self._keep(seed, relations, group, target, len(queries))
                score = as_score("DenseHeteroGraphAttention", self._own_score())
                result = attend_matrix(
                    queries,
                    keys,
                    values,
                    torch.cat(masks, 1),
                    score,
                    self.normalizer,
                    pair_key=pair,
                    pair_value=pair,
                    keep=keep,
                    dropout_p=0.0 if seed is None else self.dropout,
                )
                out[target] = out[target] + result.out if target in out else result.out
                for (_, name), part in zip(group, result.weights.split([len(k) for k, _ in rows], -1), strict=True):
                    source, node = (edges[name] - self._shift(relations, name)).unbind(1)
                    weights[name] = part[:, node, source].t()
        found = self._project_out(out, relations)
        return (found, weights) if return_attention_weights else found

    def _rows_of(self, place: int, source: Any, key: Any, value: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of all sources of a relation."""
        k, v = key[source] * self.prior[place].unsqueeze(-1), value[source]
        if self.key_weight is None or self.value_weight is None:
            return k, v
        return tuple(
            torch.einsum("nhd,hdc->nhc", x, w[place])  # type: ignore[return-value]
            for x, w in ((k, self.key_weight), (v, self.value_weight))
        )

    def _matrices(
        self, relations: Relations, name: Relation, edges: Tensor, of_edges: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """A relation's mask [T, S], and its features of edges as [T, S, H, D]."""
        source, target = (edges - self._shift(relations, name)).unbind(1)
        sizes = (relations.num_nodes[name[2]], relations.num_nodes[name[0]])
        mask = torch.zeros(sizes, dtype=torch.bool, device=edges.device)
        mask[target, source] = True
        if int(mask.sum()) != len(edges):
            fix = "Use torch_geometric.utils.coalesce or HeteroGraphAttention."
            raise ValueError(message("DenseHeteroGraphAttention", f"{name}", "must not have parallel edges", fix=fix))
        if of_edges is None:
            return mask, None
        return mask, of_edges.new_zeros(*sizes, *of_edges.shape[1:]).index_put((target, source), of_edges)

    def _shift(self, relations: Relations, name: Relation) -> Tensor:
        begins = relations.begins
        return torch.tensor([begins[name[0]], begins[name[2]]], device=relations.device)

    def _keep(
        self, seed: Tensor, relations: Relations, group: list[tuple[int, Relation]], target: Any, count: int
    ) -> Tensor:
        """[H, T, S], the pairs that dropout keeps: the same as in the sparse layer, whose numbers it repeats."""
        device, kept = relations.device, []
        for r, (source, _, _) in group:
            numbers = []
            for rows, kind in ((relations.source_rows, source), (relations.target_rows, target)):
                low, high = rows.ptr[r], rows.ptr[r + 1]
                number = torch.zeros(relations.total, dtype=torch.int64, device=device)
                number[rows.node[low:high]] = torch.arange(low, high, device=device)
                begin = relations.begins[kind]
                numbers.append(number[begin : begin + relations.num_nodes[kind]])
            if self.across:
                numbers[1] = relations.begins[target] + torch.arange(count, device=device)
            head = torch.arange(self.heads, device=device)[:, None, None]
            none = torch.zeros((), dtype=torch.int64, device=device)
            ends: dict[str, Any] = dict(
                batch=none, target=numbers[1][:, None], source=numbers[0], occurrence=0, head=head
            )
            kept.append(keep_edges(seed, self.dropout, **ends))
        return torch.cat(kept, -1)


def _segments(rows: Pairs, num_nodes: int) -> Rows:
    """Pairs of a relation and a node, grouped by node."""
    return Rows.from_index(rows.node, num_nodes)


def _read_metadata(where: str, metadata: Any) -> tuple[list[Any], list[Relation]]:
    is_pair = isinstance(metadata, tuple | list) and len(metadata) == 2
    if not is_pair or not all(isinstance(name, tuple | list) and len(name) == 3 for name in metadata[1]):
        rule = "must be the types of nodes and the relations (source type, name, target type)"
        raise TypeError(message(where, "metadata", rule, repr(metadata), "Use data.metadata()."))
    types, relations = list(metadata[0]), [tuple(name) for name in metadata[1]]
    for name in types:
        if not isinstance(name, str):
            raise TypeError(message(where, "metadata", "must name the types of nodes by strings", repr(name)))
    for name in relations:
        if name[0] not in types or name[2] not in types:
            raise ValueError(message(where, "metadata", f"must list the node types of {name}", types))
    if len(set(relations)) != len(relations):
        twice = next(name for name in relations if relations.count(name) > 1)
        raise ValueError(message(where, "metadata", "must list each relation once", repr(twice)))
    return types, relations

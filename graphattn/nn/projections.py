"""The parameters that the sparse layer and its dense reference share, and how torch's are loaded into them."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import Parameter
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.nn.inits import glorot

from ..errors import (
    check_choice,
    check_device,
    check_float_tensor,
    check_int,
    check_keywords,
    check_no_batch,
    check_probability,
    message,
    shape_of,
)
from ..normalizers import Elementwise, Normalized, Normalizer, Share, as_normalizer
from ..offset_bias import OffsetBias
from ..patterns import Pattern
from ..scores import Additive, DotProduct, Score, ScoreFunction, as_score
from .encodings import Encoding
from .feature_maps import FEATURE_MAPS, FeatureMap
from .typed import Features

# The names of a layer's scores, and the activation of those whose vector the layer owns.
ACTIVATIONS = {"additive": "tanh", "gatv2": "leaky_relu"}
SCORE_NAMES = ("dot_product", *ACTIVATIONS)


class Projections(torch.nn.Module):
    """W_q, W_k, W_v, W_o, the projections of edge features and to updated ones, and the vector of additive scores."""

    lin_query: Linear
    lin_key: Linear
    lin_value: Linear
    lin_out: Linear
    lin_edge: Linear | None
    lin_edge_out: Linear | None
    score_vector: Tensor | None

    def _build(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int,
        kv_heads: int | None,
        head_channels: int | None,
        score: str | Score | ScoreFunction,
        normalizer: Any,
        edge_dim: int | None,
        dropout: float,
        bias: bool,
        encoding: Encoding | None,
        feature_map: str | FeatureMap | None,
        update_edges: bool,
    ) -> None:
        where = type(self).__name__
        source_channels, target_channels = _read_channels(where, in_channels)
        self.in_channels = in_channels
        self.out_channels = check_int(where, "out_channels", out_channels, 1)
        self.heads = check_int(where, "heads", heads, 1)
        self.kv_heads = self.heads if kv_heads is None else check_int(where, "kv_heads", kv_heads, 1)
        self.head_channels = None if head_channels is None else check_int(where, "head_channels", head_channels, 1)
        self.edge_dim = None if edge_dim is None else check_int(where, "edge_dim", edge_dim, 1)
        check_probability(where, "dropout", dropout)
        self.dropout = float(dropout)
        check_heads(where, "out_channels", self.out_channels, self.heads, self.head_channels)
        if self.heads % self.kv_heads:
            raise ValueError(message(where, "kv_heads", f"must divide heads, {heads}", kv_heads))
        if isinstance(score, str):
            check_choice(where, "score", score, SCORE_NAMES)
        else:
            as_score(where, score)
        if encoding is not None and not isinstance(encoding, Encoding):
            fix = "Use one such as graphattn.nn.Rotary(width), or subclass graphattn.nn.Encoding."
            raise TypeError(message(where, "encoding", "must be an Encoding", type(encoding).__name__, fix))
        # Modules are registered, with their parameters; any other score or normalizer is a plain attribute.
        self.score: Any = score
        own = normalizer.function if type(normalizer) in (Elementwise, Normalized) else normalizer
        self.own_normalizer = own if isinstance(own, torch.nn.Module) else None
        self.normalizer = as_normalizer(where, normalizer)
        self.encoding = encoding
        # A module is registered, with its parameters.
        self.feature_map: Any = feature_map
        if feature_map is not None:
            self._check_feature_map()
            self.normalizer = Share()

        width = self.out_channels // self.heads if self.head_channels is None else self.head_channels
        if encoding is not None:
            encoding.check(where, source_channels if source_channels == target_channels else -1, self.heads, width)
        options = {"bias": bias, "weight_initializer": "glorot", "bias_initializer": "zeros"}
        self.lin_query = Linear(target_channels, self.heads * width, **options)
        self.lin_key = Linear(source_channels, self.kv_heads * width, **options)
        self.lin_value = Linear(source_channels, self.kv_heads * width, **options)
        self.lin_out = Linear(self.heads * width, self.out_channels, **options)
        self.lin_edge = None
        if self.edge_dim is not None:
            self.lin_edge = Linear(self.edge_dim, self.kv_heads * width, **{**options, "bias": False})
        self.lin_edge_out = None
        if update_edges:
            self._check_update()
            self.lin_edge_out = Linear(self.heads * width, self.edge_dim, **options)
        self._build_vector(width)
        self._draw_parameters()

    def _check_feature_map(self) -> None:
        """Raise unless there is such a map, and no option that it excludes."""
        where, given = type(self).__name__, self.feature_map
        if isinstance(given, str):
            check_choice(where, "feature_map", given, FEATURE_MAPS)
        elif not callable(given) or isinstance(given, type):
            raise TypeError(message(where, "feature_map", "must be a name, a function or a module", repr(given)))
        for name, value, default in (
            ("score", self.score, "dot_product"),
            ("normalizer", getattr(self.normalizer, "name", None), "softmax"),
            ("edge_dim", self.edge_dim, None),
            ("dropout", self.dropout, 0.0),
        ):
            if value != default:
                rule = f"must be {default!r} with a feature_map, which determines the weights and computes none of them"
                raise ValueError(message(where, name, rule, repr(value)))

    def _check_update(self) -> None:
        """Raise unless there are features of edges, and products to update them from."""
        where = type(self).__name__
        if self.edge_dim is None:
            fix = "Use edge_dim, the number of features per edge."
            raise ValueError(message(where, "update_edges", "needs features of edges", "edge_dim=None", fix))
        if self.score != "dot_product":
            rule = "must be 'dot_product' with update_edges, which returns its products"
            raise ValueError(message(where, "score", rule, repr(self.score)))

    def _build_vector(self, width: int) -> None:
        """Register the vector of an additive score: new for a name; a given one is trained if it is a parameter."""
        if not isinstance(self.score, Additive):
            is_named = isinstance(self.score, str) and self.score in ACTIVATIONS
            self.score_vector = Parameter(torch.empty(self.heads, width)) if is_named else None
            return
        vector = self.score.vector
        if tuple(vector.shape) != (self.heads, width):
            columns = "out_channels / heads" if self.head_channels is None else "head_channels"
            rule = f"must have shape [heads, {columns}] = {[self.heads, width]}"
            raise ValueError(message(type(self).__name__, "score.vector", rule, shape_of(vector)))
        if isinstance(vector, Parameter):
            self.score_vector = vector
        else:
            self.register_buffer("score_vector", vector)

    @classmethod
    def from_multihead_attention(cls, attention: torch.nn.MultiheadAttention, **options: Any) -> Self:
        """Copy the weights of torch's layer: with a full pattern, both then compute the same.

        Args:
            attention: the layer to read; `options` go to the constructor.

        Raises:
            ValueError: the layer has `add_bias_kv`, `add_zero_attn`, or key and value of different widths.
        """
        where = f"{cls.__name__}.from_multihead_attention"
        if not isinstance(attention, torch.nn.MultiheadAttention):
            rule = "must be a torch.nn.MultiheadAttention"
            raise TypeError(message(where, "attention", rule, type(attention).__name__))
        if attention.bias_k is not None or attention.add_zero_attn or attention.kdim != attention.vdim:
            rule = "must have no add_bias_kv, no add_zero_attn, and kdim == vdim"
            raise ValueError(message(where, "attention", rule))
        width = attention.embed_dim
        fixed = {"heads", "kv_heads", "head_channels", "bias", "score", "edge_dim"} & set(options)
        if fixed:
            rule = "can't change what the weights determine"
            raise ValueError(message(where, "options", rule, ", ".join(sorted(fixed)), "Leave them out."))
        in_channels = width if attention.kdim == width else (attention.kdim, width)
        check_keywords(where, options, cls)
        options = {"heads": attention.num_heads, "dropout": attention.dropout, **options}
        layer = cls(in_channels, width, bias=attention.in_proj_bias is not None, **options)
        if attention.in_proj_weight is not None:
            weights = attention.in_proj_weight.chunk(3)
        else:
            weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        linears = (layer.lin_query, layer.lin_key, layer.lin_value, layer.lin_out)
        layer.to(attention.out_proj.weight)
        with torch.no_grad():
            for linear, weight in zip(linears, (*weights, attention.out_proj.weight), strict=True):
                linear.weight.copy_(weight)
            if attention.in_proj_bias is not None:
                for linear, bias in zip(
                    linears, (*attention.in_proj_bias.chunk(3), attention.out_proj.bias), strict=True
                ):
                    linear.bias.copy_(bias)
        return layer.train(attention.training)

    def reset_parameters(self) -> None:
        """Initialize all parameters again, including the encoding's."""
        self._draw_parameters()
        if self.encoding is not None:
            self.encoding.reset_parameters()

    def _draw_parameters(self) -> None:
        linears = (self.lin_query, self.lin_key, self.lin_value, self.lin_out, self.lin_edge, self.lin_edge_out)
        for linear in linears:
            if linear is not None:
                linear.reset_parameters()
        if isinstance(self.score, str):
            glorot(self.score_vector)

    def _encode_input(self, x_source: Tensor, x_target: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
        """Let the encoding change the features, which requires that sources and targets are the same nodes."""
        if self.encoding is None:
            return x_source, x_target
        if x_source is x_target:
            x_source = x_target = self.encoding.input(x_source, pattern)
        elif type(self.encoding).input is not Encoding.input:
            rule = f"must be one tensor because {type(self.encoding).__name__} changes the features of nodes"
            fix = "Call encoding.input(x, Full(sizes)) on each side before the layer."
            raise ValueError(message(type(self).__name__, "x", rule, "a pair", fix))
        return x_source, x_target

    def _encode_scores(
        self, query: Tensor, key: Tensor, pattern: Pattern
    ) -> tuple[Tensor, Tensor, Tensor | OffsetBias | None]:
        """Let the encoding change query and key, then map them to features; return a bias of the scores."""
        bias = None
        if self.encoding is not None:
            query, key = self.encoding.rotate(query, key, pattern)
            bias = self.encoding.bias(pattern)
        if self.feature_map is not None:
            if bias is not None:
                rule = "must not have a bias of pairs with a feature_map, which computes none of them"
                raise ValueError(message(type(self).__name__, "encoding", rule, type(self.encoding).__name__))
            query, key = self._map_features(query, True), self._map_features(key)
        if isinstance(bias, OffsetBias):
            bias.check(type(self).__name__, query, pattern)
        return query, key, bias

    def _map_features(self, x: Tensor, are_queries: bool = False) -> Tensor:
        """Features [*B, N, H, F] of the rows of queries or keys [*B, N, H, D]."""
        feature_map = FEATURE_MAPS[self.feature_map] if isinstance(self.feature_map, str) else self.feature_map
        found = (getattr(feature_map, "of_queries", feature_map) if are_queries else feature_map)(x)
        if not isinstance(found, Tensor) or found.shape[:-1] != x.shape[:-1]:
            rule = f"must return a tensor of shape {[*x.shape[:-1]]} and any width"
            raise ValueError(message(type(self).__name__, "feature_map", rule, shape_of(found)))
        return found

    def _own_score(self) -> Score | ScoreFunction:
        if self.feature_map is not None:
            return DotProduct(1.0)
        if self.score_vector is not None and isinstance(self.score, Additive):
            return self.score.with_tensors({"vector": self.score_vector})
        if self.score_vector is not None:
            return Additive(self.score_vector, ACTIVATIONS[self.score])
        return DotProduct() if self.score == "dot_product" else self.score

    def _check_features(self, x: Features) -> tuple[Tensor, Tensor]:
        """Check the features of sources and targets, and return both."""
        where = type(self).__name__
        pair = tuple(x) if isinstance(x, tuple | list) else (x, x)
        if len(pair) != 2 or pair[1] is None:
            rule = "must be a tensor or a pair (x_source, x_target)"
            raise ValueError(message(where, "x", rule, fix="Targets need features too: they make the queries."))
        for side, linear in zip(pair, (self.lin_key, self.lin_query), strict=True):
            check_float_tensor(where, "x", side)
            if side.dim() < 2 or not fits(linear.in_channels, side):
                rule = f"must have shape [*B, N, {linear.in_channels}]"
                raise ValueError(message(where, "x", rule.replace("-1", "C"), shape_of(side)))
            self._check_dtype("x", side)
        if pair[0].shape[:-2] != pair[1].shape[:-2]:
            got = f"{shape_of(pair[0])} and {shape_of(pair[1])}"
            raise ValueError(message(where, "x", "must be a pair of the same batch dimensions *B", got))
        return pair

    def _check_dtype(self, argument: str, x: Tensor) -> None:
        """Raise TypeError unless `x` has the dtype of the weights; autocast may mix them."""
        dtype = self.lin_out.weight.dtype
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            fix = f"Use {argument}.to({dtype}), or layer.to({x.dtype})."
            raise TypeError(
                message(type(self).__name__, argument, f"must have the layer's dtype, {dtype}", x.dtype, fix)
            )

    def _check_edge_dim(
        self, edge_attr: Tensor | None, leading: tuple[int, ...], x: Tensor, *, may_have_batch: bool = True
    ) -> Tensor | None:
        """Check edge features against `edge_dim`; with an edge_dim of 1, one-dimensional ones get a last dimension."""
        where, batch = type(self).__name__, x.shape[:-2] if may_have_batch else ()
        if edge_attr is not None:
            check_no_batch(where, edge_attr, x.size(-2))
            check_float_tensor(where, "edge_attr", edge_attr)
            check_device(where, "edge_attr", edge_attr.device, x, "x")
        if self.edge_dim is None and edge_attr is not None:
            fix = f"Use {where}(..., edge_dim={edge_attr.size(-1) if edge_attr.dim() > 1 else 1})."
            raise ValueError(message(where, "edge_attr", "needs a layer with edge_dim", shape_of(edge_attr), fix))
        if self.edge_dim is not None and edge_attr is None:
            raise ValueError(message(where, "edge_attr", f"must be given because edge_dim is {self.edge_dim}", "None"))
        if edge_attr is None:
            return None
        if self.edge_dim == 1 and edge_attr.shape == leading:
            edge_attr = edge_attr.unsqueeze(-1)
        shape = (*leading, self.edge_dim)
        if tuple(edge_attr.shape) not in (shape, (*batch, *shape)):
            rule = f"must have shape {list(shape)}" + (f", with or without {list(batch)} in front" if batch else "")
            raise ValueError(message(where, "edge_attr", rule, shape_of(edge_attr)))
        self._check_dtype("edge_attr", edge_attr)
        return edge_attr

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, x.size(-1) // heads))

    def _write_options(self) -> str:
        """Arguments of the constructor after the numbers of channels: the heads, and those that aren't the default."""
        encoding, normalizer, is_softmax = self.encoding, self.normalizer, self.feature_map is None
        written = None if encoding is None else f"{type(encoding).__name__}({encoding.extra_repr()})"
        options = (
            ("kv_heads", self.kv_heads, self.heads),
            ("head_channels", self.head_channels, None),
            ("score", _written(self.score), "'dot_product'"),
            ("normalizer", _written(getattr(normalizer, "own", normalizer)), "'softmax'" if is_softmax else "'share'"),
            ("edge_dim", self.edge_dim, None),
            ("dropout", self.dropout, 0.0),
            ("bias", getattr(self.lin_query, "bias", None) is not None, True),
            ("add_self_loops", getattr(self, "add_self_loops", False), False),
            ("encoding", written, None),
            ("update_edges", self.lin_edge_out is not None, False),
            ("feature_map", None if is_softmax else self._written_map(), None),
            ("backend", _written(getattr(self, "backend", "auto")), "'auto'"),
        )
        chosen = [f"{name}={value}" for name, value, default in options if value != default]
        return ", ".join([f"heads={self.heads}", *chosen])

    def _written_map(self) -> str:
        given = self.feature_map
        is_one = isinstance(given, torch.nn.Module) and not list(given.children())
        return repr(given) if is_one else _written(given)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_channels}, {self.out_channels}, {self._write_options()})"


def _written(value: Any) -> str:
    """Write an option by its `repr`, and a user's own object by its name."""
    if isinstance(value, str | Score | Normalizer):
        return repr(value)
    return getattr(value, "__name__", type(value).__name__)


def check_heads(where: str, argument: str, channels: int, heads: int, head_channels: int | None = None) -> None:
    """Raise ValueError unless heads divide the channels; `argument` is the caller's name for these."""
    if head_channels is None and channels % check_int(where, "heads", heads, 1):
        width = math.ceil(channels / heads)
        fix = f"Use {argument}={width * heads}, or head_channels={width} to keep {argument}."
        raise ValueError(message(where, "heads", f"must divide {argument}, {channels}", heads, fix))


def _read_channels(where: str, in_channels: int | tuple[int, int]) -> tuple[int, int]:
    """Return the features of sources and targets, each positive or -1."""
    pair = tuple(in_channels) if isinstance(in_channels, tuple | list) else (in_channels, in_channels)
    if len(pair) != 2:
        raise ValueError(message(where, "in_channels", "must be one integer or a (source, target) pair", in_channels))
    for channels in pair:
        if check_int(where, "in_channels", channels, -1) == 0:
            rule = "must be positive, or -1 to be found at the first call"
            raise ValueError(message(where, "in_channels", rule, 0))
    return pair


def fits(channels: int, x: Tensor) -> bool:
    """Whether features have so many channels; -1 stands for any number."""
    # Not `in (-1, x.size(-1))`: in a graph of torch.compile, a symbolic size is in no tuple.
    return channels == -1 or channels == x.size(-1)

"""PyG's `HeteroConv`, and models of its `to_hetero`, with one call for all relations whose layers are alike.

A layer's result is affine in what it attends to: the heads, concatenated or averaged, plus what it is where nothing was
attended to, its bias and residual. So each layer runs as it is, leaves what it asks of the kernels and goes on with
zeros; then one call attends for all of them, over the disjoint union of their patterns.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch_geometric.nn.conv as conv
from torch import Tensor
from torch_geometric.nn.conv.hetero_conv import group

from ...patterns.lookup import known_join
from .fused import SMALL, WAITING, Asked, Graph, has_hooks, own_class, why_not_fused

Relation = tuple[str, str, str]
# What makes two layers alike, where a layer has it.
SHAPE = ("heads", "out_channels", "negative_slope", "dropout", "edge_dim")
NOTHING = object()
# Numbers in the rows of all relations beyond which copying them next to each other takes longer than a call for each.
MOST_NUMBERS = 2**22


class Given(NamedTuple):
    """A layer, and what it is called with."""

    layer: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]


def run_together(calls: Mapping[Any, Given]) -> dict[Any, Any]:
    """What each layer returns; those that are alike attend in one call."""
    if sum(_numbers(given) for given in calls.values()) > MOST_NUMBERS:
        return {name: layer(*args, **kwargs) for name, (layer, args, kwargs) in calls.items()}
    found: dict[Any, Any] = {}
    asked: dict[Any, dict[Any, Asked]] = {}
    for name, given in calls.items():
        found[name], left = _run(*given)
        if left is not None:
            asked.setdefault((_theirs(given.layer), *_kind(left)), {})[name] = left
    for (theirs, *_), waiting in asked.items():
        outs = _attend(list(waiting.values()), has_vectors=theirs is conv.GATv2Conv)
        for name, out in zip(waiting, outs, strict=True):
            found[name] = found[name] + (out.flatten(1) if calls[name].layer.concat else out.mean(1))
    return found


class HeteroConv(conv.HeteroConv):
    """`torch_geometric.nn.HeteroConv`, stitched: see there for arguments, shapes and results."""

    theirs = conv.HeteroConv
    # As for a layer.
    leaves_small, small = False, SMALL

    def forward(self, *args_dict: Any, **kwargs_dict: Any) -> dict[str, Any]:
        """See PyG."""
        is_plain = all(name.endswith("_dict") for name in kwargs_dict) and not torch.compiler.is_compiling()
        if not is_plain or torch.jit.is_tracing() or self._is_small(*args_dict, *kwargs_dict.values()):
            return conv.HeteroConv.forward(self, *args_dict, **kwargs_dict)
        calls: dict[Relation, Given] = {}
        for relation in self.convs.keys():  # noqa: SIM118, iterating gives other names
            given = (*args_dict, *kwargs_dict.values())
            if not any(relation in of for of in given):
                continue
            args = [x for of in args_dict if (x := _given_to(relation, of)) is not NOTHING]
            named = ((name.removesuffix("_dict"), _given_to(relation, of)) for name, of in kwargs_dict.items())
            kwargs = {name: x for name, x in named if x is not NOTHING}
            calls[relation] = Given(self.convs[relation], args, kwargs)
        outs: dict[str, list[Any]] = {}
        for relation, out in run_together(calls).items():
            outs.setdefault(relation[2], []).append(out)
        return {name: _merged(parts, self.aggr) for name, parts in outs.items()}

    def _is_small(self, *given: Mapping[Any, Any]) -> bool:
        """Whether a call of so few edges is left to PyG."""
        if not self.leaves_small:
            return False
        edges = ((layer, of[name]) for name, layer in self.convs.items() for of in given if name in of)
        return in_messages(edges) <= self.small


def in_messages(given: Iterable[tuple[Any, Any]]) -> int:
    """Numbers in the messages of layers, given with their edges, and with what else they get."""
    is_edges = lambda x: isinstance(x, Tensor) and not x.is_floating_point()
    return sum(x.size(-1) * _width(layer) for layer, x in given if is_edges(x))


def _merged(parts: list[Any], aggr: str | None) -> Any:
    """What PyG's `group` returns; sums without a copy of all parts next to each other."""
    is_sum = aggr == "sum" and all(isinstance(x, Tensor) and x.shape == parts[0].shape for x in parts)
    return functools.reduce(torch.add, parts) if is_sum else group(parts, aggr)


def _given_to(relation: Relation, of: Mapping[Any, Any]) -> Any:
    """What a dictionary has for a relation: of itself, of its type of nodes, or of both of its types."""
    source, _, target = relation
    if relation in of:
        return of[relation]
    if source not in of and target not in of:
        return NOTHING
    return of[source] if source == target else (of.get(source), of.get(target))


def _numbers(given: Given) -> int:
    """Numbers in the projected rows of both ends of a relation."""
    x = given.args[0] if given.args else given.kwargs.get("x")
    ends = x if isinstance(x, tuple) else (x, x)
    return sum(x.size(0) for x in ends if isinstance(x, Tensor)) * _width(given.layer)


def _width(layer: Any) -> int:
    """Numbers in a row of a layer, all heads together."""
    width: int = getattr(layer, "heads", 1) * getattr(layer, "out_channels", 1)
    return width


def _run(layer: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, Asked | None]:
    """A layer's result; or what it is without attention, and what the layer asked for."""
    # A layer that can't be fused asks for nothing.
    if _why_not_affine(layer) is not None:
        return layer(*args, **kwargs), None
    waiting: list[Asked] = []
    token = WAITING.set(waiting)
    try:
        out = layer(*args, **kwargs)
    finally:
        WAITING.reset(token)
    return out, waiting[0] if waiting else None


def _kind(asked: Asked) -> tuple[Any, ...]:
    """Calls of one kind can be one call."""
    tensors = (asked.query, asked.key, asked.value)
    shapes = ((x.shape[1:], x.dtype, x.device) for x in tensors)
    options = ((name, isinstance(x, Tensor) or x) for name, x in asked.options.items())
    return type(asked.score), getattr(asked.score, "negative_slope", None), *shapes, *options


def _attend(asked: list[Asked], has_vectors: bool) -> list[Tensor]:
    """The attention of calls of one kind, whose scores may have a vector each: [T, H, C] each."""
    first, rows = asked[0], [(one.query, one.key, one.value) for one in asked]
    # Only loops on the CPU know a vector for each target.
    if len(asked) == 1 or (has_vectors and not first.query.is_cpu):
        return [_call(one) for one in asked]
    score = first.score
    if has_vectors:
        vectors = (one.score.tensors()["vector"].expand_as(one.query) for one in asked)
        score = score.with_tensors({"vector": torch.cat(list(vectors))})
    options = {
        name: torch.cat([one.options[name] for one in asked]) if isinstance(x, Tensor) else x
        for name, x in first.options.items()
    }
    query, key, value = (torch.cat(x) for x in zip(*rows, strict=True))
    joined = Asked(known_join([one.pattern for one in asked]), query, key, value, score, options)
    return list(_call(joined).split([one.pattern.num_targets for one in asked]))


def _call(asked: Asked) -> Tensor:
    pattern, query, key, value, score, options = asked
    return Graph(pattern, None, pattern.num_edges, False, False).attend(query, key, value, score, **options)


def why_not_joined(layer: torch.nn.Module) -> str | None:
    """Why a layer, PyG's or ours, can't share a call with others; None if it can."""
    reason = _why_not_affine(layer)
    return why_not_fused(layer) if reason is None else reason


def _why_not_affine(layer: torch.nn.Module) -> str | None:
    """Why a layer's result isn't affine in what scores that others may have, too, let it attend to; None if it is."""
    theirs = _theirs(layer)
    if theirs not in (conv.GATConv, conv.GATv2Conv, conv.TransformerConv):
        return f"{theirs.__name__} is none of GATConv, GATv2Conv and TransformerConv"
    if theirs is conv.TransformerConv and layer.lin_beta is not None:
        return "with beta, what it adds depends on what was attended to"
    return "it has hooks" if has_hooks(layer) else None


def _theirs(layer: torch.nn.Module) -> Any:
    """PyG's class of a layer, PyG's or ours."""
    own = own_class(layer)
    return getattr(own, "theirs", own)


def stitches(layers: Sequence[torch.nn.Module]) -> tuple[list[str], list[tuple[str, str]]]:
    """What each shared call of some layers is of, such as "3 GATConv"; and what other layers there are, and why."""
    kinds = Counter(_shape(layer) for layer in layers if why_not_joined(layer) is None)
    apart: Counter[tuple[str, str]] = Counter()
    for layer in layers:
        reason, kind = why_not_joined(layer), _shape(layer)
        if reason is None and kinds[kind] == 1:
            reason = f"no other {kind[0]} has its {', '.join(SHAPE)}"
        if reason is not None:
            apart[kind[0], reason] += 1
    joined = [f"{count} {kind[0]}" for kind, count in kinds.items() if count > 1]
    return joined, [(f"{count} {name}", reason) for (name, reason), count in apart.items()]


def _shape(layer: Any) -> tuple[Any, ...]:
    return _theirs(layer).__name__, *(getattr(layer, name, None) for name in SHAPE)

"""Replace PyG's attention layers inside a model by ours, and restore them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.fx import GraphModule
from torch_geometric.nn import MessagePassing, aggr, conv

from ...errors import message
from .fused import FUSED, Fused, FusedModule, own_class, pygs_name, why_not_fused
from .stitched import HeteroConv, stitches, why_not_joined
from .timing import Timing, time_layers
from .to_hetero import LayersOfRelations, call_one_by_one, call_together, layers_by_name
from .unfused import UNFUSED

_MARK = "_was_accelerated"
OURS = (Fused, FusedModule)
# PyG class -> the modules inside that attend, and whose work it does in another way.
FUSED_WITHIN: dict[type[Any] | None, tuple[str, ...]] = {
    conv.GPSConv: ("attn",),
    conv.GENConv: ("aggr_module",),
    aggr.SetTransformerAggregation: ("encoders", "pma", "decoders"),
    aggr.GraphMultisetTransformer: ("pma1", "encoders", "pma2"),
}


class Change(NamedTuple):
    """One attention layer of a model.

    Attributes:
        name: where the model has it; "" is the model itself.
        kind: name of its class.
        reason: why it was left unchanged; None if it was changed.
        speedup: how many times as fast it is as PyG's, if that was measured.
    """

    name: str
    kind: str
    reason: str | None
    speedup: float | None = None


class AccelerateReport:
    """What `accelerate` did. Printing it shows one line per attention layer.

    Attributes:
        changed: the layers that are ours now.
        left: every other attention in the model, with the reason: other layers of PyG, layers of these classes that
            could not be changed or would be slower, `torch.nn.MultiheadAttention`, and modules with attention in their
            names.
        before: how many layers were already ours, `GraphAttention` included.
        stitched: what there is to say of each `HeteroConv` and `to_hetero` model: which layers share a call of the
            kernels, and why a layer has a call of its own.
        is_timed: whether layers were timed; else small calls of the changed ones run as in PyG.
    """

    def __init__(
        self, changed: list[Change], left: list[Change], before: int, stitched: list[Change], is_timed: bool
    ) -> None:
        self.is_timed = is_timed
        self.changed = changed
        self.left = left
        self.before = before
        self.stitched = stitched

    def __repr__(self) -> str:
        count = len(self.changed)
        lines = [
            f"{count} layer{'' if count == 1 else 's'} accelerated, {len(self.left)} left"
            + (f", {self.before} already ours" if self.before else "")
        ]
        for name, kind, _, speedup in self.changed:
            lines.append(f"  {name or 'the model itself'}: {kind}" + (f", {speedup:.3g}x" if speedup else ""))
        lines += [f"  {change.name or 'the model itself'}: left, {change.reason}" for change in self.left]
        for name, kind, reason, speedup in self.stitched:
            what = f"{kind} in one call" if reason is None else f"{kind} apart: {reason}"
            lines.append(f"  {name or 'the model itself'}: {what}" + (f", {speedup:.3g}x" if speedup else ""))
        if self.changed and not self.is_timed:
            lines.append("  small calls run as in PyG; given its inputs, accelerate times each layer instead")
        return "\n".join(lines)


def accelerate(model: torch.nn.Module, *args: Any, **kwargs: Any) -> AccelerateReport:
    """Replace PyG's attention layers inside a model by ours, in place.

    They are `TransformerConv`, `GATConv`, `GATv2Conv` and ten other convolutions; over relations `HGTConv`,
    `HANConv`, `RGATConv`, `HEATConv`; within the graphs of a batch `GPSConv`, five aggregations, and
    attention in linear time.
    docs/reference/attending.md lists every layer of PyG that attends.
    The relations of a `HeteroConv`, and of a layer in a model of `to_hetero`, share calls where their layers are alike:
    see docs/howto/relations.md. The graph of such a model is written again, and `restore` writes it back. Else only the
    class of a layer changes: parameters, their names, hooks, optimizers and checkpoints keep working, and the
    numbers stay the same (except for the random stream of dropout). Layers that only PyG's own code can compute are
    left, and the report says why.

    A call of few numbers runs as in PyG, whose own operators end before a call of ours has begun, see `small` of the
    layers. Given what the model is called with, each layer is timed with what it gets there instead, and one that would
    be slower stays PyG's. PyG's own operators are also what runs for a small graph once
    torch.compile has joined them.

    Args:
        model: any module, an attention layer itself included; basic models, `Sequential`, `HeteroConv`, `to_hetero`
            and `GPSConv` as well.
        *args: what the model is called with, for a measurement of some seconds: forward and backward in training mode,
            else forward. It happens to a copy of the model, hooks included, but with these very inputs. Edges are read
            anew in each step, as those of a loader are.
        **kwargs: the same, by name.

    Returns:
        A report of what was changed and what was left, which can be printed.

    Raises:
        TypeError: `model` is not a module.
        Exception: whatever the model raises when it is called; it is unchanged then.

    Example:
        >>> from torch_geometric.nn import GAT
        >>> model = GAT(16, 32, num_layers=2, heads=4)
        >>> accelerate(model)
        2 layers accelerated, 0 left
          convs.0: GATConv
          convs.1: GATConv
          small calls run as in PyG; given its inputs, accelerate times each layer instead
        >>> restore(model)
        2
    """
    stitched, joined = _stitch_all(model, args, kwargs)
    is_timed = bool(args or kwargs)
    found: list[tuple[str, Any]] = []
    changed, left, before = [], [], 0
    for name, layer in _attentions("accelerate", model):
        if id(layer) in joined:
            changed.append(Change(name, own_class(layer).theirs.__name__, None))
            continue
        if isinstance(layer, OURS) or own_class(layer).__module__.startswith("graphattn."):
            before += 1
            continue
        reason = _why_left(layer)
        if reason is not None:
            left.append(Change(name, type(layer).__name__, reason))
            continue
        found.append((name, layer))
    timings = time_layers(model, [name for name, _ in found], _accelerate, args, kwargs) if is_timed else {}
    for name, layer in found:
        kind, timing = own_class(layer).__name__, timings.get(name)
        if timing is not None and timing.speedup < 1:
            left.append(Change(name, kind, _slower(timing), timing.speedup))
            continue
        _accelerate(layer)
        layer.leaves_small = not is_timed
        changed.append(Change(name, kind, None, None if timing is None else timing.speedup))
    return AccelerateReport(changed, left, before, stitched, is_timed)


def _slower(timing: Timing) -> str:
    theirs, ours = (f"{seconds * 1e3:.3g} ms" for seconds in timing[:2])
    return f"PyG's takes {theirs} here, ours {ours}"


def _stitch_all(model: torch.nn.Module, args: Any, kwargs: Any) -> tuple[list[Change], set[int]]:
    """Let relations share calls; what there is to say of each `HeteroConv` and model of `to_hetero`, and which layers
    are ours now.
    """
    if not isinstance(model, torch.nn.Module):
        return [], set()
    said: list[Change] = []
    joined: set[int] = set()
    found = {name: parts for name, module in model.named_modules() if (parts := _layers_of_relations(module))}
    names = [name for name, parts in found.items() if any(stitches(layers)[0] for layers in parts.values())]
    timings = time_layers(model, names, _stitch, args, kwargs) if names and (args or kwargs) else {}
    for name, parts in found.items():
        module, timing = model.get_submodule(name), timings.get(name)
        if timing is not None and timing.speedup < 1:
            kind = "to_hetero" if isinstance(module, GraphModule) else "HeteroConv"
            said.append(Change(name, kind, _slower(timing), timing.speedup))
            continue
        speedup = None if timing is None else timing.speedup
        for part, layers in parts.items():
            calls, apart = stitches(layers)
            at = f"{name}.{part}".strip(".")
            said += [Change(at, call, None, speedup) for call in calls]
            said += [Change(at, kind, reason) for kind, reason in apart]
        for changed in _stitch(module):
            joined.add(id(changed))
            changed.leaves_small = not (args or kwargs)
    return said, joined


def _layers_of_relations(module: Any) -> dict[str, list[Any]]:
    """The layers for all relations, by the name of what holds them, of a `HeteroConv` or a model of `to_hetero`."""
    if own_class(module) is conv.HeteroConv:
        return {"": list(module.convs.values())}
    if not isinstance(module, GraphModule):
        return {}
    return {
        name: list(layers.values())
        for name, layers in layers_by_name(module).items()
        if type(layers) is torch.nn.ModuleDict and any(own_class(layer) in FUSED for layer in layers.values())
    }


def _stitch(module: Any) -> list[Any]:
    """Let relations share calls; return the modules that are ours now."""
    changed: list[Any] = []
    for name, layers in _layers_of_relations(module).items():
        holder = module.get_submodule(name)
        if stitches(layers)[0]:
            new = [layer for layer in layers if own_class(layer) in FUSED and why_not_joined(layer) is None]
            # Relations may have one layer together.
            new = list({id(layer): layer for layer in new}.values())
            for layer in new:
                _accelerate(layer)
            changed += [holder, *new]
        elif holder is not module or all(why_not_fused(layer) is not None for layer in layers):
            continue
        old = conv.HeteroConv if holder is module else torch.nn.ModuleDict
        _change_class(holder, old, HeteroConv if holder is module else LayersOfRelations)
    if isinstance(module, GraphModule):
        call_together(module)
    return changed


def _accelerate(layer: Any) -> None:
    """Make ours of one layer."""
    own = own_class(layer)
    _change_class(layer, own, FUSED[own])
    layer.__dict__[_MARK] = True


def restore(model: torch.nn.Module) -> int:
    """Undo `accelerate`: restore PyG's classes, and return the number of restored layers.

    Raises:
        TypeError: `model` is not a module.

    Example:
        >>> from torch_geometric.nn import GATConv
        >>> layer = GATConv(16, 8)
        >>> report = accelerate(layer)
        >>> restore(layer), type(layer) is GATConv
        (1, True)
    """
    count = 0
    for module in model.modules() if isinstance(model, torch.nn.Module) else ():
        if isinstance(module, GraphModule):
            call_one_by_one(module)
        if own_class(module) in (HeteroConv, LayersOfRelations):
            _change_class(module, own_class(module), own_class(module).theirs)
            module.__dict__.pop("leaves_small", None)
    for _, layer in _attentions("restore", model):
        if isinstance(layer, OURS) and layer.__dict__.get(_MARK, False):
            _change_class(layer, FUSED[layer.theirs], layer.theirs)
            del layer.__dict__[_MARK]
            layer.__dict__.pop("leaves_small", None)
            if getattr(layer, "explain", False):
                # As PyG does for an explainer: its generated code doesn't support masks.
                own: Any = type(layer)
                layer.__dict__["propagate"] = own._orig_propagate.__get__(layer)
            count += 1
    return count


def _attentions(where: str, model: torch.nn.Module) -> list[tuple[str, Any]]:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(message(where, "model", "must be a torch.nn.Module", type(model).__name__))
    found = [(name, layer) for name, layer in model.named_modules() if _attends(layer)]
    # What a layer of ours, or one that will be ours, computes in another way.
    within = {
        id(inner)
        for _, layer in found
        for child in FUSED_WITHIN.get(_of_pyg(layer), ())
        for inner in getattr(layer, child).modules()
    }
    return [(name, layer) for name, layer in found if id(layer) not in within]


def _of_pyg(layer: torch.nn.Module) -> type[Any] | None:
    """PyG's class of a layer that is ours or can be; None if it can't."""
    own: Any = own_class(layer)
    theirs = own.theirs if isinstance(layer, OURS) else own
    return theirs if why_not_fused(layer) is None else None


def _attends(module: torch.nn.Module) -> bool:
    """Whether a module is an attention layer, judging by names, and not only a container of others."""
    if isinstance(module, OURS) or own_class(module) in FUSED or pygs_name(type(module)) in UNFUSED:
        return True
    if isinstance(module, MessagePassing):
        # Other layers of PyG have an alpha, too, that is not an attention weight.
        steps = (getattr(step, "__code__", None) for step in (module.message, module.edge_update))
        has_softmax = any(code is not None and "softmax" in code.co_names for code in steps)
        return has_softmax or hasattr(module, "heads") or hasattr(module, "attention")
    if not any("Attention" in cls.__name__ for cls in type(module).__mro__):
        return False
    return not any(_attends(inner) for inner in module.modules() if inner is not module)


def _why_left(layer: torch.nn.Module) -> str | None:
    if isinstance(layer, torch.nn.MultiheadAttention):
        rest = "GraphAttention.from_multihead_attention(layer) with Full.from_batch(batch) needs no padding"
        return f"{type(layer).__name__} attends within padded batches; {rest}"
    return why_not_fused(layer)


def _change_class(layer: Any, old: type[Any], new: type[Any]) -> None:
    """Change the class of a layer, below subclasses that torch may have generated."""
    # PyG sets these on a layer when an explainer is removed; they belong to its class.
    for method in ("propagate", "edge_updater"):
        layer.__dict__.pop(method, None)
    layer.__class__ = _remade(type(layer), old, new)


def _remade(kind: type[Any], old: type[Any], new: type[Any]) -> type[Any]:
    """Generate a class again with another base; copies of a layer share theirs, so it can't be changed in place."""
    if kind is old or not issubclass(kind, old):
        return new if kind is old else kind
    own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return type(kind.__name__, tuple(_remade(base, old, new) for base in kind.__bases__), own)

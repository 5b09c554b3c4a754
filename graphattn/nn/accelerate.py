"""Turn PyG's attention layers inside a model into ours, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch_geometric.nn import MessagePassing

from ..errors import message
from .fused import FUSED, Fused, why_not_fused

_MARK = "_was_accelerated"


class Change(NamedTuple):
    """One attention layer of a model: its name, its class, and why it was left as it is (None if it was changed)."""

    name: str
    kind: str
    reason: str | None


class AccelerateReport:
    """What `accelerate` did. Printing it shows one line per attention layer.

    Attributes:
        changed: the layers that are ours now.
        left: PyG's other layers of attention, and those of these three that could not be changed, with the reason.
        before: how many layers were ours before.
    """

    def __init__(self, changed: list[Change], left: list[Change], before: int) -> None:
        self.changed = changed
        self.left = left
        self.before = before

    def __repr__(self) -> str:
        count = len(self.changed)
        lines = [
            f"{count} layer{'' if count == 1 else 's'} accelerated, {len(self.left)} left"
            + (f", {self.before} ours before" if self.before else "")
        ]
        lines += [f"  {change.name or 'the model itself'}: {change.kind}" for change in self.changed]
        lines += [f"  {change.name or 'the model itself'}: left, {change.reason}" for change in self.left]
        return "\n".join(lines)


def accelerate(model: torch.nn.Module) -> AccelerateReport:
    """Turn every `TransformerConv`, `GATConv` and `GATv2Conv` of PyG inside a model into ours, in place.

    A layer changes its class and nothing else: parameters, their names, hooks, optimizers and checkpoints go on as
    they were, and so do the numbers (dropout draws another random stream). Layers that PyG's own arithmetic alone can
    compute are left, and the report says why.

    Args:
        model: any module, an attention layer itself included; basic models, `Sequential`, `HeteroConv`, `to_hetero`
            and `GPSConv` as well.

    Returns:
        What was changed and what was left; it prints.

    Raises:
        TypeError: `model` is not a module.

    Example:
        >>> from torch_geometric.nn import GAT
        >>> model = GAT(16, 32, num_layers=2, heads=4)
        >>> accelerate(model)
        2 layers accelerated, 0 left
          convs.0: GATConv
          convs.1: GATConv
        >>> restore(model)
        2
    """
    changed, left, before = [], [], 0
    for name, layer in _layers("accelerate", model):
        if isinstance(layer, Fused):
            before += 1
            continue
        reason = why_not_fused(layer)
        kind = type(layer).__name__
        if reason is not None:
            left.append(Change(name, kind, reason))
            continue
        # PyG sets these on a layer when an explainer leaves it; they are its class's.
        for method in ("propagate", "edge_updater"):
            layer.__dict__.pop(method, None)
        layer.__class__ = FUSED[type(layer)]
        layer.__dict__[_MARK] = True
        changed.append(Change(name, kind, None))
    return AccelerateReport(changed, left, before)


def restore(model: torch.nn.Module) -> int:
    """Undo `accelerate`: give its layers PyG's classes back, and return how many there were.

    Raises:
        TypeError: `model` is not a module.

    Example:
        >>> from torch_geometric.nn import GATConv
        >>> layer = GATConv(16, 8)
        >>> report = accelerate(layer)
        >>> restore(layer), type(layer) is GATConv
        (1, True)
    """
    theirs = {ours: cls for cls, ours in FUSED.items()}
    count = 0
    for _, layer in _layers("restore", model):
        if layer.__dict__.pop(_MARK, False):
            for method in ("propagate", "edge_updater"):
                layer.__dict__.pop(method, None)
            layer.__class__ = theirs[type(layer)]
            if layer.explain:
                # As PyG does when an explainer comes: the code that it generates knows nothing of masks.
                layer.propagate = type(layer)._orig_propagate.__get__(layer)
            count += 1
    return count


def _layers(where: str, model: torch.nn.Module) -> list[tuple[str, MessagePassing]]:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(message(where, "model", "must be a torch.nn.Module", type(model).__name__))
    attention = ("alpha", "heads", "attention")
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, MessagePassing)]
    return [(name, layer) for name, layer in found if any(hasattr(layer, word) for word in attention)]

"""Whoever watches a module."""

from __future__ import annotations

import operator

import torch

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
hooks_of = operator.attrgetter(*HOOKS)


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether someone watches a module."""
    return "forward" in vars(module) or any(hooks_of(module))

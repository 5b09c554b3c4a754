"""Which nodes influence a node after several layers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import check_int, check_kind, message
from .base import Pattern


def receptive_field(pattern: Pattern, node: int, layers: int) -> Tensor:
    """Find the first layer after which each node influences the given node.

    Every layer passes information along its edges. A node always influences itself, as with residual connections.

    Args:
        pattern: who attends to whom, in every layer; of as many sources as targets.
        node: whose receptive field it is.
        layers: how many layers there are, at least 0.

    Returns:
        [N] int64: 0 for the node itself, k for nodes that the k-th layer adds, and -1 for nodes that are not reached.

    Raises:
        TypeError: node or layers is not an integer.
        ValueError: sources and targets aren't the same nodes, node isn't one of them, or layers is negative.

    Example:
        >>> from graphattn import Window
        >>> receptive_field(Window(8, radius=1), node=2, layers=3)
        tensor([ 2,  1,  0,  1,  2,  3, -1, -1])

    References:
        Luo et al., "Understanding the Effective Receptive Field", 2016, for what this bounds from above.
    """
    check_kind("receptive_field", "pattern", pattern, Pattern, "Use Edges(edge_index, num_nodes).")
    node, layers = check_int("receptive_field", "node", node, 0), check_int("receptive_field", "layers", layers, 0)
    if pattern.num_sources != pattern.num_targets:
        got = f"{pattern.num_sources} sources and {pattern.num_targets} targets"
        raise ValueError(message("receptive_field", "pattern", "must have as many sources as targets", got))
    if node >= pattern.num_targets:
        rule = f"must be less than the number of nodes, {pattern.num_targets}"
        raise ValueError(message("receptive_field", "node", rule, node))
    source, target = pattern.edge_index
    reached = torch.full((pattern.num_targets,), -1, device=source.device)
    reached[node] = 0
    for layer in range(1, layers + 1):
        seen = torch.zeros_like(reached, dtype=torch.bool)
        seen[source[reached[target] >= 0]] = True
        seen &= reached < 0
        if not bool(seen.any()):
            break
        reached[seen] = layer
    return reached

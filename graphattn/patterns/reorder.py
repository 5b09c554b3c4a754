"""Another numbering of the nodes, so that rows that are read one after another are close together in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import check_choice, message, shape_of
from ..segments import permute
from .metis import find_parts

# Nodes per part of METIS: the rows of such a part fit into a core's second-level cache.
PART_NODES = 512


class NodeOrder(NamedTuple):
    """A new numbering of nodes, which reorders tensors and restores their order.

    Attributes:
        perm: [N] int64, the old number of each node, in the new order.
        inverse: [N] int64, the new number of each node, in the old order.

    Example:
        >>> order = NodeOrder(torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0]))
        >>> order.apply(torch.tensor([10, 11, 12]))
        tensor([12, 10, 11])
        >>> order.undo(order.apply(torch.tensor([10, 11, 12])))
        tensor([10, 11, 12])
    """

    perm: Tensor
    inverse: Tensor

    def apply(self, x: Tensor, dim: int = 0) -> Tensor:
        """Reorder features, labels or masks of nodes along `dim` into the new order. Differentiable to any order."""
        return self._carry("apply", x, dim, self.perm, self.inverse)

    def undo(self, x: Tensor, dim: int = 0) -> Tensor:
        """Reorder results, with a row for each node along `dim`, back. Differentiable to any order."""
        return self._carry("undo", x, dim, self.inverse, self.perm)

    def to(self, device: torch.device | str) -> NodeOrder:
        """Return the order on another device."""
        return NodeOrder(self.perm.to(device), self.inverse.to(device))

    def _carry(self, where: str, x: Tensor, dim: int, perm: Tensor, inverse: Tensor) -> Tensor:
        if x.size(dim) != perm.numel():
            rule = f"must have a row for each of the {perm.numel()} nodes along dim={dim}"
            raise ValueError(message(f"NodeOrder.{where}", "x", rule, shape_of(x)))
        return permute(x, perm, inverse, dim)


def find_order(edge_index: Tensor, nodes: int, order: Any) -> NodeOrder:
    """The order that `Edges.reorder` was asked for."""
    order = order.perm if isinstance(order, NodeOrder) else order
    if isinstance(order, np.ndarray | list):
        order = torch.as_tensor(order, device=edge_index.device)
    if isinstance(order, Tensor):
        perm = _check_permutation(order, nodes, edge_index.device)
    else:
        check_choice("reorder", "order", order, ORDERS)
        perm = ORDERS[order](edge_index, nodes).to(edge_index.device)
    inverse = torch.empty_like(perm)
    inverse[perm] = torch.arange(perm.numel(), device=perm.device)
    return NodeOrder(perm, inverse)


def _check_permutation(order: Tensor, nodes: int, device: torch.device) -> Tensor:
    if order.is_floating_point() or order.is_complex() or order.dtype == torch.bool:
        raise TypeError(message("reorder", "order", "must have an integer dtype", order.dtype, "Use order.long()."))
    if order.device != device:
        fix = f"Use order.to('{device}')."
        raise ValueError(message("reorder", "order", f"must be on the pattern's device, {device}", order.device, fix))
    if order.shape != (nodes,):
        raise ValueError(message("reorder", "order", f"must have shape [{nodes}]", shape_of(order)))
    is_named = torch.zeros(nodes, dtype=torch.bool, device=order.device)
    is_named[order[(order >= 0) & (order < nodes)].to(torch.int64)] = True
    missing = (~is_named).nonzero()
    if len(missing):
        rule = f"must name each of the {nodes} nodes once"
        raise ValueError(message("reorder", "order", rule, f"no entry for node {int(missing[0])}"))
    return order.to(torch.int64)


def _by_degree(edge_index: Tensor, nodes: int) -> Tensor:
    degree = torch.bincount(edge_index.flatten(), minlength=nodes)
    return degree.argsort(descending=True, stable=True)


def _by_bandwidth(edge_index: Tensor, nodes: int) -> Tensor:
    """Reverse Cuthill and McKee of the graph without directions."""
    if nodes == 0:
        return torch.empty(0, dtype=torch.int64)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    source, target = edge_index.cpu().numpy()
    both = (np.concatenate([source, target]), np.concatenate([target, source]))
    graph = coo_array((np.ones(len(both[0]), bool), both), shape=(nodes, nodes)).tocsr()
    return torch.from_numpy(reverse_cuthill_mckee(graph, symmetric_mode=True).astype(np.int64))


def _by_parts(edge_index: Tensor, nodes: int) -> Tensor:
    """One part of METIS's after another, each in the nodes' own order."""
    return find_parts(edge_index, nodes, max(1, -(-nodes // PART_NODES))).argsort(stable=True)


ORDERS: dict[str, Callable[[Tensor, int], Tensor]] = {"degree": _by_degree, "rcm": _by_bandwidth, "metis": _by_parts}

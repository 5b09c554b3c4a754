"""What samplers share: their checks, and one hop over one set of edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..compiled import compiled_loop, load, run_tasks
from ..errors import message, shape_of

# The least number of rows that are worth a thread's turn.
ROWS_AT_ONCE = 64


def draw_hop(
    graph: tuple[Any, Any, Any], begin: int, rows: Any, fan_out: int, replace: bool, key: int, known: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """Draw edges of nodes, `rows`, whose positions among the batch's nodes begin at `begin`.

    Args:
        graph: ptr, index and perm of compressed rows; an empty perm stands for the caller's order.
        begin: position of the first row.
        rows: [n] nodes.
        fan_out: edges per row; -1 for all.
        replace: draw with replacement.
        key: of the random numbers.
        known: nodes of the sources' type that are in the batch already.

    Returns:
        Positions of sources and of targets, ids of the edges, edges of each row; and the known nodes, with new ones
        behind them.
    """
    loops, (ptr, index, perm) = load("sampling.jit.neighbors"), graph
    row_ptr = loops.count_rows(rows, fan_out, replace, ptr)
    source, target, edge = (np.empty(row_ptr[-1], np.int64) for _ in range(3))
    drawn = (begin, rows, row_ptr, replace, key, ptr, index, perm, source, edge)
    ordered = (begin, row_ptr, source, edge, target)
    draw = compiled_loop(loops.draw_rows, (ptr.dtype, index.dtype, perm.dtype), *drawn)
    order = compiled_loop(loops.order_rows, (), *ordered)
    run_tasks(draw, len(rows), *drawn, least=ROWS_AT_ONCE)
    known = loops.number_nodes(known, source)
    run_tasks(order, len(rows), *ordered, least=ROWS_AT_ONCE)
    return source, target, edge, np.diff(row_ptr), known


def check_seeds(where: str, seeds: Tensor, num_nodes: int) -> Any:
    """The seeds as an array; raise TypeError or IndexError unless they are nodes of the graph."""
    if seeds.is_floating_point() or seeds.dtype == torch.bool or seeds.dim() != 1:
        got = f"{seeds.dtype} of shape {shape_of(seeds)}"
        raise TypeError(message(where, "seeds", "must be integers of shape [n]", got))
    check_nodes(where, "seeds", seeds, num_nodes)
    return seeds.to(torch.int64).contiguous().numpy()


def check_nodes(where: str, argument: str, nodes: Tensor, num_nodes: int) -> None:
    """Raise IndexError at the first of `nodes` that the graph doesn't have."""
    outside = (nodes < 0) | (nodes >= num_nodes)
    if bool(outside.any()):
        place = int(outside.nonzero()[0])
        rule = f"must lie in [0, {num_nodes}), the nodes of the graph"
        raise IndexError(message(where, argument, rule, f"{nodes[place].item()} at place {place}"))


def arrays_of(csr: Any) -> tuple[Any, Any, Any]:
    """Compressed rows as `draw_hop` takes them. Workers of a DataLoader share arrays with their parent."""
    perm = np.empty(0, np.int32) if csr.perm is None else csr.perm.cpu().numpy()
    return csr.ptr.cpu().numpy(), csr.index.cpu().numpy(), perm

"""Which part of a graph each node belongs to, so that few edges cross between parts."""

from __future__ import annotations

from torch import Tensor

from ..errors import check_int, message
from .annotations import EdgesLike
from .base import Pattern, check_square
from .edges import Edges
from .metis import find_parts


def metis_parts(
    edges: Pattern | EdgesLike, num_parts: int, num_nodes: int | None = None, seed: int = 0, *, recursive: bool = False
) -> Tensor:
    """Cut the nodes into parts of nearly equal size between which few edges run, by METIS.

    METIS treats graphs as undirected: an edge counts for both directions, parallel edges count once, and self-loops
    don't count.

    Args:
        edges: a pattern of as many sources as targets, or whatever `Edges` takes, such as an edge_index [2, E].
        num_parts: number of parts, at least 1.
        num_nodes: N, if `edges` doesn't have it; as in `Edges`.
        seed: of METIS's own random numbers, 0 or more.
        recursive: bisect repeatedly instead of cutting into all parts at once.

    Returns:
        [N] int64 in [0, num_parts), on the device of the edges: the part of each node. The same arguments give the
        same parts. On a small graph a part may be empty; with at least as many parts as nodes, node i is part i.

    Raises:
        ImportError: pymetis isn't installed.
        ValueError: sources and targets aren't the same nodes, or num_parts is less than 1.

    Example:
        >>> import torch
        >>> triangles = torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 0, 4, 5, 3, 3]])
        >>> part = metis_parts(triangles, num_parts=2)
        >>> bool((part[:3] == part[0]).all()), bool((part[3:] == part[3]).all()), bool(part[0] != part[3])
        (True, True, True)

    References:
        Karypis and Kumar, "A Fast and High Quality Multilevel Scheme for Partitioning Irregular Graphs", 1998.
    """
    pattern = edges if isinstance(edges, Pattern) else Edges(edges, num_nodes)
    check_square(pattern, "metis_parts")
    nodes = pattern.num_targets
    if num_nodes is not None and num_nodes != nodes:
        raise ValueError(message("metis_parts", "num_nodes", f"must be that of the pattern, {nodes}", num_nodes))
    num_parts = check_int("metis_parts", "num_parts", num_parts, 1)
    seed = check_int("metis_parts", "seed", seed, 0)
    if seed >= 2**31:
        raise ValueError(message("metis_parts", "seed", "must be less than 2^31", seed))
    return find_parts(pattern.edge_index, nodes, num_parts, seed, recursive=recursive)

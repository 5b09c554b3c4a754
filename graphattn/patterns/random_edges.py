"""Random patterns: a few sources drawn for each target, and random regular graphs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..csr import build_csr
from ..errors import check_int, message
from .box import parse_sizes
from .edges import Edges


def random_edges(
    sizes: int | Sequence[int] | Tensor, degree: int, *, generator: torch.Generator | None = None
) -> Edges:
    """Let each target attend to `degree` sources of its own component, drawn uniformly and without repetition.

    Args:
        sizes: number of nodes, or one number per component.
        degree: sources of each target, possibly including itself; all nodes of its component if that has fewer.
        generator: draws the edges; torch's default one if omitted.

    Returns:
        Edges by target, then source.

    Raises:
        TypeError: a size or the degree is not an integer.
        ValueError: a size or the degree is negative.

    Example:
        >>> from graphattn import Window
        >>> random_edges([4, 2], 3).csr().ptr
        tensor([ 0,  3,  6,  9, 12, 14, 16])
        >>> Window(100, radius=2, global_tokens=(0,)) | random_edges(100, 3)  # doctest: +ELLIPSIS
        Edges(num_nodes=100, num_edges=...)

    References:
        Zaheer et al., 2020 (BigBird): random attention combined with a window and global tokens.
        Bentley and Floyd, 1987, "A sample of brilliance": how the sources are drawn.
    """
    extents = parse_sizes("random_edges", sizes).flatten()
    degree = check_int("random_edges", "degree", degree, 0)
    num_nodes = int(extents.sum())
    extent = torch.repeat_interleave(extents, extents)
    begin = torch.repeat_interleave(extents.cumsum(0) - extents, extents)
    steps = min(degree, int(extents.max())) if num_nodes else 0
    # Larger than any source of a target, so that it sorts last; it remains if a component is too small.
    chosen = torch.full((num_nodes, steps), num_nodes, device=extent.device)
    for step in range(steps):
        # The range grows by one each time, up to the whole component; a repeated draw is replaced by the new last node.
        newcomer = extent - extent.clamp(max=degree) + step
        drawn = _draw("random_edges", newcomer + 1, generator)
        is_taken = (chosen[:, :step] == drawn[:, None]).any(1)
        source = torch.where(is_taken, newcomer, drawn)
        chosen[:, step] = torch.where(newcomer < extent, source, num_nodes)
    chosen = chosen.sort(1).values
    target, place = (chosen < num_nodes).nonzero().unbind(1)
    return Edges(torch.stack([begin[target] + chosen[target, place], target]), num_nodes)


def random_regular(
    sizes: int | Sequence[int] | Tensor, degree: int, *, generator: torch.Generator | None = None
) -> Edges:
    """Make each component a random undirected graph in which every node has `degree` neighbors; most of them are
    expanders.

    Args:
        sizes: number of nodes, or one number per component.
        degree: neighbors of each node, excluding itself.
        generator: seeds the graphs; torch's default one if omitted.

    Returns:
        Edges by target, then source, both directions of each.

    Raises:
        TypeError: a size or the degree is not an integer.
        ValueError: a size or the degree is negative; in a component that isn't empty the degree is not below the
            number of nodes, or their product is odd.

    Example:
        >>> random_regular(4, 3).mask().int()
        tensor([[0, 1, 1, 1],
                [1, 0, 1, 1],
                [1, 1, 0, 1],
                [1, 1, 1, 0]], dtype=torch.int32)

    References:
        Shirzad et al., 2023 (Exphormer): attention on an expander, combined with the graph's own edges and global
        nodes. Steger and Wormald, 1999: the algorithm, that of `networkx.random_regular_graph`.
    """
    import networkx

    extents = parse_sizes("random_regular", sizes).flatten()
    degree = check_int("random_regular", "degree", degree, 0)
    for size in extents.tolist():
        _check_regular(size, degree)
    seeds = _draw("random_regular", torch.full_like(extents, 2**31), generator)
    begins = extents.cumsum(0) - extents
    parts = [torch.empty(0, 2, dtype=torch.int64)]
    for size, begin, seed in zip(extents.tolist(), begins.tolist(), seeds.tolist(), strict=True):
        if size == 0 or degree == 0:
            continue
        # For dense graphs the complement is drawn, which is regular too.
        is_dense = 2 * degree >= size
        graph = networkx.random_regular_graph(size - 1 - degree if is_dense else degree, size, seed)
        edges = networkx.complement(graph).edges if is_dense else graph.edges
        parts.append(torch.tensor(list(edges)) + begin)
    pairs = torch.cat(parts).t()
    source, target = torch.cat([pairs, pairs.flip(0)], 1)
    num_nodes = int(extents.sum())
    order = build_csr(target, source, num_nodes, num_nodes).perm
    edge_index = torch.stack([source, target])
    return Edges((edge_index if order is None else edge_index[:, order]).to(extents.device), num_nodes)


def _draw(where: str, bound: Tensor, generator: torch.Generator | None) -> Tensor:
    """A random number in [0, bound) for each bound; uniform, because bounds are small compared with 2^62."""
    if generator is not None and not isinstance(generator, torch.Generator):
        fix = "Use torch.Generator().manual_seed(0)."
        raise TypeError(message(where, "generator", "must be a torch.Generator", repr(generator), fix))
    device = bound.device if generator is None else generator.device
    return torch.randint(2**62, bound.shape, generator=generator, device=device).to(bound.device) % bound


def _check_regular(size: int, degree: int) -> None:
    if size > 0 and degree >= size:
        rule = f"must be less than the nodes of each component, {size} here"
        raise ValueError(message("random_regular", "degree", rule, degree, f"Use degree={size - 1} or less."))
    if size * degree % 2:
        rule = f"must be even for a component of {size} nodes, because every edge has two ends"
        raise ValueError(message("random_regular", "degree", rule, degree, "Use an even degree."))

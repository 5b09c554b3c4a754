"""Cut a graph into parts: which nodes, which edges and which rows of other parts each rank needs."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..csr import pointers, stable_order
from ..errors import check_int, message, shape_of
from ..patterns import Edges, EdgesLike, Pattern
from ..patterns.base import check_square


class Part(NamedTuple):
    """One rank's share of a graph: a block of nodes, the edges into it, and which rows ranks send to each other.

    The rank's sources are its own nodes, then its halo: the distinct nodes of other parts that its edges come from.
    Nodes have their numbers in the whole graph; positions count a rank's sources from 0.

    Attributes:
        rank: which part this is.
        num_parts: P.
        num_nodes: N, nodes of the whole graph.
        num_edges: E, edges of the whole graph.
        graph: a checksum of the whole graph and its partition, the same in all parts of it.
        nodes: [own] int64, the nodes of the block, sorted.
        halo: [halo] int64, the nodes that others send, by part, then sorted.
        halo_counts: [P] int64, the number that each part sends.
        send: [sent] int64, positions of the nodes that are sent, by receiving part, in the order of its halo.
        send_counts: [P] int64, the number that each part receives.
        edge_index: [2, own edges] int64, positions of sources above those of targets, in the order of the whole graph.
        edges: [own edges] int64, the position of each edge in the whole graph.
    """

    rank: int
    num_parts: int
    num_nodes: int
    num_edges: int
    graph: str
    nodes: Tensor
    halo: Tensor
    halo_counts: Tensor
    send: Tensor
    send_counts: Tensor
    edge_index: Tensor
    edges: Tensor


def split_graph(
    edges: Pattern | EdgesLike, assignment: Tensor, num_parts: int | None = None, *, progress: bool = False
) -> list[Part]:
    """Cut a graph into parts by an assignment of its nodes, one part for each rank.

    Args:
        edges: a pattern of as many sources as targets, or whatever `Edges` takes, such as an edge_index [2, E].
        assignment: [N] integers in [0, P): the part of each node, from `block_parts`, `metis_parts` or elsewhere. Parts
            may be of any size, and empty.
        num_parts: P; the largest part + 1 if omitted.
        progress: show a progress bar on stderr.

    Returns:
        P parts. Each edge is in the part of its target.

    Raises:
        TypeError: the assignment isn't a tensor of integers.
        ValueError: the assignment doesn't name a part for every node.

    Example:
        >>> path = torch.tensor([[0, 1, 2, 1, 2, 3], [1, 2, 3, 0, 1, 2]])
        >>> first, second = split_graph(path, torch.tensor([0, 0, 1, 1]))
        >>> first.nodes, first.halo, first.edge_index  # node 2 is the third source of the first part
        (tensor([0, 1]), tensor([2]), tensor([[0, 1, 2], [1, 0, 1]]))
        >>> second.nodes, second.halo, second.send  # and the first part is sent node 2, the second's first
        (tensor([2, 3]), tensor([1]), tensor([0]))
    """
    source, target, assignment, num_parts = _check(edges, assignment, num_parts)
    num_nodes, num_edges = assignment.numel(), source.numel()
    graph = _checksum(source, target, assignment)
    nodes, edges_of = _groups(assignment, num_parts), _groups(assignment[target], num_parts)
    place = torch.empty_like(assignment)
    for own in nodes:
        place[own] = torch.arange(own.numel())
    halos, edge_indices = [], []
    in_halo = torch.empty_like(assignment)
    ranks = tqdm(range(num_parts), desc="cut", unit="part", disable=not progress, leave=False)
    for rank, own, held in zip(ranks, nodes, edges_of, strict=True):
        sources = source[held]
        is_remote = assignment[sources] != rank
        remote = sources[is_remote].unique()
        halo = remote[stable_order(assignment[remote], num_parts)]
        in_halo[halo] = own.numel() + torch.arange(halo.numel())
        places = torch.where(is_remote, in_halo[sources], place[sources])
        edge_indices.append(torch.stack([places, place[target[held]]]))
        halos.append(halo)
    halo_counts = torch.stack([torch.bincount(assignment[halo], minlength=num_parts) for halo in halos])
    # The received rows, by receiver, then by sender, are the sent rows in the senders' order.
    received = torch.cat(halos)
    send_counts = halo_counts.t().contiguous()
    sends = place[received[stable_order(assignment[received], num_parts)]].split(send_counts.sum(1).tolist())
    whole = (num_parts, num_nodes, num_edges, graph)
    columns = (nodes, halos, halo_counts, sends, send_counts, edge_indices, edges_of)
    return [Part(rank, *whole, *own) for rank, own in enumerate(zip(*columns, strict=True))]


def block_parts(
    edges: Pattern | EdgesLike, num_parts: int, order: Tensor | None = None, *, num_nodes: int | None = None
) -> Tensor:
    """Cut a sequence of the nodes into contiguous blocks of nearly equal work: an edge counts 1, and so does a node.

    Args:
        edges: a pattern of as many sources as targets, or whatever `Edges` takes.
        num_parts: P, at least 1.
        order: [N] integers, the nodes in the sequence to cut; by number if omitted. Nodes that are close in it should
            have edges between them, as after a reordering by `scipy.sparse.csgraph.reverse_cuthill_mckee`.
        num_nodes: N, if `edges` doesn't have it; as in `Edges`.

    Returns:
        [N] int64 in [0, P), the part of each node.

    Raises:
        ValueError: `order` isn't a permutation of the nodes, or num_parts is less than 1.

    Example:
        >>> path = torch.tensor([[0, 1, 2, 1, 2, 3], [1, 2, 3, 0, 1, 2]])
        >>> block_parts(path, 2)
        tensor([0, 0, 1, 1])
        >>> block_parts(path, 2, order=torch.tensor([0, 2, 1, 3]))
        tensor([0, 1, 0, 1])
    """
    num_parts = check_int("block_parts", "num_parts", num_parts, 1)
    pattern = _square("block_parts", edges, num_nodes)
    nodes = torch.arange(pattern.num_targets) if order is None else order.to("cpu", torch.int64)
    if order is not None and not torch.equal(nodes.sort().values, torch.arange(pattern.num_targets)):
        rule = f"must name each of the {pattern.num_targets} nodes once"
        raise ValueError(message("block_parts", "order", rule, shape_of(order)))
    work = 1 + torch.bincount(pattern.edge_index[1].cpu(), minlength=pattern.num_targets)[nodes]
    # A node belongs to the block that contains the middle of its work.
    middle = 2 * work.cumsum(0) - work
    part = torch.empty_like(nodes)
    part[nodes] = (middle * num_parts) // (2 * work.sum()) if nodes.numel() else nodes
    return part


def _check(edges: Pattern | EdgesLike, assignment: Tensor, num_parts: int | None) -> tuple[Tensor, Tensor, Tensor, int]:
    where = "split_graph"
    if not isinstance(assignment, Tensor) or assignment.is_floating_point() or assignment.dtype == torch.bool:
        got = assignment.dtype if isinstance(assignment, Tensor) else type(assignment).__name__
        raise TypeError(message(where, "assignment", "must be a tensor of integers", got))
    if assignment.dim() != 1:
        raise ValueError(message(where, "assignment", "must have shape [N]", shape_of(assignment)))
    known = isinstance(edges, Pattern)
    pattern = _square(where, edges, None if known else assignment.numel())
    if assignment.numel() != pattern.num_targets:
        rule = f"must have a part for each of the {pattern.num_targets} nodes"
        raise ValueError(message(where, "assignment", rule, f"{assignment.numel()} parts"))
    assignment = assignment.to("cpu", torch.int64)
    highest = int(assignment.max()) + 1 if assignment.numel() else 1
    num_parts = highest if num_parts is None else check_int(where, "num_parts", num_parts, 1)
    outside = ((assignment < 0) | (assignment >= num_parts)).nonzero().flatten()
    if outside.numel():
        node = int(outside[0])
        rule = f"must lie in [0, {num_parts})"
        raise ValueError(message(where, "assignment", rule, f"{int(assignment[node])} for node {node}"))
    source, target = pattern.edge_index.cpu()
    return source, target, assignment, num_parts


def _square(where: str, edges: Pattern | EdgesLike, num_nodes: int | None) -> Pattern:
    pattern = edges if isinstance(edges, Pattern) else Edges(edges, num_nodes)
    check_square(pattern, where)
    return pattern


def _groups(key: Tensor, num_groups: int) -> list[Tensor]:
    """The positions of each key: a sorted list for each group."""
    order = stable_order(key, num_groups)
    sizes = pointers(key[order], num_groups).diff()
    return list(order.split(sizes.tolist()))


def _checksum(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for x in tensors:
        digest.update(x.contiguous().numpy().data)
    return digest.hexdigest()[:32]

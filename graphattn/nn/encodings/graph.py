"""Positions of nodes that have no coordinates, from the graph's structure: PyG's transforms on each component."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import Linear
from torch_geometric.data import Data
from torch_geometric.transforms import AddLaplacianEigenvectorPE, AddRandomWalkPE
from torch_geometric.utils import coalesce, to_undirected

from ...errors import check_int
from ...patterns import Pattern
from ...patterns.across_processes import check_at_hand
from .base import Encoding, check_features, check_fit

# Smaller components use dense matrices, which are as fast there and always converge.
_DENSE_BELOW = 256


class LaplacianPosition(Encoding):
    """Adds a projection of the eigenvectors of the graph's Laplacian, those of the lowest frequencies.

        x_i + W (v_1[i], ..., v_k[i]),   (I - D^-1/2 A D^-1/2) v = lambda v

    The edges are read as undirected, each pair of nodes once, without self-loops. Every connected component has its own
    eigenvectors, of length 1, in the order of their eigenvalues; the first is omitted, because it depends only on the
    degrees. So a disjoint union has the rows of its parts. A component of n nodes has n - 1 further eigenvectors; the
    rest of the k columns is zero, as is the row of an isolated node.

    An eigenvector has an arbitrary sign. In training, each one of each component is flipped at random at every call;
    in evaluation its entry of largest magnitude is positive, the first of several.

    Invariance: relabelling the nodes permutes the rows, up to the signs where several entries are largest, and up to a
    rotation among eigenvectors of equal eigenvalues, as symmetric graphs have them.

    Args:
        channels: C, features per node.
        k: how many eigenvectors.

    Raises:
        ValueError: sources and targets of a pattern aren't the same nodes.

    Numerics:
        Solved in float64 on the CPU, once per pattern, from a fixed start; kept in float32. Long chains have
        eigenvalues so close together that this takes minutes from about 10,000 nodes on.

    Example:
        >>> from graphattn import Edges
        >>> LaplacianPosition(4, k=2).eval().vectors(Edges(torch.tensor([[0, 2], [1, 3]])))
        tensor([[ 0.7071,  0.0000],
                [-0.7071,  0.0000],
                [ 0.7071,  0.0000],
                [-0.7071,  0.0000]])

    References:
        Dwivedi and Bresson, "A Generalization of Transformer Networks to Graphs", 2021; Lim et al., "Sign and Basis
        Invariant Networks for Spectral Graph Representation Learning", 2022, on the ambiguities. Computed by PyG's
        `AddLaplacianEigenvectorPE`.
    """

    def __init__(self, channels: int, k: int) -> None:
        super().__init__()
        self.channels = check_int("LaplacianPosition", "channels", channels, 1)
        self.k = check_int("LaplacianPosition", "k", k, 1)
        self._kept_as = f"LaplacianPosition {self.k}"
        self.lin = Linear(self.k, self.channels, bias=False)

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        self.lin.reset_parameters()

    def check(self, where: str, channels: int, heads: int, width: int) -> None:
        """Raise ValueError unless the layer takes as many channels."""
        check_fit(where, self, "channels", channels)

    def vectors(self, pattern: Pattern) -> Tensor:
        """Return the eigenvectors as columns, [N, k] float32; in training, with new random signs."""
        table, component, count = pattern.keep(
            self._kept_as, lambda: _by_component(pattern, self.k, partial(_eigenvectors, k=self.k))
        )
        if not self.training:
            return table
        return table * (torch.randint(0, 2, (count, self.k), device=table.device) * 2 - 1)[component]

    def input(self, x: Tensor, pattern: Pattern) -> Tensor:
        """Return [*B, N, channels], in the dtype of `x`."""
        check_features("LaplacianPosition", x, self.channels, pattern)
        return (x + self.lin(self.vectors(pattern).to(self.lin.weight.dtype))).to(x.dtype)

    def extra_repr(self) -> str:
        """Arguments of the constructor."""
        return f"{self.channels}, k={self.k}"


class RandomWalkPosition(Encoding):
    """Adds a projection of the probabilities that a random walk from each node has returned to it after 1, 2, ...
    steps.

        x_i + W (P_ii, (P^2)_ii, ..., (P^L)_ii),   P = D^-1 A

    The walk follows the edges from source to target, including self-loops; parallel edges count once. It ends at a node
    without outgoing edges.

    Invariance: relabelling the nodes permutes the rows. Nodes that a symmetry of the graph maps to each other have the
    same row, as all nodes of a cycle do.

    Args:
        channels: C, features per node.
        walk_length: L, number of steps.

    Raises:
        ValueError: sources and targets of a pattern aren't the same nodes.

    Numerics:
        Computed in float32 on the CPU, once per pattern and connected component: by a dense matrix up to 2,000 nodes,
        beyond that by sparse ones, which become denser with every step.

    Example:
        >>> from graphattn import Edges
        >>> RandomWalkPosition(4, walk_length=4).probabilities(Edges(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])))
        tensor([[0.0000, 0.5000, 0.0000, 0.5000],
                [0.0000, 1.0000, 0.0000, 1.0000],
                [0.0000, 0.5000, 0.0000, 0.5000]])

    References:
        Dwivedi et al., "Graph Neural Networks with Learnable Structural and Positional Representations", 2022 (RWSE).
        Computed by PyG's `AddRandomWalkPE`.
    """

    def __init__(self, channels: int, walk_length: int) -> None:
        super().__init__()
        self.channels = check_int("RandomWalkPosition", "channels", channels, 1)
        self.walk_length = check_int("RandomWalkPosition", "walk_length", walk_length, 1)
        self._kept_as = f"RandomWalkPosition {self.walk_length}"
        self.lin = Linear(self.walk_length, self.channels, bias=False)

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        self.lin.reset_parameters()

    def check(self, where: str, channels: int, heads: int, width: int) -> None:
        """Raise ValueError unless the layer takes as many channels."""
        check_fit(where, self, "channels", channels)

    def probabilities(self, pattern: Pattern) -> Tensor:
        """Return the return probabilities, [N, walk_length] float32."""
        encode = partial(_returns, walk_length=self.walk_length)
        return pattern.keep(self._kept_as, lambda: _by_component(pattern, self.walk_length, encode)[0])

    def input(self, x: Tensor, pattern: Pattern) -> Tensor:
        """Return [*B, N, channels], in the dtype of `x`."""
        check_features("RandomWalkPosition", x, self.channels, pattern)
        return (x + self.lin(self.probabilities(pattern).to(self.lin.weight.dtype))).to(x.dtype)

    def extra_repr(self) -> str:
        """Arguments of the constructor."""
        return f"{self.channels}, walk_length={self.walk_length}"


def _by_component(pattern: Pattern, width: int, encode: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, Tensor, int]:
    """Encode each connected component separately; a narrow result is padded with zeros.

    Returns a table [N, width], the component of each node, and the number of components.
    """
    # Imported here, because that takes longer than importing the whole library.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    check_at_hand("positions of nodes", pattern)
    edge_index, num_nodes = pattern.edge_index.cpu(), pattern.num_targets
    component, count = torch.zeros(num_nodes, dtype=torch.int64), 0
    if num_nodes:
        ends = edge_index.numpy()
        adjacency = coo_array((np.ones(ends.shape[1], dtype=np.int8), (ends[0], ends[1])), (num_nodes, num_nodes))
        count, labels = connected_components(adjacency, directed=False)
        component = torch.from_numpy(labels).to(torch.int64)
    nodes = component.argsort(stable=True)
    sizes = torch.bincount(component, minlength=count)
    rank = torch.empty_like(nodes)
    rank[nodes] = torch.arange(num_nodes) - (sizes.cumsum(0) - sizes)[component[nodes]]
    of_edges = component[edge_index[0]]
    edges = rank[edge_index[:, of_edges.argsort(stable=True)]]

    table = torch.zeros(num_nodes, width)
    parts = edges.split(torch.bincount(of_edges, minlength=count).tolist(), 1)
    for own_nodes, own_edges in zip(nodes.split(sizes.tolist()), parts, strict=True):
        if own_edges.numel():
            found = encode(own_edges, own_nodes.numel())
            table[own_nodes, : found.size(1)] = found.to(table.dtype)
    return table.to(pattern.device), component.to(pattern.device), count


def _eigenvectors(edge_index: Tensor, num_nodes: int, k: int) -> Tensor:
    """Eigenvectors of a connected graph without the first, at most k, with canonical signs."""
    k = min(k, num_nodes - 1)
    if k == 0:
        return torch.zeros(num_nodes, 0)
    edge_index = to_undirected(edge_index, num_nodes=num_nodes)
    graph = Data(edge_index=edge_index, num_nodes=num_nodes)
    graph.edge_weight = torch.ones(edge_index.size(1), dtype=torch.float64)
    start, searched = np.random.default_rng(0).standard_normal(num_nodes), max(64, 4 * k)
    transform = AddLaplacianEigenvectorPE(k, "found", is_undirected=True, v0=start, ncv=searched)
    transform.SPARSE_THRESHOLD = max(_DENSE_BELOW, searched + 1)
    # PyG draws random signs; this must not change the caller's random state.
    with torch.random.fork_rng(devices=[]):
        found = transform(graph).found
    size = found.abs()
    # The first of those that differ only by rounding.
    largest = (size >= size.amax(0) * (1 - 1e-6)).to(torch.int8).argmax(0, keepdim=True)
    return found * found.gather(0, largest).sign()


def _returns(edge_index: Tensor, num_nodes: int, walk_length: int) -> Tensor:
    graph = Data(edge_index=coalesce(edge_index, num_nodes=num_nodes), num_nodes=num_nodes)
    return AddRandomWalkPE(walk_length, "found")(graph).found

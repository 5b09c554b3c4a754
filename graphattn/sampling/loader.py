"""Mini-batches of a graph that is too large to train on as a whole: sampled neighborhoods, and clusters.

With pyg-lib installed, PyG's own loaders work as well, and also sample by weight and by time.
The loaders here need only Numba (and, for clusters, pymetis).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import ClusterData as PyGClusterData
from torch_geometric.loader import NodeLoader
from torch_geometric.loader.base import DataLoaderIterator
from torch_geometric.sampler import BaseSampler, HeteroSamplerOutput, NodeSamplerInput, SamplerOutput

from ..compiled import load
from ..csr import CSR, build_csr
from ..errors import check_int, message, shape_of
from ..patterns import Edges, metis_parts
from ..patterns.lookup import known_edges, remember_edges
from .draw import arrays_of, check_nodes, check_seeds, draw_hop
from .hetero import Fans, HeteroNeighborSampler

# Further options of PyG's samplers, with their default values.
NOT_OFFERED = {
    "disjoint": False,
    "directed": True,
    "input_time": None,
    "neighbor_sampler": None,
    "subgraph_type": "directional",
    "temporal_strategy": "uniform",
    "time_attr": None,
    "transform_sampler_output": None,
    "weight_attr": None,
}
USE_PYG = "Use torch_geometric.loader.{}, which needs pyg-lib."


class NeighborSampler(BaseSampler):
    """Draw some neighbors of nodes, then some neighbors of these, and so on: the sampler of `NeighborLoader`.

    For each node that the previous hop reached for the first time, a hop draws up to the given number of its incoming
    edges, uniformly. So with one step of message passing per hop, the seeds receive the messages of all drawn edges.

    Args:
        data: a homogeneous graph, with `edge_index`.
        num_neighbors: the number of edges per node for each hop, at least 1; -1 for all.
        replace: draw with replacement, so that a node with any neighbor has the requested number.
        seed: 0 or more. The drawn edges are a function of this seed and of the nodes to start from, in their order:
            neither threads nor workers of a DataLoader change them. A loader that shuffles has other batches in each
            epoch, hence other draws; if it doesn't shuffle, set `loader.node_sampler.seed` to draw other edges
            (persistent workers don't see the change).

    As in PyG, seeds come first among the nodes of a batch, then those of each hop, so that PyG's `trim_to_layer` can
    drop them; a seed that is given twice appears twice. Edges are ordered by target, then by source: compressed rows
    without sorting. Indices of `edge` are those of `data`.

    Raises:
        NotImplementedError: the graph is heterogeneous, or one of PyG's further options is set.
        TypeError: `data` isn't a graph, or a number isn't an integer.
        ValueError: there is no hop, or a hop of no neighbors; `replace` with all neighbors; no `edge_index`.
        IndexError: a seed isn't a node of the graph; raised when sampling.
        ImportError: Numba isn't installed, or can't be loaded.

    Example:
        >>> path = Data(edge_index=torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]), num_nodes=5)
        >>> out = NeighborSampler(path, [1, 1]).sample_from_nodes(NodeSamplerInput(None, torch.tensor([4, 1])))
        >>> out.node, out.edge, out.num_sampled_nodes
        (tensor([4, 1, 3, 0, 2]), tensor([3, 0, 2]), [2, 2, 1])
        >>> out.row, out.col
        (tensor([2, 3, 4]), tensor([0, 1, 2]))

    References:
        Hamilton et al., "Inductive Representation Learning on Large Graphs", 2017.
    """

    def __init__(
        self, data: Data, num_neighbors: Sequence[int], *, replace: bool = False, seed: int = 0, **options: Any
    ) -> None:
        where = "NeighborSampler"
        check_options(where, options)
        for name, value, kind in (("data", data, HeteroData), ("num_neighbors", num_neighbors, dict)):
            if isinstance(value, kind):
                fix = "Use HeteroNeighborSampler."
                raise NotImplementedError(message(where, name, "must be of one type of nodes", kind.__name__, fix))
        if not isinstance(data, Data):
            raise TypeError(message(where, "data", "must be a Data", type(data).__name__))
        if data.edge_index is None:
            raise ValueError(message(where, "data", "must have an edge_index", f"{data}"))
        if isinstance(num_neighbors, Tensor):
            num_neighbors = num_neighbors.tolist()
        if not isinstance(num_neighbors, Sequence) or len(num_neighbors) == 0:
            fix = "Use num_neighbors=[10, 10] for two hops."
            raise ValueError(message(where, "num_neighbors", "must have one number for each hop", num_neighbors, fix))
        self.num_neighbors = [check_int(where, "num_neighbors", count, -1) for count in num_neighbors]
        if 0 in self.num_neighbors:
            fix = "Leave the hop out, or use -1 for all neighbors."
            raise ValueError(message(where, "num_neighbors", "must be at least 1, or -1", num_neighbors, fix))
        if replace and -1 in self.num_neighbors:
            rule = "must be numbers with replace=True, because -1 takes each neighbor once"
            raise ValueError(message(where, "num_neighbors", rule, num_neighbors, "Use replace=False."))
        self.replace = bool(replace)
        self.seed = check_int(where, "seed", seed, 0)
        if self.seed >= 2**63:
            raise ValueError(message(where, "seed", "must be less than 2^63", seed))
        self.num_nodes = int(data.num_nodes or 0)
        self._graph = arrays_of(known_edges(where, data.edge_index, self.num_nodes, self.num_nodes).csr())
        # Compiled now, so that workers don't compile again.
        self._sample(torch.empty(0, dtype=torch.int64), None)

    def sample_from_nodes(self, inputs: NodeSamplerInput, **kwargs: Any) -> SamplerOutput:
        """Sample for PyG's loaders.

        Returns:
            PyG's result, all int64. The two entries of `metadata` that PyG reads are followed by a list with the
            compressed rows and columns of each layer: the first layer has all hops, the last one only the hop around
            the seeds.
        """
        if inputs.time is not None:
            rule, fix = "must be None, because sampling by time is not supported", USE_PYG.format("NeighborLoader")
            raise NotImplementedError(message("NeighborSampler", "input_time", rule, fix=fix))
        return self._sample(inputs.node, inputs.input_id)

    # The loops' hash overflows: Numba ignores that, but NumPy, if nothing is compiled, warns.
    @np.errstate(over="ignore")
    def _sample(self, nodes: Tensor, input_id: Tensor | None) -> SamplerOutput:
        found = check_seeds("NeighborSampler", nodes, self.num_nodes)
        key = load("sampling.jit.neighbors").hash_seeds(self.seed, found)
        counts, begin, parts = [len(found)], 0, []
        for fan_out in self.num_neighbors:
            hop = found[begin:]
            *drawn, found = draw_hop(self._graph, begin, hop, fan_out, self.replace, key, found)
            begin += len(hop)
            counts.append(len(found) - begin)
            parts.append(drawn)
        row, col, edge_id, degree = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
        edges = [len(part[0]) for part in parts]
        return SamplerOutput(
            node=torch.from_numpy(found),
            row=row,
            col=col,
            edge=edge_id,
            num_sampled_nodes=counts,
            num_sampled_edges=edges,
            metadata=(input_id, None, _compress(row, col, degree, counts, edges)),
        )

    def sample_from_edges(self, inputs: Any, neg_sampling: Any = None) -> SamplerOutput:
        """Raise NotImplementedError."""
        rule, fix = "are not sampled from", USE_PYG.format("LinkNeighborLoader")
        raise NotImplementedError(message("NeighborSampler", "edges", rule, fix=fix))

    def __repr__(self) -> str:
        return f"NeighborSampler({self.num_neighbors}, replace={self.replace}, seed={self.seed})"


class NeighborLoader(NodeLoader):
    """Mini-batches of seeds and their sampled neighborhoods, with compressed edges.

    The counterpart of PyG's `NeighborLoader`, without a compiled package. Its batches have the
        attributes of PyG's (`batch_size`, `n_id`, `e_id`, `input_id`, `num_sampled_nodes`, ...), and in addition
        `pattern`, an `Edges` of the whole batch that has compressed rows and columns: nothing is sorted again;
        `layer_patterns`, one for each hop: the edges that layer l of as many layers needs, without those that can't
        reach a seed any more. Each has only the nodes it needs, the first ones of the batch.

    Layers recognize `batch.edge_index` as the pattern, too, as long as the batch isn't moved; after `batch.to(device)`
    pass `batch.pattern`. A `NodeLoader` of PyG with a `NeighborSampler` gives the same batches without patterns.
    Batches of a `HeteroData` have no patterns either: layers make `Relations` of their edges.

    Args:
        data, num_neighbors, replace, seed: as in `NeighborSampler`; or a `HeteroData`, as in `HeteroNeighborSampler`.
        input_nodes: the seeds, [n] integers or a mask [N] of bool; all nodes if omitted. With several types of nodes, a
            pair of the seeds' type and the seeds, or the type for all of its nodes.
        transform: called with each batch. If it changes the edges, the batch gets a new `pattern`, and has no
            `layer_patterns`.
        kwargs: of `torch.utils.data.DataLoader`, such as batch_size, shuffle, num_workers.

    Raises:
        IndexError: a seed isn't a node of the graph.
        TypeError, ValueError, NotImplementedError: as `NeighborSampler`; a batch_size of less than 1.

    Example:
        >>> path = Data(x=torch.eye(5), edge_index=torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]))
        >>> (batch,) = NeighborLoader(path, [-1, -1], input_nodes=torch.tensor([4, 1]), batch_size=2)
        >>> batch.n_id, batch.batch_size, batch.layer_patterns
        (tensor([4, 1, 3, 0, 2]), 2, [Edges(num_nodes=5, num_edges=3), Edges(num_nodes=4, num_edges=2)])
        >>> from graphattn.nn import GraphAttention
        >>> x = batch.x
        >>> for layer, pattern in zip([GraphAttention(5, 8), GraphAttention(8, 2)], batch.layer_patterns):
        ...     x = layer(x[: pattern.num_sources], pattern)
        >>> x[: batch.batch_size].shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        data: Data | HeteroData,
        num_neighbors: Fans,
        input_nodes: Any = None,
        *,
        replace: bool = False,
        seed: int = 0,
        transform: Callable[[Data], Data] | None = None,
        **kwargs: Any,
    ) -> None:
        options = {name: kwargs.pop(name) for name in NOT_OFFERED if name in kwargs}
        if kwargs.get("batch_sampler") is None:
            check_int("NeighborLoader", "batch_size", kwargs.get("batch_size", 1), 1)
        self._then = transform
        if isinstance(data, HeteroData):
            check_options("HeteroNeighborSampler", options)
            hetero = HeteroNeighborSampler(data, num_neighbors, replace=replace, seed=seed)
            super().__init__(data, hetero, _read_pair(input_nodes, hetero.num_nodes), **kwargs)
            return
        sampler = NeighborSampler(data, num_neighbors, replace=replace, seed=seed, **options)  # type: ignore[arg-type]
        if input_nodes is not None:
            input_nodes = _read_nodes("NeighborLoader", "input_nodes", input_nodes, sampler.num_nodes)
        super().__init__(data, sampler, input_nodes, **kwargs)

    def filter_fn(self, out: SamplerOutput | HeteroSamplerOutput) -> Data | HeteroData:
        """Add features and patterns to the sampled nodes and edges."""
        batch = super().filter_fn(out)
        if isinstance(out, HeteroSamplerOutput):
            return batch if self._then is None else self._then(batch)
        batch.layer_patterns = _patterns(batch.edge_index, out.metadata[2])
        batch.pattern = batch.layer_patterns[0]
        return batch if self._then is None else _transform(self._then, batch)

    def _get_iterator(self) -> Iterator[Any]:
        return DataLoaderIterator(super()._get_iterator(), _recognize)


class ClusterData(PyGClusterData):
    """Cut a graph into clusters with few edges between them, by pymetis.

    Arguments and clusters are those of `torch_geometric.loader.ClusterData`, which needs pyg-lib or torch-sparse; a
    `ClusterLoader` of PyG makes batches of them. The direction of edges doesn't matter.

    Raises:
        ImportError: pymetis isn't installed.
        ValueError: num_parts is less than 1.

    Example:
        >>> triangles = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 0, 4, 5, 3]])
        >>> clusters = ClusterData(Data(x=torch.arange(6.0), edge_index=triangles), 2, log=False)
        >>> sorted(cluster.x.tolist() for cluster in clusters)
        [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]

    References:
        Chiang et al., "Cluster-GCN: An Efficient Algorithm for Training Deep and Large Graph Convolutional Networks",
        2019.
    """

    def _metis(self, edge_index: Tensor, num_nodes: int) -> Tensor:
        return metis_parts(edge_index, self.num_parts, num_nodes, recursive=self.recursive)


def check_options(where: str, options: dict[str, Any]) -> None:
    """Raise at the first of PyG's further options that is set."""
    for name, value in options.items():
        if name not in NOT_OFFERED:
            raise TypeError(message(where, name, "is not an argument"))
        if value != NOT_OFFERED[name]:
            fix = USE_PYG.format("NeighborLoader")
            raise NotImplementedError(message(where, name, f"must be {NOT_OFFERED[name]!r} here", value, fix))


def _read_pair(input_nodes: Any, num_nodes: dict[Any, int]) -> Any:
    """The type of the seeds, and the seeds or None for all."""
    is_pair = isinstance(input_nodes, tuple | list) and len(input_nodes) == 2
    kind, nodes = input_nodes if is_pair else (input_nodes, None)
    if not isinstance(kind, Hashable) or kind not in num_nodes:
        rule = f"must be (type, nodes) with one of the types {list(num_nodes)}"
        raise ValueError(message("NeighborLoader", "input_nodes", rule, repr(kind)))
    return kind, None if nodes is None else _read_nodes("NeighborLoader", "input_nodes", nodes, num_nodes[kind])


def _read_nodes(where: str, argument: str, nodes: Any, num_nodes: int) -> Tensor:
    """Nodes, or a mask of them, in any of the forms that torch.as_tensor takes."""
    rule = f"must be integers of shape [n], or a mask of bool of shape [{num_nodes}]"
    try:
        read = torch.as_tensor(nodes)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(message(where, argument, rule, repr(nodes)[:60])) from error
    if read.dim() != 1 or (read.dtype == torch.bool and len(read) != num_nodes):
        raise ValueError(message(where, argument, rule, f"shape {shape_of(read)}"))
    # A mask of uint8 would be read as nodes 0 and 1.
    if read.dtype not in (torch.bool, torch.int64, torch.int32) and read.numel():
        raise TypeError(message(where, argument, rule, read.dtype))
    if read.dtype == torch.bool:
        return read
    check_nodes(where, argument, read, num_nodes)
    return read.to(torch.int64)


def _compress(
    source: Tensor, target: Tensor, degree: Tensor, counts: list[int], edges: list[int]
) -> list[tuple[CSR, CSR]]:
    """Rows and columns of sorted edges, for the first layer, the second, and so on."""
    index = source.to(torch.int32)
    ptr = torch.full((sum(counts) + 1,), len(index), dtype=torch.int64)
    ptr[0] = 0
    torch.cumsum(degree, 0, out=ptr[1 : len(degree) + 1])
    layers = []
    for hops in range(len(edges), 0, -1):
        nodes, ending = sum(counts[: hops + 1]), sum(edges[:hops])
        # Nodes that the last of these hops reached have no incoming edges in this layer.
        rows = CSR(ptr[: nodes + 1].clamp(max=ending), index[:ending], None)
        # The backward pass uses the columns.
        layers.append((rows, build_csr(source[:ending], target[:ending], nodes, nodes)))
    return layers


def _patterns(edge_index: Tensor, layers: list[tuple[CSR, CSR]]) -> list[Edges]:
    """Patterns of sorted edges, with their compressed rows and columns."""
    patterns = []
    for rows, columns in layers:
        # Detached: a view would keep alive the tensor whose deletion `remember_edges` waits for.
        pattern = Edges(edge_index[:, : len(rows.index)].cpu().detach(), len(rows.ptr) - 1)
        pattern.keep("csr", partial(CSR._make, rows))
        pattern.keep("csc", partial(CSR._make, columns))
        patterns.append(pattern.to(edge_index.device))
    return patterns


def _transform(transform: Callable[[Data], Data], batch: Data) -> Data:
    """Transform a batch; if its edges change, it gets a new pattern, and no patterns per layer."""
    edge_index, version = batch.edge_index, batch.edge_index._version
    batch = transform(batch)
    if not isinstance(batch, Data):
        fix = "Let it return the batch."
        raise TypeError(message("NeighborLoader", "transform", "must return a Data", type(batch).__name__, fix))
    if batch.edge_index is not edge_index or edge_index._version != version:
        batch.pattern = Edges(batch.edge_index, batch.num_nodes)
        del batch.layer_patterns
    return batch


def _recognize(batch: Any) -> Any:
    """Let layers find the pattern of a batch's edge_index in the training process."""
    if isinstance(batch, HeteroData):
        return batch
    pattern, edge_index = batch.get("pattern"), batch.get("edge_index")
    if isinstance(pattern, Edges) and isinstance(edge_index, Tensor) and torch.equal(pattern.edge_index, edge_index):
        remember_edges(edge_index, pattern)
    return batch

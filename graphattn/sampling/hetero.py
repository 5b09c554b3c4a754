"""Sampled neighborhoods of graphs with several types of nodes and edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.sampler import BaseSampler, HeteroSamplerOutput, NodeSamplerInput

from ..compiled import load
from ..errors import check_int, message
from ..patterns import Edges
from ..patterns.base import Sides
from ..patterns.relations import Relation
from .draw import arrays_of, check_seeds, draw_hop

Fans = Sequence[int] | Mapping[Relation, Sequence[int]]


class HeteroNeighborSampler(BaseSampler):
    """Draw some neighbors of nodes over each relation, then some neighbors of these, and so on.

    For each node that the previous hop reached for the first time, a hop draws up to the given number of its incoming
    edges of each relation, uniformly. Seeds come first among the nodes of their type, then those of each hop.

    Args:
        data: a heterogeneous graph.
        num_neighbors: the number of edges per node and relation for each hop, at least 0; -1 for all. Or a dictionary
            of these by relation.
        replace: draw with replacement, so that a node with any neighbor has the requested number.
        seed: 0 or more. The drawn edges are a function of this seed and of the nodes to start from, in their order.

    Raises:
        TypeError: `data` isn't a HeteroData, or a number isn't an integer.
        ValueError: there is no hop, or relations have different numbers of them; a relation has no edge_index.
        IndexError: a seed isn't a node of the graph; raised when sampling.

    Example:
        >>> data = HeteroData()
        >>> data["author"].num_nodes, data["paper"].num_nodes = 2, 3
        >>> data["author", "writes", "paper"].edge_index = torch.tensor([[0, 1, 1], [0, 0, 2]])
        >>> sampler = HeteroNeighborSampler(data, [-1])
        >>> out = sampler.sample_from_nodes(NodeSamplerInput(None, torch.tensor([2, 0]), input_type="paper"))
        >>> out.node["author"], out.row["author", "writes", "paper"], out.col["author", "writes", "paper"]
        (tensor([1, 0]), tensor([0, 0, 1]), tensor([0, 1, 1]))
    """

    def __init__(self, data: HeteroData, num_neighbors: Fans, *, replace: bool = False, seed: int = 0) -> None:
        where = "HeteroNeighborSampler"
        if not isinstance(data, HeteroData):
            raise TypeError(message(where, "data", "must be a HeteroData", type(data).__name__))
        self.relations = sorted(data.edge_types, key=lambda name: tuple(map(str, name)))
        self.num_nodes = {name: int(data[name].num_nodes or 0) for name in data.node_types}
        self.num_neighbors = _read_fans(where, num_neighbors, self.relations)
        self.hops = max((len(fans) for fans in self.num_neighbors.values()), default=0)
        self.replace = bool(replace)
        if self.replace and any(-1 in fans for fans in self.num_neighbors.values()):
            rule = "must be numbers with replace=True, because -1 takes each neighbor once"
            raise ValueError(message(where, "num_neighbors", rule, num_neighbors, "Use replace=False."))
        self.seed = check_int(where, "seed", seed, 0)
        if self.seed >= 2**32:
            raise ValueError(message(where, "seed", "must be less than 2^32", seed))
        self._graphs = {}
        for name in self.relations:
            store = data[name]
            edges = store.get("edge_index")
            if edges is None:
                fix = "Place edges in edge_index: PyG can't take parts of an adj_t."
                raise ValueError(message(where, f"data[{name!r}]", "must have an edge_index", fix=fix))
            sizes = (self.num_nodes[name[0]], self.num_nodes[name[2]])
            sides = Sides(str(name[0]), str(name[2]))
            self._graphs[name] = arrays_of(Edges.between(f"{where}, data[{name!r}]", edges, *sizes, sides).csr())
        # Compiled now, so that workers don't compile again.
        if self.relations:
            self._sample(self.relations[0][2], torch.empty(0, dtype=torch.int64), None)

    def sample_from_nodes(self, inputs: NodeSamplerInput, **kwargs: Any) -> HeteroSamplerOutput:
        """Sample for PyG's loaders."""
        if inputs.time is not None:
            rule = "must be None, because sampling by time is not supported"
            raise NotImplementedError(message("HeteroNeighborSampler", "input_time", rule))
        return self._sample(inputs.input_type, inputs.node, inputs.input_id)

    # The loops' hash overflows: Numba ignores that, but NumPy, if nothing is compiled, warns.
    @np.errstate(over="ignore")
    def _sample(self, kind: Any, seeds: Tensor, input_id: Tensor | None) -> HeteroSamplerOutput:
        where = "HeteroNeighborSampler"
        if kind not in self.num_nodes:
            rule = f"must be one of the types {list(self.num_nodes)}"
            raise ValueError(message(where, "input_type", rule, repr(kind), "Use input_nodes=(type, nodes)."))
        found = dict.fromkeys(self.num_nodes, np.empty(0, np.int64))
        found[kind] = check_seeds(where, seeds, self.num_nodes[kind])
        # Each relation draws with random numbers of its own.
        hash_seeds = load("sampling.jit.neighbors").hash_seeds
        keys = {name: hash_seeds(self.seed + (r << 32), found[kind]) for r, name in enumerate(self.relations)}
        begins = dict.fromkeys(self.num_nodes, 0)
        nodes = {name: [len(rows)] for name, rows in found.items()}
        parts: dict[Relation, list[tuple[Any, ...]]] = {name: [] for name in self.relations}
        for hop in range(self.hops):
            # What this hop reaches is the start of the next one.
            ends = {name: len(rows) for name, rows in found.items()}
            for name in self.relations:
                source, _, target = name
                begin, rows = begins[target], found[target][begins[target] : ends[target]]
                fan_out, graph = self.num_neighbors[name][hop], self._graphs[name]
                *drawn, _, found[source] = draw_hop(
                    graph, begin, rows, fan_out, self.replace, keys[name], found[source]
                )
                parts[name].append(tuple(drawn))
            begins = ends
            for name, rows in found.items():
                nodes[name].append(len(rows) - ends[name])
        joined = {name: [np.concatenate(side) for side in zip(*some, strict=True)] for name, some in parts.items()}
        row, col, edge = ({name: torch.from_numpy(part[i]) for name, part in joined.items()} for i in range(3))
        return HeteroSamplerOutput(
            node={name: torch.from_numpy(rows) for name, rows in found.items()},
            row=row,
            col=col,
            edge=edge,
            num_sampled_nodes=nodes,
            num_sampled_edges={name: [len(part[0]) for part in some] for name, some in parts.items()},
            metadata=(input_id, None),
        )

    def sample_from_edges(self, inputs: Any, neg_sampling: Any = None) -> HeteroSamplerOutput:
        """Raise NotImplementedError."""
        raise NotImplementedError(message("HeteroNeighborSampler", "edges", "are not sampled from"))

    def __repr__(self) -> str:
        return f"HeteroNeighborSampler({self.num_neighbors}, replace={self.replace}, seed={self.seed})"


def _read_fans(where: str, num_neighbors: Any, relations: list[Relation]) -> dict[Relation, list[int]]:
    """The numbers of each relation, one for each hop."""
    given = num_neighbors if isinstance(num_neighbors, Mapping) else dict.fromkeys(relations, num_neighbors)
    for name in given:
        if name not in relations:
            rule = f"must be of the relations {relations}"
            raise ValueError(message(where, "num_neighbors", rule, repr(name)))
    found = {}
    for name in relations:
        if name not in given:
            raise ValueError(message(where, "num_neighbors", "must name each relation", f"none for {name}"))
        fans = given[name]
        fans = fans.tolist() if isinstance(fans, Tensor) else fans
        if not isinstance(fans, Sequence) or isinstance(fans, str) or len(fans) == 0:
            fix = "Use num_neighbors=[10, 10] for two hops."
            rule = f"must have one number for each hop of {name}"
            raise ValueError(message(where, "num_neighbors", rule, fans, fix))
        found[name] = [check_int(where, "num_neighbors", count, -1) for count in fans]
    if len({len(fans) for fans in found.values()}) > 1:
        rule = "must have as many hops for each relation"
        raise ValueError(message(where, "num_neighbors", rule, num_neighbors))
    return found

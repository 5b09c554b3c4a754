"""METIS on an edge list; `partition` has the public function."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import message


def find_parts(edge_index: Tensor, nodes: int, num_parts: int, seed: int = 0, *, recursive: bool = False) -> Tensor:
    """Part of each node, [nodes] int64, see `metis_parts`.

    Raises:
        ImportError: pymetis isn't installed.
    """
    try:
        import pymetis
    except ImportError as error:
        fix = "Use pip install 'graphattn[partition]' or pip install pymetis."
        raise ImportError(message("metis_parts", "pymetis", "must be installed", fix=fix)) from error
    if num_parts == 1 or num_parts >= nodes:
        return torch.arange(nodes, device=edge_index.device) % num_parts
    from scipy.sparse import coo_array

    source, target = edge_index[:, edge_index[0] != edge_index[1]].cpu().numpy()
    both = (np.concatenate([source, target]), np.concatenate([target, source]))
    neighbors = coo_array((np.ones(len(both[0]), np.int8), both), shape=(nodes, nodes)).tocsr()
    dtype = pymetis.zero_copy_dtype()
    adjacency = pymetis.CSRAdjacency(neighbors.indptr.astype(dtype), neighbors.indices.astype(dtype))
    options = pymetis.Options(seed=seed)
    found = pymetis.part_graph(num_parts, adjacency, recursive=recursive, options=options)
    return torch.tensor(found.vertex_part, dtype=torch.int64, device=edge_index.device)

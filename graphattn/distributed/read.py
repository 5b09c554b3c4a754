"""Graphs by name or from a file, to be cut into parts."""

from __future__ import annotations

import gzip
import itertools
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
from torch_geometric.data.storage import GlobalStorage

from ..datasets import load_graph
from ..errors import message, shape_of

TEXT = (".txt", ".csv", ".tsv", ".gz")
SUFFIXES = (".pt", ".npz", *TEXT)
# Errors of the readers if a file has another format, is truncated, or can't be read.
UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
)

# Node numbers larger than this multiple of the possible number of nodes show that they don't count from 0.
DENSE = 100


def read_graph(source: str) -> Data:
    r"""Read a graph: a data set's name as in `load_graph`, or the path of a file.

    Args:
        source: a name; or a path that ends in .pt, a `Data` or a dictionary that torch.save wrote, which is read with
            weights_only=True, so that nothing in it can run code; .npz, arrays by name; or .txt, .csv, .tsv or .gz, an
            edge on each line, source and target with a comma or spaces between them. Further columns are ignored, as
            are lines that begin with #, and names of the columns on the first line. In .pt and .npz, edge_index [2, E]
            is required and num_nodes optional; without it and without x, the last node is the last one that has an
            edge.

    Returns:
        Data with edge_index, num_nodes, and all other tensors of the file.

    Raises:
        FileNotFoundError: there is no such file, or the data set can't be downloaded.
        ValueError: the name is unknown, or the file holds something else, or has no number of nodes although another
            tensor has more rows than there are nodes with edges.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "triangle.txt"
        ...     _ = path.write_text("# from to\n0 1\n1 2\n2 0\n")
        ...     read_graph(str(path))
        Data(edge_index=[2, 3], num_nodes=3)
    """
    path = Path(source)
    if path.suffix.lower() not in SUFFIXES:
        return load_graph(source)[0]
    if not path.is_file():
        raise FileNotFoundError(message("read_graph", "file", "must exist", f"nothing at {path}"))
    read = {".pt": _read_torch, ".npz": _read_arrays}.get(path.suffix.lower(), _read_text)
    try:
        held = read(path)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        fix = "" if read is not _read_text else "Write the numbers of two nodes on each line, such as 0,1."
        rule = "must be a graph in the format of its ending"
        raise ValueError(message("read_graph", str(path), rule, reason, fix)) from error
    edge_index = held.get("edge_index")
    if not isinstance(edge_index, Tensor) or edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(message("read_graph", str(path), "must hold an edge_index [2, E]", ", ".join(map(str, held))))
    if edge_index.is_floating_point() or edge_index.is_complex() or edge_index.dtype == torch.bool:
        raise ValueError(message("read_graph", str(path), "must hold an edge_index of integers", edge_index.dtype))
    data = Data(**{name: x for name, x in held.items() if isinstance(x, Tensor) and x.dim()})
    data.edge_index = edge_index.to(torch.int64)
    if held.get("num_nodes") is not None:
        data.num_nodes = int(held["num_nodes"])
    elif "x" not in data:
        data.num_nodes = _count_nodes(path, data)
    return data


def _count_nodes(path: Path, data: Data) -> int:
    """The number of nodes that the edges reach; raise ValueError if there must be more, or far fewer have edges."""
    edges = data.edge_index
    nodes = int(edges.max()) + 1 if edges.numel() else 0
    if nodes > DENSE * edges.numel() + 10**6:
        got, fix = f"node {nodes - 1} in {edges.size(1)} edges", "Number the nodes 0, 1, 2, ..., or store num_nodes."
        raise ValueError(message("read_graph", str(path), "must use most of the node numbers", got, fix))
    for name, x in data.to_dict().items():
        if isinstance(x, Tensor) and "edge" not in name and x.dim() and x.size(0) > nodes:
            got = f"{name} of shape {shape_of(x)}, where edges reach {nodes} nodes"
            fix = "Store num_nodes with edge_index."
            raise ValueError(message("read_graph", str(path), "must hold num_nodes", got, fix))
    return nodes


def _read_torch(path: Path) -> Mapping[str, Any]:
    # A pickle could run any code: weights_only accepts only tensors, numbers, dictionaries and PyG's Data.
    needed = {Data, DataEdgeAttr, DataTensorAttr, GlobalStorage}
    # Classes that were allowed before must stay allowed, but leaving this block removes those that it lists.
    with torch.serialization.safe_globals(list(needed - set(torch.serialization.get_safe_globals()))):
        held = torch.load(path, map_location="cpu", weights_only=True)
    held = held.to_dict() if isinstance(held, Data) else held
    if not isinstance(held, Mapping):
        raise ValueError(f"a {type(held).__name__}")
    return held


def _read_arrays(path: Path) -> Mapping[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return {
            name: torch.from_numpy(np.atleast_1d(arrays[name])) if name != "num_nodes" else int(arrays[name])
            for name in arrays.files
        }


def _read_text(path: Path) -> Mapping[str, Any]:
    unpack = gzip.open if path.suffix.lower() == ".gz" else open
    # Some programs begin a text with an invisible byte order mark.
    with unpack(path, "rt", encoding="utf-8-sig") as file:
        lines = ((number, line.partition("#")[0].strip()) for number, line in enumerate(file))
        first = list(itertools.islice((line for line in lines if line[1]), 2))
    # A first column without a name is the index of a table, not a source.
    if first and all(field and not _is_number(field) for field in re.split(r"[,\s]+", first[0][1])[:2]):
        del first[0]
    if not first:
        raise ValueError("no edge")
    begin, edge = first[0]
    delimiter = "," if re.match(r"[^,\s]*\s*,", edge) else None
    pairs = np.loadtxt(
        path, np.int64, usecols=(0, 1), delimiter=delimiter, skiprows=begin, ndmin=2, encoding="utf-8-sig"
    )
    return {"edge_index": torch.from_numpy(pairs.T.copy())}


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True

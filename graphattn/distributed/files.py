"""Parts of a graph on disk: one file for each rank, a checksum of each, and a manifest that names them."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch_geometric.data import Data
from tqdm import tqdm

from ..errors import message, shape_of
from .exchange import raise_together
from .parts import Part
from .pattern import DistributedPattern

MANIFEST = "manifest.json"
FORMAT = "graphattn-parts-1"
NUMBERS = ("rank", "num_parts", "num_nodes", "num_edges")
TENSORS = ("nodes", "halo", "halo_counts", "send", "send_counts", "edge_index", "edges")


def save_parts(
    folder: str | os.PathLike[str],
    parts: Sequence[Part],
    node: Mapping[str, Tensor] | None = None,
    edge: Mapping[str, Tensor] | None = None,
    *,
    progress: bool = False,
) -> None:
    """Write one safetensors file for each part, and a manifest with their checksums.

    A file holds the part and its rows of the tensors of nodes and edges, so that each rank reads only its own data. The
    manifest is written last: a folder without one isn't complete.

    Args:
        folder: created if missing; an earlier partition in it is replaced.
        parts: from `split_graph`.
        node: by name, tensors of N rows, such as x, y and masks.
        edge: by name, tensors of E rows, such as edge_attr.
        progress: show a progress bar on stderr.

    Raises:
        ImportError: safetensors isn't installed.
        ValueError: a tensor has another number of rows, or an attribute's name is one that `load_part` uses.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from graphattn.distributed import read_part, split_graph
        >>> path = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
        >>> with TemporaryDirectory() as folder:
        ...     save_parts(folder, split_graph(path, torch.tensor([0, 0, 1, 1])), {"x": torch.arange(4.0)})
        ...     part, tensors = read_part(folder, 1)
        >>> part.nodes, tensors["x"]
        (tensor([2, 3]), tensor([2., 3.]))
    """
    save_file = _safetensors("save_parts").save_file
    node, edge = node or {}, edge or {}
    sizes = (("node", node, parts[0].num_nodes), ("edge", edge, parts[0].num_edges))
    for kind, tensors, size in sizes:
        for name, x in tensors.items():
            if name in (*TENSORS, "pattern", "n_id"):
                raise ValueError(message("save_parts", kind, "must not have names of a part's own tensors", repr(name)))
            if x.dim() == 0 or x.size(0) != size:
                rule = f"must have {size} rows, one for each {kind} of the graph"
                raise ValueError(message("save_parts", f"{kind}[{name!r}]", rule, f"shape {shape_of(x)}"))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MANIFEST).exists():
        for earlier in (folder / MANIFEST, *folder.glob("part-*-of-*.safetensors")):
            earlier.unlink()
    files = []
    for part in tqdm(parts, desc="write", unit="part", disable=not progress, leave=False):
        tensors = {name: getattr(part, name) for name in TENSORS}
        tensors |= {name: x.cpu()[part.nodes] for name, x in node.items()}
        tensors |= {name: x.cpu()[part.edges] for name, x in edge.items()}
        about = {name: str(getattr(part, name)) for name in (*NUMBERS, "graph")}
        path = folder / f"part-{part.rank}-of-{part.num_parts}.safetensors"
        # safetensors makes files that only their owner can read; files opened here get the usual permissions.
        path.touch()
        permissions = path.stat().st_mode
        save_file({name: x.contiguous() for name, x in tensors.items()}, path, {"format": FORMAT, **about})
        path.chmod(permissions)
        sizes_of = {"nodes": part.nodes.numel(), "edges": part.edges.numel(), "halo": part.halo.numel()}
        files.append({"name": path.name, "sha256": _sha256(path), **sizes_of})
    whole = {name: getattr(parts[0], name) for name in ("graph", *NUMBERS[1:])}
    manifest = {"format": FORMAT, **whole, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def read_part(folder: str | os.PathLike[str], rank: int) -> tuple[Part, dict[str, Tensor]]:
    """Read one rank's part and its rows of the nodes' and edges' tensors, and nothing else of the graph.

    Args:
        folder: as `save_parts` or `python -m graphattn partition` wrote it.
        rank: which part.

    Raises:
        FileNotFoundError: the manifest or the file is missing.
        ValueError: there is no such part; the file was truncated, changed, or belongs to another graph or rank.
        ImportError: safetensors isn't installed.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    if not 0 <= rank < manifest["num_parts"]:
        raise ValueError(message("read_part", "rank", f"must lie in [0, {manifest['num_parts']})", rank))
    entry = manifest["files"][rank]
    path = folder / entry["name"]
    if not path.is_file():
        raise FileNotFoundError(message("read_part", "part", "must exist", f"nothing at {path}"))
    found = _sha256(path)
    if found != entry["sha256"]:
        got = f"{found} ({path.stat().st_size} bytes)"
        rule = f"must have the checksum of the manifest, sha256 {entry['sha256']}"
        raise ValueError(message("read_part", str(path), rule, got, "Copy it again, or write the partition again."))
    with _safetensors("read_part", "safetensors").safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    expected = {"rank": rank, **{name: manifest[name] for name in ("num_parts", "num_nodes", "num_edges", "graph")}}
    for name, value in expected.items():
        if about.get(name) != str(value):
            rule = f"must be of the manifest's {name}, {value}"
            raise ValueError(message("read_part", str(path), rule, about.get(name)))
    numbers: dict[str, Any] = {name: int(about[name]) for name in NUMBERS}
    return Part(graph=about["graph"], **numbers, **{name: tensors.pop(name) for name in TENSORS}), tensors


def load_part(folder: str | os.PathLike[str], group: Any = None) -> Data:
    """Load this rank's part of a graph as PyG's `Data`, with its `DistributedPattern`. All ranks call it together.

    Args:
        folder: as `save_parts` or `python -m graphattn partition` wrote it, on every rank's machine.
        group: the process group; the default one if None.

    Returns:
        Data with `pattern`, to be passed in place of an edge_index; `n_id` [own], the nodes of the whole graph that
        this rank owns; and this rank's rows of the saved tensors, such as x and y, and edge_attr in the order of
        the pattern's edges.

    Raises:
        FileNotFoundError: the manifest or a file is missing.
        ValueError: there are more or fewer parts than ranks; a file was truncated, changed, or belongs to another graph
            or rank; the parts don't hold each node once. Every rank raises the same error.
        RuntimeError: there is no process group; or a rank stopped, or was slower than the group's timeout.

    Example:
        >>> data = load_part("parts")  # doctest: +SKIP
        >>> out = model(data.x, data.pattern, data.edge_attr)  # doctest: +SKIP
        >>> total = data.pattern.part.num_nodes  # doctest: +SKIP
        >>> loss = torch.nn.functional.cross_entropy(out, data.y, reduction="sum") / total  # doctest: +SKIP
        >>> loss.backward()  # doctest: +SKIP
        >>> sum_gradients(model)  # doctest: +SKIP
    """
    where = "load_part"
    if not dist.is_initialized():
        fix = "Use torch.distributed.init_process_group('gloo') in a process that torchrun started."
        raise RuntimeError(message(where, "process group", "must be initialized", fix=fix))
    ranks, error, found = dist.get_world_size(group), None, None
    try:
        parts = _read_manifest(Path(folder))["num_parts"]
        if parts != ranks:
            fix = f"Use torchrun --nproc-per-node {parts}, or python -m graphattn partition --parts {ranks}."
            raise ValueError(message(where, "number of ranks", f"must be that of parts, {parts}", ranks, fix))
        found = read_part(folder, dist.get_rank(group))
    except (OSError, ValueError, ImportError) as problem:
        error = problem
    raise_together(where, error, group)
    assert found is not None
    part, tensors = found
    pattern = DistributedPattern(part, group)
    return Data(**tensors, pattern=pattern, n_id=part.nodes, num_nodes=part.nodes.numel())


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        fix = f"Use python -m graphattn partition GRAPH --parts P --output {folder}."
        raise FileNotFoundError(message("read_part", "manifest", "must exist", f"nothing at {path}", fix))
    try:
        manifest = json.loads(path.read_text())
        is_right = manifest["format"] == FORMAT and len(manifest["files"]) == manifest["num_parts"]
        is_right = is_right and {*NUMBERS[1:], "graph"} <= set(manifest)
        is_right = is_right and all({"name", "sha256"} <= set(entry) for entry in manifest["files"])
    except (ValueError, KeyError, TypeError):
        is_right = False
    if not is_right:
        raise ValueError(message("read_part", str(path), f"must be a manifest of {FORMAT} that names each part"))
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _safetensors(where: str, module: str = "safetensors.torch") -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        fix = "Use pip install 'graphattn[partition]' or pip install safetensors."
        raise ImportError(message(where, "safetensors", "must be installed", fix=fix)) from error

"""Node classification graphs by name, through PyG's loaders, with checked files and clear errors."""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch_geometric.data import InMemoryDataset
from torch_geometric.datasets import (
    DBLP,
    IMDB,
    Actor,
    Amazon,
    Coauthor,
    Entities,
    HeterophilousGraphDataset,
    Planetoid,
    WikiCS,
)

from ..errors import check_choice, message
from .arxiv import FILES, OgbnArxiv
from .roots import RawFile, check_file, dataset_root

_MATRICES, _SPLIT = ("adjM.npz", "features_0.npz", "features_1.npz"), "train_val_test_idx.npz"
_FILM = ("out1_node_feature_label.txt", "out1_graph_edges.txt")
_PLANETOID_PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")


@dataclass(frozen=True)
class GraphEntry:
    """One graph: its loader, the loader's root below the data set root, the raw files it reads, the file it writes."""

    name: str
    loader: Any
    folder: str
    files: tuple[RawFile, ...]
    processed: str = "data.pt"

    @property
    def raw(self) -> Path:
        """The folder of the raw files, or of their folders, below the data set root."""
        return Path(os.path.commonpath([Path(file.path).parent for file in self.files]))


def _planetoid(name: str, *published: tuple[int, str]) -> GraphEntry:
    paths = [f"Planetoid/{name}/raw/ind.{name.lower()}.{part}" for part in _PLANETOID_PARTS]
    if not published:
        return GraphEntry(name, Planetoid, "Planetoid", tuple(RawFile(path) for path in paths))
    files = [RawFile(path, sha256, size) for path, (size, sha256) in zip(paths, published, strict=True)]
    return GraphEntry(name, Planetoid, "Planetoid", tuple(files))


class _Filtered(HeterophilousGraphDataset):
    def __init__(self, root: str, name: str) -> None:
        # PyG's constructor knows five names; files of the others are in the same place and have the same layout.
        self.name = name.lower().replace("-", "_")
        InMemoryDataset.__init__(self, root)
        self.load(self.processed_paths[0])


def _heterophilous(
    name: str,
    size: int | None = None,
    sha256: str | None = None,
    loader: type[InMemoryDataset] = HeterophilousGraphDataset,
) -> GraphEntry:
    stem = name.lower().replace("-", "_")
    file = RawFile(f"HeterophilousGraph/{stem}/raw/{stem}.npz", sha256, size)
    return GraphEntry(name, loader, "HeterophilousGraph", (file,))


def _amazon(name: str) -> GraphEntry:
    # The same graphs exist as re-saved archives with other bytes, so a checksum would refuse good files.
    file = RawFile(f"Amazon/{name}/raw/amazon_electronics_{name.lower()}.npz")
    return GraphEntry(name, Amazon, "Amazon", (file,))


def _coauthor(name: str) -> GraphEntry:
    file = RawFile(f"Coauthor/{name}/raw/ms_academic_{name[:3].lower()}.npz")
    return GraphEntry(name, Coauthor, "Coauthor", (file,))


class _WikiCS(WikiCS):
    def __init__(self, root: str, name: str) -> None:
        # PyG's default, which it warns of unless it is asked for.
        super().__init__(root, is_undirected=True)


class _Actor(Actor):
    def __init__(self, root: str, name: str) -> None:
        super().__init__(root)


class _DBLP(DBLP):
    def __init__(self, root: str, name: str) -> None:
        super().__init__(root)


class _IMDB(IMDB):
    def __init__(self, root: str, name: str) -> None:
        super().__init__(root)


class _Entities(Entities):
    url = "https://data.dgl.ai/dataset/{}.tgz"

    def __init__(self, root: str, name: str) -> None:
        super().__init__(root, name, hetero=True)


def _alone(name: str, loader: type[InMemoryDataset], *files: str, processed: str = "data.pt") -> GraphEntry:
    return GraphEntry(name, loader, name, tuple(RawFile(f"{name}/raw/{file}") for file in files), processed)


def _entities(name: str) -> GraphEntry:
    files = (f"{name.lower()}_stripped.nt.gz", "completeDataset.tsv", "trainingSet.tsv", "testSet.tsv")
    return GraphEntry(
        name, _Entities, "Entities", tuple(RawFile(f"Entities/{name.lower()}/raw/{file}") for file in files)
    )


GRAPHS = (
    _planetoid(
        "Cora",
        (22119, "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab"),
        (148025, "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a"),
        (257305, "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543"),
        (4054, "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1"),
        (28135, "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad"),
        (47959, "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71"),
        (59847, "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d"),
        (5000, "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875"),
    ),
    _planetoid(
        "CiteSeer",
        (31087, "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6"),
        (260321, "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21"),
        (595021, "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668"),
        (3014, "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924"),
        (24135, "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce"),
        (55623, "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95"),
        (61987, "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7"),
        (5000, "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4"),
    ),
    _planetoid("PubMed"),
    _heterophilous("Minesweeper", 135045, "e664c8dacf1e8ac466c2c09ed4b237bd2c5541f47a6eae9c6092cb87f16412b3"),
    _heterophilous("Tolokers", 1329769, "dacf3ac94cec53d03cd2adb5255c08b33dee1656c33ca8164a464bd9450a1667"),
    _heterophilous("Roman-empire"),
    _heterophilous("Amazon-ratings"),
    _heterophilous("Questions"),
    _heterophilous("Squirrel-filtered", loader=_Filtered),
    _heterophilous("Chameleon-filtered", loader=_Filtered),
    _amazon("Photo"),
    _amazon("Computers"),
    _coauthor("CS"),
    _coauthor("Physics"),
    _alone("WikiCS", _WikiCS, "data.json", processed="data_undirected.pt"),
    _alone("Actor", _Actor, *_FILM, *(f"film_split_0.6_0.2_{split}.npz" for split in range(10))),
    GraphEntry("ogbn-arxiv", OgbnArxiv, "ogbn_arxiv", tuple(RawFile(f"ogbn_arxiv/{file}") for file in FILES)),
    _alone("DBLP", _DBLP, *_MATRICES, "features_2.npy", "labels.npy", "node_types.npy", _SPLIT),
    _alone("IMDB", _IMDB, *_MATRICES, "features_2.npz", "labels.npy", _SPLIT),
    _entities("AIFB"),
    _entities("MUTAG"),
)


def load_graph(name: str, root: str | os.PathLike[str] | None = None) -> InMemoryDataset:
    """Load a node classification graph by name, downloading its raw files if they are missing.

    Args:
        name: one of Cora, CiteSeer, PubMed, Minesweeper, Tolokers, Roman-empire, Amazon-ratings, Questions,
            Squirrel-filtered, Chameleon-filtered, Photo, Computers, CS, Physics, WikiCS, Actor, ogbn-arxiv; of several
            relations DBLP, IMDB, AIFB, MUTAG. Case, `-` and `_` don't matter.
        root: the data set root; see `dataset_root` for the default.

    Returns:
        A PyG data set of one graph: `dataset[0]` is the `Data`, of several relations the `HeteroData`. Actor and
        ogbn-arxiv have each edge in its published direction alone: `torch_geometric.transforms.ToUndirected()` adds
        the reverse edges, which the others have. Where there are several splits, masks are [N, splits].

    Raises:
        ValueError: the name is unknown, or a file is truncated or changed.
        FileNotFoundError: raw files are missing and can't be downloaded. No partial files remain.

    Example:
        >>> load_graph("Cora")[0]  # doctest: +SKIP
        Data(x=[2708, 1433], edge_index=[2, 10556], y=[2708], train_mask=[2708], ...)
        >>> load_graph("Coral")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: load_graph: name must be one of 'Cora', ..., got 'Coral'. Did you mean 'Cora'?
    """
    known = {_key(entry.name): entry.name for entry in GRAPHS}
    name = known.get(_key(name), name)
    check_choice("load_graph", "name", name, known.values())
    entry = next(entry for entry in GRAPHS if entry.name == name)
    root = dataset_root(root)
    if not all((root / file.path).exists() for file in entry.files):
        _download(entry, root)

    raw = root / entry.raw
    processed = (root / entry.files[0].path).parents[1] / "processed" / entry.processed
    # Processed files were made from checked files, so that checking these again would only cost time.
    if not processed.exists():
        for file in entry.files:
            fix = f"Delete {root / file.path} and call load_graph({name!r}) again."
            check_file("load_graph", root, file, fix)
    try:
        return entry.loader(str(root / entry.folder), name)
    except Exception as error:
        # A full disk or a folder without write permission has a clear error, and deleting files would not help.
        if isinstance(error, OSError | MemoryError) and not isinstance(error, gzip.BadGzipFile):
            raise
        # There may be one now that wasn't there before, which another process is writing or has left unfinished.
        culprit = processed if processed.exists() else raw
        rule = "must be readable by its loader"
        fix = f"Delete {culprit} and call load_graph({name!r}) again."
        raise ValueError(message("load_graph", str(culprit), rule, _one_line(error), fix)) from error


def _key(name: str) -> str:
    return str(name).lower().replace("-", "").replace("_", "")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _download(entry: GraphEntry, root: Path) -> None:
    """Download the missing files of `entry` by way of a scratch folder, so that only readable files are kept."""
    missing = [file for file in entry.files if not (root / file.path).exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".download-", dir=root) as scratch:
            # Loading there proves that nothing is truncated: not every transfer notices a lost connection.
            entry.loader(str(Path(scratch) / entry.folder), entry.name)
            for file in missing:
                check_file("load_graph", Path(scratch), file, "The original has changed.")
            for file in missing:
                (root / file.path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(scratch) / file.path, root / file.path)
    except Exception as error:
        # urllib, aiohttp, TLS and timeouts share no base class, and a login page instead of a file fails to parse.
        names = ", ".join(Path(file.path).relative_to(entry.raw).as_posix() for file in missing)
        rule = f"needs files that are missing and can't be downloaded: {names}"
        fix = f"Download them from {entry.loader.url} and put them into {root / entry.raw}."
        raise FileNotFoundError(message("load_graph", entry.name, rule, _one_line(error), fix)) from error

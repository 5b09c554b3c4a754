"""Graphs in the formats of their publishers: a small graph, written as each publisher does, comes out whole."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import scipy.sparse
import torch

from graphattn.datasets import GRAPHS, arxiv, load_graph

# Binary features, and at least one of each node, because not every format can hold others.
X = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]], dtype=np.float32)
Y = np.array([1, 0, 2, 1, 0])
EDGES = np.array([[2, 0], [0, 1], [4, 2], [1, 2], [1, 0]])
YEARS = np.array([2013, 2018, 2017, 2020, 2019])
# [2 splits, N], each a permutation of the nodes cut into three.
ORDERS = np.array([[0, 2, 1, 3, 4], [4, 1, 0, 3, 2]])
TRAIN, VALID, TEST = (np.array([np.isin(np.arange(5), row) for row in ORDERS[:, cut]]) for cut in np.s_[:2, 2:3, 3:])


class Format(NamedTuple):
    """What writes the graph for a name, in how many splits, and whether the loader adds reverse edges."""

    write: Callable[[Path, str], None]
    splits: int = 2
    is_undirected: bool = True


def make_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def write_heterophilous(root: Path, name: str) -> None:
    stem = name.lower().replace("-", "_")
    np.savez(
        make_folder(root / "HeterophilousGraph" / stem / "raw") / f"{stem}.npz",
        node_features=X,
        node_labels=Y,
        edges=EDGES,
        train_masks=TRAIN,
        val_masks=VALID,
        test_masks=TEST,
    )


def write_npz(path: Path) -> None:
    """The arrays of shchur/gnn-benchmark: two matrices as compressed rows, labels, names."""
    adjacency = scipy.sparse.csr_matrix((np.ones(len(EDGES), np.float32), EDGES.T), (5, 5))
    matrices = {"adj": adjacency, "attr": scipy.sparse.csr_matrix(X)}
    parts = {f"{key}_{part}": getattr(m, part) for key, m in matrices.items() for part in ("data", "indices", "indptr")}
    shapes = {f"{key}_shape": np.array(m.shape) for key, m in matrices.items()}
    np.savez(path, **parts, **shapes, labels=Y, node_names=np.array(list("abcde"), dtype=object))


def write_amazon(root: Path, name: str) -> None:
    write_npz(make_folder(root / "Amazon" / name / "raw") / f"amazon_electronics_{name.lower()}.npz")


def write_coauthor(root: Path, name: str) -> None:
    short = {"CS": "cs", "Physics": "phy"}[name]
    write_npz(make_folder(root / "Coauthor" / name / "raw") / f"ms_academic_{short}.npz")


def write_wikics(root: Path, name: str) -> None:
    content = {
        "features": X.tolist(),
        "labels": Y.tolist(),
        "links": [EDGES[EDGES[:, 0] == node, 1].tolist() for node in range(5)],
        "train_masks": TRAIN.tolist(),
        "val_masks": VALID.tolist(),
        "stopping_masks": VALID.tolist(),
        "test_mask": TEST[0].tolist(),
    }
    (make_folder(root / "WikiCS" / "raw") / "data.json").write_text(json.dumps(content))


def write_actor(root: Path, name: str) -> None:
    raw = make_folder(root / "Actor" / "raw")
    nodes = [f"{node}\t{','.join(map(str, np.flatnonzero(X[node])))}\t{Y[node]}\n" for node in range(5)]
    (raw / "out1_node_feature_label.txt").write_text("".join(["node_id\tfeature\tlabel\n", *nodes]))
    edges = [f"{source}\t{target}\n" for source, target in EDGES]
    (raw / "out1_graph_edges.txt").write_text("".join(["node_id\tnode_id\n", *edges]))
    for split in range(10):
        masks = {"train_mask": TRAIN, "val_mask": VALID, "test_mask": TEST}
        # Numbers, not booleans, as in the published files.
        numbers = {key: mask[split % 2].astype(np.uint8) for key, mask in masks.items()}
        np.savez(raw / f"film_split_0.6_0.2_{split}.npz", **numbers)


def write_arxiv(root: Path, name: str, **changed: object) -> None:
    """The tables of OGB, as `{folder}/{name}.csv.gz` without header; `changed` has other contents for some."""
    folder = root / "ogbn_arxiv"
    tables = {"edge": EDGES, "node-feat": X, "node-label": Y[:, None], "node_year": YEARS[:, None]}
    tables |= {"num-node-list": [[5]], "num-edge-list": [[5]]}
    train, valid, test = np.split(ORDERS[0][:, None], [2, 3])
    splits = {"train": train, "valid": valid, "test": test}
    for path, part in (("raw", tables), ("split/time", splits)):
        make_folder(folder / path)
        for key, table in part.items():
            rows = [",".join(map(str, np.asarray(row).tolist())) for row in changed.get(key, table)]
            with gzip.open(folder / path / f"{key}.csv.gz", "wt") as file:
                file.write("\n".join([*rows, ""]))


FORMATS = {
    "Roman-empire": Format(write_heterophilous),
    "Squirrel-filtered": Format(write_heterophilous),
    "Chameleon-filtered": Format(write_heterophilous),
    "Photo": Format(write_amazon, splits=0),
    "Computers": Format(write_amazon, splits=0),
    "CS": Format(write_coauthor, splits=0),
    "Physics": Format(write_coauthor, splits=0),
    "WikiCS": Format(write_wikics),
    "Actor": Format(write_actor, splits=10, is_undirected=False),
    "ogbn-arxiv": Format(write_arxiv, splits=1, is_undirected=False),
}
every_format = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    def download(dataset):
        raise AssertionError("nothing is missing")

    for entry in GRAPHS:
        monkeypatch.setattr(entry.loader, "download", download)


def expected_mask(masks: np.ndarray, splits: int) -> list[object]:
    return masks[0].tolist() if splits == 1 else [masks[split % 2].tolist() for split in range(splits)]


@every_format
def test_a_graph_comes_out_as_it_was_published(name, tmp_path):
    write, splits, is_undirected = FORMATS[name]
    write(tmp_path, name)
    # The second time, it comes from what the first one has processed.
    for _ in range(2):
        dataset = load_graph(name, tmp_path)
        data = dataset[0]
        data.validate()
        assert (data.num_nodes, dataset.num_features, dataset.num_classes) == (5, 4, 3)
        assert data.x.tolist() == X.tolist() and data.x.dtype == torch.float32
        assert data.y.tolist() == Y.tolist() and data.y.dtype == torch.int64
        both = {tuple(edge) for edge in [*EDGES.tolist(), *(EDGES[:, ::-1].tolist() if is_undirected else [])]}
        assert sorted(map(tuple, data.edge_index.t().tolist())) == sorted(both)
        for key, masks in (("train_mask", TRAIN), ("val_mask", VALID), ("test_mask", TEST)):
            if splits == 0:
                assert key not in data
            else:
                assert data[key].dtype == torch.bool and data[key].shape[0] == 5
                one_test = (name, key) == ("WikiCS", "test_mask")
                assert data[key].t().tolist() == expected_mask(masks, 1 if one_test else splits)


@every_format
def test_a_truncated_processed_file_says_what_to_delete(name, tmp_path):
    FORMATS[name].write(tmp_path, name)
    load_graph(name, tmp_path)
    (processed,) = tmp_path.rglob("processed/data*.pt")
    processed.write_bytes(processed.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"^load_graph: ") as caught:
        load_graph(name, tmp_path)
    assert str(caught.value).endswith(f"Delete {processed} and call load_graph({name!r}) again.")


# ogbn-arxiv, whose loader is our own.


def test_arxiv_keeps_the_order_of_edges_and_the_years(tmp_path):
    write_arxiv(tmp_path, "ogbn-arxiv")
    data = load_graph("OGBN_arxiv", tmp_path)[0]
    assert data.edge_index.t().tolist() == EDGES.tolist()
    assert data.edge_index.is_contiguous()
    assert data.node_year.tolist() == YEARS.tolist()


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"num-edge-list": [[6]]}, "raw/edge.csv.gz must have 6 rows, got 5"),
        ({"node-feat": X[:4]}, "raw/node-feat.csv.gz must have 5 rows, got 4"),
        ({"node-label": Y[:3, None]}, "raw/node-label.csv.gz must have 5 rows, got 3"),
        ({"node_year": YEARS[:2, None]}, "raw/node_year.csv.gz must have 5 rows, got 2"),
        ({"edge": [*EDGES[:4], [0, 5]]}, "raw/edge.csv.gz must name nodes in [0, 5), got 0 to 5"),
        ({"valid": [[-1]]}, "split/time/valid.csv.gz must name nodes in [0, 5), got -1 to -1"),
        ({"test": [[3], [7]]}, "split/time/test.csv.gz must name nodes in [0, 5), got 3 to 7"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arxiv_files_that_contradict_each_other_are_refused(changed, problem, tmp_path):
    write_arxiv(tmp_path, "ogbn-arxiv", **changed)
    with pytest.raises(ValueError, match=r"^load_graph: ") as caught:
        load_graph("ogbn-arxiv", tmp_path)
    folder = tmp_path / "ogbn_arxiv"
    assert str(caught.value) == (
        f"load_graph: {folder} must be readable by its loader, got ValueError: {problem}. "
        f"Delete {folder} and call load_graph('ogbn-arxiv') again."
    )


@pytest.mark.parametrize("file", arxiv.FILES)
def test_a_truncated_table_is_refused(file, tmp_path):
    write_arxiv(tmp_path, "ogbn-arxiv")
    path = tmp_path / "ogbn_arxiv" / file
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"must be readable by its loader, got EOFError"):
        load_graph("ogbn-arxiv", tmp_path)


def test_missing_tables_are_named_with_their_folders(tmp_path):
    write_arxiv(tmp_path, "ogbn-arxiv")
    for file in arxiv.FILES[5:7]:
        (tmp_path / "ogbn_arxiv" / file).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_graph("ogbn-arxiv", tmp_path)
    assert str(caught.value) == (
        "load_graph: ogbn-arxiv needs files that are missing and can't be downloaded: raw/num-edge-list.csv.gz, "
        "split/time/train.csv.gz, got AssertionError: nothing is missing. Download them from "
        f"http://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip and put them into {tmp_path / 'ogbn_arxiv'}."
    )


def test_the_archive_of_arxiv_arrives_in_its_folders(monkeypatch, tmp_path):
    write_arxiv(tmp_path / "published", "ogbn-arxiv")

    def download_url(url, folder):
        assert url == "http://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip"
        path = Path(folder) / "arxiv.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in arxiv.FILES:
                archive.write(tmp_path / "published" / "ogbn_arxiv" / file, f"arxiv/{file}")
            archive.writestr("arxiv/mapping/README.md", "of no use here")
        return str(path)

    monkeypatch.undo()
    monkeypatch.setattr(arxiv, "download_url", download_url)
    root = tmp_path / "root"
    assert load_graph("ogbn-arxiv", root)[0].edge_index.t().tolist() == EDGES.tolist()
    arrived = {path.relative_to(root / "ogbn_arxiv").as_posix() for path in root.rglob("*") if path.is_file()}
    assert {file for file in arrived if not file.startswith("processed/")} == set(arxiv.FILES)

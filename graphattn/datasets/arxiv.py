"""The citation graph ogbn-arxiv, read from the files that the Open Graph Benchmark publishes."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset, download_url, extract_zip

FILES = (
    "raw/edge.csv.gz",
    "raw/node-feat.csv.gz",
    "raw/node-label.csv.gz",
    "raw/node_year.csv.gz",
    "raw/num-node-list.csv.gz",
    "raw/num-edge-list.csv.gz",
    "split/time/train.csv.gz",
    "split/time/valid.csv.gz",
    "split/time/test.csv.gz",
)


class OgbnArxiv(InMemoryDataset):
    """Papers on computer science, each with the mean embedding of its words, its subject area and its year.

    An edge leads from a paper to one that it cites, and only that way, as published:
    `torch_geometric.transforms.ToUndirected()` adds the reverse edges. Papers until 2017 are for training, those of
    2018 for validation, later ones for the test. The folders are those of the package ogb, which isn't needed.

    Args:
        root: the folder that holds `raw/` and `split/`.
        name: not used; all loaders of `load_graph` take a root and a name.

    Returns:
        `dataset[0]` has x [N, 128], edge_index [2, E], y [N], node_year [N] and three masks [N].

    Raises:
        ValueError: a file doesn't have as many rows as the others say, or a node doesn't exist.

    References:
        Hu et al., "Open Graph Benchmark: Datasets for Machine Learning on Graphs", NeurIPS 2020. There, y and
        node_year are [N, 1].
    """

    url = "http://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip"

    def __init__(self, root: str, name: str) -> None:
        super().__init__(root)
        self.load(self.processed_paths[0])

    @property
    def raw_dir(self) -> str:
        """The root, because the split lies next to the folder `raw`."""
        return str(self.root)

    @property
    def raw_file_names(self) -> list[str]:
        """The files, below the root."""
        return list(FILES)

    @property
    def processed_file_names(self) -> str:
        """One file; that of the package ogb has another name."""
        return "data.pt"

    def download(self) -> None:
        """Download the archive, and move the files from its folder `arxiv`."""
        with TemporaryDirectory(prefix=".download-", dir=self.root) as scratch:
            extract_zip(download_url(self.url, scratch), scratch)
            for file, path in zip(FILES, self.raw_paths, strict=True):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(scratch, "arxiv", file), path)

    def process(self) -> None:
        """Turn the files into one graph."""
        edges, x, y, year, num_nodes, num_edges, *splits = map(_read, self.raw_paths)
        # Lists of one number, because other data sets in this layout have many graphs.
        count = num_nodes.item()
        for file, table, rows in zip(FILES[:4], (edges, x, y, year), (num_edges.item(), *[count] * 3), strict=True):
            if len(table) != rows:
                raise ValueError(f"{file} must have {rows} rows, got {len(table)}")
        for file, table in zip((FILES[0], *FILES[-3:]), (edges, *splits), strict=True):
            if not np.all((table >= 0) & (table < count)):
                raise ValueError(f"{file} must name nodes in [0, {count}), got {table.min()} to {table.max()}")
        train, valid, test = (_mask(split, count) for split in splits)
        data = Data(
            x=torch.from_numpy(x),
            edge_index=torch.from_numpy(edges).t().contiguous(),
            y=torch.from_numpy(y[:, 0]),
            node_year=torch.from_numpy(year[:, 0]),
            train_mask=train,
            val_mask=valid,
            test_mask=test,
        )
        self.save([data], self.processed_paths[0])


def _read(path: str) -> np.ndarray:
    dtype = np.float32 if path.endswith("node-feat.csv.gz") else np.int64
    return np.loadtxt(path, dtype, delimiter=",", comments=None, ndmin=2)


def _mask(nodes: np.ndarray, num_nodes: int) -> Tensor:
    mask = torch.zeros(num_nodes, dtype=torch.bool)
    mask[torch.from_numpy(nodes[:, 0])] = True
    return mask

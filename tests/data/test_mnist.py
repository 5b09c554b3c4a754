"""MNIST: what it reads, from where, and what a bad file or a missing network says."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch_geometric.loader import DataLoader

from graphattn.datasets import MNIST, mnist
from graphattn.datasets.roots import RawFile

REAL = os.environ.get("GRAPHATTN_DATASETS")
NAMES = [Path(file.path).name for files in mnist.FILES.values() for file in files]


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in the format of the files: a magic number, the extents, the bytes."""
    extents = b"".join(extent.to_bytes(4, "big") for extent in array.shape)
    return bytes([0, 0, 8, array.ndim]) + extents + array.tobytes()


@pytest.fixture
def small(monkeypatch, tmp_path) -> dict[str, np.ndarray]:
    """Four files of the same names and format with fewer images, below tmp_path / "published"."""
    random = np.random.default_rng(0)
    arrays, files = {}, {}
    for (split, published), count in zip(mnist.FILES.items(), (7, 4), strict=True):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = random.integers(0, 10, count, dtype=np.uint8)
        arrays[split] = (images, labels)
        files[split] = []
        for file, array in zip(published, (images, labels), strict=True):
            content = idx(array)
            files[split].append(RawFile(file.path, hashlib.sha256(content).hexdigest(), len(content)))
            path = tmp_path / "published" / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(content, compresslevel=count % 9 + 1))
    monkeypatch.setattr(mnist, "FILES", files)
    return arrays


@pytest.fixture
def server(monkeypatch, tmp_path) -> dict[str, bytes]:
    """What the mirror answers, by file name; nothing else has a network."""
    answers = {}

    def urlopen(url, timeout):
        assert url.startswith(mnist.URL)
        name = url.removeprefix(mnist.URL)
        if name not in answers:
            raise URLError("no network")
        return io.BytesIO(answers[name])

    monkeypatch.setattr(mnist, "urlopen", urlopen)
    return answers


def raw(root: Path, name: str) -> Path:
    return root / "MNIST" / "raw" / name


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_and_labels_are_those_of_the_files(split, small, server, tmp_path):
    dataset = MNIST(tmp_path / "published", split)
    images, labels = small[split]
    assert torch.equal(dataset.images, torch.from_numpy(images)) and dataset.images.dtype == torch.uint8
    assert dataset.labels.tolist() == labels.tolist() and dataset.labels.dtype == torch.int64
    assert len(dataset) == len(labels) and dataset.num_classes == 10
    for data, image, label in zip(dataset, images, labels, strict=True):
        assert torch.equal(data.image, torch.from_numpy(image)[None]) and data.y.tolist() == [label]


def test_a_slice_has_its_own_images(small, server, tmp_path):
    dataset = MNIST(tmp_path / "published")
    images, labels = small["train"]
    for index in (slice(2, 5), [6, 0], torch.tensor([3])):
        part = dataset[index]
        rows = index.tolist() if isinstance(index, torch.Tensor) else index
        assert torch.equal(part.images, torch.from_numpy(images[rows]))
        assert part.labels.tolist() == labels[rows].tolist() == [int(data.y) for data in part]


def test_batches_stack_images(small, server, tmp_path):
    (batch,) = DataLoader(MNIST(tmp_path / "published"), batch_size=7)
    assert torch.equal(batch.image, torch.from_numpy(small["train"][0])) and batch.y.shape == (7,)


def test_missing_files_are_downloaded_and_nothing_else(small, server, tmp_path):
    for name in NAMES[2:]:
        server[name] = raw(tmp_path / "published", name).read_bytes()
    for _ in range(2):
        dataset = MNIST(tmp_path / "root", "test")
        assert torch.equal(dataset.images, torch.from_numpy(small["test"][0]))
        assert sorted(path.name for path in raw(tmp_path / "root", "").iterdir()) == sorted(NAMES[2:])
        # The second time, the files are there.
        server.clear()


def test_without_a_network_the_files_and_their_folder_are_named(small, server, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        MNIST(tmp_path / "root")
    assert str(caught.value) == (
        "MNIST: root needs files that are missing and can't be downloaded: train-images-idx3-ubyte.gz, "
        "train-labels-idx1-ubyte.gz, got URLError: <urlopen error no network>. "
        f"Download them from {mnist.URL} and put them into {tmp_path / 'root' / 'MNIST' / 'raw'}."
    )
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    "labels",
    [b"<html>Please log in</html>", gzip.compress(b"something else"), None],
    ids=["page", "other file", "none"],
)
def test_a_broken_download_leaves_nothing_behind(labels, small, server, tmp_path):
    server[NAMES[0]] = raw(tmp_path / "published", NAMES[0]).read_bytes()
    if labels is not None:
        server[NAMES[1]] = labels
    with pytest.raises(FileNotFoundError, match="can't be downloaded"):
        MNIST(tmp_path / "root")
    assert not (tmp_path / "root").exists()


def changed(archive: bytes, kind: str) -> bytes:
    content = gzip.decompress(archive)
    return {
        "truncated archive": archive[:-20],
        "truncated content": gzip.compress(content[:-5]),
        "another label": gzip.compress(content[:-1] + b"\x0b"),
        "empty": b"",
        "not an archive": b"<html></html>",
        "unpacked": content,
        "bomb": gzip.compress(content + bytes(10_000_000)),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("truncated archive", r"\d+ of 15 bytes, sha256 [0-9a-f]{64}"),
        ("truncated content", "10 of 15 bytes, sha256 [0-9a-f]{64}"),
        ("another label", "15 of 15 bytes, sha256 [0-9a-f]{64}"),
        ("empty", "0 of 15 bytes, sha256 [0-9a-f]{64}"),
        ("not an archive", r"no archive \(Error -3 .*\)"),
        ("unpacked", r"no archive \(Error -3 .*\)"),
        ("bomb", "more than 15 bytes"),
    ],
)
def test_a_changed_file_says_what_to_delete(kind, found, small, server, tmp_path):
    path = raw(tmp_path / "published", NAMES[1])
    path.write_bytes(changed(path.read_bytes(), kind))
    with pytest.raises(ValueError, match=f"must hold the published content, got {found}. Delete ") as caught:
        MNIST(tmp_path / "published")
    assert str(caught.value).startswith(f"MNIST: {path} must")
    assert str(caught.value).endswith(f" Delete {path} and load again.") and "\n" not in str(caught.value)


def test_swapped_files_are_told_apart(small, server, tmp_path):
    train, test = (raw(tmp_path / "published", name) for name in (NAMES[0], NAMES[2]))
    train.write_bytes(test.read_bytes())
    with pytest.raises(ValueError, match=r"train-images.* must hold .*, got that of t10k-images-idx3-ubyte\.gz\. Del"):
        MNIST(tmp_path / "published")


def test_documented_checksums_are_those_that_are_checked():
    readme = (Path(__file__).resolve().parents[2] / "datasets" / "README.md").read_text(encoding="utf-8")
    for file in (file for files in mnist.FILES.values() for file in files):
        assert f"| `{file.path}` | {file.size:,} | `{file.sha256}` |" in readme


def test_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"MNIST: split must be one of 'train', 'test', got 'tset'\. Did you mean 't"):
        MNIST(tmp_path, split="tset")


@pytest.mark.skipif(
    not REAL or not raw(Path(REAL), NAMES[0]).exists(), reason="set GRAPHATTN_DATASETS to a folder with MNIST/raw"
)
def test_the_real_files_are_the_published_ones():
    for split, count in (("train", 60_000), ("test", 10_000)):
        dataset = MNIST(REAL, split)
        assert dataset.images.shape == (count, 28, 28)
        assert dataset.labels.unique().tolist() == list(range(10))
    # The first ten labels of the test files, as they are printed everywhere.
    assert dataset.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]

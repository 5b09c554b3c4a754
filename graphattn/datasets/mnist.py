"""Handwritten digits of 28 x 28 pixels, from the published files."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset

from ..errors import check_choice, message
from .roots import RawFile, dataset_root

URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"

# Checksums and sizes of the archives' content, because the same content exists in archives of other bytes.
FILES = {
    "train": (
        RawFile(
            "MNIST/raw/train-images-idx3-ubyte.gz",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            47040016,
        ),
        RawFile(
            "MNIST/raw/train-labels-idx1-ubyte.gz",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            60008,
        ),
    ),
    "test": (
        RawFile(
            "MNIST/raw/t10k-images-idx3-ubyte.gz",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            7840016,
        ),
        RawFile(
            "MNIST/raw/t10k-labels-idx1-ubyte.gz",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            10008,
        ),
    ),
}


class MNIST(InMemoryDataset):
    """Handwritten digits, 28 x 28 pixels each: 60,000 to train on and 10,000 to test on.

    An image stays one tensor until a transform such as `graphattn.transforms.ImageToGraph` makes a graph of it. The
    files are read and checked each time, in about half a second; only downloads are written.

    Args:
        root: the data set root; see `dataset_root` for the default. The files are in its `MNIST/raw/`.
        split: "train" or "test".
        transform: applied to a `Data` at every access.

    Attributes:
        images: [n, 28, 28] uint8, 0 for paper and 255 for ink.
        labels: [n] long, the digit.

    Returns:
        A data set of `Data`: image [1, 28, 28] uint8, channels first; y [1] long. A slice of it is a data set, too.
        Both attributes are those of the slice, without the transform.

    Raises:
        ValueError: split is unknown, or a file is truncated or changed, or has the content of another.
        FileNotFoundError: files are missing and can't be downloaded. No partial files remain.

    Example:
        >>> dataset = MNIST(split="test")  # doctest: +SKIP
        >>> dataset.images.shape, dataset.labels[:5], dataset[0]  # doctest: +SKIP
        (torch.Size([10000, 28, 28]), tensor([7, 2, 1, 0, 4]), Data(y=[1], image=[1, 28, 28]))
        >>> MNIST(split="validation")
        Traceback (most recent call last):
        ValueError: MNIST: split must be one of 'train', 'test', got 'validation'.

    References:
        LeCun et al., "Gradient-based learning applied to document recognition", 1998.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        split: str = "train",
        transform: Callable[[Data], Data] | None = None,
    ) -> None:
        check_choice("MNIST", "split", split, FILES)
        # Without a root, PyG's class neither downloads nor processes: there is nothing to process.
        super().__init__(None, transform)
        root = dataset_root(root)
        missing = [file for file in FILES[split] if not (root / file.path).exists()]
        if missing:
            _download(missing, root)
        images, labels = (_read(root, file) for file in FILES[split])
        rows = torch.arange(len(labels) + 1)
        # The result of `InMemoryDataset.collate` on a list of Data, without the list.
        self.data = Data(image=images.view(-1, 28, 28), y=labels.long())
        self.slices = {"image": rows, "y": rows}
        self.split = split

    @property
    def images(self) -> Tensor:
        """[n, 28, 28] uint8."""
        return self._of_slice(self._data.image)

    @property
    def labels(self) -> Tensor:
        """[n] long."""
        return self._of_slice(self._data.y)

    @property
    def num_classes(self) -> int:
        """Ten digits."""
        return 10

    def _of_slice(self, x: Tensor) -> Tensor:
        return x if self._indices is None else x[torch.tensor(list(self._indices), dtype=torch.int64)]


def _read(root: Path, file: RawFile) -> Tensor:
    """Return the bytes after the header of 16 bytes (images) or 8 (labels), which the checksum covers."""
    path = root / file.path
    try:
        content = _unpack(path.read_bytes(), file)
    except ValueError as error:
        fix = f"Delete {path} and load again."
        raise ValueError(message("MNIST", str(path), "must hold the published content", error, fix)) from error
    header = 16 if "images" in file.path else 8
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=header).copy())


def _unpack(archive: bytes, file: RawFile) -> bytes:
    """Decompress an archive and check its content; a ValueError says what is wrong."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        # Reads at most one byte more than what was published, however large the archive's content is.
        content = unpacker.decompress(archive, (file.size or 0) + 1)
    except zlib.error as error:
        raise ValueError(f"no archive ({error})") from error
    if hashlib.sha256(content).hexdigest() == file.sha256:
        return content
    for other in (other for files in FILES.values() for other in files):
        if hashlib.sha256(content).hexdigest() == other.sha256:
            raise ValueError(f"that of {Path(other.path).name}")
    if len(content) > (file.size or 0):
        raise ValueError(f"more than {file.size:,} bytes")
    raise ValueError(f"{len(content):,} of {file.size:,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


def _download(missing: list[RawFile], root: Path) -> None:
    """Download files; all are kept if all have the published content, otherwise none."""
    names = ", ".join(Path(file.path).name for file in missing)
    archives = []
    try:
        for file in missing:
            with urlopen(URL + Path(file.path).name, timeout=60) as response:
                archives.append(response.read())
            _unpack(archives[-1], file)
    except Exception as error:
        # urllib, TLS and timeouts share no base class with an archive of something else.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        rule = f"needs files that are missing and can't be downloaded: {names}"
        fix = f"Download them from {URL} and put them into {(root / missing[0].path).parent}."
        raise FileNotFoundError(message("MNIST", "root", rule, reason, fix)) from error
    for file, archive in zip(missing, archives, strict=True):
        path = root / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renaming is atomic, so that no reader sees half a file.
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_bytes(archive)
        os.replace(scratch, path)

"""Where data sets are stored, and whether a raw file is the published one."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import message


def dataset_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Choose the folder that holds the data sets.

    The first that applies: `root`; the environment variable GRAPHATTN_DATASETS; `datasets/` of the checkout
    that the package runs from; `graphattn/datasets` in the user's cache (`$XDG_CACHE_HOME`, else `~/.cache`).
    An empty environment variable counts as unset. Nothing is created.

    Args:
        root: a folder, which takes precedence over everything else. `~` is expanded.

    Returns:
        An absolute path; the folder may not exist yet.

    Example:
        >>> dataset_root("data") == Path("data").absolute()
        True
    """
    chosen = root if root is not None else os.environ.get("GRAPHATTN_DATASETS") or None
    if chosen is not None:
        return Path(chosen).expanduser().absolute()
    checkout = Path(__file__).resolve().parents[2]
    project = checkout / "pyproject.toml"
    if project.is_file() and 'name = "graphattn"' in project.read_text(encoding="utf-8"):
        return checkout / "datasets"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "graphattn" / "datasets"


@dataclass(frozen=True)
class RawFile:
    """A published file: its path below the data set root, and its size or checksum as far as known."""

    path: str
    sha256: str | None = None
    size: int | None = None


def check_file(where: str, root: Path, file: RawFile, fix: str) -> None:
    """Raise unless `file` lies below `root` and, as far as its checksum is known, holds the published bytes.

    Args:
        where: the function to name in the error.
        root: the data set root.
        file: the expected file.
        fix: a sentence that tells the user what to do about a changed file.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is truncated or changed.

    Example:
        >>> check_file("load_graph", Path("nowhere"), RawFile("graph.npz"), "Download it again.")
        Traceback (most recent call last):
        FileNotFoundError: load_graph: raw file must exist, got nothing at nowhere/graph.npz.
    """
    path = root / file.path
    if not path.is_file():
        raise FileNotFoundError(message(where, "raw file", "must exist", f"nothing at {path}"))
    if file.sha256 is None:
        return
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != file.sha256:
        expected = f"sha256 {file.sha256} ({file.size} bytes)"
        got = f"sha256 {sha256} ({len(content)} bytes)"
        raise ValueError(message(where, str(path), f"must be the published file, {expected}", got, fix))

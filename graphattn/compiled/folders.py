"""Where compiled code is kept on disk, and how it is removed. Nothing here needs Numba."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..calibrated import user_cache

HERE = Path(__file__).parent
# The folder that this process writes to, once that is known.
in_use: list[Path] = []

# A folder is named by a hash of sources and versions; in it are compiled code, and the sources of traced scores.
FOLDERS = "numba-" + 16 * "[0-9a-f]"
FINISHED = re.compile(r".*\.nbc|.*_[0-9a-f]{16}\.py")
# Written by a process just now, or left by one that was ended. Writing takes milliseconds.
UNFINISHED = re.compile(r".*\.[0-9a-f]{32}")
ABANDONED_SECONDS = 3600.0


class Removed(NamedTuple):
    """What `remove_compiled` did: files and bytes that are gone, from where, and a line for each file that stayed."""

    files: int
    bytes: int
    folders: list[Path]
    left: list[str]


def parents() -> list[Path]:
    """Where there may be folders with compiled code, the first choice first.

    The user's folder for Numba, one next to the sources, and the user's cache.
    """
    try:
        import numba

        config: Any = numba.config
        named = config.CACHE_DIR
    # A Numba that is missing, or broken: its import raises whatever is wrong, of which `why_not_compiled` tells.
    except Exception:
        named = os.environ.get("NUMBA_CACHE_DIR", "")
    found = [HERE / "__pycache__"]
    try:
        found += [user_cache()]
        found = [Path(named).expanduser(), *found] if named else found
    except RuntimeError:
        pass
    return found


def compiled_files() -> Iterator[tuple[Path, int]]:
    """What this package, in any version, has compiled: each file and its bytes, those of unfinished writes left out."""
    for folder in _folders():
        for path in folder.iterdir():
            try:
                status = path.lstat()
            # Another process removes files, too.
            except FileNotFoundError:
                continue
            is_abandoned = UNFINISHED.fullmatch(path.name) and time.time() - status.st_mtime > ABANDONED_SECONDS
            if FINISHED.fullmatch(path.name) or is_abandoned:
                yield path, status.st_size


def _folders() -> list[Path]:
    found = [folder for parent in dict.fromkeys(parents()) for folder in parent.glob(FOLDERS)]
    # A link leads to what someone else may have put there.
    return [folder for folder in found if folder.is_dir() and not folder.is_symlink()]


def remove_compiled() -> Removed:
    """Remove all files of `compiled_files`, and nothing else.

    Other processes may run meanwhile: what they compile is written again. Folders stay, because such a process may be
    about to write there.
    """
    files, size, left = 0, 0, []
    emptied: dict[Path, None] = {}
    for path, held in compiled_files():
        try:
            path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            left.append(f"{path}: {error.strerror}")
            continue
        files, size = files + 1, size + held
        emptied[path.parent] = None
    return Removed(files, size, list(emptied), left)

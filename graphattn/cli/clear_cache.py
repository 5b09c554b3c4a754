"""`python -m graphattn clear-cache`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..compiled import remove_compiled
from ..memory import format_bytes


def add_to(commands: Any) -> None:
    """Add the command and its options."""
    about = (
        "Remove the code that this package has compiled and kept on disk, in every folder where it may lie: that of "
    )
    about += "NUMBA_CACHE_DIR, that next to the package, the user's cache. The next process compiles it again."
    parser = commands.add_parser("clear-cache", help=about, description=about, allow_abbrev=False)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    removed = remove_compiled()
    print(f"Removed {removed.files:,} file{'' if removed.files == 1 else 's'}, {format_bytes(removed.bytes)}.")
    for folder in removed.folders:
        print(f"  {folder}")
    for line in removed.left:
        print(f"clear-cache: not removed: {line}", file=sys.stderr)
    return 2 if removed.left else 0

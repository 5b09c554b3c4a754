"""`python -m graphattn calibrate`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..calibration import calibrate


def add_to(commands: Any) -> None:
    """Add the command and its options."""
    about = "Measure this machine, and check a GPU's kernels on it: by the file that it writes backend='auto' chooses."
    example = "example: python -m graphattn calibrate --device all"
    parser = commands.add_parser("calibrate", help=about, description=about, epilog=example, allow_abbrev=False)
    parser.set_defaults(run=_run)
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda, or all (default cpu)")
    parser.add_argument("--quick", action="store_true", help="every second call, in less time")


def _run(arguments: argparse.Namespace) -> int:
    try:
        reports = calibrate(arguments.device, arguments.quick)
    # A busy machine, or a GPU that stopped working.
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n\n".join(map(repr, reports)))
    return 0

"""Reads the command line, runs a command, and turns its errors into lines and an exit status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import graphattn

from . import calibrate, clear_cache, compare, info, partition

COMMANDS = (compare, partition, calibrate, info, clear_cache)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        argv: arguments without the program's name; those of the process if omitted.

    Returns:
        0; or 2, after one line on stderr, if the input is wrong; or 141 if the reader of the output closes the pipe.

    Example:
        >>> main(["compare", "--sizes", "0"])
        2
    """
    parser = _Parser(prog="python -m graphattn", description="Sparse attention on graphs.", allow_abbrev=False)
    parser.set_defaults(run=None)
    parser.add_argument("--version", action="version", version=f"graphattn {graphattn.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    try:
        try:
            arguments = parser.parse_args(argv)
            if arguments.run is None:
                parser.print_help()
                return 0
            return arguments.run(arguments)
        finally:
            # Buffered output must fail here, not when the interpreter exits.
            print(end="", flush=True)
    except BrokenPipeError:
        # The reader closed the pipe. The interpreter flushes again on exit, so that stdout must lead elsewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # The exit status that a shell reports after SIGPIPE.
    except (ValueError, NotImplementedError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    # Overriding this method is argparse's only way not to print the usage before every error.
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}. Use --help for the options.")

"""The command line: `python -m graphattn COMMAND`. Each command is one module, with what adds it and what runs it."""

from .run import main as main

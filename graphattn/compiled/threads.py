"""Compiled loops on several threads: those of torch, which are awake in the middle of a model, else our own.

Torch's belong to an OpenMP runtime. It is called here just as torch's own code calls it, so that a loop after a matrix
product begins at once, on threads that would otherwise still spin for some milliseconds and keep ours from the cores.
Where it isn't found, or after a fork, which it doesn't survive, plain Python threads run the loops, since these release
Python's lock.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import FunctionType
from typing import Any

import torch

from ..errors import message, warn_once
from .load import Loop

# The least number of tasks per call of a compiled function; fewer than two such runs stay on the calling thread.
# Passing an argument list takes as long as a task or two.
MIN_GRAIN = 16
# Torch's threads don't take arguments through Python: as a part of that number.
PART_OF_GRAIN = 4


class _Helpers:
    """Threads that wait for work.

    As daemons they don't keep a process from exiting, and they still run during the interpreter's exit, when those of
    an executor have stopped.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Future[None], Callable[[], None]]] = SimpleQueue()
        self._count = 0

    def hand_over(self, work: Callable[[], None], threads: int) -> list[Future[None]]:
        """Run work on this many threads, or as many as can be started."""
        try:
            while self._count < threads:
                Thread(target=_help, args=(self._queue,), name="graphattn", daemon=True).start()
                self._count += 1
        except RuntimeError as error:
            fix = "Raise the limit of threads, or use torch.set_num_threads(1)."
            rule = "can't be started, so that calls run on fewer threads and take longer"
            warn_once("threads", message("graphattn", "threads", rule, error, fix))
        futures: list[Future[None]] = [Future() for _ in range(min(threads, self._count))]
        for future in futures:
            self._queue.put((future, work))
        return futures


def _help(queue: SimpleQueue[tuple[Future[None], Callable[[], None]]]) -> None:
    while True:
        future, work = queue.get()
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
        # The next wait may be long, and the work references a call's tensors.
        del future, work


def _find_pool() -> int:
    """Address of GOMP_parallel in the OpenMP runtime that torch is linked to; 0 if there is none."""
    if sys.platform != "linux":
        return 0
    try:
        # A symbol is looked up in the libraries that this one needs, too.
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


_helpers = _Helpers()
_pool = _find_pool()


def uses_threads_of_torch() -> bool:
    """Whether compiled loops run on the threads of torch's OpenMP runtime, or else on our own."""
    return _pool != 0


def _forget_threads() -> None:
    global _helpers, _pool
    _helpers, _pool = _Helpers(), 0


# A forked child doesn't have its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def run_tasks(
    loop: Loop | Callable[..., None], total: int, *arguments: Any, multiple: int = 1, least: int = MIN_GRAIN
) -> None:
    """Run tasks 0 to `total` on as many threads as torch uses, in runs of multiples of `multiple`, `least` at least."""
    is_compiled = isinstance(loop, Loop)
    least = max(least // PART_OF_GRAIN, 1) if is_compiled and _pool else least
    threads = torch.get_num_threads() if total >= 2 * least else 1
    grain = max(least, min(4 * least, total // (4 * threads)), total // (32 * threads))
    grain = max(grain // multiple, 1) * multiple
    if isinstance(loop, Loop) and threads > 1 and _pool:
        loop.spread(_pool, threads, 0, total, grain, arguments)
        return
    # Functions that aren't compiled hold Python's lock.
    if threads <= 1 or isinstance(loop, FunctionType):
        loop(0, total, *arguments)
        return
    begins = itertools.count(0, grain)

    def work() -> None:
        for begin in begins:
            if begin >= total:
                return
            loop(begin, min(begin + grain, total), *arguments)

    helpers = _helpers.hand_over(work, threads - 1)
    work()
    for helper in helpers:
        if not helper.cancel():
            helper.result()

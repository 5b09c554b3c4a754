"""Compiled functions on several threads.

These are plain threads, because compiled functions release Python's lock. Unlike a threading layer of Numba, they can't
break after a fork or interfere with torch's threads.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from types import FunctionType
from typing import Any

import torch

from ..errors import message, warn_once

# The least number of tasks per call of a compiled function; fewer than two such runs stay on the calling thread.
# Passing an argument list takes as long as a task or two.
MIN_GRAIN = 16


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


_helpers = _Helpers()


def _forget_helpers() -> None:
    global _helpers
    _helpers = _Helpers()


# A forked child doesn't have its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helpers)


def run_tasks(
    function: Callable[..., None], total: int, *arguments: Any, multiple: int = 1, least: int = MIN_GRAIN
) -> None:
    """Run tasks 0 to `total` on as many threads as torch uses, in runs of multiples of `multiple`, `least` at least."""
    threads = torch.get_num_threads() if total >= 2 * least else 1
    # Functions that aren't compiled hold Python's lock.
    if threads <= 1 or isinstance(function, FunctionType):
        function(0, total, *arguments)
        return
    grain = max(least // multiple, 1, total // (32 * threads * multiple)) * multiple
    begins = itertools.count(0, grain)

    def work() -> None:
        for begin in begins:
            if begin >= total:
                return
            function(begin, min(begin + grain, total), *arguments)

    helpers = _helpers.hand_over(work, threads - 1)
    work()
    for helper in helpers:
        if not helper.cancel():
            helper.result()

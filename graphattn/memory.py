"""Peak memory of a computation, and sizes in bytes as text."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .errors import message

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def peak_memory(function: Callable[[], Any], device: torch.device | str = "cpu") -> int | None:
    """Bytes that torch had allocated at the peak of `function()`, above what was allocated before.

    Args:
        function: is called once, without arguments.
        device: whose memory is counted. On the CPU the profiler records each allocation and each release, so that the
            peak is exact but the call is slower than usual; on a CUDA device the caching allocator keeps the count.

    Returns:
        The peak, or None if it can't be measured because this torch records no allocations. Memory allocated by NumPy
        or the system is not counted.

    Example:
        >>> peak_memory(lambda: torch.empty(1000, dtype=torch.float64))
        8000
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        function()
        return None
    # There is only one cycle. Without acc_events, torch 2.11 warns that events of earlier cycles are lost.
    profiler = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    )
    with _silent_profiler(), profiler as profile:
        function()
    try:
        recorded: Any = profile.profiler
        events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
        changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    except AttributeError:
        # These records are private, so that another torch may store them elsewhere.
        return None
    held, peak = 0, 0
    for change in changes:
        held += change
        peak = max(peak, held)
    return peak if changes else None


def format_bytes(count: float) -> str:
    """Write a number of bytes with three digits and a binary unit.

    Example:
        >>> format_bytes(2**31), format_bytes(1536), format_bytes(0)
        ('2 GiB', '1.5 KiB', '0 B')
    """
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while count >= 999.5 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f"{count:.3g} {units[0]}"


def parse_bytes(where: str, argument: str, text: str) -> int:
    """Read a number of bytes, with or without a unit; upper and lower case are the same.

    Raises:
        ValueError: the text is something else.

    Example:
        >>> parse_bytes("compare", "--memory-limit", "1.5 GiB")
        1610612736
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-z]*)\s*", text, re.IGNORECASE)
    factors = {"": 1} | {unit.lower(): factor for unit, factor in UNITS.items()}
    if match is None or match[2].lower() not in factors:
        rule = f"must be a number with or without a unit ({', '.join(UNITS)})"
        raise ValueError(message(where, argument, rule, repr(text), f"Use {argument} 2GiB."))
    return int(float(match[1]) * factors[match[2].lower()])


@contextlib.contextmanager
def _silent_profiler() -> Iterator[None]:
    """Keep the profiler from announcing its start and stop on stderr, as torch 2.13 does."""
    name = "KINETO_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "99"
    try:
        yield
    finally:
        os.environ.pop(name, None)

"""What the machine does in a second, apart from any kernel: for readers of the report, and to see other work early."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch.nn.functional import embedding_bag

# Of one rate.
SECONDS = 0.15
# Rows of this many numbers are gathered from so many bytes: of the caches, level by level, and of memory. They are
# summed in bags, as to write them would take longer.
ROW, BAG, LEAST_ROWS = 64, 16, 2**14
GATHERED = {"cpu": (2**18, 2**20, 2**23, 2**27), "cuda": (2**24, 2**30)}
# Rows and columns of a product, and numbers of which exponentials are taken: in the caches of a CPU.
PRODUCT, NUMBERS = {"cpu": 512, "cuda": 4096}, {"cpu": 2**16, "cuda": 2**24}


class Rate(NamedTuple):
    """What was measured, how much of it in which unit, and how far the mean lies above the least time, as a part.

    A call may be so short that other work, which takes a core for milliseconds, hardly touches the median.
    """

    name: str
    amount: float
    unit: str
    spread: float

    def __str__(self) -> str:
        return f"{self.name}: {self.amount:.3g} {self.unit}"


def measure_rates(device: torch.device) -> tuple[Rate, ...]:
    """Rates of torch's own operators, in two seconds: nothing is compiled for them."""
    return tuple(_rates(device))


def _rates(device: torch.device) -> Iterator[Rate]:
    for size in GATHERED[device.type]:
        # Written to: memory that nobody wrote to is one page of zeros.
        rows = torch.ones(size // (4 * ROW), ROW, device=device)
        index = torch.randint(len(rows), (max(len(rows), LEAST_ROWS) // BAG, BAG), device=device)
        least, spread = _time(partial(embedding_bag, index, rows, mode="sum"), device)
        amount = index.numel() * 4 * ROW / least / 1e9
        yield Rate(f"rows of {4 * ROW} bytes, summed, from {size / 2**20:g} MiB", amount, "GB/s", spread)
    matrix = torch.ones(PRODUCT[device.type], PRODUCT[device.type], device=device)
    whole = torch.empty_like(matrix)
    multiply = lambda: torch.mm(matrix, matrix, out=whole)
    least, spread = _time(multiply, device)
    yield Rate("products of matrices", 2 * len(matrix) ** 3 / least / 1e9, "GFLOP/s", spread)
    threads = torch.get_num_threads()
    if device.type == "cpu" and threads > 1:
        try:
            torch.set_num_threads(1)
            alone, spread = _time(multiply, device)
        finally:
            torch.set_num_threads(threads)
        yield Rate(f"gain of {threads} threads in products", alone / least, "x", spread)
    numbers, found = torch.zeros(2, NUMBERS[device.type], device=device)
    least, spread = _time(lambda: torch.exp(numbers, out=found), device)
    yield Rate("exponentials", len(numbers) / least / 1e9, "G/s", spread)
    one = numbers[:1]
    least, spread = _time(one.zero_, device)
    yield Rate("call of an operator" + (", waited for" if device.type == "cuda" else ""), least * 1e6, "us", spread)


def _time(function: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """The least seconds of a call, and the spread, see `Rate`."""
    wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None
    times: list[float] = []
    function()
    wait()
    begin = start = time.perf_counter()
    while start - begin < SECONDS or len(times) < 3:
        start = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - start)
    return min(times), statistics.fmean(times) / min(times) - 1

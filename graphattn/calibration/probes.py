"""The calls that are timed, and how."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from ..call import Call, prepare
from ..compiled import settle
from ..functional import attention
from ..patterns import Edges, Full, Grid, Pattern, Window
from ..testing import random_call

# Seconds of one turn; a shorter call is repeated.
TURN = 4e-3
# Rounds in which all take their turn, one after another: a call's least time counts, as other work only adds to it.
LEAST_ROUNDS, MOST_ROUNDS = 3, 9


class Probe(NamedTuple):
    """A call to be timed on some kernels.

    Attributes:
        kernels: their names.
        pattern: on the device.
        tensors: query, key and value, and edge tensors.
        options: further arguments of `attention`.
    """

    kernels: tuple[str, ...]
    pattern: Pattern
    tensors: dict[str, Any]
    options: dict[str, Any]

    def name(self) -> str:
        """As a row of the table has it."""
        query = self.tensors["query"]
        pattern = repr(self.pattern)
        pattern = pattern if len(pattern) < 40 else f"{type(self.pattern).__name__}([...])"
        dtype = "" if query.dtype == torch.float32 else f" {query.dtype}".replace("torch.", "")
        said = "".join(f", {name}={value}" for name, value in self.options.items())
        return f"{pattern}, H{query.size(-2)} D{query.size(-1)}{dtype}{said}"

    def call(self, is_trained: bool) -> Call:
        """What kernels estimate."""
        tensors = {name: x.detach().requires_grad_(is_trained) for name, x in self.tensors.items()}
        return prepare("calibrate", **tensors, pattern=self.pattern, **self.options)

    def run(self, kernel: str, is_trained: bool) -> Callable[[], object]:
        """What is timed."""
        options = {**self.options, "pattern": self.pattern, "backend": kernel}
        if not is_trained:
            plain = {name: x.detach() for name, x in self.tensors.items()}
            return lambda: attention(**plain, **options)
        leaves = list(self.tensors.values())

        def forward() -> torch.Tensor:
            results: Any = attention(**self.tensors, **options)
            return results[0] if isinstance(results, tuple) else results

        grad = torch.randn_like(forward())
        return lambda: torch.autograd.grad(forward(), leaves, grad)


class Timing(NamedTuple):
    """Seconds of a kernel on a probe, forward or with backward: the least of all calls, and their median."""

    probe: Probe
    kernel: str
    is_trained: bool
    seconds: float
    median: float


def probes_of(device: torch.device, is_quick: bool) -> list[Probe]:
    """What the constants of a device's models follow from; every second one if it has to be quick."""
    drawn = _cpu_probes() if device.type == "cpu" else _gpu_probes()
    probes = []
    for kernels, pattern, (heads, width), options in drawn[:: 2 if is_quick else 1]:
        dtype = options.pop("dtype", torch.float32)
        on_device = pattern.to(device)
        tensors = random_call(on_device, heads=heads, width=width, dtype=dtype, device=device)
        probes.append(Probe(kernels, on_device, tensors, options))
    return probes


def time_all(probes: Sequence[Probe], device: torch.device, deadline: float, progress: bool) -> list[Timing]:
    """Time each kernel on each of its probes, forward and with backward, in turns: rounds that end by the deadline.

    The deadline is one of `time.perf_counter`. Where little time is left, there are `LEAST_ROUNDS` all the same.
    """
    wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None
    listed = [(p, k, trained) for p in probes for k in p.kernels for trained in (False, True)]
    functions = []
    with tqdm(listed, desc="prepare", unit="call", disable=not progress, leave=False) as bar:
        for probe, kernel, is_trained in bar:
            function = probe.run(kernel, is_trained)
            # Loops are compiled for their shapes, as in any work of more than some seconds.
            settle(function)
            functions.append(function)
    taken: list[list[float]] = [[] for _ in listed]
    start = time.perf_counter()
    with tqdm(total=MOST_ROUNDS, desc="measure", unit="round", disable=not progress, leave=False) as bar:
        for turn in range(MOST_ROUNDS):
            now = time.perf_counter()
            if turn >= LEAST_ROUNDS and now + (now - start) / turn > deadline:
                break
            for function, times in zip(functions, taken, strict=True):
                times += _turn(function, wait)
            bar.update()
    return [Timing(*what, min(times), statistics.median(times)) for what, times in zip(listed, taken, strict=True)]


def spread(timings: Sequence[Timing]) -> float:
    """How far a call's median lies above its least time, as a part of it: the upper quartile over all calls."""
    return statistics.quantiles((timing.median / timing.seconds - 1 for timing in timings), n=4)[2]


def _turn(function: Callable[[], object], wait: Callable[[], None]) -> list[float]:
    """Seconds of each of some calls, after one that fills the caches and wakes the threads."""
    function()
    wait()
    times: list[float] = []
    while sum(times) < TURN:
        start = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - start)
    return times


Drawn = tuple[tuple[str, ...], Pattern, tuple[int, int], dict[str, Any]]


def _edges(nodes: int, degree: int) -> Edges:
    generator = torch.Generator().manual_seed(nodes)
    return Edges(torch.randint(nodes, (2, nodes * degree), generator=generator), nodes)


# Nodes and radius; side and radius; sizes.
WINDOWS = ((1024, 2), (4096, 4), (8192, 8), (1024, 16), (2048, 32), (1024, 128))
GRIDS = ((32, 1), (96, 1), (32, 3), (64, 3), (32, 7))
FULL: tuple[int | list[int], ...] = ([30] * 32, [150] * 4, 512)


def _cpu_probes() -> list[Drawn]:
    """Few rows and many, narrow reach and wide, rows in the caches and beyond: neighbors in the list are alike."""
    structured = [
        *(Window(nodes, radius) for nodes, radius in WINDOWS),
        *(Grid((side, side), radius) for side, radius in GRIDS),
        *(Full(sizes) for sizes in FULL),
    ]
    both = ("tiles", "numba")
    drawn: list[Drawn] = [(both, pattern, shape, {}) for shape in ((4, 16), (8, 64)) for pattern in structured]
    for nodes, degree in ((300, 4), (2000, 8), (8000, 8), (30_000, 8), (100_000, 4)):
        kernels = ("numba", "scatter") if nodes < 5000 else ("numba",)
        drawn.append((kernels, _edges(nodes, degree), (4, 16), {}))
    for size in (64, 512, 4096):
        drawn.append((("linear",), Full(size), (4, 16), {"normalizer": "identity"}))
        drawn.append((("linear",), Full(size), (8, 64), {"normalizer": "identity"}))
    window = Window(1024, 32)
    for options in ({}, {"dropout_p": 0.2}, {"return_weights": True}):
        drawn.append((("tiles",), window, (4, 16), {"normalizer": "relu", **options}))
        drawn.append((("tiles",), Full(512), (4, 64), {"normalizer": "relu", **options}))
    drawn.append((("tiles",), Window(256, 8), (4, 16), {"normalizer": "sparsemax"}))
    return drawn


def _gpu_probes() -> list[Drawn]:
    """The same for a GPU: calls that its launches take, that its caches hold, and that they don't."""
    drawn: list[Drawn] = []
    rows = ("triton", "scatter")
    for dtype in (torch.float32, torch.bfloat16):
        for nodes, degree, shape in ((30, 2, (4, 16)), (10_000, 16, (4, 32)), (50_000, 16, (8, 64))):
            drawn.append((rows if nodes < 50_000 else rows[:1], _edges(nodes, degree), shape, {"dtype": dtype}))
        for pattern in (Window(1024, 16), Window(16_384, 64), Grid((64, 64), 3), Full(1024), Full(4096)):
            drawn.append((("flex", "tiles", "triton"), pattern, (8, 64), {"dtype": dtype}))
    for size in (512, 16_384):
        drawn.append((("linear",), Full(size), (8, 64), {"normalizer": "identity"}))
    return drawn

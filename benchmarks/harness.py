"""Time systems in turns, describe the machine, and write the results."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from graphattn.compiled import settle

RESULTS = Path(__file__).parent / "results"


def race(
    systems: dict[str, Callable[[], object]],
    seconds: float = 6.0,
    most: int = 15,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per run of each system in each round: in each round all take their turn, one after another.

    Loops are compiled for their shapes first, as in any work of more than some seconds. A turn begins with runs that
    aren't counted, until 20 ms have passed: they fill the caches, and outlast the threads of the previous system, which
    spin for some milliseconds. (For a run of half a second neither matters.) Then runs are counted until 40 ms have
    passed, and their mean is the round's time. At least three rounds, then as many as fit into `seconds`, up to `most`.
    The clock may be `time.process_time`, which doesn't count while other processes have the core; it adds up the time
    of several threads.
    """
    taken: dict[str, list[float]] = {name: [] for name in systems}
    is_long = settle(lambda: {name: _repeat(system, 0, clock) > 0.5 for name, system in systems.items()})
    begin = clock()
    for turn in range(most):
        for name, system in systems.items():
            if not is_long[name]:
                _repeat(system, 0.02, clock)
            taken[name].append(_repeat(system, 0.04, clock))
        if turn >= 2 and clock() - begin > seconds:
            break
    return taken


def _repeat(system: Callable[[], object], seconds: float, clock: Callable[[], float]) -> float:
    """Mean seconds of the runs that begin within `seconds`, at least one."""
    start = now = clock()
    runs = 0
    while runs == 0 or now - start < seconds:
        system()
        runs += 1
        now = clock()
    return (now - start) / runs


def in_ms(seconds: list[float]) -> str:
    """Median in milliseconds, in three digits or more."""
    milliseconds = statistics.median(seconds) * 1e3
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def ratio(taken: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over rounds of one system's time divided by another's."""
    return statistics.median(a / b for a, b in zip(taken[slow], taken[fast], strict=True))


def versions() -> dict[str, object]:
    """The processor, threads and versions: part of every result."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return {
        "cpu": f"{model} ({torch.backends.cpu.get_cpu_capability()})",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "torch-geometric", "numba", "triton", "numpy")},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def machine(gather_bytes_per_second: float) -> dict[str, object]:
    """Versions, and measured bandwidths: part of every timing."""
    source, target = torch.ones(2**26), torch.empty(2**26)
    taken = race({"copy": lambda: target.copy_(source)}, seconds=2)
    return {
        **versions(),
        "copy GB/s": round(2 * source.nbytes / statistics.median(taken["copy"]) / 1e9, 1),
        "row gather GB/s": round(gather_bytes_per_second / 1e9, 1),
    }


@dataclass
class Line:
    """One line of the table: a measured number and its targets.

    `more_is_better` is False if the number is a time or a size that must not exceed its targets.
    """

    work: str
    against: str
    unit: str
    at_least: float
    aim: float | None
    measured: float | None
    detail: str
    more_is_better: bool = True

    def reached(self) -> str:
        """Say which target the number reaches."""
        if self.measured is None:
            return "not measured"
        sign = 1 if self.more_is_better else -1
        if self.aim is not None and sign * self.measured >= sign * self.aim:
            return "aim reached"
        return "reached" if sign * self.measured >= sign * self.at_least else "**not reached**"

    def row(self) -> str:
        """One row of Markdown."""
        number = lambda x: "" if x is None else f"{x:.3g} {self.unit}".replace(" x", "x").replace(" %", " %")
        limit = number(self.at_least) if self.more_is_better else f"at most {number(self.at_least)}"
        cells = (self.work, self.against, limit, number(self.aim), number(self.measured), self.reached(), self.detail)
        return f"| {' | '.join(cells)} |"


HEADER = "| work | against | at least | aim | measured | | milliseconds or bytes |\n|---|---|---|---|---|---|---|"


def write(
    name: str,
    title: str,
    machine: dict[str, object],
    lines: list[Line],
    more: dict[str, object],
    folder: Path = RESULTS,
) -> str:
    """Write folder/name.json and folder/name.md, and return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [{**vars(line), "reached": line.reached(), "machine": machine} for line in lines]
    (folder / f"{name}.json").write_text(json.dumps({"machine": machine, "lines": records, **more}, indent=1) + "\n")
    about = ", ".join(f"{key} {value}" for key, value in machine.items())
    table = "\n".join([HEADER, *(line.row() for line in lines)])
    (folder / f"{name}.md").write_text(f"# {title}\n\n{about}\n\n{table}\n")
    return table

"""`calibrate`: check, measure, fit, write, report."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from ..calibrated import VARIABLE, costs_of, forget, identity_of, path_of_file, write_machine
from ..costs import CPU, CUDA, Costs
from ..errors import check_choice, message
from ..functional import cheapest
from ..kernels import KERNELS
from .check import Refusal, check_kernel
from .fit import fit_costs
from .probes import Probe, Timing, probes_of, spread, time_all
from .rates import Rate, measure_rates

# Seconds of a whole calibration, without the fit. What is compiled and checked takes its part of them, though the least
# number of rounds is measured in any case.
SECONDS = {"cpu": 34.0, "cuda": 80.0}
QUICK = 0.5
# Of a GPU's cache, what gathered rows have of it.
PART_OF_CACHE = 0.8
# See `spread`: two processes that took all of both cores beside it gave 1.0 and 2.5. Of
# rates, the upper quartile of `Rate.spread`.
MOST_SPREAD = 0.5


class Line(NamedTuple):
    """One kernel on one call, forward and backward: seconds as estimated before and after, and as measured.

    `chosen` has the kernel that "auto" took before, and the one that it takes now.
    """

    call: str
    kernel: str
    before: float
    after: float
    measured: float
    chosen: tuple[str, str]


class CalibrationReport(NamedTuple):
    """What `calibrate` found on one device; printing it shows a table.

    Attributes:
        device: "cpu" or "cuda".
        path: the file that was written.
        lines: each kernel on each call.
        rates: of the machine itself, apart from any kernel.
        refusals: on a GPU, what failed in the check, and stays off.
        spread: how far the medians of three in four calls lay above their least times, at most, as a part of these.
        seconds: that it took.
    """

    device: str
    path: Path
    lines: tuple[Line, ...]
    rates: tuple[Rate, ...]
    refusals: tuple[Refusal, ...]
    spread: float
    seconds: float

    def __repr__(self) -> str:
        in_ms = lambda seconds: "-" if seconds == math.inf else f"{seconds * 1e3:.3g}"
        rows: list[tuple[str, ...]] = [
            ("call, forward and backward", "kernel", "before", "after", "measured, ms", "auto")
        ]
        for line in self.lines:
            before, after = line.chosen
            chosen = after if before == after else f"{before} -> {after}"
            numbers = (in_ms(x) for x in (line.before, line.after, line.measured))
            rows.append((line.call, line.kernel, *numbers, chosen))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = [
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        changed = {line.call for line in self.lines if line.chosen[0] != line.chosen[1]}
        calls = {line.call for line in self.lines}
        said = [
            *table,
            "; ".join(map(str, self.rates)),
            *(str(refusal) for refusal in self.refusals),
            *(["Please report these lines as an issue of graphattn."] if self.refusals else []),
            f"{self.device}: backend='auto' chooses otherwise for {len(changed)} of {len(calls)} calls.",
            f"Took {self.seconds:.0f} s; medians at most {self.spread:.0%} above the least for most. Wrote {self.path}",
        ]
        return "\n".join(said)


def calibrate(device: str = "cpu", quick: bool = False, progress: bool = True) -> tuple[CalibrationReport, ...]:
    """Measure this machine, and write the file by which `backend="auto"` chooses from now on.

    On a GPU the fused kernels are checked first: only what equals the oracle there is ever chosen. The file is
    `calibration.json` in the user's cache, or GRAPHATTN_CALIBRATION=PATH; it holds for this processor or GPU, this
    number of threads and these versions of torch, Numba, Triton and graphattn. Without it, or with
    GRAPHATTN_CALIBRATION=off, the constants that come with the package hold.

    Args:
        device: "cpu", "cuda", or "all", which is both where there is a GPU.
        quick: measure every second call, in less time.
        progress: whether to show a progress bar.

    Returns:
        One report for each device. Calls of this process use the file from now on; what torch.compile has compiled
        stays.

    Raises:
        ValueError: an unknown device, none that torch sees, or GRAPHATTN_CALIBRATION=off.
        OSError: the file can't be written.
        RuntimeError: other work kept the machine too busy to measure; or the GPU stopped working in the check. The old
            file stays.
    """
    check_choice("calibrate", "device", device, ("cpu", "cuda", "all"))
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise ValueError(message("calibrate", "device", "needs a GPU that torch sees", "'cuda'", "Use 'cpu'."))
    path = path_of_file()
    if path is None:
        raise ValueError(message("calibrate", VARIABLE, "must name a file to write", "'off'", "Unset it."))
    _check_writable(path)
    devices = [torch.device("cpu")] if device != "cuda" else []
    devices += [torch.device("cuda", torch.cuda.current_device())] if device != "cpu" and has_gpu else []
    # The caller's random numbers stay as they were.
    with torch.enable_grad(), torch.random.fork_rng([x for x in devices if x.type == "cuda"]):
        return tuple(_calibrate(x, path, quick, progress) for x in devices)


def _calibrate(device: torch.device, path: Path, quick: bool, progress: bool) -> CalibrationReport:
    start, name = time.perf_counter(), device.type
    before, shipped = costs_of(device), CPU if name == "cpu" else CUDA
    start_at = shipped
    # Before anything is compiled or checked, which takes longest.
    rates = measure_rates(device)
    _check_idle(statistics.quantiles((rate.spread for rate in rates), n=4)[2])
    refusals: tuple[Refusal, ...] = ()
    if name == "cuda":
        features, refusals = check_kernel(device, progress)
        start_at = replace(shipped, features=features, refused=tuple(refusal.features for refusal in refusals))
        held = torch.cuda.get_device_properties(device).L2_cache_size
        start_at = start_at.having({"triton_cache_bytes": PART_OF_CACHE * held})
    probes = [_on_kernels_that_run(probe, start_at) for probe in probes_of(device, quick)]
    deadline = start + SECONDS[name] * (QUICK if quick else 1)
    timings = time_all(probes, device, deadline, progress)
    found = spread(timings)
    _check_idle(found)
    costs = fit_costs(start_at, timings)
    machine = {
        **identity_of(device),
        "rates": {rate.name: f"{rate.amount:.3g} {rate.unit}" for rate in rates},
        "costs": {name: number for name, number in costs.numbers().items() if number != getattr(shipped, name)},
        "features": costs.features or (),
        "refused": costs.refused,
    }
    _write(path, machine)
    forget()
    lines = _lines(timings, before, costs)
    return CalibrationReport(name, path, lines, rates, refusals, found, time.perf_counter() - start)


def _check_idle(found: float) -> None:
    """Raise RuntimeError where other work took the cores."""
    if found > MOST_SPREAD:
        rule = f"must be idle enough that calls mostly take at most {MOST_SPREAD:.0%} more than the least time"
        fix = "Stop other work and try again; no file was written."
        raise RuntimeError(message("calibrate", "machine", rule, f"{found:.0%}", fix))


def _on_kernels_that_run(probe: Probe, costs: Costs) -> Probe:
    """Leave out kernels that can't run a call, or failed in the check of such calls."""
    call, names = probe.call(True), []
    for kernel in KERNELS:
        if kernel.name in probe.kernels and kernel.why_not(call) is None and kernel.cost(call, costs) < math.inf:
            names.append(kernel.name)
    return probe._replace(kernels=tuple(names))


def _lines(timings: Sequence[Timing], before: Costs, after: Costs) -> tuple[Line, ...]:
    kernels = {kernel.name: kernel for kernel in KERNELS}
    lines = []
    for timing in timings:
        if timing.is_trained:
            call, kernel = timing.probe.call(True), kernels[timing.kernel]
            estimates = (kernel.cost(call, before), kernel.cost(call, after))
            chosen = (cheapest(call, before).name, cheapest(call, after).name)
            lines.append(Line(timing.probe.name(), timing.kernel, *estimates, timing.seconds, chosen))
    return tuple(lines)


def _check_writable(path: Path) -> None:
    """Raise OSError before anything is measured for nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
    except OSError as error:
        raise _cannot_write(path, error) from None


def _write(path: Path, machine: dict[str, object]) -> None:
    try:
        write_machine(path, machine)
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> OSError:
    got = f"{path} ({error.strerror or error})"
    return OSError(message("calibrate", "file", "must be writable", got, f"Set {VARIABLE}=PATH."))

"""The file that `graphattn.calibrate` writes, and what it says about this machine. It is read on the first call.

    {"graphattn calibration": 1, "machines": [{"device": "cpu", "name": ..., "threads": 2, "versions": {...},
     "rates": {...}, "costs": {...}, "features": [...], "refused": [[...], ...]}]}

A machine counts if its device, name, threads and versions are those of this process; rates are for readers alone.
Anything else about the file that isn't as it should be is a warning, and the constants that come with the package stay.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import sys
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .costs import CPU, CUDA, Costs, allows_any
from .errors import message, warn_once

VARIABLE = "GRAPHATTN_CALIBRATION"
MARK, FORMAT = "graphattn calibration", 1
# More than any calibration has.
MOST_BYTES = 2**20
# What a calibration must share with the process that uses it.
IDENTITY = ("device", "name", "threads", "versions")
# Compute capabilities of chips on which `make gpu` has passed and measured: an H200. There the fused kernels need no
# check of the user's own.
CHECKED_CHIPS = frozenset({(9, 0)})


@torch.compiler.assume_constant_result
def costs_of(device: torch.device) -> Costs:
    """The costs of a device in this process: of its file, else of the package."""
    threads = torch.get_num_threads()
    known = _known.get((device, threads))
    if known is None:
        known = _known[device, threads] = _find(device)
    return known


_known: dict[tuple[torch.device, int], Costs] = {}


def forget() -> None:
    """Read the file again, at the next call."""
    _known.clear()


def path_of_file() -> Path | None:
    """Where the calibration is, or would be; None if the user wants none.

    The variable GRAPHATTN_CALIBRATION, "off" or a path, else calibration.json in the user's cache.

    Raises:
        OSError: there is no home directory.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen == "off":
        return None
    try:
        return Path(chosen).expanduser() if chosen else user_cache() / "calibration.json"
    except RuntimeError as error:
        raise OSError(message("calibrate", "folder", "must be known", error, f"Set {VARIABLE}=PATH.")) from None


def user_cache() -> Path:
    """The folder for what can be made again, as each system has it.

    Raises:
        RuntimeError: there is no home directory.
    """
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]).expanduser() / "graphattn"
    if sys.platform == "darwin":
        return Path("~/Library/Caches/graphattn").expanduser()
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "graphattn" / "Cache"
    return Path("~/.cache/graphattn").expanduser()


def identity_of(device: torch.device) -> dict[str, Any]:
    """What a machine's entry must have in common with this process."""
    return {
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        # A GPU's kernels don't run on them.
        "threads": torch.get_num_threads() if device.type == "cpu" else 1,
        "versions": _versions(),
    }


def read_machines(path: Path) -> list[dict[str, Any]]:
    """All machines in a file, checked.

    Raises:
        OSError: it can't be read; FileNotFoundError if it isn't there.
        ValueError: it isn't a calibration, or belongs to someone else.
    """
    with path.open("rb") as file:
        # Asked of the open file: the path may lead to another one by now.
        owner = os.fstat(file.fileno()).st_uid
        if hasattr(os, "geteuid") and owner != os.geteuid():
            raise ValueError(f"it belongs to user {owner}, not to {os.geteuid()}")
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")
    # Of bytes that aren't text, or text that isn't JSON, both errors are ValueErrors.
    held = json.loads(text)
    if not isinstance(held, dict) or held.get(MARK) != FORMAT or not isinstance(held.get("machines"), list):
        raise ValueError(f"it is no calibration of format {FORMAT}")
    for machine in held["machines"]:
        _check(machine)
    machines: list[dict[str, Any]] = held["machines"]
    return machines


def write_machine(path: Path, machine: Mapping[str, Any]) -> None:
    """Put a machine into a file, in place of an earlier one of the same device, name and threads.

    Raises:
        OSError: the file can't be written; then it is as it was.
    """
    try:
        others = read_machines(path)
    except (OSError, ValueError):
        others = []
    same = lambda other: all(other[name] == machine[name] for name in IDENTITY[:3])
    kept = [other for other in others if not same(other)]
    text = json.dumps({MARK: FORMAT, "machines": [*kept, machine]}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _find(device: torch.device) -> Costs:
    default = CPU if device.type == "cpu" else CUDA
    if device.type == "cpu":
        return _of_this_process(device, default)
    if device.type != "cuda":
        return default
    if torch.cuda.get_device_capability(device) not in CHECKED_CHIPS:
        default = replace(default, features=())
    found = _of_this_process(device, default)
    if not allows_any(found) and not found.refused and importlib.util.find_spec("triton") is not None:
        rule = "waits for a check of some minutes before backend='auto' takes the faster kernels"
        fix = "Run python -m graphattn calibrate --device cuda."
        warn_once("unchecked gpu", message("graphattn", torch.cuda.get_device_name(device), rule, fix=fix))
    return found


def _of_this_process(device: torch.device, default: Costs) -> Costs:
    """What the file says of this process's machine, else the default."""
    path = None
    try:
        path = path_of_file()
        machines = [] if path is None else read_machines(path)
    except FileNotFoundError:
        return default
    except (OSError, ValueError) as error:
        got = f"{path}: {type(error).__name__}: {error}"
        fix = f"Run python -m graphattn calibrate again, or set {VARIABLE}=off."
        warn_once("calibration", message("graphattn", "calibration", "is ignored: its file can't be used", got, fix))
        return default
    here = identity_of(device)
    for machine in machines:
        if all(machine[name] == here[name] for name in IDENTITY):
            found = replace(default, source=f"{path}").having(machine["costs"])
            if device.type == "cuda":
                refused = tuple(map(tuple, machine["refused"]))
                found = replace(found, features=tuple(machine["features"]), refused=refused)
            return found
    of_device = [machine for machine in machines if machine["device"] == device.type]
    if not of_device:
        return default
    # The one that differs least.
    other = min(of_device, key=lambda machine: sum(machine[name] != here[name] for name in IDENTITY))
    differs = ", ".join(_differences(other, here))
    source = f"{default.source}; that in {path} is for {differs}: run python -m graphattn calibrate"
    return replace(default, source=source)


def _differences(machine: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What of a machine isn't as it is here, in words."""
    found = [f"{name} {machine[name]}" for name in IDENTITY[1:3] if machine[name] != here[name]]
    versions: dict[str, Any] = machine["versions"]
    return [*found, *(f"{name} {text}" for name, text in versions.items() if here["versions"].get(name) != text)]


def _check(machine: Any) -> None:
    """Raise ValueError unless this is a machine as `write_machine` writes it."""
    if not isinstance(machine, dict) or not {*IDENTITY, "costs", "features", "refused"} <= machine.keys():
        raise ValueError("a machine in it lacks something")
    costs, names = machine["costs"], CPU.numbers().keys()
    if not isinstance(costs, dict) or not costs.keys() <= names or not isinstance(machine["versions"], dict):
        raise ValueError("it has constants that no model has")
    for name, number in costs.items():
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        # Only what is added may be nothing.
        if not is_number or not 0 <= number < math.inf or (number == 0 and getattr(CPU, name) > 0):
            raise ValueError(f"{name} must be a positive number, got {number!r}")
    is_text = lambda x: isinstance(x, list) and all(isinstance(name, str) for name in x)
    if not is_text(machine["features"]) or not isinstance(machine["refused"], list):
        raise ValueError("its features aren't names")
    if not all(is_text(some) for some in machine["refused"]):
        raise ValueError("its refused features aren't lists of names")


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


@functools.cache
def _versions() -> dict[str, str | None]:
    """Versions of all that makes the kernels' code."""
    # The package's own name, when it runs from a checkout, isn't known to the installer.
    own: str = importlib.import_module(__package__).__version__
    return {"graphattn": own, **{name: _version(name) for name in ("torch", "numba", "triton")}}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

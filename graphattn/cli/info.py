"""`python -m graphattn info`."""

from __future__ import annotations

import argparse
import math
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import graphattn

from ..calibrated import costs_of
from ..compiled import compiled_files, folders, threads, why_not_compiled
from ..functional import explain_backend
from ..memory import format_bytes
from ..patterns import Edges, Full, Pattern, Window

# What the package uses, the optional ones included.
PACKAGES = (
    *("torch", "torch-geometric", "numpy", "scipy", "networkx", "numba", "llvmlite", "triton", "tqdm"),
    *("matplotlib", "pymetis", "safetensors", "onnx", "onnxscript", "onnxruntime"),
)
# Variables that change what runs.
PREFIXES = ("GRAPHATTN_", "NUMBA_", "OMP_", "KMP_", "GOMP_", "MKL_", "TRITON_", "TORCH", "CUDA_")

Line = tuple[str, str]


def add_to(commands: Any) -> None:
    """Add the command and its options."""
    about = "Show versions, devices, threads, kernels and the cache of compiled code: what a bug report needs."
    parser = commands.add_parser("info", help=about, description=about, allow_abbrev=False)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    for section in SECTIONS:
        title = (section.__doc__ or "").rstrip(".")
        try:
            lines = list(section())
        # On the machine of a bug report anything may be broken, and the other parts are needed all the more.
        except Exception as error:
            lines = [("can't be told", f"{type(error).__name__}: {error}")]
        width = max((len(name) for name, _ in lines), default=0)
        print("\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in lines), ""]))
    return 0


def _versions() -> Iterator[Line]:
    """Versions."""
    yield "graphattn", f"{graphattn.__version__} in {graphattn.__path__[0]}"
    yield "Python", f"{platform.python_version()} ({platform.python_implementation()})"
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"


def _machine() -> Iterator[Line]:
    """Machine."""
    yield "platform", platform.platform()
    processor = platform.processor() or platform.machine()
    yield "processor", f"{processor}, of which torch uses {torch.backends.cpu.get_cpu_capability()}"
    for device in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(device)
        memory, capability = format_bytes(of.total_memory), f"{of.major}.{of.minor}"
        yield f"cuda:{device}", f"{of.name}, compute capability {capability}, {memory}, CUDA {torch.version.cuda}"
    if not torch.cuda.is_available():
        yield "cuda", "torch sees no GPU"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = "torch's" if threads.uses_threads_of_torch() else "our own"
    yield "threads", f"{torch.get_num_threads()} on {usable} of {os.cpu_count()} cores; compiled loops run on {pool}"
    for name in sorted(os.environ):
        if name.startswith(PREFIXES):
            yield name, os.environ[name]


def _kernels() -> Iterator[Line]:
    """Kernels."""
    edges = Edges(torch.tensor([[0, 1], [1, 2]]), 3)
    # Each kernel can run one of these, where it can run anything.
    calls: tuple[tuple[Pattern, str], ...] = (
        (edges, "softmax"),
        (Window(3, radius=1), "softmax"),
        (Full(3), "identity"),
    )
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        x = torch.zeros(3, 1, 16, device=device)
        answers: dict[str, tuple[str | None, float]] = {}
        for pattern, normalizer in calls:
            for name, answer in explain_backend(x, x, x, pattern.to(device), normalizer=normalizer).answers.items():
                if name not in answers or answers[name][0] is not None:
                    answers[name] = answer
        for name, (reason, seconds) in answers.items():
            runs = "can run" if seconds < math.inf else "runs only if named explicitly"
            yield f"{name} on {device}", runs if reason is None else f"cannot: {reason}"


def _calibration() -> Iterator[Line]:
    """Calibration."""
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        yield device, costs_of(torch.device(device)).source


def _cache() -> Iterator[Line]:
    """Compiled code."""
    reason = why_not_compiled()
    if reason is not None:
        yield "folder", f"none: {reason}"
    elif folders.in_use:
        yield "folder", f"{folders.in_use[0]}, can be written"
    else:
        yield "folder", f"none can be written: {', '.join(map(str, folders.parents()))}"
    sizes: dict[Path, list[int]] = {}
    for path, size in compiled_files():
        sizes.setdefault(path.parent, []).append(size)
    for folder, found in sizes.items():
        yield "files", f"{len(found):,}, {format_bytes(sum(found))} in {folder}"


# In the order in which they are printed, each under its docstring.
SECTIONS = (_versions, _machine, _kernels, _calibration, _cache)

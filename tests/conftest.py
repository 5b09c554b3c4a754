from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import hypothesis
import torch

if not torch.cuda.is_available():
    # Before Triton is imported: its functions look at this when they are decorated.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from graphattn import Edges
from graphattn.call import prepare
from graphattn.kernels import KERNELS, Kernel
from graphattn.normalizers import NORMALIZERS
from graphattn.testing import random_call

ROOT = Path(__file__).resolve().parents[1]

# Kernels that run on this device alone; for the others there are tests of their own.
ON_A_GPU, ON_A_CPU = ("flex", "triton"), ("numba",)
# Kernels that run every pattern, on a CPU; those that run some have tests of their own.
EDGE_KERNELS = [kernel for kernel in KERNELS if kernel.name not in ("tiles", *ON_A_GPU)]


def can_run(kernel: Kernel, **options: Any) -> bool:
    """Whether a kernel runs calls with such a score or normalizer; another test says which ones the fused lack."""
    pattern = Edges(torch.tensor([[0, 1], [1, 0]]), 2)
    call = prepare("tests", **random_call(pattern, heads=4, width=3), pattern=pattern, **options)
    return kernel.why_not(call) is None


# Each of them with each normalizer that it has.
KERNELS_WITH_NORMALIZERS = [
    (kernel, cls) for kernel in EDGE_KERNELS for cls in NORMALIZERS if can_run(kernel, normalizer=cls())
]

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core to itself.
    torch.set_num_threads(1)

# The first example of a kind compiles a kernel, which takes seconds.
hypothesis.settings.register_profile("graphattn", deadline=None)
hypothesis.settings.load_profile("graphattn")


def run_example(name: str, *arguments: str) -> str:
    """Run an example and return what it printed; a bad argument fails with its message.

    In this process, as a new one would spend most of its time on imports; `make demo` is run as a user would run it.
    """
    folder = str(ROOT / "examples")
    printed, complaint = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, [name, *arguments]
    sys.path.insert(0, folder)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaint):
            runpy.run_path(f"{folder}/{name}", run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, complaint.getvalue()  # noqa: PT017
    finally:
        sys.argv = argv
        sys.path.remove(folder)
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")
    return printed.getvalue()

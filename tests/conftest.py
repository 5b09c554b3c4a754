from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
from pathlib import Path

import hypothesis
import torch

if not torch.cuda.is_available():
    # Before Triton is imported: its functions look at this when they are decorated.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from graphattn.kernels import KERNELS
from graphattn.kernels.rows.op import NORMALIZER_CODES
from graphattn.normalizers import NORMALIZERS

ROOT = Path(__file__).resolve().parents[1]

# Kernels that run on this device alone; for the others there are tests of their own.
ON_A_GPU, ON_A_CPU = ("flex", "triton"), ("numba",)
# Kernels that run every pattern, on a CPU; those that run some have tests of their own.
EDGE_KERNELS = [kernel for kernel in KERNELS if kernel.name not in ("tiles", *ON_A_GPU)]
# Each of them with each normalizer that it has; another test says what the fused ones have not.
KERNELS_WITH_NORMALIZERS = [
    (kernel, cls)
    for kernel in EDGE_KERNELS
    for cls in NORMALIZERS
    if kernel.name == "scatter" or cls in NORMALIZER_CODES
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

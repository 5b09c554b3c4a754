from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import torch

if not torch.cuda.is_available():
    # Before Triton is imported: its functions look at this when they are decorated.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from graphattn.kernels import KERNELS
from graphattn.kernels.csr_op import NORMALIZER_CODES
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
    """Run an example as a user would, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout

from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    # Before Triton is imported: its functions look at this when they are decorated.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# What a calibration of this machine says isn't what tests expect.
os.environ["GRAPHATTN_CALIBRATION"] = "off"

from graphattn import Edges, Full, Pattern, explain_backend
from graphattn.call import prepare
from graphattn.kernels import KERNELS
from graphattn.kernels.base import Kernel
from graphattn.kernels.rows.op import NORMALIZER_CODES
from graphattn.nn.pyg.fused import LeavesSmall
from graphattn.nn.pyg.stitched import HeteroConv
from graphattn.nn.pyg.to_hetero import LayersOfRelations
from graphattn.normalizers import NORMALIZERS, Normalizer
from graphattn.testing import random_call

ROOT = Path(__file__).resolve().parents[1]


def kernels_for(pattern: Pattern, device: str = "cpu", **options: str) -> list[Kernel]:
    """Kernels that run calls on such a pattern, on this device: those that have no reason why not."""
    tensors = random_call(pattern, device=device)
    answers = explain_backend(**tensors, pattern=pattern.to(device), **options).answers
    return [kernel for kernel in KERNELS if answers[kernel.name][0] is None]


def can_run(kernel: Kernel, **options: Any) -> bool:
    """Whether a kernel runs calls with such a score or normalizer; another test says which ones the fused lack."""
    call = prepare("tests", **random_call(ONE_EDGE, heads=4, width=3), pattern=ONE_EDGE, **options)
    return kernel.why_not(call) is None


def with_normalizers(kernels: list[Kernel], device: str = "cpu") -> list[tuple[Kernel, type[Normalizer]]]:
    """Each of the kernels with each normalizer that it has in its loops; what is computed ahead has its own tests."""
    runs = lambda kernel, cls: (
        kernel in kernels_for(ONE_EDGE, device, normalizer=cls.name) and (kernel.is_plain or cls in NORMALIZER_CODES)
    )
    return [(kernel, cls) for kernel in kernels for cls in NORMALIZERS if runs(kernel, cls)]


ONE_EDGE = Edges(torch.tensor([[0], [1]]), 2)
# Kernels that run every pattern, and those that run some at least, on a CPU.
EDGE_KERNELS, CPU_KERNELS = kernels_for(ONE_EDGE), kernels_for(Full(2))
KERNELS_WITH_NORMALIZERS = with_normalizers(EDGE_KERNELS)


@pytest.fixture(autouse=True)
def no_call_is_small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs of tests are small, and layers that `accelerate` made would leave them to PyG."""
    if request.node.get_closest_marker("small_calls") is None:
        monkeypatch.setattr(LeavesSmall, "_leaves_rows", lambda self, x: False)
        for kind in (HeteroConv, LayersOfRelations):
            monkeypatch.setattr(kind, "_is_small", lambda self, *given: False)


@pytest.fixture(autouse=True)
def compiled_graphs_are_forgotten() -> Iterator[None]:
    """torch.compile has a limit on the graphs of one function, which tests would share."""
    yield
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.utils.counters["frames"]:
        dynamo.reset()
        dynamo.utils.counters.clear()


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

"""A warmed call on a GPU waits for nothing: no number is read from a tensor on its way to the kernels, and around the
kernels there is no other work. Needs no GPU.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from graphattn import Additive, attention
from graphattn.kernels import flex
from graphattn.kernels.rows import op
from graphattn.kernels.rows.gpu import kernel as gpu_kernel
from graphattn.testing import pattern_zoo, random_call

ZOO = pattern_zoo()
STRUCTURED = ["window ragged", "window dilated", "window causal", "grid 2-D", "grid ragged", "grid wrap", "full causal"]
# What makes a GPU's caller wait: reading a number, and results whose shape depends on numbers.
READS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique", "_unique2", "item", "is_nonzero")


class NoReads(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        # Between two tensors of which one lies on the CPU, as a test's seed may.
        if name in READS or by_mask or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            raise AssertionError(f"{name} makes the caller wait")
        return function(*args, **(kwargs or {}))


def recorders(launches):
    """What replaces the kernels: each notes its launch, and isn't run."""
    from graphattn.kernels.rows.gpu.jit import backward as gpu_backward
    from graphattn.kernels.rows.gpu.jit import forward as gpu_forward

    class Recorder:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *arguments, **options: launches.append(self.name)

    names = {
        gpu_forward: ("forward_rows", "weigh_rows", "merge_forward"),
        gpu_backward: ("target_gradients", "source_gradients", "merge_sums"),
    }
    return [(module, name, Recorder(name)) for module, functions in names.items() for name in functions]


@pytest.fixture
def launched(monkeypatch):
    """The kernels' launches, which aren't run: what lies before and between them is what is tested."""
    pytest.importorskip("triton", reason="needs Triton, which Linux alone has")
    launches = []
    for recorder in recorders(launches):
        monkeypatch.setattr(*recorder)
    monkeypatch.setattr(gpu_kernel.TritonCSR, "device", "cpu")
    monkeypatch.setattr(flex.Flex, "device", "cpu")
    monkeypatch.setitem(op.FUNCTIONS, "cpu", op.FUNCTIONS["cuda"])
    # A mode below would see an operator, and not what it consists of.
    monkeypatch.setattr(op, "is_unobserved", lambda x: True)
    return launches


def step(pattern, tensors, **options):
    results = attention(**tensors, pattern=pattern, backend="triton", **options)
    results = results if isinstance(results, tuple) else (results,)
    torch.autograd.grad([x.sum() for x in results], list(tensors.values()))


@pytest.mark.parametrize("options", [{}, {"dropout_p": 0.3}, {"return_weights": True}, {"return_lse": True}], ids=str)
@pytest.mark.parametrize("name", ["unsorted edges", "parallel edges", "hub", *STRUCTURED])
def test_a_warmed_call_waits_for_nothing(name, options, launched):
    pattern, is_wide = ZOO[name], name in STRUCTURED
    tensors = random_call(pattern, width=16 if is_wide else 4, edge_tensors=not is_wide, dtype=torch.float32)
    step(pattern, tensors, **options)
    warmed = len(launched)
    with NoReads():
        step(pattern, tensors, **options)
    assert len(launched) == 2 * warmed > 0 and {"forward_rows", "target_gradients", "source_gradients"} <= {*launched}
    assert ("merge_forward" in launched) == (name == "hub")


@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
def test_nor_does_one_with_an_additive_score(activation, launched):
    pattern = ZOO["unsorted edges"]
    score = Additive(torch.randn(2, 4, requires_grad=True), activation)
    tensors = random_call(pattern, dtype=torch.float32)
    step(pattern, tensors, score=score)
    warmed = len(launched)
    with NoReads():
        step(pattern, tensors, score=score)
    assert len(launched) == 2 * warmed > 0


class NoWork(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in ("view", "unsqueeze", "squeeze", "detach", "new_empty", "empty_like"):
            raise AssertionError(f"{name} is one launch more")
        return function(*args, **(kwargs or {}))


def test_between_the_kernels_memory_is_reserved_and_nothing_else_is_done(launched):
    pattern = ZOO["unsorted edges"]
    tensors = random_call(pattern, edge_tensors=True, dtype=torch.float16)
    step(pattern, tensors)
    grad = torch.ones_like(tensors["query"])
    with NoWork():
        out = attention(**tensors, pattern=pattern, backend="triton")
        gradients = torch.autograd.grad(out, list(tensors.values()), grad)
    assert [x.dtype for x in gradients] == [torch.float16] * len(tensors)
    with pytest.raises(AssertionError, match="sum is one launch more"), NoWork():
        out.sum()


def test_kernels_are_launched_on_their_tensors_device(launched, monkeypatch):
    entered = []

    @contextmanager
    def device_of(tensor):
        entered.append(tensor)
        yield
        entered.pop()

    class Where(list):
        def append(self, name):
            assert entered, f"{name} is launched on the current device"
            launched.append(name)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for recorder in recorders(Where()):
        monkeypatch.setattr(*recorder)
    pattern = ZOO["hub"]
    step(pattern, random_call(pattern, dtype=torch.float32), return_weights=True)
    assert {"merge_forward", "weigh_rows", "target_gradients", "source_gradients", "merge_sums"} <= {*launched}


def test_a_read_is_noticed():
    x = torch.ones(3)
    for read in (lambda: float(x.sum()), lambda: x.nonzero(), lambda: x[x > 0], lambda: bool(x.all())):
        with pytest.raises(AssertionError, match="makes the caller wait"), NoReads():
            read()

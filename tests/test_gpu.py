"""What must hold on a CUDA device; `make gpu` runs it."""

from __future__ import annotations

import pytest
import torch
from conftest import ON_A_CPU

from graphattn import Additive, DotProduct, Full, Grid, Window, attention
from graphattn.kernels import KERNELS
from graphattn.kernels.csr_op import NORMALIZER_CODES
from graphattn.nn import GraphAttention
from graphattn.normalizers import NORMALIZERS
from graphattn.testing import assert_matches_dense, pattern_zoo, random_call

pytestmark = pytest.mark.gpu

PATTERNS = pattern_zoo()
DEVICE = "cuda"
EDGE_KERNELS = [kernel for kernel in KERNELS if kernel.name not in ("tiles", "flex", *ON_A_CPU)]
KERNELS_WITH_NORMALIZERS = [
    (kernel, cls)
    for kernel in EDGE_KERNELS
    for cls in NORMALIZERS
    if kernel.name == "scatter" or cls in NORMALIZER_CODES
]


@pytest.mark.parametrize("kernel, normalizer", KERNELS_WITH_NORMALIZERS, ids=lambda x: x.name)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PATTERNS)
def test_kernel_matches_oracle(name, normalizer, dtype, kernel):
    pattern = PATTERNS[name].to(DEVICE, non_blocking=True)
    tensors = random_call(pattern, batch=(2,), dtype=dtype, device=DEVICE, edge_tensors=name != "hub")
    vector = torch.randn(2, 4, device=DEVICE, dtype=dtype)
    for score in (DotProduct(), Additive(vector), Additive(vector, "leaky_relu")):
        options = dict(score=score, normalizer=normalizer.name, backend=kernel.name, dropout_p=0.2)
        assert_matches_dense(tensors, pattern, **options)


STRUCTURED = [name for name, x in PATTERNS.items() if isinstance(x, Full | Window | Grid)]
STRUCTURED = [name for name in STRUCTURED if not getattr(PATTERNS[name], "global_tokens", ())]


@pytest.mark.parametrize("offset_table", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["tiles", "flex"])
@pytest.mark.parametrize("name", STRUCTURED)
def test_tiles_match_oracle(name, backend, dtype, offset_table):
    pattern = PATTERNS[name].to(DEVICE)
    options = dict(batch=(2,), kv_heads=1, width=16, dtype=dtype, device=DEVICE, offset_table=offset_table)
    assert_matches_dense(random_call(pattern, **options), pattern, backend=backend, return_weights=False)


@pytest.mark.parametrize("kernel", EDGE_KERNELS, ids=lambda kernel: kernel.name)
def test_running_twice_changes_nothing(kernel):
    pattern = PATTERNS["hub"].to(DEVICE)
    results = []
    for _ in range(2):
        tensors = random_call(pattern, dtype=torch.float32, device=DEVICE, width=32)
        out = attention(**tensors, pattern=pattern, backend=kernel.name)
        results.append((out, *torch.autograd.grad(out.square().sum(), list(tensors.values()))))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


@pytest.mark.parametrize(
    "pattern", [Full([3, 5]), Window([6, 2], 1), Grid((3, 4), 1), PATTERNS["unsorted edges"]], ids=repr
)
def test_patterns_are_the_same_on_both_devices(pattern):
    moved = pattern.to(DEVICE)
    built = type(pattern)._join([moved])
    for other in (moved, built):
        for ours, theirs in zip(
            (other.edge_index, other.mask(), *other.csr(), *other.csc()),
            (pattern.edge_index, pattern.mask(), *pattern.csr(), *pattern.csc()),
            strict=True,
        ):
            assert (ours is None and theirs is None) or torch.equal(ours.cpu(), theirs)


def test_layer_trains_on_the_device_and_its_routes_agree():
    layer = GraphAttention(8, 8, heads=2, dropout=0.2, edge_dim=3).to(DEVICE)
    pattern = PATTERNS["unsorted edges"].to(DEVICE)
    x = torch.randn(pattern.num_targets, 8, device=DEVICE)
    edge_attr = torch.randn(pattern.num_edges, 3, device=DEVICE)
    torch.manual_seed(0)
    out = layer(x, pattern, edge_attr)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    layer.register_message_forward_hook(lambda module, inputs, output: None)
    torch.manual_seed(0)
    torch.testing.assert_close(layer(x, pattern, edge_attr), out)


def test_a_pattern_left_on_the_cpu_is_an_error():
    x = torch.randn(5, 2, 4, device=DEVICE)
    with pytest.raises(
        ValueError, match="attention: pattern must be on query's device, cuda:0, got cpu. Use pattern.to"
    ):
        attention(x, x, x, Window(5, radius=1))

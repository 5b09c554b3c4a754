"""What must hold on a CUDA device; `make gpu` runs it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch_geometric.nn as pyg
from conftest import ONE_EDGE, kernels_for, with_normalizers

from graphattn import Additive, DotProduct, Edges, Full, Grid, Window, accelerate, attention, dense_attention
from graphattn.kernels.rows.gpu.plan import ItemPlan
from graphattn.kernels.rows.op import SCORE_CODES
from graphattn.kernels.tiles.plan import why_not_cut
from graphattn.nn import GraphAttention
from graphattn.testing import assert_matches_dense, pattern_zoo, random_call

pytestmark = pytest.mark.gpu
# What torch's compiler announces on a GPU, that TensorFloat32 is there for example, nothing of ours can act on.
compiles = pytest.mark.filterwarnings("ignore")

PATTERNS = pattern_zoo()
DEVICE = "cuda"
EDGE_KERNELS = kernels_for(ONE_EDGE, DEVICE) if torch.cuda.is_available() else []
KERNELS_WITH_NORMALIZERS = with_normalizers(EDGE_KERNELS, DEVICE)


# Triton compiles a kernel for each dtype, score and normalizer, a second at a time: each is tested, not each with each.
@pytest.mark.parametrize("kernel", EDGE_KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_equals_the_oracle(name, dtype, kernel):
    pattern = PATTERNS[name].to(DEVICE, non_blocking=True)
    tensors = random_call(pattern, batch=(2,), dtype=dtype, device=DEVICE, edge_tensors=name != "hub")
    assert_matches_dense(tensors, pattern, backend=kernel.name, dropout_p=0.2)


@pytest.mark.parametrize(("kernel", "normalizer"), KERNELS_WITH_NORMALIZERS, ids=lambda x: x.name)
@pytest.mark.parametrize("activation", [None, *(name for name in SCORE_CODES if name != "dot_product")])
def test_every_score_and_normalizer_equals_the_oracle(activation, kernel, normalizer):
    pattern = PATTERNS["unsorted edges"].to(DEVICE)
    tensors = random_call(pattern, device=DEVICE, dtype=torch.float32, edge_tensors=True)
    score = DotProduct(0.3) if activation is None else Additive(torch.randn(2, 4, device=DEVICE), activation)
    options = dict(score=score, normalizer=normalizer.name, backend=kernel.name, dropout_p=0.2)
    assert_matches_dense(tensors, pattern, **options)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "value_width"),
    [(1, 1, 1, 1), (3, 1, 5, 7), (6, 3, 8, 2), (8, 8, 64, 64), (2, 1, 256, 200), (16, 1, 64, 64)],
)
def test_every_grouping_and_width_equals_the_oracle(heads, kv_heads, width, value_width):
    pattern = PATTERNS["parallel edges"].to(DEVICE)
    sizes = dict(heads=heads, kv_heads=kv_heads, width=width, value_width=value_width)
    assert_matches_dense(random_call(pattern, device=DEVICE, dtype=torch.float16, **sizes), pattern, backend="triton")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_traced_score_equals_the_oracle(dtype):
    pattern, vector = PATTERNS["hub"].to(DEVICE), torch.ones(2, 4, device=DEVICE, requires_grad=True)

    def score(query_i, key_j, edge_key):
        ends = ((query_i + key_j).tanh() * vector).sum(-1)
        return ends * (query_i * key_j * edge_key.sigmoid()).sum(-1).sigmoid()

    tensors = random_call(pattern, device=DEVICE, dtype=dtype)
    tensors["edge_key"] = torch.randn(pattern.num_edges, 2, 4, device=DEVICE, dtype=dtype, requires_grad=True)
    assert_matches_dense(tensors, pattern, score=score, backend="triton", normalizer="sparsemax")


def test_float64_equals_the_oracle():
    pattern = PATTERNS["hub"].to(DEVICE)
    assert_matches_dense(random_call(pattern, device=DEVICE, width=64, edge_tensors=True), pattern, backend="triton")


STRUCTURED = [name for name, x in PATTERNS.items() if isinstance(x, Full | Window | Grid)]
STRUCTURED = [name for name in STRUCTURED if not getattr(PATTERNS[name], "global_tokens", ())]
TILED = [name for name in STRUCTURED if why_not_cut(PATTERNS[name]) is None]


def assert_structured(name, backend, dtype, offset_table):
    pattern = PATTERNS[name].to(DEVICE)
    options = dict(batch=(2,), kv_heads=1, width=16, dtype=dtype, device=DEVICE, offset_table=offset_table)
    assert_matches_dense(random_call(pattern, **options), pattern, backend=backend, return_weights=False)


@pytest.mark.parametrize("offset_table", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TILED)
def test_tiles_equal_the_oracle(name, dtype, offset_table):
    assert_structured(name, "tiles", dtype, offset_table)


# Compiled for ten seconds each, so that these are few; tests/kernels/test_flex.py runs all uncompiled.
@pytest.mark.parametrize(
    ("name", "dtype", "offset_table"),
    [
        ("window", torch.bfloat16, False),
        ("window ragged", torch.float32, False),
        ("full causal", torch.float32, True),
        ("grid shift dilated", torch.float32, False),
        ("full bipartite", torch.float32, False),
        ("grid wrap", torch.float32, False),
        ("grid 2-D", torch.bfloat16, True),
    ],
    ids=str,
)
@compiles
def test_flex_equals_the_oracle(name, dtype, offset_table):
    torch._dynamo.reset()
    assert_structured(name, "flex", dtype, offset_table)
    torch._dynamo.reset()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_full_patterns_of_one_size_equal_the_oracle(dtype, causal):
    pattern = Full([150, 150], causal=causal).to(DEVICE)
    tensors = random_call(pattern, batch=(2,), width=16, dtype=dtype, device=DEVICE)
    assert_matches_dense(tensors, pattern, backend="flex", return_weights=False, return_lse=False)


@compiles
def test_inference_reads_fewer_blocks_and_equals_the_oracle():
    torch._dynamo.reset()
    for pattern in (Window([700, 30], 20), Window(500, 40, causal=True), Grid((20, 30), 2)):
        pattern = pattern.to(DEVICE)
        inputs = [x.detach() for x in random_call(pattern, width=64, dtype=torch.float16, device=DEVICE).values()]
        out = attention(*inputs, pattern, backend="flex")
        torch.testing.assert_close(out, dense_attention(*inputs, pattern), rtol=1e-2, atol=1e-2)
    torch._dynamo.reset()


def draw(pattern, dtype=torch.float32, width=32):
    """Query, key and value."""
    return list(random_call(pattern, device=DEVICE, dtype=dtype, width=width).values())


def with_gradients(inputs, pattern, backend="triton", **options):
    """The output and the gradients of its squares by all inputs."""
    torch.manual_seed(0)
    out = attention(*inputs, pattern, backend=backend, **options)
    return out, *torch.autograd.grad(out.float().square().sum(), inputs)


def assert_same_bits(ours, theirs):
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", EDGE_KERNELS, ids=lambda kernel: kernel.name)
def test_running_twice_changes_nothing(kernel, dtype):
    pattern = PATTERNS["hub"].to(DEVICE)
    first, second = (with_gradients(draw(pattern, dtype), pattern, kernel.name, dropout_p=0.3) for _ in range(2))
    assert_same_bits(first, second)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one_computes_the_same():
    first, second = (f"cuda:{place}" for place in range(2))
    pattern = PATTERNS["hub"]
    inputs = draw(pattern.to(first))
    moved = [x.detach().to(second).requires_grad_() for x in inputs]
    with torch.cuda.device(first):
        ours = with_gradients(moved, pattern.to(second))
    assert_same_bits([x.to(first) for x in ours], with_gradients(inputs, pattern.to(first)))


@pytest.mark.parametrize("as_pattern", [True, False], ids=["pattern", "edges"])
@compiles
def test_compiled_code_is_one_graph_and_changes_no_bit(as_pattern):
    torch._dynamo.reset()
    compiled = torch.compile(lambda *inputs: attention(*inputs, backend="triton"), fullgraph=True)
    pattern = PATTERNS["unsorted edges"].to(DEVICE)
    inputs, graph = draw(pattern), pattern if as_pattern else pattern.edge_index.clone()
    out = compiled(*inputs, graph)
    gradients = torch.autograd.grad(out.float().square().sum(), inputs)
    assert_same_bits((out, *gradients), with_gradients(inputs, pattern))
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["unsorted edges", "hub"])
def test_a_cuda_graph_replays_forward_and_backward(name):
    pattern = PATTERNS[name].to(DEVICE)
    inputs = draw(pattern)
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            with_gradients(inputs, pattern)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(*inputs, pattern, backend="triton")
        gradients = torch.autograd.grad(out.float().square().sum(), inputs)
    # Other numbers at the same places.
    with torch.no_grad():
        for x in inputs:
            x.copy_(torch.randn_like(x))
    graph.replay()
    # Leaves of their own: torch warns where one is used on two streams.
    again = [x.detach().clone().requires_grad_() for x in inputs]
    assert_same_bits((out, *gradients), with_gradients(again, pattern))


# torch says of this mode that it is a prototype.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("options", [{}, {"dropout_p": 0.3}], ids=["plain", "dropout"])
def test_a_warmed_call_waits_for_nothing(options):
    pattern = PATTERNS["hub"].to(DEVICE)
    inputs = draw(pattern)

    def step():
        out = attention(*inputs, pattern, backend="triton", **options)
        torch.autograd.grad(out.float().square().sum(), inputs)

    step()
    torch.cuda.synchronize()
    # Whatever waits raises an error now.
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_casts_what_comes_in(dtype):
    pattern = PATTERNS["unsorted edges"].to(DEVICE)
    inputs = draw(pattern)
    with torch.autocast(DEVICE, dtype):
        out, *gradients = with_gradients(inputs, pattern)
    expected, *halves = with_gradients([x.detach().to(dtype).requires_grad_() for x in inputs], pattern)
    assert out.dtype == dtype and all(x.dtype == torch.float32 for x in gradients)
    assert_same_bits((out, *gradients), (expected, *(x.float() for x in halves)))


# Rows of key such that their numbers are more than 32 bits can count: 4 GiB in bfloat16.
ROWS_BEYOND = 2**31 // 256 + 8


def test_offsets_beyond_32_bits():
    if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of the GPU's memory")
    key = torch.zeros(ROWS_BEYOND, 1, 256, device=DEVICE, dtype=torch.bfloat16)
    value = torch.zeros(ROWS_BEYOND, 1, 16, device=DEVICE, dtype=torch.bfloat16)
    key[-8:], value[-8:] = torch.randn_like(key[-8:]), torch.randn_like(value[-8:])
    query = torch.randn(4, 1, 256, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
    source, target = torch.arange(8, device=DEVICE), torch.arange(4, device=DEVICE).repeat(2)
    large = Edges(torch.stack([source + ROWS_BEYOND - 8, target]), num_sources=ROWS_BEYOND, num_targets=4)
    out, *gradients = with_gradients([query, key.requires_grad_(), value.requires_grad_()], large)
    small = Edges(torch.stack([source, target]), num_sources=8, num_targets=4)
    last = [query, *(x[-8:].detach().requires_grad_() for x in (key, value))]
    expected, *others = with_gradients(last, small)
    assert_same_bits((out, *(x[-8:] for x in gradients)), (expected, *others))
    assert not gradients[1][:-8].any()


def test_rows_and_items_are_the_same_on_both_devices():
    edge_index = torch.randint(1000, (2, 20_000), generator=torch.Generator().manual_seed(0))
    edge_index[1, :5000] = 7
    ours, theirs = Edges(edge_index.to(DEVICE), 1000), Edges(edge_index, 1000)
    for csr, other in ((ours.csr(), theirs.csr()), (ours.csc(), theirs.csc())):
        assert csr.ptr.device.type == DEVICE
        for x, y in zip((*csr, *ItemPlan.of(csr)), (*other, *ItemPlan.of(other)), strict=True):
            assert x.dtype == y.dtype and torch.equal(x.cpu(), y)
    assert ItemPlan.of(ours.csr()).cut.size(0) == 1


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pattern", [Full([70, 3]), Full([2, 0, 90], causal=True)], ids=repr)
def test_linear_equals_the_oracle(pattern, dtype):
    pattern = pattern.to(DEVICE)
    tensors = random_call(pattern, batch=(2,), heads=4, kv_heads=2, width=16, dtype=dtype, device=DEVICE)
    options = dict(normalizer="identity", return_weights=False, return_lse=False)
    assert_matches_dense(tensors, pattern, backend="linear", **options)


LAYERS = {
    "GATConv": lambda: pyg.GATConv(8, 8, heads=2),
    "TransformerConv": lambda: pyg.TransformerConv(8, 8, heads=2),
    "AGNNConv": lambda: pyg.AGNNConv(),
    "GENConv": lambda: pyg.GENConv(8, 8, norm="layer"),
    "ResGatedGraphConv": lambda: pyg.ResGatedGraphConv(8, 8),
    "SuperGATConv": lambda: pyg.SuperGATConv(8, 4, heads=2).eval(),
    "GPSConv": lambda: pyg.GPSConv(8, None, heads=2, norm=None),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_pyg_compute_the_same(name):
    torch.manual_seed(0)
    theirs = LAYERS[name]().to(DEVICE)
    ours = copy.deepcopy(theirs)
    assert accelerate(ours).changed
    x = torch.randn(40, 8, device=DEVICE, requires_grad=True)
    edge_index = torch.randint(40, (2, 200), device=DEVICE)
    results = []
    for layer in (theirs, ours):
        out = layer(x, edge_index)
        parameters = [x, *(p for p in layer.parameters() if p.requires_grad)]
        found = torch.autograd.grad(out.square().sum(), parameters, allow_unused=True)
        results.append((out, *(grad for grad in found if grad is not None)))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


def test_a_pattern_left_on_the_cpu_is_an_error():
    x = torch.randn(5, 2, 4, device=DEVICE)
    with pytest.raises(
        ValueError, match=r"attention: pattern must be on query's device, cuda:0, got cpu. Use pattern.to"
    ):
        attention(x, x, x, Window(5, radius=1))

"""The GPU's fused kernel in Triton's interpreter, against the oracle: no GPU is needed.

The interpreter takes milliseconds for each program, so graphs are small. `test_gpu.py` runs the same compiled.
"""

from __future__ import annotations

import os

import pytest
import torch
from covering import in_turn

from graphattn import Additive, DotProduct, Edges, attention, explain_backend
from graphattn.kernels.rows.gpu import kernel as gpu_kernel
from graphattn.kernels.rows.gpu import plan as gpu_plan
from graphattn.kernels.rows.gpu.buffers import between_guards, guards
from graphattn.kernels.rows.op import FUNCTIONS, NORMALIZER_CODES, SCORE_CODES
from graphattn.testing import assert_matches_dense, graph_zoo, pattern_zoo, random_call

triton = pytest.importorskip("triton", reason="needs Triton, which Linux alone has")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="a GPU is here: make gpu runs the kernels compiled"
)

ACTIVATIONS = [None, *(name for name in SCORE_CODES if name != "dot_product")]
NORMALIZERS = [normalizer().name for normalizer in NORMALIZER_CODES]
ZOO = pattern_zoo()
SMALL = [name for name, pattern in ZOO.items() if pattern.num_edges < 25]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Let the CPU's tensors reach the kernel by way of the operators."""
    monkeypatch.setattr(gpu_kernel.TritonCSR, "device", "cpu")
    monkeypatch.setitem(FUNCTIONS, "cpu", FUNCTIONS["cuda"])


@pytest.mark.parametrize("name", SMALL)
def test_every_small_pattern_equals_the_oracle(name):
    tensors = random_call(ZOO[name], batch=(2,), kv_heads=1, edge_tensors=True)
    assert_matches_dense(tensors, ZOO[name], backend="triton", dropout_p=0.3)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_score_and_normalizer_equals_the_oracle(activation, normalizer):
    pattern = ZOO["parallel edges"]
    vector = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    score = DotProduct(0.3) if activation is None else Additive(vector, activation)
    tensors = random_call(pattern, edge_tensors=True)
    assert_matches_dense(tensors, pattern, score=score, normalizer=normalizer, backend="triton", dropout_p=0.3)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "value_width"),
    [(1, 1, 1, 1), (3, 1, 5, 7), (6, 3, 8, 2), (8, 8, 16, 16), (5, 5, 3, 40), (2, 1, 256, 200)],
)
def test_every_grouping_and_width_equals_the_oracle(heads, kv_heads, width, value_width):
    pattern = ZOO["parallel edges"]
    sizes = dict(heads=heads, kv_heads=kv_heads, width=width, value_width=value_width)
    assert_matches_dense(random_call(pattern, edge_tensors=True, **sizes), pattern, backend="triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_low_precision_stays_within_the_oracles_own_error(dtype):
    pattern = ZOO["unsorted edges"]
    tensors = random_call(pattern, dtype=dtype, width=16, edge_tensors=True)
    assert_matches_dense(tensors, pattern, backend="triton", dropout_p=0.3)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("name", ["star in", "star out"])
def test_rows_cut_into_pieces_equal_the_oracle(name, normalizer, monkeypatch):
    monkeypatch.setattr(gpu_plan, "PIECE_EDGES", (2, 2))
    monkeypatch.setattr(gpu_plan, "SHORT_ROW", 1)
    monkeypatch.setattr(gpu_plan, "MERGED_PIECES", 2)
    monkeypatch.setattr(gpu_plan, "MERGED_NUMBERS", 4)
    pattern = Edges(graph_zoo()[name].edge_index, graph_zoo()[name].num_sources)
    side = pattern.csr() if name == "star in" else pattern.csc()
    ((_, first, last),) = gpu_plan.ItemPlan.of(side).cut.tolist()
    assert last - first > 2
    tensors = random_call(pattern, batch=(2,), kv_heads=1, edge_tensors=True)
    assert_matches_dense(tensors, pattern, normalizer=normalizer, backend="triton", dropout_p=0.3)


def test_a_piece_of_nan_alone_reaches_its_row(monkeypatch):
    monkeypatch.setattr(gpu_plan, "PIECE_EDGES", (2, 2))
    monkeypatch.setattr(gpu_plan, "SHORT_ROW", 1)
    pattern = Edges(torch.tensor([[0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 0]]), 6)
    query, key, value = torch.randn(3, 6, 2, 4).unbind()
    key[:2] = torch.nan
    out = attention(query, key, value, pattern, backend="triton")
    assert out[0].isnan().all() and not out[1:].any()


@pytest.mark.parametrize(
    ("is_cut", "activation", "dropout_p", "dtype"),
    in_turn([False, True], [None, "leaky_relu"], [0.0, 0.4], [torch.float32, torch.bfloat16]),
)
def test_scores_of_any_size_leave_the_same_weights_and_slopes(is_cut, activation, dropout_p, dtype, monkeypatch):
    """Whole scores, most of them tied: times a power of two, their differences stay 0 or beyond any weight."""
    if is_cut:
        monkeypatch.setattr(gpu_plan, "PIECE_EDGES", (2, 2))
        monkeypatch.setattr(gpu_plan, "SHORT_ROW", 1)
    pattern = ZOO["unsorted edges"]
    generator = torch.Generator().manual_seed(0)
    whole = lambda *shape: torch.randint(-2, 3, shape, generator=generator).to(dtype)
    query, key, value = whole(7, 2, 4), whole(3, 2, 4)[torch.arange(7) % 3], torch.randn(7, 2, 4, generator=generator)
    vector = whole(2, 4).float()
    score = DotProduct(0.5) if activation is None else Additive(vector, activation, 0.5)
    found = []
    for power in (8, 49):
        leaves = [x.to(dtype).requires_grad_() for x in (query * 2.0**power, key * 2.0**power, value)]
        torch.manual_seed(0)
        results = attention(
            *leaves,
            pattern,
            score=score,
            dropout_p=dropout_p,
            return_weights=True,
            return_lse="split",
            backend="triton",
        )
        out, weights, lse = results
        assert lse.shape == (7, 2, 2)
        gradients = torch.autograd.grad([out.sum() + (weights * torch.arange(2)).sum()], leaves)
        grown = power if activation is None else 0
        found.append(
            [out, weights, lse[..., 1], *(g * 2.0 ** -(grown if i < 2 else 0) for i, g in enumerate(gradients))]
        )
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    expected = attention(*leaves, pattern, score=score, return_weights=True, backend="scatter")[1]
    torch.testing.assert_close(found[1][1], expected)


@pytest.mark.parametrize("options", [{}, {"return_lse": True, "return_weights": True}], ids=str)
def test_gradients_of_sources_alone_are_the_same(options):
    """The pass over targets runs all the same: it finds what the slopes of a row have in common."""
    pattern = ZOO["unsorted edges"]
    tensors = random_call(pattern, batch=(2,), kv_heads=1)
    sources = [tensors["key"], tensors["value"]]

    def gradients(query):
        results = attention(query, *sources, pattern, backend="triton", **options)
        results = results if isinstance(results, tuple) else (results,)
        return torch.autograd.grad([x.nan_to_num(neginf=0).square().sum() for x in results], sources)

    for alone, beside in zip(gradients(tensors["query"].detach()), gradients(tensors["query"]), strict=True):
        torch.testing.assert_close(alone, beside)


def test_nothing_outside_of_inputs_is_read_and_all_of_outputs_is_written():
    """Every tensor lies between guards of NaN, and what is not yet written is NaN."""
    pattern = ZOO["unsorted edges"]
    for csr in (pattern.csr(), pattern.csc()):
        assert csr.index.numel() % 16
    tensors = random_call(pattern, heads=3, kv_heads=3, width=5, value_width=6, edge_tensors=True, dtype=torch.float32)
    with guards() as listed:
        inside = {
            name: between_guards(x.shape, x.dtype, x.device).copy_(x.detach()).requires_grad_()
            for name, x in tensors.items()
        }
        assert_matches_dense(inside, pattern, backend="triton", dropout_p=0.3)
    assert len(listed) > 2 * len(tensors) and all(guard.isnan().all() for guard in listed)


def test_each_reason_why_the_kernel_cannot_run(monkeypatch):
    pattern = ZOO["chain"]
    reason = lambda **options: str(explain_backend(**{**random_call(pattern, **options), "pattern": pattern}))
    assert "heads must be at most 256 wide, not 300" in reason(width=300)
    monkeypatch.setattr(gpu_kernel, "HAS_TRITON", False)
    assert "Triton is not installed (pip install triton)" in reason()
    monkeypatch.setattr(gpu_kernel.TritonCSR, "device", "cuda")
    assert "tensors are on cpu" in reason()

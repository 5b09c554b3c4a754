"""The fused CPU kernel: every path through its vector code, and what rows, shapes and numbers can be like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from covering import few, in_turn

from graphattn import Additive, DotProduct, Edges, OffsetBias, Window, attention, dense_attention, explain_backend
from graphattn.compiled import load
from graphattn.kernels.rows.cpu import kernel as cpu_kernel
from graphattn.kernels.rows.op import NORMALIZER_CODES
from graphattn.testing import assert_matches_dense, graph_zoo, random_call

TASK_EDGES = load("kernels.rows.cpu.jit.edges").TASK_EDGES
NORMALIZERS = [normalizer().name for normalizer in NORMALIZER_CODES]
# Sums across a vector are shared by 4 heads where the width divides by 16, by 8 where it is 8, and by none elsewhere.
HEADS = ((1, 1), (3, 3), (4, 2), (5, 5), (8, 8), (9, 9), (12, 3), (16, 16), (17, 1))
WIDTHS = ((1, 1), (1, 8), (8, 8), (8, 16), (16, 8), (32, 20), (7, 32))


def long_rows(degree: int = 700) -> Edges:
    """A graph with rows and columns that are cut into pieces, and with parallel edges."""
    generator = torch.Generator().manual_seed(1)
    into, out = torch.randint(40, (2, degree), generator=generator)
    hub = torch.zeros(degree, dtype=torch.int64)
    few = torch.randint(40, (2, 60), generator=generator)
    return Edges(torch.cat([torch.stack([into, hub]), torch.stack([hub + 1, out]), few], 1), 40)


@pytest.mark.parametrize(("heads", "widths", "score"), in_turn(HEADS, WIDTHS, [None, "leaky_relu"]), ids=str)
def test_every_grouping_of_heads_equals_the_oracle(heads, widths, score):
    (heads, kv_heads), (width, value_width) = heads, widths
    pattern = graph_zoo()["unsorted edges"]
    sizes = dict(heads=heads, kv_heads=kv_heads, width=width, value_width=value_width)
    tensors = random_call(pattern, edge_tensors=True, dtype=torch.float32, **sizes)
    score = None if score is None else Additive(torch.randn(heads, width), score)
    assert_matches_dense(tensors, pattern, score=score, backend="numba", dropout_p=0.3)


def test_leaky_relu_slopes_at_zero_as_the_oracle():
    pattern = graph_zoo()["unsorted edges"]
    tensors = {name: x.detach().round() for name, x in random_call(pattern, heads=2, width=8).items()}
    source, target = pattern.edge_index
    assert (tensors["query"][target] + tensors["key"][source] == 0).any()
    score = Additive(torch.randn(2, 8, dtype=torch.float64), "leaky_relu")
    assert_matches_dense(tensors, pattern, score=score, backend="numba")


@pytest.mark.parametrize("width", [1, 257])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_extreme_widths_equal_the_oracle(dtype, width):
    pattern = long_rows(300)
    assert_matches_dense(random_call(pattern, width=width, dtype=dtype), pattern, backend="numba")


@pytest.mark.parametrize("normalizer", [name for name in NORMALIZERS if name != "softmax"])
@pytest.mark.parametrize("options", [{}, {"dropout_p": 0.3}, {"return_weights": True}], ids=str)
def test_heads_of_one_number_equal_the_oracle(options, normalizer):
    """Their scores are computed again for gradients of keys and values, unless dropout or weights are asked for."""
    pattern, heads = long_rows(), 6
    tensors = random_call(pattern, batch=(2,), heads=heads, kv_heads=3, width=1, edge_tensors=True, dtype=torch.float32)
    tensors["value"] = (tensors["value"].detach() / 64).requires_grad_()
    score = Additive(torch.randn(heads, 1), "leaky_relu")
    options = {"return_weights": False, "return_lse": False, **options}
    assert_matches_dense(tensors, pattern, score=score, normalizer=normalizer, backend="numba", **options)


def test_a_row_that_fits_in_no_task_with_the_ones_before_makes_the_largest_task():
    """Nearly as many edges as a task may have, then a row of just as many: in every pass the scratch holds both."""
    row = torch.cat([torch.arange(TASK_EDGES - 4) % 2, torch.full((TASK_EDGES,), 2)])
    column = torch.randint(40, row.shape, generator=torch.Generator().manual_seed(0))
    for pattern in (Edges(torch.stack([row, column]), 40), Edges(torch.stack([column, row]), 40)):
        tensors = random_call(pattern, heads=16, kv_heads=16, width=1, dtype=torch.float32)
        options = dict(return_weights=False, return_lse=False, backend="numba")
        assert_matches_dense(tensors, pattern, normalizer="sigmoid", **options)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("dtype", few([torch.float64, torch.float32, torch.bfloat16, torch.float16], 3), ids=str)
def test_cut_rows_and_columns_equal_the_oracle(dtype, normalizer):
    pattern = long_rows()
    assert max(pattern.csr().ptr.diff().max(), pattern.csc().ptr.diff().max()) > 2 * TASK_EDGES
    tensors = random_call(pattern, edge_tensors=True, dtype=dtype, width=8)
    if normalizer != "softmax":
        # Sums over hundreds of edges would leave the range of float16.
        tensors["value"] = (tensors["value"].detach() / 64).requires_grad_()
    assert_matches_dense(tensors, pattern, normalizer=normalizer, backend="numba")


@pytest.mark.parametrize("dtype", few([torch.bfloat16, torch.float16]), ids=str)
@pytest.mark.parametrize("degree", [300, 4096, 70_000])
def test_weights_of_a_hub_sum_to_one_in_half_types(degree, dtype):
    generator = torch.Generator().manual_seed(degree)
    source = torch.randint(100, (degree,), generator=generator)
    pattern = Edges(torch.stack([source, torch.zeros(degree, dtype=torch.int64)]), 100)
    tensors = random_call(pattern, dtype=dtype, width=8)
    out, weights, lse = attention(**tensors, pattern=pattern, return_weights=True, return_lse=True, backend="numba")
    assert weights.dtype == lse.dtype == torch.float32 and out.dtype == dtype
    torch.testing.assert_close(weights.sum(0), torch.ones(2), atol=1e-4, rtol=0)
    # Edge by edge and in float64, since a row this long has no dense twin to speak of.
    query, key, value = (x.detach().double() for x in tensors.values())
    score = (query[0] * key[source]).sum(-1) / 8**0.5
    exact = (score.softmax(0).unsqueeze(-1) * value[source]).sum(0)
    torch.testing.assert_close(out[0].double(), exact, atol=4 * torch.finfo(dtype).eps, rtol=0)
    torch.testing.assert_close(lse[0].double(), score.logsumexp(0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_huge_scores_lose_no_more_than_their_own_rounding(normalizer):
    pattern = long_rows(300)
    tensors = random_call(pattern, dtype=torch.float32, width=1)
    with torch.no_grad():
        tensors["query"].fill_(100)
        tensors["key"].mul_(100).clamp_(-100, 100)
    out, weights = attention(**tensors, pattern=pattern, normalizer=normalizer, return_weights=True, backend="numba")
    exact = dense_attention(
        **{name: x.detach().double() for name, x in tensors.items()},
        pattern=pattern,
        normalizer=normalizer,
        return_weights=True,
    )
    # Weights that are recomputed from lse carry the rounding of a number of 1e4: 5e-4.
    torch.testing.assert_close(weights, exact[1].float(), rtol=2e-3, atol=1e-6)
    torch.testing.assert_close(out, exact[0].float(), rtol=1e-5, atol=1e-5 * exact[1].max().item())
    gradients = torch.autograd.grad(out.sum(), list(tensors.values()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_masked_edges_and_rows_have_no_weight(normalizer):
    pattern = long_rows(300)
    tensors = random_call(pattern, edge_tensors=True, dtype=torch.float32, width=8)
    _, target = pattern.edge_index
    with torch.no_grad():
        tensors["edge_bias"][::3] = -torch.inf
        tensors["edge_bias"][(target == 0) | (target == 5)] = -torch.inf
    out = attention(**tensors, pattern=pattern, normalizer=normalizer, backend="numba")
    assert not out[[0, 5]].any()
    assert_matches_dense(tensors, pattern, normalizer=normalizer, backend="numba")


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_nan_stays_in_its_rows(name, normalizer):
    pattern = long_rows(300)
    tensors = {key: x.detach() for key, x in random_call(pattern, dtype=torch.float32, width=8).items()}
    tensors[name][7] = torch.nan
    out = attention(**tensors, pattern=pattern, normalizer=normalizer, backend="numba")
    source, target = pattern.edge_index
    touched = torch.zeros(40, dtype=torch.bool)
    touched[7 if name == "query" else target[source == 7]] = True
    assert torch.equal(out.isnan().any(-1).any(-1), touched)


def test_a_piece_of_nan_alone_reaches_its_row():
    hub = Edges(torch.stack([torch.arange(600), torch.zeros(600, dtype=torch.int64)]), 600)
    query, key, value = torch.randn(3, 600, 2, 4).unbind()
    # The first of the pieces, which have 256 edges each.
    key[:256] = torch.nan
    out = attention(query, key, value, hub, backend="numba")
    assert out[0].isnan().all() and not out[1:].any()


@pytest.mark.parametrize(("targets", "edges"), [(0, 0), (5, 0)])
def test_empty_calls(targets, edges):
    pattern = Edges(torch.zeros(2, edges, dtype=torch.int64), num_sources=3, num_targets=targets)
    assert_matches_dense(random_call(pattern, batch=(2,), edge_tensors=True), pattern, backend="numba")


def test_memory_layout_and_index_dtype_do_not_matter():
    pattern = long_rows(300)
    tensors = {key: x.detach() for key, x in random_call(pattern, batch=(3,), dtype=torch.float32, width=8).items()}
    expected = attention(**tensors, pattern=pattern, backend="numba")
    strided = {key: x.movedim(0, -1).contiguous().movedim(-1, 0) for key, x in tensors.items()}
    assert not strided["query"].is_contiguous()
    assert torch.equal(attention(**strided, pattern=pattern, backend="numba"), expected)
    for edge_index in (pattern.edge_index.int(), pattern.edge_index.t().contiguous().t()):
        assert torch.equal(attention(**tensors, pattern=edge_index, backend="numba"), expected)
    one = {key: x[:1] for key, x in tensors.items()}
    expanded = {key: x.expand(3, -1, -1, -1).requires_grad_() for key, x in one.items()}
    out = attention(**expanded, pattern=pattern, backend="numba")
    assert torch.equal(out[2], attention(**one, pattern=pattern, backend="numba")[0])
    gradients = torch.autograd.grad(out.sum(), list(expanded.values()))
    assert all(torch.equal(gradient[0], gradient[2]) for gradient in gradients)


@pytest.mark.parametrize("shared", [("edge_bias",), ("edge_bias", "edge_key", "edge_value"), ()], ids=str)
def test_edge_tensors_shared_by_a_batch_or_not(shared):
    pattern = long_rows(300)
    tensors = random_call(pattern, batch=(3,), edge_tensors=True, width=8)
    for name in ("edge_bias", "edge_key", "edge_value"):
        if name not in shared:
            x = tensors[name].detach()
            tensors[name] = torch.stack([x, 2 * x, -x]).requires_grad_()
    assert_matches_dense(tensors, pattern, backend="numba", dropout_p=0.2)


def test_gradients_of_shared_edge_tensors_are_held_once(monkeypatch):
    shapes, empty = [], cpu_kernel.empty
    monkeypatch.setattr(cpu_kernel, "empty", lambda x, *shape, **rest: shapes.append(shape) or empty(x, *shape, **rest))
    pattern = long_rows(300)
    tensors = random_call(pattern, batch=(3,), edge_tensors=True, width=8)
    attention(**tensors, pattern=pattern, backend="numba").sum().backward()
    assert [shape[0] for shape in shapes if shape[1:2] == (pattern.num_edges,)] == [1, 1, 1]


def test_offset_tables_equal_the_oracle():
    pattern = Window([30, 41], radius=9)
    tensors = random_call(pattern, offset_table=True, width=16, heads=4, dtype=torch.float32)
    assert_matches_dense(tensors, pattern, backend="numba")
    assert attention(
        *(tensors[name] for name in ("query", "key", "value")),
        pattern,
        edge_bias=OffsetBias(tensors["edge_bias.table"]),
    ).requires_grad


def test_indices_of_64_bits_give_the_same_result():
    pattern = long_rows(300)
    tensors = random_call(pattern, dtype=torch.float32, width=8)
    expected = attention(**tensors, pattern=pattern, backend="numba")
    wide = Edges(pattern.edge_index, 40)
    for name in ("csr", "csc"):
        ptr, index, perm = getattr(wide, name)()
        # What csr() gives from 2^31 rows or edges on.
        wide._kept[name] = type(wide.csr())(ptr, index.long(), perm.long())
    out = attention(**tensors, pattern=wide, backend="numba")
    assert torch.equal(out, expected)
    inputs = list(tensors.values())
    both = (torch.autograd.grad(x.square().sum(), inputs) for x in (out, expected))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*both, strict=True))


def test_rows_beyond_the_2_to_the_31st_number_are_found():
    rows, width = 2**24 + 8, 128
    # Memory that numpy asks to be zero exists only where it is written.
    key = torch.from_numpy(np.zeros((rows, 1, width), np.int16)).view(torch.bfloat16)
    value = torch.from_numpy(np.zeros((rows, 1, 1), np.int16)).view(torch.bfloat16)
    last = torch.tensor([0, rows - 1, rows - 2])
    key[rows - 1], value[last, 0, 0] = 1.0, torch.tensor([1.0, 2.0, 3.0]).bfloat16()
    pattern = Edges(torch.stack([last, torch.zeros_like(last)]), num_sources=rows, num_targets=1)
    out = attention(torch.ones(1, 1, width).bfloat16(), key, value, pattern, score=DotProduct(1.0), backend="numba")
    assert out.item() == 2.0


def test_tasks_of_more_than_2_to_the_31_edges_cover_each_edge_once():
    ptr = torch.tensor([0, 2**31 - 3, 2**31 + 600])
    tasks, cut = cpu_kernel._compiled("forward").plan_tasks(ptr.numpy())
    assert tasks[0, 2] == 0 and tasks[-1, 3] == 2**31 + 600
    assert (tasks[1:, 2] == tasks[:-1, 3]).all() and (tasks[:, 3] - tasks[:, 2] <= TASK_EDGES).all()
    assert cut[-1, 2] == tasks[-1, 4] + 1


def test_derivatives_that_fused_kernels_lack_name_the_kernel_that_has_them():
    pattern = graph_zoo()["complete"]
    tensors = random_call(pattern)
    inputs = tuple(tensors.values())
    function = lambda *inputs: attention(*inputs, pattern, backend="numba")
    out = function(*inputs)
    (gradient,) = torch.autograd.grad(out.sum(), inputs[0], create_graph=True)
    with pytest.raises(NotImplementedError, match=r"no derivatives of second order. Use backend='scatter'"):
        gradient.sum().backward()
    with pytest.raises(
        NotImplementedError, match=r"neither forward-mode derivatives nor torch.func. Use backend='scatter'"
    ):
        torch.func.jvp(function, inputs, inputs)


def test_each_reason_why_the_kernel_cannot_run(monkeypatch):
    pattern = graph_zoo()["complete"]
    query, key, value = (x.detach() for x in random_call(pattern).values())
    callable_score = lambda query, key, edge: (query * key).amax(-1)
    report = explain_backend(query, key, value, pattern, score=callable_score)
    assert report.chosen == "scatter" and "can't be fused: aten.amax" in report.answers["numba"][0]
    monkeypatch.setattr(cpu_kernel, "why_not_compiled", lambda: "Numba is not installed (pip install numba)")
    report = explain_backend(query, key, value, pattern)
    assert report.chosen == "scatter" and "pip install numba" in report.answers["numba"][0]


def test_autocast_casts_as_scaled_dot_product_attention_does():
    pattern = graph_zoo()["complete"]
    tensors = random_call(pattern, edge_tensors=True, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = attention(**tensors, pattern=pattern, return_lse=True, backend="numba")
        twin = dense_attention(**tensors, pattern=pattern)
    assert out.dtype == twin.dtype == torch.bfloat16 and lse.dtype == torch.float32
    torch.testing.assert_close(out, twin)
    out.float().sum().backward()
    assert all(x.grad.dtype == torch.float32 for x in tensors.values())
    with torch.autocast("cpu", torch.bfloat16):
        linear = torch.nn.Linear(4, 1)
        score = lambda query, key, _: linear(query * key).squeeze(-1)
        plain = [tensors[name] for name in ("query", "key", "value")]
        assert attention(*plain, pattern, score=score, return_weights=True)[1].dtype == torch.float32
    doubles = random_call(pattern)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(**doubles, pattern=pattern).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_half_types_do_not_start_from_the_rounded_output(dtype):
    generator = torch.Generator().manual_seed(2)
    pattern = Edges(torch.randint(50, (2, 2000), generator=generator), 50)
    tensors = {name: x.detach() for name, x in random_call(pattern, width=16).items()}
    # Differences of values that have much in common are what the gradient of the query is made of.
    tensors["value"] += 5
    low = {name: x.to(dtype).requires_grad_() for name, x in tensors.items()}
    exact = {name: x.detach().double().requires_grad_() for name, x in low.items()}
    direction = torch.randn(50, 2, 16, generator=generator, dtype=torch.float64).to(dtype)
    found = []
    for inputs in (low, exact):
        out = attention(**inputs, pattern=pattern, backend="numba")
        gradients = torch.autograd.grad(out, list(inputs.values()), direction.to(out.dtype))
        found.append([gradient.double() for gradient in gradients])
    for ours, truth in zip(*found, strict=True):
        assert float((ours - truth).norm() / truth.norm()) < torch.finfo(dtype).eps


# What is as large as the caches is written past them, where a head is whole vectors.
@pytest.mark.parametrize(("width", "dtype"), [(16, torch.float32), (8, torch.float64), (24, torch.float64)])
def test_gradients_of_large_edge_tensors(width, dtype):
    edges = 2**24 // (width * dtype.itemsize) + 1
    pattern = Edges(torch.randint(500, (2, edges), generator=torch.Generator().manual_seed(0)), 500)
    tensors = random_call(pattern, heads=1, width=width, dtype=dtype, edge_tensors=True)
    found = []
    for backend in ("numba", "scatter"):
        out = attention(**tensors, pattern=pattern, backend=backend)
        found.append(torch.autograd.grad(out.square().sum(), [tensors["edge_key"], tensors["edge_value"]]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)

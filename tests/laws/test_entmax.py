"""Sparsemax and entmax15 are those of their papers, and their two forms survive what attention gives them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from graphattn import Edges, Window, attention, explain_backend
from graphattn.normalizers import Entmax15, Sparsemax, _search_compiled
from graphattn.segments import Rows

BOTH = pytest.mark.parametrize("cls", [Sparsemax, Entmax15], ids=lambda cls: cls.name)
DEGREE = 100_000
HUBS = {
    "equal": torch.zeros(DEGREE),
    "normal": torch.randn(DEGREE, generator=torch.Generator().manual_seed(0)),
    "close": torch.randn(DEGREE, generator=torch.Generator().manual_seed(1)) * 1e-5,
    "evenly spaced": torch.linspace(-1, 0, DEGREE),
    "geometric": -torch.linspace(0, 120, DEGREE).neg().exp2(),
    # In float32 the sum of the many would hide the one.
    "one above many": torch.cat([torch.zeros(1), torch.full((DEGREE - 1,), -0.9)]),
    "far apart": torch.linspace(-1e4, 1e4, DEGREE),
}


def on_matrix(cls, score: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The edge-wise form, whose edges are the pairs of a mask in an order that isn't sorted; zeros elsewhere."""
    row, column = mask.nonzero().flip(0).unbind(1)
    weight = cls().edgewise(score[row, column].unsqueeze(-1), row, len(mask))
    return torch.zeros_like(score).index_put((row, column), weight.squeeze(-1))


@BOTH
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@given(st.integers(0, 2**20), st.floats(0, 1))
@settings(max_examples=15)
def test_both_forms_equal_the_entmax_package(cls, scale, seed, density):
    import entmax

    generator = torch.Generator().manual_seed(seed)
    score = (scale * torch.randn(5, 9, generator=generator, dtype=torch.float64)).requires_grad_()
    direction = torch.randn(5, 9, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 9, generator=generator) < density
    expected = torch.zeros_like(score)
    for row, columns in enumerate(mask):
        if columns.any():
            expected[row, columns] = getattr(entmax, cls.name)(score[row, columns], -1)
    (gradient,) = torch.autograd.grad((expected * direction).sum() + 0 * score.sum(), score)
    for weight in (cls().dense(score, mask), on_matrix(cls, score, mask)):
        torch.testing.assert_close(weight, expected)
        torch.testing.assert_close(torch.autograd.grad((weight * direction).sum(), score)[0], gradient)


@BOTH
@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([-torch.inf, *(n / 4 for n in range(-9, 9))])), min_size=1)
)
def test_both_forms_agree_on_ties_and_missing_edges(cls, edges):
    target = torch.tensor([row for row, _ in edges])
    score = torch.tensor([[value] for _, value in edges], dtype=torch.float64)
    matrix, mask = torch.full((5, len(edges)), 7.0, dtype=torch.float64), torch.zeros(5, len(edges), dtype=torch.bool)
    places = torch.arange(len(edges))
    matrix[target, places], mask[target, places] = score.squeeze(1), True
    weight = cls().edgewise(score, target, 5).squeeze(1)
    dense = cls().dense(matrix, mask)
    torch.testing.assert_close(dense[target, places], weight)
    assert bool((weight >= 0).all()) and bool((dense >= 0).all()) and bool((dense[~mask] == 0).all())
    has_edges = (mask & (matrix != -torch.inf)).any(-1)
    torch.testing.assert_close(dense.sum(-1), has_edges.double())


@BOTH
@pytest.mark.parametrize("form", ["edgewise", "dense"])
def test_derivatives_of_every_order_and_mode(cls, form):
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 1, 0, 1]], dtype=torch.bool)
    score = 1.5 * torch.randn(4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    score.requires_grad_()
    missing = torch.tensor([0.0, 0.0, 0.0, 0.0, -torch.inf], dtype=torch.float64)
    function = lambda score: (
        cls().dense(score + missing, mask) if form == "dense" else on_matrix(cls, score + missing, mask)
    )
    assert 1 < (function(score)[0] > 0).sum() < 4, "both edges with a weight and edges without are meant"
    assert torch.autograd.gradcheck(function, score, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, score, check_fwd_over_rev=True)


@BOTH
@pytest.mark.parametrize("form", ["edgewise", "dense"])
def test_rows_without_scores_and_extreme_scores(cls, form):
    score = torch.tensor([[1e4, -1e4], [-torch.inf] * 2, [-1e30, -torch.inf], [1e4, 1e4], [0, -10]], requires_grad=True)
    mask = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1], [0, 0]], dtype=torch.bool)
    weight = cls().dense(score, mask) if form == "dense" else on_matrix(cls, score, mask)
    expected = torch.tensor([[1, 0], [0, 0], [1, 0], [0.5, 0.5], [0, 0]])
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-7)
    (weight * torch.tensor([1.0, 2.0])).sum().backward()
    # Of two equal weights: 1/2 under sparsemax, half the square root of 1/2 under entmax15.
    slope = {"sparsemax": 0.5, "entmax15": 0.5**1.5}[cls.name]
    torch.testing.assert_close(score.grad, slope * torch.tensor([[0, 0], [0, 0], [0, 0], [-1, 1], [0, 0]]))


@BOTH
@pytest.mark.parametrize("name", HUBS)
def test_rows_of_degree_100_000_sum_to_one_in_float32(cls, name):
    score = HUBS[name].unsqueeze(-1)
    weight = cls().edgewise(score, torch.zeros(DEGREE, dtype=torch.int64), 1)
    assert weight.dtype == torch.float32
    assert abs(weight.double().sum() - 1) < 1e-6
    exact = cls().dense(score.double().t(), torch.tensor(True)).t()
    assert (weight - exact).abs().max() < 1e-7
    torch.testing.assert_close(cls().dense(score.t(), torch.tensor(True)).t(), weight, rtol=1e-6, atol=1e-12)


@BOTH
@pytest.mark.parametrize("form", ["edgewise", "dense"])
def test_nan_stays_in_its_row(cls, form):
    score = torch.randn(3, 4)
    score[1, 2] = torch.nan
    score.requires_grad_()
    mask = torch.ones(3, 4, dtype=torch.bool)
    weight = cls().dense(score, mask) if form == "dense" else on_matrix(cls, score, mask)
    assert bool(weight[1].isnan().all())
    torch.testing.assert_close(weight[[0, 2]].sum(-1), torch.ones(2))
    weight.square().sum().backward()
    assert bool(score.grad[[0, 2]].isfinite().all())


def test_fused_rows_run_them_on_the_cpu():
    x = torch.randn(6, 2, 4)
    for name in ("sparsemax", "entmax15"):
        report = explain_backend(x, x, x, Edges(Window(6, radius=1).edge_index), normalizer=name)
        assert [kernel for kernel, (reason, _) in report.answers.items() if not reason] == ["numba", "scatter"]


@BOTH
def test_both_forms_compile_into_one_graph(cls):
    torch._dynamo.reset()
    pattern = Window(7, radius=2)
    x = torch.randn(7, 2, 4, requires_grad=True)
    calls = {
        "scatter": lambda x: attention(x, x, x, pattern, normalizer=cls.name),
        "dense": lambda x: cls().dense(x, x > -1),
    }
    for name, call in calls.items():
        expected = call(x)
        out = torch.compile(call, backend="aot_eager", fullgraph=True)(x)
        both = [(y, *torch.autograd.grad(y.square().sum(), x)) for y in (out, expected)]
        torch.testing.assert_close(*both, msg=lambda text, name=name: f"{name}: {text}")
    torch._dynamo.reset()


@pytest.mark.parametrize("power", [1, 2])
def test_the_operator_of_compiled_graphs_passes_opcheck(power):
    scaled = torch.randn(2, 5, 3, dtype=torch.float64)
    for index in (torch.tensor([2, 0, 2, 3, 0]), torch.tensor([0, 0, 2, 2, 3])):
        rows = Rows.from_index(index, 5)
        assert set(opcheck(_search_compiled, (scaled, *rows, power)).values()) == {"SUCCESS"}

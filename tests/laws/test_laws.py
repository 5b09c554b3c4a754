"""Laws that attention obeys on every kernel."""

from __future__ import annotations

import pytest
import torch
from conftest import CPU_KERNELS, EDGE_KERNELS, KERNELS_WITH_NORMALIZERS
from covering import in_turn
from hypothesis import given, settings
from hypothesis import strategies as st

from graphattn import Additive, DotProduct, Edges, Full, Pattern, Window, attention, dense_attention, merge
from graphattn.normalizers import NORMALIZERS
from graphattn.testing import assert_matches_dense, graph_zoo, pattern_zoo, random_call

NAMES = [cls.name for cls in NORMALIZERS]
kernels = st.sampled_from([kernel.name for kernel in EDGE_KERNELS])
runs = st.sampled_from([dict(normalizer=cls.name, backend=kernel.name) for kernel, cls in KERNELS_WITH_NORMALIZERS])
scores = st.sampled_from([DotProduct(), Additive(torch.ones(2, 4, dtype=torch.float64), "leaky_relu")])
seeds = st.integers(0, 2**20)


@st.composite
def graphs(draw):
    sources, targets = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    pairs = draw(st.lists(st.tuples(st.integers(0, sources - 1), st.integers(0, targets - 1)), max_size=25))
    edge_index = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).t()
    return Edges(edge_index, num_sources=sources, num_targets=targets)


def everything(tensors, pattern, **options):
    """Output, weights and all gradients."""
    out, weights = attention(**tensors, pattern=pattern, return_weights=True, **options)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    return out, weights, *torch.autograd.grad((out * direction).sum(), list(tensors.values()))


@given(graphs(), scores, runs, seeds, st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
@settings(max_examples=60)
def test_edge_order_does_not_matter_bitwise(pattern, score, run, seed, dtype):
    tensors = random_call(pattern, dtype=dtype, seed=seed, edge_tensors=True)
    score = DotProduct() if isinstance(score, DotProduct) else Additive(score.vector.to(dtype), "leaky_relu")
    # Parallel edges with differing edge tensors keep their given order: a stable shuffle moves pairs alone.
    pair = pattern.edge_index[1] * pattern.num_sources + pattern.edge_index[0]
    perm = torch.randperm(pattern.num_targets * pattern.num_sources)[pair].argsort(stable=True)
    edges = dict(num_sources=pattern.num_sources, num_targets=pattern.num_targets)
    shuffled = Edges(pattern.edge_index[:, perm], **edges)
    moved = {n: x.detach()[perm].requires_grad_() if n.startswith("edge") else x for n, x in tensors.items()}
    options = dict(score=score, **run, dropout_p=0.3)
    torch.manual_seed(seed)
    plain = everything(tensors, pattern, **options)
    torch.manual_seed(seed)
    other = everything(moved, shuffled, **options)
    per_edge = [False, True, *(name.startswith("edge") for name in tensors)]
    for ours, theirs, is_moved in zip(plain, other, per_edge, strict=True):
        assert torch.equal(ours[perm] if is_moved else ours, theirs)


@given(graphs(), scores, runs, seeds)
@settings(max_examples=30)
def test_running_twice_changes_nothing(pattern, score, run, seed):
    tensors = random_call(pattern, seed=seed)
    options = dict(score=score, **run)
    for ours, theirs in zip(
        everything(tensors, pattern, **options), everything(tensors, pattern, **options), strict=True
    ):
        assert torch.equal(ours, theirs)


@given(graphs(), scores, runs, seeds)
@settings(max_examples=40)
def test_random_graphs_match_the_oracle(pattern, score, run, seed):
    tensors = random_call(pattern, seed=seed, edge_tensors=True)
    assert_matches_dense(tensors, pattern, score=score, **run, dropout_p=0.2)


@given(graphs(), scores, runs, seeds)
@settings(max_examples=40)
def test_relabelling_nodes_permutes_outputs(pattern, score, run, seed):
    tensors = random_call(pattern, seed=seed)
    new_source, new_target = torch.randperm(pattern.num_sources), torch.randperm(pattern.num_targets)
    source, target = pattern.edge_index
    sizes = dict(num_sources=pattern.num_sources, num_targets=pattern.num_targets)
    renamed = Edges(torch.stack([new_source[source], new_target[target]]), **sizes)
    options = dict(score=score, **run)
    out = attention(**tensors, pattern=pattern, **options)
    rows = {"query": new_target.argsort(), "key": new_source.argsort(), "value": new_source.argsort()}
    other = attention(**{name: x[rows[name]] for name, x in tensors.items()}, pattern=renamed, **options)
    torch.testing.assert_close(other[new_target], out)


@given(st.lists(graphs(), min_size=2, max_size=3), runs, seeds)
@settings(max_examples=30)
def test_a_disjoint_union_equals_separate_runs(parts, run, seed):
    tensors = [random_call(part, seed=seed + place) for place, part in enumerate(parts)]
    whole = {name: torch.cat([part[name] for part in tensors]) for name in tensors[0]}
    options = run
    out = attention(**whole, pattern=parts, **options)
    separate = [attention(**each, pattern=part, **options) for each, part in zip(tensors, parts, strict=True)]
    torch.testing.assert_close(out, torch.cat(separate))


@given(graphs(), runs.filter(lambda run: run["normalizer"] in ("softmax", "sparsemax", "entmax15")), seeds)
@settings(max_examples=50)
def test_a_constant_added_to_a_targets_scores_changes_nothing(pattern, run, seed):
    tensors = random_call(pattern, seed=seed)
    constant = 5 * torch.randn(pattern.num_targets, 2, dtype=torch.float64)
    plain = everything(tensors, pattern, **run)
    shifted = everything(tensors, pattern, edge_bias=constant[pattern.edge_index[1]], **run)
    torch.testing.assert_close(shifted, plain)


@given(graphs(), kernels, seeds)
@settings(max_examples=30)
def test_lse_moves_by_a_constant_added_to_a_targets_scores(pattern, backend, seed):
    tensors = random_call(pattern, seed=seed)
    constant = 5 * torch.randn(pattern.num_targets, 2, dtype=torch.float64)
    bias = constant[pattern.edge_index[1]]
    out, lse = attention(**tensors, pattern=pattern, return_lse=True, backend=backend)
    shifted, other = attention(**tensors, pattern=pattern, edge_bias=bias, return_lse=True, backend=backend)
    torch.testing.assert_close(shifted, out)
    torch.testing.assert_close(other, lse + constant)


@given(graphs(), runs, seeds)
@settings(max_examples=30)
def test_a_bias_of_minus_infinity_equals_leaving_the_edge_out(pattern, run, seed):
    tensors = random_call(pattern, seed=seed)
    stays = torch.rand(pattern.num_edges) < 0.6
    sizes = dict(num_sources=pattern.num_sources, num_targets=pattern.num_targets)
    fewer = Edges(pattern.edge_index[:, stays], **sizes)
    bias = torch.where(stays, 0.0, -torch.inf).double().unsqueeze(1).expand(-1, 2)
    options = run
    out, weights, *gradients = everything(tensors, fewer, **options)
    masked, masked_weights, *masked_gradients = everything(tensors, pattern, edge_bias=bias, **options)
    torch.testing.assert_close([masked, masked_weights[stays], *masked_gradients], [out, weights, *gradients])
    assert bool((masked_weights[~stays] == 0).all())


@given(graphs(), kernels, seeds, st.sampled_from([True, "split"]))
@settings(max_examples=30)
def test_merging_two_parts_equals_the_whole(pattern, backend, seed, return_lse):
    tensors = random_call(pattern, seed=seed)
    is_first = torch.rand(pattern.num_edges) < 0.5
    sizes = dict(num_sources=pattern.num_sources, num_targets=pattern.num_targets)
    parts = []
    for mine in (is_first, ~is_first):
        part = Edges(pattern.edge_index[:, mine], **sizes)
        parts += attention(**tensors, pattern=part, return_lse=return_lse, backend=backend)
    expected = attention(**tensors, pattern=pattern, return_lse=return_lse, backend=backend)
    merged = merge(*parts)
    torch.testing.assert_close(merged, expected)
    if return_lse == "split":
        # Which shift a part has is its own affair; the sum of both is lse.
        merged, expected = ((out, lse.sum(-1)) for out, lse in (merged, expected))
    finite = torch.isfinite(expected[1])
    inputs = list(tensors.values())
    for ours, theirs in zip(
        torch.autograd.grad(merged[0].sum() + merged[1][finite].sum(), inputs, retain_graph=True),
        torch.autograd.grad(expected[0].sum() + expected[1][finite].sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_merge_takes_only_parts_that_fit():
    out, lse = torch.zeros(3, 2, 4), torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"merge: parts must be out \[\*B, T, H, V\] and lse"):
        merge(out, lse, out, lse.t())


@pytest.mark.parametrize("kernel", EDGE_KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("degree", [300, 4096, 70_000])
def test_weights_of_a_hub_in_half_precision_sum_to_one(degree, dtype, kernel):
    source = torch.arange(degree)
    pattern = Edges(torch.stack([source, torch.zeros_like(source)]), num_sources=degree, num_targets=1)
    tensors = {name: x.detach() for name, x in random_call(pattern, width=2, dtype=dtype).items()}
    tensors["value"] = torch.ones_like(tensors["value"])
    out, weights = attention(**tensors, pattern=pattern, return_weights=True, backend=kernel.name)
    assert weights.dtype == torch.float32 and out.dtype == dtype
    assert (weights.sum(0) - 1).abs().max() < 1e-5
    assert (out.float() - 1).abs().max() < 1e-2


@pytest.mark.parametrize(("kernel", "normalizer"), KERNELS_WITH_NORMALIZERS, ids=lambda x: x.name)
def test_nan_stays_in_the_rows_that_see_it(kernel, normalizer):
    pattern = Edges(torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2]]), 4)
    for name in ("query", "key", "value"):
        tensors = {key: x.detach().clone() for key, x in random_call(pattern).items()}
        tensors[name][2] = torch.nan
        tensors = {key: x.requires_grad_() for key, x in tensors.items()}
        out = attention(**tensors, pattern=pattern, normalizer=normalizer.name, backend=kernel.name)
        seen = 2 if name == "query" else 1
        assert out[[row for row in range(4) if row != seen]].isfinite().all()
        gradient = torch.autograd.grad(out.sum(), tensors["value"])[0]
        assert gradient[[0, 1]].isfinite().all()


@pytest.mark.parametrize("kernel", CPU_KERNELS, ids=lambda kernel: kernel.name)
def test_dropout_keeps_the_expectation_and_differs_by_batch_and_head(kernel):
    pattern = Full(1, 4000)
    ones = torch.ones(2, 4000, 3, 1)
    query = torch.zeros(2, 1, 3, 1)
    torch.manual_seed(0)
    out = attention(query, ones, ones, pattern, dropout_p=0.25, backend=kernel.name).flatten()
    assert (out - 1).abs().max() < 0.05
    assert out.unique().numel() > 3
    zeros = attention(query, ones, ones, pattern, dropout_p=1.0, backend=kernel.name)
    assert bool((zeros == 0).all())


def test_returned_weights_are_those_of_before_dropout():
    pattern = graph_zoo()["unsorted edges"]
    tensors = random_call(pattern)
    _, plain = attention(**tensors, pattern=pattern, return_weights=True)
    _, dropped = attention(**tensors, pattern=pattern, return_weights=True, dropout_p=0.7)
    assert torch.equal(plain, dropped)


def test_raw_edges_and_lists_are_taken_as_patterns():
    pattern = graph_zoo()["bipartite"]
    tensors = random_call(pattern)
    expected = attention(**tensors, pattern=pattern)
    assert torch.equal(attention(**tensors, pattern=pattern.edge_index), expected)
    windows = [Window(3, 1), Window(4, 1)]
    tensors = random_call(Pattern.join(windows))
    assert torch.equal(attention(**tensors, pattern=windows), attention(**tensors, pattern=Window([3, 4], 1)))


@pytest.mark.parametrize(
    ("score", "normalizer"), in_turn([DotProduct(), "tanh", "leaky_relu", "function"], NAMES), ids=str
)
def test_scatter_has_derivatives_of_every_order_and_mode(score, normalizer):
    # Parallel edges, a target of three and one of none; every number more is a row and a column of second derivatives.
    pattern = Edges(torch.tensor([[0, 1, 1], [0, 0, 0]]), 2)
    tensors = random_call(pattern, width=2, value_width=1, edge_tensors=True)
    vector = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    names = list(tensors)

    def function(vector, *inputs):
        chosen = score
        if score == "function":
            chosen = lambda query, key, edge: ((query - key - edge).square() * vector).sum(-1)
        elif isinstance(score, str):
            chosen = Additive(vector, score)
        options = dict(score=chosen, normalizer=normalizer, return_weights=True, backend="scatter")
        out, weights, *lse = attention(
            **dict(zip(names, inputs, strict=True)),
            pattern=pattern,
            dropout_p=0.3,
            return_lse=normalizer == "softmax",
            **options,
        )
        return out, weights, *(x[:1] for x in lse)

    def seeded(*inputs):
        torch.manual_seed(4)
        return function(*inputs)

    inputs = (vector, *tensors.values())
    assert torch.autograd.gradcheck(seeded, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(seeded, inputs)


@pytest.mark.parametrize("name", ["star in", "parallel edges", "bipartite", "window ragged", "grid 2-D"])
def test_the_oracle_has_right_gradients_itself(name):
    pattern = pattern_zoo()[name]
    tensors = random_call(pattern, width=2, edge_tensors=True)
    names = list(tensors)
    function = lambda *inputs: dense_attention(**dict(zip(names, inputs, strict=True)), pattern=pattern)
    assert torch.autograd.gradcheck(function, tuple(tensors.values()))


def test_scatter_compiles_into_one_graph():
    pattern = Window([6, 3], radius=1)
    tensors = random_call(pattern)
    expected = everything(tensors, pattern)
    compiled = torch.compile(lambda **inputs: attention(**inputs, pattern=pattern, return_weights=True), fullgraph=True)
    out, weights = compiled(**tensors)
    torch.testing.assert_close((out, weights), expected[:2])
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    gradients = torch.autograd.grad((out * direction).sum(), list(tensors.values()))
    torch.testing.assert_close(gradients, expected[2:])

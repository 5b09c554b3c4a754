"""Edge-wise and dense forms are written separately and say the same."""

from __future__ import annotations

import pytest
import torch
from covering import each_in_turn, pairwise
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.utils import softmax

from graphattn import Additive, DotProduct, Edges, attention, dense_attention
from graphattn.normalizers import NORMALIZERS, as_normalizer
from graphattn.scores import FunctionScore, repeat_heads
from graphattn.segments import Rows, gather, permute, segment_max, segment_sum
from graphattn.testing import pattern_zoo, random_call

HEADS, WIDTH = 4, 3
VECTOR = torch.randn(HEADS, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SCORES = [
    DotProduct(),
    DotProduct(0.3),
    Additive(VECTOR),
    Additive(VECTOR, "leaky_relu", 0.1),
    FunctionScore(
        lambda query, key, edge: (
            (query - key).abs().sum(-1) + (0 if edge is None else edge.sum((-1, -2), True).squeeze(-1))
        )
    ),
]


@pytest.mark.parametrize(
    ("score", "has_edge_key", "kv_heads", "batch"), pairwise(SCORES, [False, True], [1, 2, 4], [(), (2, 3)]), ids=str
)
def test_both_forms_of_a_score_agree(score, has_edge_key, kv_heads, batch):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)
    query, key = draw(5, HEADS, WIDTH), draw(6, kv_heads, WIDTH)
    edge_key = draw(5, 6, kv_heads, WIDTH) if has_edge_key else None
    dense = score.dense(query, key, edge_key)
    target, source = torch.ones(5, 6).nonzero().unbind(1)
    dims = len(batch)
    listed = None if edge_key is None else edge_key.flatten(dims, dims + 1)
    edgewise = score.edgewise(query.index_select(-3, target), key.index_select(-3, source), listed)
    assert dense.shape == (*batch, HEADS, 5, 6)
    torch.testing.assert_close(dense.flatten(-2).movedim(-2, -1), edgewise)


def test_dot_product_by_hand():
    query, key = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 5.0]]])
    assert DotProduct().edgewise(query, key, None).item() == pytest.approx(13 / 2**0.5)
    assert DotProduct(scale=0.0).edgewise(query, key, None).item() == 0.0
    assert DotProduct(2).edgewise(query, key, torch.ones(1, 1, 2)).item() == 32.0


def test_additive_by_hand():
    query, key = torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[0.5, 1.0]]])
    vector = torch.tensor([[2.0, 10.0]])
    assert Additive(vector).edgewise(query, key, None).item() == pytest.approx(
        2 * torch.tensor(1.5).tanh().item() + 10 * torch.tensor(-1.0).tanh().item()
    )
    assert Additive(vector, "leaky_relu").edgewise(query, key, None).item() == pytest.approx(2 * 1.5 - 10 * 0.2)


def test_additive_of_width_one_is_gats_score():
    x = torch.randn(5, 2, 8)
    a_target, a_source = torch.randn(2, 8), torch.randn(2, 8)
    query, key = (x * a_target).sum(-1, keepdim=True), (x * a_source).sum(-1, keepdim=True)
    ours = Additive(torch.ones(2, 1), "leaky_relu").dense(query, key, None)
    theirs = torch.nn.functional.leaky_relu(query.squeeze(-1)[:, None] + key.squeeze(-1)[None], 0.2)
    torch.testing.assert_close(ours, theirs.movedim(-1, 0))


def test_query_heads_share_key_heads_in_order():
    assert repeat_heads(torch.tensor([[[1.0], [2.0]]]), 4).flatten().tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize(("name", "cls"), each_in_turn(pattern_zoo(), NORMALIZERS), ids=lambda x: getattr(x, "name", x))
def test_both_forms_of_a_normalizer_agree(name, cls):
    pattern = pattern_zoo()[name]
    if pattern.occurrence() is not None:
        pattern = Edges.from_mask(pattern.mask())
    source, target = pattern.edge_index
    score = torch.randn(2, pattern.num_edges, 3, dtype=torch.float64)
    score[:, ::4] = -torch.inf
    matrix = torch.full((2, 3, pattern.num_targets, pattern.num_sources), 7.0, dtype=torch.float64)
    matrix[:, :, target, source] = score.movedim(-1, -2)
    dense = cls().dense(matrix, pattern.mask())
    edgewise = cls().edgewise(score, target, pattern.num_targets)
    torch.testing.assert_close(dense[:, :, target, source].movedim(-2, -1), edgewise)
    assert bool((dense[:, :, ~pattern.mask()] == 0).all())
    assert bool((edgewise[score == -torch.inf] == 0).all())


def test_normalizers_by_hand():
    score, target = torch.tensor([[1.0], [-2.0], [0.0]]), torch.tensor([1, 1, 0])
    exponential = torch.tensor([1.0, -2.0]).exp()
    expected = {
        "softmax": [*(exponential / exponential.sum()).tolist(), 1.0],
        "relu": [1.0, 0.0, 0.0],
        "sigmoid": [0.7310586, 0.1192029, 0.5],
        "identity": [1.0, -2.0, 0.0],
        "sparsemax": [1.0, 0.0, 1.0],
        "entmax15": [1.0, 0.0, 1.0],
    }
    for cls in NORMALIZERS:
        assert cls().edgewise(score, target, 2).flatten().tolist() == pytest.approx(expected[cls.name])


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-50, 50)), min_size=1, max_size=30))
def test_softmax_is_pygs_softmax(edges):
    target = torch.tensor([row for row, _ in edges])
    score = torch.tensor([[value] for _, value in edges], dtype=torch.float64)
    torch.testing.assert_close(
        as_normalizer("test", "softmax").edgewise(score, target, 5), softmax(score, target, num_nodes=5)
    )


def test_softmax_survives_large_and_missing_scores():
    target = torch.tensor([0, 0, 1, 1, 2])
    score = torch.tensor([[1e4], [-1e4], [-torch.inf], [-torch.inf], [-1e30]], requires_grad=True)
    weight = as_normalizer("test", "softmax").edgewise(score, target, 4)
    assert weight.flatten().tolist() == [1, 0, 0, 0, 1]
    (weight * torch.arange(5.0).unsqueeze(1)).sum().backward()
    assert score.grad.flatten().tolist() == [0] * 5


class Share:
    """A user's own normalizer: each score's square over the target's sum of squares."""

    def edgewise(self, score, target, num_targets):
        square = score.square()
        total = torch.zeros(*score.shape[:-2], num_targets, score.size(-1), dtype=score.dtype)
        return square / total.index_add(-2, target, square).index_select(-2, target)

    def dense(self, score, mask):
        square = torch.where(mask, score, 0).square()
        total = square.sum(-1, keepdim=True)
        return square / torch.where(total == 0, 1, total)


def test_a_users_own_normalizer_is_checked_against_its_dense_form():
    for name, pattern in pattern_zoo().items():
        tensors = random_call(pattern, edge_tensors=True)
        sparse = attention(**tensors, pattern=pattern, normalizer=Share(), return_weights=True)
        dense = dense_attention(**tensors, pattern=pattern, normalizer=Share(), return_weights=True)
        for ours, theirs in zip(sparse, dense, strict=True):
            torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def test_edges_of_minus_infinity_have_no_weight_whatever_a_users_own_normalizer_returns():
    class Ones:
        edgewise = staticmethod(lambda score, target, num_targets: torch.ones_like(score))
        dense = staticmethod(lambda score, mask: torch.ones_like(score))

    edge_index, x = torch.tensor([[0, 1, 2], [1, 1, 0]]), torch.randn(3, 1, 4)
    bias = torch.tensor([[0.0], [-torch.inf], [0.0]])
    for function in (attention, dense_attention):
        _, weights = function(x, x, x, edge_index, edge_bias=bias, normalizer=Ones(), return_weights=True)
        assert weights.flatten().tolist() == [1, 0, 1]


@given(
    st.lists(st.integers(0, 4), max_size=12),
    st.sampled_from([(), (2,), (2, 3)]),
    st.sampled_from([-2, -1]),
)
def test_segments_equal_their_plain_definition(index, batch, dim):
    index = torch.tensor(index, dtype=torch.int64)
    rows = Rows.from_index(index, 5)
    x = torch.randn(*batch, *((len(index), 3) if dim == -2 else (3, len(index))), dtype=torch.float64)
    shape = list(x.shape)
    shape[dim] = 5
    expected = torch.zeros(shape, dtype=x.dtype).index_add(dim, index, x)
    torch.testing.assert_close(segment_sum(x, rows, dim), expected)
    assert torch.equal(gather(expected, rows, dim), expected.index_select(dim, index))
    largest = segment_max(x, rows, dim).movedim(dim, 0)
    for row in range(5):
        mine = x.movedim(dim, 0)[index == row]
        assert torch.equal(largest[row], mine.amax(0) if len(mine) else torch.full_like(largest[row], -torch.inf))
    perm = torch.randperm(len(index))
    assert torch.equal(permute(x, perm, perm.argsort(), dim), x.index_select(dim, perm))


def test_segments_have_derivatives_of_every_order_and_mode():
    rows = Rows.from_index(torch.tensor([2, 0, 2, 2, 4]), 6)
    edges = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    nodes = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    for function, x in ((segment_sum, edges), (gather, nodes)):
        squared = lambda x, function=function: function(x, rows, -2).square()
        assert torch.autograd.gradcheck(squared, x, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(squared, x, check_fwd_over_rev=True)

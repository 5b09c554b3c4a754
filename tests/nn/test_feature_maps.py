"""Layers whose weights are products of features: against the dense layer, against softmax, and what they exclude."""

from __future__ import annotations

import pytest
import torch

from graphattn import Edges, Full, Window, explain_backend
from graphattn.nn import DenseGraphAttention, GraphAttention, RandomFeatures, RelativeBias, Rotary

FULL = Full([4, 5])
EDGES = Edges(torch.tensor([[2, 0, 1, 4, 4, 3], [0, 0, 2, 2, 1, 2]]), 5)


def pair(*arguments, **options):
    """Our layer and the dense one, with the same parameters."""
    torch.manual_seed(0)
    sparse = GraphAttention(*arguments, **options).double()
    dense = DenseGraphAttention(*arguments, **options).double()
    dense.load_state_dict(sparse.state_dict())
    return sparse, dense


@pytest.mark.parametrize(
    "pattern", [FULL, Full([70], causal=True), Window(9, 2), EDGES], ids=["full", "causal", "window", "edges"]
)
@pytest.mark.parametrize(
    "feature_map", ["elu", "relu", RandomFeatures(3, 5).double(), torch.exp], ids=["elu", "relu", "random", "exp"]
)
def test_sparse_equals_dense(feature_map, pattern):
    sparse, dense = pair(6, 12, heads=4, kv_heads=2, feature_map=feature_map, encoding=None)
    # Loops needn't be compiled for this; a test below runs what "auto" takes.
    sparse.backend = "scatter"
    x = torch.randn(2, pattern.num_targets, 6, dtype=torch.float64)
    (ours, (_, weights)), (theirs, matrix) = sparse(x, pattern, None, True), dense(x, pattern, None, True)
    torch.testing.assert_close(ours, theirs)
    source, target = pattern.edge_index
    torch.testing.assert_close(weights, matrix[..., target, source].mT)
    # Without weights the sums are computed in another way.
    torch.testing.assert_close(sparse(x, pattern), theirs)
    torch.testing.assert_close(dense(x, pattern.mask()), theirs)
    grads = [
        torch.autograd.grad(layer(x, pattern).square().sum(), list(layer.parameters())) for layer in (sparse, dense)
    ]
    for first, second in zip(*grads, strict=True):
        torch.testing.assert_close(first, second)


def test_messages_give_the_same():
    layer, _ = pair(6, 12, heads=2, feature_map="elu", encoding=Rotary(6))
    x = torch.randn(9, 6, dtype=torch.float64)
    expected = layer(x, FULL)
    layer.register_message_forward_hook(lambda module, inputs, output: None)
    torch.testing.assert_close(layer(x, FULL), expected)


def test_half_types_do_not_overflow_where_there_are_many_nodes():
    layer = GraphAttention(4, 4, feature_map="elu").half()
    out = layer(torch.ones(70_000, 4, dtype=torch.float16), Full(70_000))
    assert out.dtype == torch.float16 and out.isfinite().all()


def test_random_features_approach_softmax():
    torch.manual_seed(0)
    q, k = 0.3 * torch.randn(2, 50, 1, 8)
    features = RandomFeatures(8, 8192)
    ours = features.of_queries(q).squeeze(1) @ features(k).squeeze(1).T
    expected = (q.squeeze(1) @ k.squeeze(1).T / 8**0.5).softmax(-1)
    assert (ours / ours.sum(-1, keepdim=True) - expected).abs().max() < 0.02
    before = features.rows.clone()
    features.redraw(1)
    assert not torch.equal(before, features.rows)
    features.redraw(0)
    torch.testing.assert_close(before, features.rows)
    with pytest.raises(ValueError, match=r"RandomFeatures: x must be \[\*B, N, H, 8\], got \[3, 2, 7\]"):
        features(torch.ones(3, 2, 7))


def test_weights_of_random_features_sum_to_one_however_large_rows_are():
    torch.manual_seed(1)
    layer = GraphAttention(4, 4, feature_map=RandomFeatures(4, 64))
    x = torch.randn(12, 4) * torch.logspace(0, 2, 12)[:, None]
    out, (edges, weights) = layer(x, Full(12), return_attention_weights=True)
    sums = torch.zeros(12, 1).index_add_(0, edges[1], weights)
    torch.testing.assert_close(sums, torch.ones(12, 1))
    torch.testing.assert_close(layer(x, Full(12)), out, rtol=1e-4, atol=1e-4)


def test_a_large_full_graph_takes_linear_time():
    x = torch.empty(50_000, 2, 17)
    assert explain_backend(x, x, x, Full(50_000), normalizer="identity").chosen == "linear"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"feature_map": "ellu"}, "feature_map must be one of .*elu"),
        ({"score": "additive"}, "score must be 'dot_product' with a feature_map"),
        ({"normalizer": "relu"}, "normalizer must be 'softmax' with a feature_map"),
        ({"edge_dim": 2}, "edge_dim must be None with a feature_map"),
        ({"dropout": 0.5}, "dropout must be 0.0 with a feature_map"),
    ],
)
def test_what_a_feature_map_excludes(options, reason):
    with pytest.raises(ValueError, match=reason):
        GraphAttention(4, 4, **{"feature_map": "elu", **options})


def test_bad_maps_are_errors():
    with pytest.raises(TypeError, match="feature_map must be a name, a function or a module, got 3"):
        GraphAttention(4, 4, feature_map=3)
    x = torch.ones(3, 4)
    with pytest.raises(ValueError, match=r"feature_map must return a tensor of shape \[3, 1\] and any width"):
        GraphAttention(4, 4, feature_map=lambda x: x.sum(-1))(x, Full(3))
    layer = GraphAttention(4, 4, feature_map="relu", encoding=RelativeBias(1, 2))
    with pytest.raises(ValueError, match="encoding must not have a bias of pairs with a feature_map"):
        layer(x, Window(3, 2))


def test_a_layer_says_its_map():
    assert "feature_map='elu'" in repr(GraphAttention(4, 4, feature_map="elu"))
    random = repr(GraphAttention(4, 4, feature_map=RandomFeatures(4, 8)))
    assert "normalizer" not in random and "feature_map=RandomFeatures(4, 8)" in random

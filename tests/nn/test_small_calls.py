"""Calls of so few numbers that layers which `accelerate` made leave them to PyG."""

from __future__ import annotations

import copy

import pytest
import torch
from torch_geometric import nn as pyg

import graphattn
from graphattn.nn.pyg import timing
from graphattn.nn.pyg.fused import SMALL, Graph

pytestmark = pytest.mark.small_calls

X, EDGES = torch.randn(6, 8), torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 0, 4, 5, 5]])
OF_EDGES, BATCH = torch.randn(6, 3), torch.tensor([0, 0, 0, 1, 1, 1])
PATHS = [("a", "to", "a"), ("a", "from", "a")]
CALLS = {
    "TransformerConv": (pyg.TransformerConv(8, 4, heads=2, edge_dim=3), (X, EDGES, OF_EDGES)),
    "GATConv": (pyg.GATConv(8, 4, heads=2), (X, EDGES)),
    "GATv2Conv": (pyg.GATv2Conv(8, 4, heads=2), ((X, X[:6]), EDGES)),
    "AGNNConv": (pyg.AGNNConv(), (X, EDGES)),
    "SuperGATConv": (pyg.SuperGATConv(8, 4).eval(), (X, EDGES)),
    "GMMConv": (pyg.GMMConv(8, 4, 3, 2), (X, EDGES, OF_EDGES)),
    "HGTConv": (
        pyg.HGTConv(8, 4, (["a"], PATHS)),
        ({"a": X}, dict.fromkeys(PATHS, EDGES)),
    ),
    "RGATConv": (pyg.RGATConv(8, 4, 2), (X, EDGES, EDGES[0] % 2)),
    "GPSConv": (pyg.GPSConv(8, None, heads=2), (X, EDGES, BATCH)),
    "SoftmaxAggregation": (pyg.aggr.SoftmaxAggregation(learn=True), (X, BATCH)),
    "SetTransformerAggregation": (pyg.aggr.SetTransformerAggregation(8, heads=2), (X, BATCH)),
}


@pytest.fixture
def is_left(monkeypatch):
    """Whether PyG's own forward computes a call of a layer, with edges as they are given."""

    def runs(layer, *args, **kwargs):
        seen, theirs = [], layer.theirs.forward
        with monkeypatch.context() as patch:
            patch.setattr(layer.theirs, "forward", lambda self, *a, **k: seen.append(a) or theirs(self, *a, **k))
            layer(*args, **kwargs)
        return any(not any(isinstance(x, Graph) for x in given) for given in seen)

    return runs


def accelerated(name):
    layer = copy.deepcopy(CALLS[name][0])
    graphattn.accelerate(layer)
    return layer


@pytest.mark.parametrize("name", CALLS)
def test_small_calls_are_pygs_to_the_last_bit_and_larger_ones_ours(name, is_left):
    theirs, args = CALLS[name]
    layer = accelerated(name)
    assert is_left(layer, *args)
    torch.manual_seed(0)
    expected = theirs(*args)
    torch.manual_seed(0)
    torch.testing.assert_close(layer(*args), expected, rtol=0, atol=0)
    layer.small = 1
    assert not is_left(layer, *args)


def test_the_size_of_a_call_is_the_numbers_in_its_messages(is_left):
    layer = accelerated("GATv2Conv")
    edges = torch.zeros(2, SMALL // 8, dtype=torch.int64)
    assert is_left(layer, X, edges)
    assert not is_left(layer, X, torch.cat([edges, edges[:, :1]], 1))


@pytest.mark.parametrize(("attribute", "value"), [("leaves_small", False), ("backend", "scatter")])
def test_a_layer_can_be_told_to_leave_nothing(attribute, value, is_left):
    layer = accelerated("TransformerConv")
    setattr(layer, attribute, value)
    assert not is_left(layer, X, EDGES, OF_EDGES)


def test_what_pyg_gets_wrong_is_never_left(is_left):
    layer = accelerated("TransformerConv")
    assert not is_left(layer, X, EDGES.int(), OF_EDGES)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_left(layer, X, EDGES, OF_EDGES)
    with pytest.raises(ValueError, match="edge_attr"):
        layer(X, EDGES, OF_EDGES[:1])
    assert not is_left(layer.bfloat16(), X.bfloat16(), EDGES, OF_EDGES.bfloat16())
    with pytest.raises(ValueError, match="sorted"):
        accelerated("GPSConv")(X, EDGES, BATCH.flip(0))
    weights = accelerated("GATConv")
    assert not is_left(weights, X, EDGES, return_attention_weights=True)
    layer = pyg.GMMConv(8, 4, 3, 2, root_weight=False)
    graphattn.accelerate(layer)
    assert layer(X, EDGES, OF_EDGES).shape == (6, 4)


def test_relations_of_few_edges_are_left(is_left):
    model = pyg.HeteroConv({name: pyg.GATConv(8, 4, add_self_loops=False) for name in PATHS})
    args = {"a": X}, dict.fromkeys(PATHS, EDGES)
    expected = model(*args)
    graphattn.accelerate(model)
    assert is_left(model, *args)
    assert torch.equal(model(*args)["a"], expected["a"])
    model.small = 1
    assert not is_left(model, *args)
    torch.testing.assert_close(model(*args), expected)


def test_layers_that_were_timed_leave_nothing_and_restored_ones_forget(monkeypatch):
    model = pyg.GAT(8, 4, num_layers=2)
    report = graphattn.accelerate(model)
    line = "small calls run as in PyG"
    assert model.convs[0].leaves_small and line in str(report)
    graphattn.restore(model)
    assert "leaves_small" not in vars(model.convs[0])
    monkeypatch.setattr(timing, "_race", lambda *_: timing.Timing(2, 1, 2))
    report = graphattn.accelerate(model, X, EDGES)
    assert not model.convs[0].leaves_small and line not in str(report)

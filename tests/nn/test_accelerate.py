"""What `accelerate` sees, leaves and says, and what `restore` undoes whatever happened in between."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch_geometric.nn as pyg
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import graphattn
from graphattn import nn as ours
from graphattn.nn.pyg import timing
from graphattn.nn.pyg.fused import FUSED, Fused, why_not_fused
from graphattn.nn.pyg.whole import FusedWhole
from graphattn.patterns.lookup import known_edges

EDGES = torch.tensor([[0, 1, 2, 3, 0, 2], [1, 2, 0, 1, 3, 2]])
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
# Those over relations have tests of their own: test_hetero.
OF_ONE = {
    theirs: mine for theirs, mine in FUSED.items() if issubclass(mine, Fused) and not issubclass(mine, FusedWhole)
}
PAIRS = pytest.mark.parametrize(("theirs", "mine"), OF_ONE.items(), ids=[cls.__name__ for cls in OF_ONE])
SMALL = "  small calls run as in PyG; given its inputs, accelerate times each layer instead"
DENSE = (
    "MultiheadAttention attends within padded batches; GraphAttention.from_multihead_attention(layer) with "
    "Full.from_batch(batch) needs no padding"
)


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def own_parameter(layer):
    """The name of a parameter that lies in the layer itself, whose parametrization changes the layer's class."""
    return next(name for name, _ in layer.named_parameters() if "." not in name)


@PAIRS
def test_layers_that_were_parametrized_meanwhile_are_restored(theirs, mine):
    layer = theirs(6, 4, heads=2, bias=True)
    layer.register_parameter("own", torch.nn.Parameter(torch.ones(3)))
    graphattn.accelerate(layer)
    name = "own" if theirs is pyg.TransformerConv else own_parameter(layer)
    parametrize.register_parametrization(layer, name, Doubled())
    copied, expected = copy.deepcopy(layer), layer(X, EDGES)
    assert why_not_fused(layer) is None
    assert graphattn.restore(layer) == 1 and graphattn.restore(layer) == 0
    assert isinstance(layer, theirs) and not isinstance(layer, mine) and isinstance(copied, mine)
    torch.testing.assert_close(layer(X, EDGES), expected)
    torch.testing.assert_close(copied(X, EDGES), expected)
    parametrize.remove_parametrizations(layer, name)
    assert type(layer) is theirs
    torch.testing.assert_close(layer(X, EDGES), expected)
    assert graphattn.restore(copied) == 1 and not isinstance(copied, mine)


@PAIRS
def test_parametrized_layers_are_accelerated(theirs, mine):
    layer = theirs(6, 4, heads=2)
    layer.register_parameter("own", torch.nn.Parameter(torch.ones(3)))
    parametrize.register_parametrization(layer, "own", Doubled())
    for inner in [module for module in layer.children() if hasattr(module, "weight")]:
        weight_norm(inner)
    expected = layer(X, EDGES)
    report = graphattn.accelerate(layer)
    assert [change.kind for change in report.changed] == [theirs.__name__] and not report.left
    assert isinstance(layer, mine) and why_not_fused(layer) is None
    torch.testing.assert_close(layer(X, EDGES), expected)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X, EDGES), expected)
    parametrize.remove_parametrizations(layer, "own")
    assert type(layer) is mine
    assert graphattn.restore(layer) == 1 and type(layer) is theirs


def test_sharded_layers_are_accelerated_and_restored():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        layer = pyg.GATConv(6, 4, heads=2)
        expected = layer(X, EDGES)
        fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
        for _ in range(2):
            assert len(graphattn.accelerate(layer).changed) == 1
            assert isinstance(layer, ours.GATConv) and why_not_fused(layer) is None
            torch.testing.assert_close(layer(X, EDGES), expected)
            assert graphattn.restore(layer) == 1
            assert not isinstance(layer, ours.GATConv)
            torch.testing.assert_close(layer(X, EDGES), expected)
    finally:
        dist.destroy_process_group()


def test_a_layer_whose_class_was_given_back_by_hand_is_no_longer_ours_to_restore():
    layer = pyg.GATConv(6, 4)
    graphattn.accelerate(layer)
    layer.__class__ = pyg.GATConv
    assert graphattn.restore(layer) == 0


def test_the_report_lists_every_attention_with_the_reason_why_it_was_left():
    model = pyg.GPSConv(6, pyg.TransformerConv(6, 3, heads=2), heads=2)
    assert str(graphattn.accelerate(model)) == (
        f"2 layers accelerated, 0 left\n  the model itself: GPSConv\n  conv: TransformerConv\n{SMALL}"
    )
    encoder = torch.nn.TransformerEncoderLayer(6, 2)
    assert str(graphattn.accelerate(encoder)) == f"0 layers accelerated, 1 left\n  self_attn: left, {DENSE}"
    mixing = {"kernel": torch.nn.Softmax(-2)}
    performer = pyg.GPSConv(6, pyg.GATConv(6, 3, heads=2), heads=2, attn_type="performer", attn_kwargs=mixing)
    assert str(graphattn.accelerate(performer)) == (
        "2 layers accelerated, 1 left\n  conv: GATConv\n  attn: PerformerAttention\n"
        f"  the model itself: left, Softmax(dim=-2) may mix rows, those of padding included\n{SMALL}"
    )


def test_what_has_no_version_here_is_listed_with_its_reason():
    layers = {
        "pool": pyg.ASAPooling(6, GNN=pyg.GATConv),
        "dna": pyg.DNAConv(6, heads=2),
        "vis": pyg.models.visnet.ViS_MP(2, 4, 5.0, None, False),
    }
    report = graphattn.accelerate(torch.nn.ModuleDict(layers))
    assert [change.name for change in report.changed] == ["pool.gnn_intra_cluster"]
    assert {change.name: change.reason for change in report.left} == {
        "pool": "its weights belong to pairs of a node and a cluster; the convolution inside is changed",
        "dna.multi_head": "of DNAConv: attends to the layers before, a handful for each edge",
        "vis": "makes vectors of each edge's message, which must exist for that",
    }


class Gated(pyg.MessagePassing):
    """A user's own layer, whose weights have no name that others share."""

    def message(self, x_j, index):
        return torch.softmax(x_j, -1)


class SelfAttention(torch.nn.Module):
    """A user's own layer outside of message passing."""


SEEN = {
    "one of torch's own": (torch.nn.TransformerEncoderLayer(8, 2), ["self_attn"]),
    "innermost alone": (pyg.aggr.utils.PoolingByMultiheadAttention(4), ["mab.attn"]),
    "weights without heads": (pyg.FeaStConv(4, 4, 2), [""]),
    "inside of a layer": (pyg.DNAConv(4), ["multi_head"]),
    "a user's own messages": (Gated(), [""]),
    "a user's own module": (torch.nn.Sequential(SelfAttention()), ["0"]),
    "an alpha that is no weight": (torch.nn.ModuleList([pyg.APPNP(2, 0.1), pyg.GCN2Conv(4, 0.1)]), []),
    "no attention": (pyg.GCN(4, 4, 2), []),
}


@pytest.mark.parametrize("name", SEEN)
def test_attention_is_seen_where_it_is(name):
    model, names = SEEN[name]
    left = [change.name for change in graphattn.accelerate(model).left]
    assert len(left) == len(names) and all(map(str.startswith, left, names))


def test_layers_that_are_ours_already_are_counted():
    layers = [
        ours.GraphAttention(4, 8),
        ours.DenseGraphAttention(4, 8),
        ours.GATConv(4, 2),
        ours.AttentionReadout(4, 8),
    ]
    report = graphattn.accelerate(torch.nn.ModuleList(layers))
    assert str(report) == "0 layers accelerated, 0 left, 4 already ours"


def test_layers_that_would_be_slower_are_left(monkeypatch):
    model = pyg.GAT(6, 8, 3, heads=2, norm="batch_norm", dropout=0.5)
    speedups, is_new, seen = iter([0.5, 2.0, 1.5]), [], []

    def look(where, edge_index, *rest):
        seen.append(edge_index)
        return known_edges(where, edge_index, *rest)

    def race(theirs, mine):
        theirs(), mine(), mine()
        is_new.append(seen[-1] is not seen[-2])
        return timing.Timing(0.002, 0.004, next(speedups))

    monkeypatch.setattr("graphattn.nn.pyg.fused.known_edges", look)
    monkeypatch.setattr(timing, "_race", race)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    report = graphattn.accelerate(model, X, edge_index=EDGES)
    assert repr(report) == (
        "2 layers accelerated, 1 left\n  convs.1: GATConv, 2x\n  convs.2: GATConv, 1.5x\n"
        "  convs.0: left, PyG's takes 2 ms here, ours 4 ms"
    )
    assert report.left[0].speedup == 0.5 and type(model.convs[0]) is pyg.GATConv
    assert isinstance(model.convs[1], ours.GATConv) and isinstance(model.convs[2], ours.GATConv)
    # The first of ours is the first to read the edges.
    assert is_new == [True, True, False]
    assert torch.equal(torch.get_rng_state(), state) and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in model.convs)


@pytest.mark.parametrize("is_trained", [False, True])
def test_layers_are_timed_as_they_are_called(is_trained):
    layer = pyg.TransformerConv((6, 3), 4, edge_dim=2).train(is_trained)
    x = (torch.randn(4, 6, requires_grad=True), torch.randn(4, 3))
    report = graphattn.accelerate(layer, x, EDGES, edge_attr=torch.randn(6, 2))
    (change,) = report.changed + report.left
    assert change.speedup > 0 and isinstance(layer, ours.TransformerConv) == (change.speedup >= 1)
    assert x[0].grad is None and layer.lin_key.weight.grad is None


def test_hooks_see_the_arguments_as_the_model_passes_them():
    layer = pyg.GATConv(6, 4)
    layer.register_forward_pre_hook(lambda _, args: (2 * args[0], *args[1:]))
    layer.register_forward_hook(lambda _, args, out: {"out": out})
    graphattn.accelerate(layer, X, EDGES)
    assert layer(X, EDGES)["out"].shape == (4, 4)


def test_a_model_that_cannot_be_copied_says_so():
    layer = pyg.GATConv(6, 4)
    layer.kept = layer(X, EDGES)
    with pytest.raises(TypeError, match=r"model must be copied to be measured, got .* Use accelerate\(model\) without"):
        graphattn.accelerate(layer, X, EDGES)


def test_a_model_that_cannot_be_called_is_left_as_it_was():
    layer = pyg.GATConv(6, 4)
    with pytest.raises(RuntimeError):
        graphattn.accelerate(layer, torch.randn(4, 5), EDGES)
    assert type(layer) is pyg.GATConv

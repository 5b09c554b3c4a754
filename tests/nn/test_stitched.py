"""`HeteroConv` whose relations share calls of the kernels, against PyG's."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
import torch_geometric.nn as pyg
from torch_geometric.explain import AttentionExplainer, Explainer, GNNExplainer

import graphattn
from graphattn.nn.pyg import fused, stitched
from graphattn.patterns import lookup

# One relation has no edges, and two have both ends in one type.
RELATIONS = [
    ("c", "w", "b"),
    ("a", "x", "b"),
    ("b", "y", "a"),
    ("a", "z", "a"),
    ("a", "none", "c"),
    ("a", "u", "a"),
]
SIZES, CHANNELS = {"a": 7, "b": 5, "c": 3}, {"a": 6, "b": 4, "c": 6}


def draw(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = {
        name: torch.randn(size, CHANNELS[name], dtype=dtype, generator=generator).requires_grad_()
        for name, size in SIZES.items()
    }
    edges = {}
    for source, name, target in RELATIONS:
        count = 0 if name == "none" else 12
        ends = [torch.randint(SIZES[end], (count,), generator=generator) for end in (source, target)]
        edges[source, name, target] = torch.stack(ends)
    return x, edges


def pair(kind, aggr="sum", backend="scatter", relations=RELATIONS, **options):
    """PyG's model, and the same accelerated with its report."""
    torch.manual_seed(0)
    convs = {}
    for relation in relations:
        channels = (CHANNELS[relation[0]], CHANNELS[relation[2]])
        loops = {} if kind is pyg.TransformerConv else {"add_self_loops": relation[1] == "z"}
        convs[relation] = kind(channels, 4, heads=2, **loops, **options)
    theirs = pyg.HeteroConv(convs, aggr).double()
    mine = copy.deepcopy(theirs)
    report = graphattn.accelerate(mine)
    for layer in mine.convs.values():
        layer.backend = backend
    return theirs, mine, report


def assert_same(theirs, mine, *arguments, **named):
    expected, found = theirs(*arguments, **named), mine(*arguments, **named)
    assert list(found) == list(expected)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    grads = []
    for out, layer in ((expected, theirs), (found, mine)):
        total = sum(x.square().sum() for x in out.values())
        leaves = [*arguments[0].values(), *layer.parameters()]
        grads.append(torch.autograd.grad(total, leaves, allow_unused=True))
    for leaf, expected, found in zip(leaves, *grads, strict=True):
        expected, found = (torch.zeros_like(leaf) if grad is None else grad for grad in (expected, found))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.fixture
def calls(monkeypatch):
    """The patterns of all calls of the kernels."""
    seen, attention = [], fused.attention
    note = lambda query, key, value, pattern, **options: (
        seen.append(pattern) or attention(query, key, value, pattern, **options)
    )
    monkeypatch.setattr(fused, "attention", note)
    return seen


KINDS = [
    (pyg.GATConv, {}),
    (pyg.GATConv, {"concat": False, "residual": True, "bias": False}),
    (pyg.GATConv, {"bias": False}),
    (pyg.TransformerConv, {}),
    (pyg.TransformerConv, {"concat": False, "root_weight": False}),
    (pyg.GATv2Conv, {}),
    (pyg.GATv2Conv, {"concat": False, "residual": True, "share_weights": False}),
]


@pytest.mark.parametrize("aggr", ["sum", "mean", "max", "cat", None])
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_all_relations_are_one_call(kind, options, aggr, calls):
    theirs, mine, report = pair(kind, aggr, **options)
    assert report.stitched == [("", f"6 {kind.__name__}", None, None)]
    assert_same(theirs, mine, *draw())
    assert len(calls) == 1 and len(report.changed) == 6


@pytest.mark.parametrize("kind", [pyg.GATConv, pyg.GATv2Conv, pyg.TransformerConv])
def test_features_of_edges_come_along(kind, calls):
    theirs, mine, _ = pair(kind, edge_dim=3)
    x, edges = draw()
    attr = {name: torch.randn(index.size(1), 3, dtype=torch.float64) for name, index in edges.items()}
    assert_same(theirs, mine, x, edges, edge_attr_dict=attr)
    assert len(calls) == 1
    # Edges that are known aren't joined again.
    mine(x, edges, attr)
    assert calls[1] is calls[0]
    if kind is not pyg.TransformerConv:
        del attr["a", "x", "b"]
        assert_same(theirs, mine, x, edges, edge_attr_dict=attr)
        assert len(calls) == 4


def test_relations_may_have_one_layer_together(calls):
    torch.manual_seed(0)
    shared = pyg.GATConv((6, 6), 4, heads=2, add_self_loops=False)
    two = [("a", "z", "a"), ("a", "u", "a")]
    theirs = pyg.HeteroConv(dict.fromkeys(two, shared)).double()
    mine = copy.deepcopy(theirs)
    report = graphattn.accelerate(mine)
    assert len(report.changed) == 1 and report.stitched == [("", "2 GATConv", None, None)]
    mine.convs[two[0]].backend = "scatter"
    x, edges = draw()
    assert_same(theirs, mine, {"a": x["a"]}, {name: edges[name] for name in two})
    assert len(calls) == 1
    assert graphattn.restore(mine) == 1 and type(mine.convs[two[1]]) is pyg.GATConv


def test_many_rows_are_not_copied(monkeypatch, calls):
    monkeypatch.setattr(stitched, "MOST_NUMBERS", 0)
    theirs, mine, _ = pair(pyg.GATConv)
    assert_same(theirs, mine, *draw())
    assert len(calls) == 6


def test_joined_edges_are_forgotten_with_those_of_a_relation():
    _, mine, _ = pair(pyg.TransformerConv)
    x, edges = draw()
    gc.collect()
    before = len(lookup._joined)
    with torch.inference_mode():
        mine({name: row.detach() for name, row in x.items()}, edges)
    # What was joined there serves in training, too.
    mine(x, edges)["a"].sum().backward()
    assert len(lookup._joined) == before + 1
    x, edges = None, {name: index for name, index in edges.items() if name != RELATIONS[2]}
    gc.collect()
    assert len(lookup._joined) == before


def test_relations_and_types_that_are_missing():
    theirs, mine, _ = pair(pyg.TransformerConv, backend="auto")
    x, edges = draw()
    fewer = {name: edges[name] for name in RELATIONS[:3]}
    assert_same(theirs, mine, x, fewer)
    # Targets without features.
    del x["b"], edges["b", "y", "a"]
    one = {RELATIONS[3]: edges[RELATIONS[3]]}
    torch.testing.assert_close(mine(x, one), theirs(x, one))
    assert mine(x, {}) == theirs(x, {}) == {}
    with pytest.raises(ValueError, match="need to end with '_dict'"):
        mine(x, edges, edge_attr={})


def test_layers_that_are_not_alike_have_calls_of_their_own(calls):
    torch.manual_seed(0)
    kinds = [pyg.GATConv, pyg.GATConv, pyg.GATv2Conv, pyg.SAGEConv, pyg.TransformerConv, pyg.TransformerConv]
    more = [{"add_self_loops": False}] * 3 + [{}, {"beta": True}, {}]
    convs = {
        name: kind((CHANNELS[name[0]], CHANNELS[name[2]]), 4, **options)
        for name, kind, options in zip(RELATIONS, kinds, more, strict=True)
    }
    theirs = torch.nn.Sequential(pyg.HeteroConv(convs).double())
    mine = copy.deepcopy(theirs)
    report = graphattn.accelerate(mine)
    for layer in mine[0].convs.values():
        layer.backend = "scatter"
    assert_same(theirs[0], mine[0], *draw())
    assert sorted(pattern.num_edges for pattern in calls) == [0, 12, 12, 24]
    text = repr(report)
    for line in (
        "0: 2 GATConv in one call",
        "0: 1 GATv2Conv apart: no other GATv2Conv has its heads",
        "0: 1 SAGEConv apart: SAGEConv is none of GATConv, GATv2Conv and TransformerConv",
        "0: 1 TransformerConv apart: with beta, what it adds depends on what was attended to",
        "0: 1 TransformerConv apart: no other TransformerConv has its heads",
    ):
        assert line in text


class Net(torch.nn.Module):
    """Two layers, for `to_hetero`; the second one is called twice."""

    def __init__(self, kind, **options):
        super().__init__()
        options |= {} if kind is pyg.TransformerConv else {"add_self_loops": False}
        self.first = kind((-1, -1), 4, heads=2, **options)
        self.norm = torch.nn.LayerNorm(8)
        self.second = kind((8, 8), 4, heads=2, **options)

    def forward(self, x, edge_index):
        x = self.norm(self.first(x, edge_index)).relu()
        return self.second(self.second(x, edge_index=edge_index).relu(), edge_index)


TO_HETERO = [("a", "x", "b"), ("b", "y", "a"), ("a", "z", "a"), ("b", "w", "a")]


def pair_of_to_hetero(kind, aggr="sum", relations=TO_HETERO, net=Net, **options):
    """PyG's model, its copy that is accelerated, with the report, and what both take."""
    x, edges = draw()
    x = {name: x[name] for name in ("a", "b")}
    edges |= {("b", "w", "a"): edges["b", "y", "a"].flip(-1)[:, :9]}
    edges = {name: edges[name] for name in relations}
    torch.manual_seed(0)
    theirs = pyg.to_hetero(net(kind, **options), (["a", "b"], relations), aggr).double()
    theirs(x, edges)
    mine = copy.deepcopy(theirs)
    report = graphattn.accelerate(mine)
    for module in mine.modules():
        if getattr(module, "leaves_small", False):
            module.leaves_small, module.backend = False, "scatter"
    return theirs, mine, report, x, edges


@pytest.mark.parametrize("aggr", ["sum", "mean", "max"])
@pytest.mark.parametrize("kind", [pyg.GATConv, pyg.GATv2Conv, pyg.TransformerConv])
def test_all_relations_of_to_hetero_are_one_call_per_layer(kind, aggr, calls):
    theirs, mine, report, x, edges = pair_of_to_hetero(kind, aggr)
    assert [change[:3] for change in report.stitched] == [
        (name, f"4 {kind.__name__}", None) for name in ("first", "second")
    ]
    assert_same(theirs, mine, x, edges)
    # The second layer is called twice.
    assert len(calls) == 3 and len(report.changed) == 8


def test_stitched_models_of_to_hetero_are_copied_saved_compiled_and_restored(calls):
    theirs, mine, _, x, edges = pair_of_to_hetero(pyg.GATConv)
    expected, before = theirs(x, edges), theirs.code
    assert all(torch.equal(tensor, mine.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    for model in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine)), torch.compile(mine, backend="eager")):
        torch.testing.assert_close(model(x, edges), expected)
    assert not graphattn.accelerate(mine).changed
    calls.clear()
    assert graphattn.restore(mine) == 8
    assert type(mine.first) is torch.nn.ModuleDict and mine.code.count("self.second.") == before.count("self.second.")
    torch.testing.assert_close(mine(x, edges), expected)
    assert not calls
    # What has no layer of ours is not written again.
    assert graphattn.restore(theirs) == 0 and theirs.code == before


def test_layers_of_to_hetero_that_share_no_call_are_left_in_place(calls):
    theirs, mine, report, x, edges = pair_of_to_hetero(pyg.TransformerConv, beta=True)
    assert "first: 4 TransformerConv apart: with beta, what it adds depends on what was attended to" in repr(report)
    assert theirs.code == mine.code
    assert_same(theirs, mine, x, edges)
    assert len(calls) == 12


def test_a_hook_on_a_layer_of_to_hetero_sees_what_it_would(calls):
    theirs, mine, _, x, edges = pair_of_to_hetero(pyg.TransformerConv)
    seen = {}
    for model in (theirs, mine):
        seen[model] = []
        note = lambda *given, model=model: seen[model].append(given[2])
        model.first["a__x__b"].register_forward_hook(note)
    assert_same(theirs, mine, x, edges)
    torch.testing.assert_close(seen[mine], seen[theirs])
    assert len(calls) == 4


def test_a_layer_of_to_hetero_that_follows_itself_is_two_calls(calls):
    class Chain(Net):
        def forward(self, x, edge_index):
            return self.second(self.second(self.first(x, edge_index), edge_index), edge_index)

    # Each type is the target of one relation, so that nothing is added up between the layers.
    theirs, mine, _, x, edges = pair_of_to_hetero(pyg.GATConv, relations=TO_HETERO[:2], net=Chain)
    assert_same(theirs, mine, x, edges)
    assert len(calls) == 3


@pytest.mark.small_calls
def test_small_calls_of_to_hetero_are_left_to_pyg(calls):
    theirs, mine, _, x, edges = pair_of_to_hetero(pyg.GATv2Conv)
    for module in mine.modules():
        if hasattr(type(module), "leaves_small"):
            module.leaves_small = True
            vars(module).pop("backend", None)
    assert_same(theirs, mine, x, edges)
    assert not calls


def test_a_model_of_to_hetero_is_timed_whole(monkeypatch):
    monkeypatch.setattr(fused.Fused, "backend", "scatter")
    theirs, _, _, x, edges = pair_of_to_hetero(pyg.GATConv)
    report = graphattn.accelerate(theirs, x, edges)
    speedups = {change.speedup for change in report.stitched}
    assert len(speedups) == 1 and speedups.pop() > 0
    if report.stitched[0].reason is not None:
        assert report.stitched[0][:2] == ("", "to_hetero") and "PyG's takes" in report.stitched[0].reason


def test_stitching_is_undone_and_changes_no_parameter():
    theirs, mine, _ = pair(pyg.GATConv)
    state = theirs.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in mine.state_dict().items())
    copied = copy.deepcopy(mine)
    assert not graphattn.accelerate(mine).changed
    assert graphattn.restore(mine) == 6
    assert type(mine) is pyg.HeteroConv and type(copied) is not pyg.HeteroConv
    assert {type(layer) for layer in mine.convs.values()} == {pyg.GATConv}
    x, edges = draw()
    torch.testing.assert_close(mine(x, edges), copied(x, edges))


def test_hooks_and_returned_weights_see_what_they_would(calls):
    theirs, mine, _ = pair(pyg.TransformerConv)
    seen = {}
    for layer in (theirs, mine):
        conv, seen[layer] = layer.convs[RELATIONS[1]], []
        conv.register_forward_hook(lambda *given, layer=layer: seen[layer].append(given[2]))
        layer.convs[RELATIONS[0]].register_message_forward_hook(lambda *_: None)
    assert_same(theirs, mine, *draw())
    torch.testing.assert_close(seen[mine], seen[theirs])
    assert [pattern.num_edges for pattern in calls] == [12, 36]
    two = RELATIONS[1:3]
    theirs, mine, _ = pair(pyg.TransformerConv, relations=two)
    x, edges = draw()
    arguments = (x, {name: edges[name] for name in two})
    weights = {"return_attention_weights_dict": dict.fromkeys(two, True)}
    torch.testing.assert_close(mine(*arguments, **weights), theirs(*arguments, **weights))


def test_lazy_channels_are_drawn_as_in_pyg():
    outs = []
    for is_ours in (False, True):
        model = pyg.HeteroConv({name: pyg.TransformerConv((-1, -1), 4) for name in RELATIONS}).double()
        if is_ours:
            graphattn.accelerate(model)
            for layer in model.convs.values():
                layer.backend = "scatter"
        torch.manual_seed(0)
        outs.append(model(*draw()))
    torch.testing.assert_close(*outs)


def test_half_precision_and_dropout(calls):
    theirs, mine, _ = pair(pyg.GATConv, dropout=0.5)
    x, edges = draw()
    rows = {name: row.detach() for name, row in x.items()}
    exact = theirs.eval()(x, edges)
    assert mine(x, edges)["a"].isfinite().all() and not torch.equal(mine(x, edges)["a"], mine(x, edges)["a"])
    mine.eval()
    with torch.inference_mode():
        torch.testing.assert_close(mine(rows, edges), {name: out.detach() for name, out in exact.items()})
    half = copy.deepcopy(mine).bfloat16()({name: row.bfloat16() for name, row in rows.items()}, edges)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = copy.deepcopy(mine).float()({name: row.float() for name, row in rows.items()}, edges)
    for found in (half, rough):
        torch.testing.assert_close({name: out.double() for name, out in found.items()}, exact, rtol=0.1, atol=0.1)


def test_a_compiled_graph_has_the_loops_whatever_the_kernel():
    theirs, mine, _ = pair(pyg.GATConv, relations=RELATIONS[3:4])
    x, edges = draw()
    arguments = ({"a": x["a"]}, {RELATIONS[3]: edges[RELATIONS[3]]})
    torch.testing.assert_close(torch.compile(mine, backend="eager")(*arguments), theirs(*arguments))


@pytest.mark.parametrize("algorithm", [AttentionExplainer, lambda: GNNExplainer(epochs=2)])
def test_explainers_give_what_they_give_of_pygs(algorithm):
    kinds = RELATIONS[1:3]
    options = {
        "explanation_type": "model",
        "edge_mask_type": "object",
        "model_config": {"mode": "regression", "task_level": "node"},
    }
    found = []

    class Net(torch.nn.Module):
        def __init__(self, conv):
            super().__init__()
            self.conv = conv

        def forward(self, x_dict, edge_index_dict):
            return torch.cat(list(self.conv(x_dict, edge_index_dict).values()))

    for layer in pair(pyg.GATConv, relations=kinds)[:2]:
        torch.manual_seed(0)
        x, edges = draw()
        rows = {name: row.detach() for name, row in x.items() if name != "c"}
        edges = {name: edges[name] for name in kinds}
        explainer = Explainer(Net(layer), algorithm(), **options)
        explanation = explainer(rows, edges)
        found.append({name: explanation[name].edge_mask for name in kinds if "edge_mask" in explanation[name]})
    torch.testing.assert_close(*found)
    assert found[0]


def test_a_model_is_timed_with_its_relations_together(monkeypatch):
    monkeypatch.setattr(fused.Fused, "backend", "scatter")
    theirs, _, _ = pair(pyg.GATConv)
    report = graphattn.accelerate(theirs, *draw())
    assert report.stitched[0].speedup > 0
    assert len(report.changed) + len(report.left) == 6
    assert (type(theirs) is pyg.HeteroConv) == (report.stitched[0].speedup < 1)

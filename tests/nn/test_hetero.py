"""Attention over relations: PyG's layers and ours, our own layer and its dense reference, and what both rest on."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch_geometric.nn as pyg
from torch_geometric.data import Batch, HeteroData
from torch_geometric.explain import AttentionExplainer, Explainer, GNNExplainer
from torch_geometric.sampler import NodeSamplerInput
from torch_geometric.transforms import ToSparseTensor
from torch_geometric.utils import to_torch_coo_tensor

import graphattn
from graphattn import Relations
from graphattn import nn as ours
from graphattn.errors import EdgeRangeError
from graphattn.patterns import relations as module
from graphattn.sampling import HeteroNeighborSampler, NeighborLoader

# Neither types nor relations are in the order of their names, one relation has no edges, and one type no node.
TYPES = ["b", "a", "c", "nobody"]
RELATIONS = [
    ("c", "w", "b"),
    ("a", "x", "b"),
    ("b", "y", "a"),
    ("a", "z", "a"),
    ("a", "none", "c"),
    ("nobody", "v", "a"),
]
METADATA = (TYPES, RELATIONS)
SIZES = {"a": 7, "b": 5, "c": 3, "nobody": 0}
CHANNELS = {"a": 6, "b": 4, "c": 6, "nobody": 2}


def draw(seed=0, dtype=torch.float64):
    """Features of each type, and edges of each relation without parallel ones."""
    generator = torch.Generator().manual_seed(seed)
    x = {
        name: torch.randn(size, CHANNELS[name], dtype=dtype, generator=generator).requires_grad_()
        for name, size in SIZES.items()
    }
    edges = {}
    for relation in RELATIONS:
        sources, targets = SIZES[relation[0]], SIZES[relation[2]]
        count = 0 if relation[1] == "none" else min(9, sources * targets)
        pairs = torch.randperm(sources * targets, generator=generator)[:count]
        edges[relation] = torch.stack([pairs % max(sources, 1), pairs // max(sources, 1)])
    return x, edges


def gradients(out, leaves):
    """Of the sum of squares; zeros where there is none."""
    outs = out.values() if isinstance(out, dict) else [out]
    total = sum(x.square().sum() for x in outs if x is not None)
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(leaves, found, strict=True)]


def assert_same(theirs, mine, arguments, inputs, **options):
    """Both layers give the same results and gradients."""
    expected, found = theirs(*arguments, **options), mine(*arguments, **options)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    first = lambda result: result[0] if isinstance(result, tuple) else result
    grads = (
        gradients(first(out), [*inputs, *layer.parameters()]) for out, layer in ((expected, theirs), (found, mine))
    )
    for expected, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def pair(name, *channels, **options):
    """PyG's layer and ours, with the same random parameters."""
    torch.manual_seed(0)
    theirs = getattr(pyg, name)(*channels, **options).double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    mine = getattr(ours, name)(*channels, **options).double()
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


def typed_edges(nodes=12, edges=60, relations=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(nodes, 8, dtype=torch.float64, generator=generator).requires_grad_()
    edge_index = torch.randint(nodes, (2, edges), generator=generator)
    return x, edge_index, torch.randint(relations, (edges,), generator=generator)


ADDITIVE, PRODUCT = "additive-self-attention", "multiplicative-self-attention"
RGAT = [
    {"attention_mechanism": mechanism, "attention_mode": mode, **more}
    for (mechanism, mode), options in {
        ("across-relation", ADDITIVE): [{}, {"mod": "additive"}, {"mod": "f-scaled", "num_bases": 2}, {"edge_dim": 3}],
        ("within-relation", ADDITIVE): [{"mod": "scaled"}, {"num_blocks": 2, "concat": False}, {"mod": "f-additive"}],
        ("across-relation", PRODUCT): [{"dim": 2}, {"mod": "f-additive", "dim": 2, "concat": False}, {"bias": False}],
        ("within-relation", PRODUCT): [{"dim": 2, "mod": "additive"}, {"dim": 2, "mod": "scaled", "edge_dim": 3}],
    }.items()
    for more in options
]


@pytest.mark.parametrize("options", RGAT, ids=str)
def test_rgat_is_pygs(options):
    theirs, mine = pair("RGATConv", 8, 4, 3, heads=2, **options)
    x, edge_index, edge_type = typed_edges()
    edge_attr = (torch.randn(60, 3, dtype=torch.float64),) if "edge_dim" in options else ()
    arguments = (x, edge_index, edge_type, *edge_attr)
    assert_same(theirs, mine, arguments, [x], return_attention_weights=True)
    torch.testing.assert_close(mine(*arguments), theirs(*arguments))
    none = (x, edge_index[:, :0], edge_type[:0], *(rows[:0] for rows in edge_attr))
    torch.testing.assert_close(mine(*none), theirs(*none))


@pytest.mark.parametrize(("heads", "channels"), [(1, 6), (2, 8)])
def test_hgt_is_pygs(heads, channels):
    theirs, mine = pair("HGTConv", CHANNELS, channels, METADATA, heads=heads)
    x, edges = draw()
    assert_same(theirs, mine, (x, edges), list(x.values()))
    fewer = {name: edges[name] for name in RELATIONS[1:3]}
    assert_same(theirs, mine, (x, fewer), list(x.values()))


def test_hgt_takes_relations_in_any_order_where_pyg_does_not():
    theirs, mine = pair("HGTConv", CHANNELS, 8, METADATA, heads=2)
    x, edges = draw()
    expected, turned = mine(x, edges), dict(reversed(edges.items()))
    assert all(torch.equal(out, expected[name]) for name, out in mine(x, turned).items())
    assert any((out - expected[name]).abs().max() > 0.1 for name, out in theirs(x, turned).items() if len(out))
    # With a hook, it is PyG's code that runs.
    mine.register_propagate_forward_hook(lambda *_: None)
    torch.testing.assert_close(mine(x, turned), expected)


@pytest.mark.parametrize("heads", [1, 2])
def test_han_is_pygs(heads):
    theirs, mine = pair("HANConv", CHANNELS, 8, METADATA, heads=heads)
    mine.backend = "scatter"
    x, edges = draw()
    assert_same(theirs, mine, (x, edges), list(x.values()))
    _, weights = mine(x, edges, return_semantic_attention_weights=True)
    _, expected = theirs(x, edges, return_semantic_attention_weights=True)
    given = lambda found: {name: row for name, row in found.items() if row is not None}
    torch.testing.assert_close(given(weights), given(expected))


@pytest.mark.parametrize("options", [{}, {"concat": False}, {"root_weight": False, "heads": 1}], ids=str)
def test_heat_is_pygs(options):
    theirs, mine = pair("HEATConv", 8, 4, 2, 3, 3, 3, 5, **{"heads": 2, **options})
    mine.backend = "scatter"
    x, edge_index, edge_type = typed_edges()
    node_type, edge_attr = torch.arange(12) % 2, torch.randn(60, 3, dtype=torch.float64)
    assert_same(theirs, mine, (x, edge_index, node_type, edge_type, edge_attr), [x])


def test_models_over_relations_are_accelerated_and_restored():
    model = torch.nn.ModuleList([pyg.HGTConv(8, 8, METADATA), pyg.RGATConv(8, 4, 3), pyg.HANConv(8, 8, METADATA)])
    before, state = [type(layer) for layer in model], copy.deepcopy(model.state_dict())
    report = graphattn.accelerate(model)
    assert [change.kind for change in report.changed] == ["HGTConv", "RGATConv", "HANConv"] and not report.left
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    assert graphattn.restore(model) == 3 and [type(layer) for layer in model] == before


def test_layers_over_relations_are_timed_with_edges_that_are_new(monkeypatch):
    model, read = pyg.HGTConv(CHANNELS, 8, METADATA).double(), []
    known = module.known_relations
    monkeypatch.setattr(
        "graphattn.nn.pyg.hetero.known_relations", lambda *given: read.append(known(*given)) or read[-1]
    )
    report = graphattn.accelerate(model, *draw())
    assert (report.changed + report.left)[0].speedup > 0
    assert len(read) > 2 and read[0] is not read[1]


def test_what_rgat_does_where_pyg_is_at_the_edge_of_its_numbers():
    options = {"mod": "f-additive", "attention_mode": PRODUCT}
    theirs, mine = (layer.float() for layer in pair("RGATConv", 8, 4, 3, heads=2, **options))
    x, edge_index, edge_type = typed_edges()
    arguments = (3 * x.float(), edge_index, edge_type)
    torch.testing.assert_close(mine(*arguments), theirs(*arguments), rtol=1e-4, atol=1e-3)
    assert mine(x[:0].float(), edge_index[:, :0], edge_type[:0]).shape == (0, 8)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda kinds, attr: (-kinds - 1, attr), r"edge_type must lie in \[0, 3\)"),
        (lambda kinds, attr: (kinds[:1], attr), r"edge_type must be integers of shape \[60\]"),
        (lambda kinds, attr: (kinds > 0, attr), r"edge_type must be integers of shape \[60\], got torch.bool"),
        (lambda kinds, attr: (kinds, attr[:1]), r"edge_attr must have shape \[60, 3\], one row per edge"),
    ],
)
def test_heat_checks_types_and_features(change, text):
    _, mine = pair("HEATConv", 8, 4, 2, 3, 3, 3, 5)
    x, edge_index, edge_type = typed_edges()
    with pytest.raises(ValueError, match=text):
        mine(x, edge_index, torch.arange(12) % 2, *change(edge_type, torch.randn(60, 3, dtype=torch.float64)))


def test_sparse_adjacencies_and_unknown_relations_are_left_to_pyg():
    theirs, mine = pair("HGTConv", CHANNELS, 8, METADATA)
    x, edges = draw()
    sparse = {
        name: to_torch_coo_tensor(index, size=(SIZES[name[0]], SIZES[name[2]])).double().t().coalesce()
        for name, index in edges.items()
        if name[1] in "xy"
    }
    torch.testing.assert_close(mine(x, sparse), theirs(x, sparse))
    with pytest.raises(KeyError):
        mine(x, {("a", "other", "b"): edges["a", "x", "b"]})


def test_second_derivatives_name_the_backend_that_has_them():
    _, mine = pair("RGATConv", 8, 4, 3)
    x, edge_index, edge_type = typed_edges()
    (grad,) = torch.autograd.grad(mine(x, edge_index, edge_type).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"backend ?= ?'scatter'"):
        grad.square().sum().backward()
    mine.backend = "scatter"
    function = lambda x: mine(x, edge_index, edge_type)
    assert torch.autograd.gradgradcheck(function, x[:, :].detach().requires_grad_(), fast_mode=True)


def test_half_precision_and_compiled_graphs():
    _, mine = pair("HGTConv", CHANNELS, 8, METADATA, heads=2)
    x, edges = draw()
    exact = mine(x, edges)
    torch.testing.assert_close(torch.compile(mine, backend="eager")(x, edges), exact)
    single = copy.deepcopy(mine).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = single({name: row.detach().float() for name, row in x.items()}, edges)
        torch.testing.assert_close(mine(x, edges), exact)
    half = copy.deepcopy(mine).bfloat16()({name: row.detach().bfloat16() for name, row in x.items()}, edges)
    for name, expected in exact.items():
        for found in (rough[name], half[name]):
            torch.testing.assert_close(found.double(), expected, rtol=0.1, atol=0.1)


def explain(layer, algorithm, **masks):
    """What PyG explains of a model of one layer: masks, or the error."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            # For AttentionExplainer, which looks for relations in the names of layers.
            self.a__z__a = layer

        def forward(self, x_dict, edge_index_dict):
            return self.a__z__a(x_dict, edge_index_dict)["a"]

    torch.manual_seed(0)
    x, edges = draw()
    # PyG's explainers fail on relations without edges.
    x, edges = {name: x[name].detach() for name in "ab"}, {name: edges[name] for name in RELATIONS[1:4]}
    options = {"explanation_type": "model", "model_config": {"mode": "regression", "task_level": "node"}}
    try:
        found = Explainer(Net(), algorithm(), **options, **masks)(x, edges)
    except ValueError as error:
        return str(error)
    return {(key, kind): row for key in (*x, *edges) for kind, row in found[key].items() if "mask" in kind}


@pytest.mark.parametrize("name", ["HGTConv", "HANConv"])
def test_explainers_say_of_our_layers_what_they_say_of_pygs(name):
    layers = pair(name, CHANNELS, 8, METADATA, heads=2)
    few = lambda: GNNExplainer(epochs=3)
    for algorithm, masks in (
        (few, {"node_mask_type": "attributes"}),
        # No layer of PyG's over several relations reads a mask of edges.
        (few, {"edge_mask_type": "object"}),
        (AttentionExplainer, {"edge_mask_type": "object"}),
    ):
        theirs, mine = (explain(layer, algorithm, **masks) for layer in layers)
        assert type(mine) is type(theirs)
        if isinstance(theirs, str):
            assert mine == theirs
        else:
            torch.testing.assert_close(mine, theirs)


# Our own layer.

OWN = [
    {},
    {"across": False},
    {"per_relation": False, "edge_dim": 3},
    {"across": False, "per_relation": False, "score": "gatv2", "dropout": 0.4},
    {"edge_dim": 3, "dropout": 0.4, "score": "additive"},
    {"across": False, "edge_dim": 3, "normalizer": "sigmoid", "dropout": 0.4, "bias": False},
    {"shared": True, "across": False},
]


@pytest.mark.parametrize("options", OWN, ids=str)
def test_hetero_attention_is_its_dense_reference(options):
    torch.manual_seed(0)
    channels = 4 if "shared" in options else CHANNELS
    sparse = ours.HeteroGraphAttention(channels, 8, METADATA, 2, **options).double()
    dense = ours.DenseHeteroGraphAttention(channels, 8, METADATA, 2, **options).double()
    torch.nn.init.normal_(sparse.prior)
    dense.load_state_dict(sparse.state_dict())
    # Kernels have tests of their own; to compile them for each of these takes long.
    sparse.backend = "scatter" if "score" in options or "edge_dim" in options else "auto"
    x, edges = draw()
    if "shared" in options:
        x = {name: torch.randn(size, 4, dtype=torch.float64, requires_grad=True) for name, size in SIZES.items()}
    attr = {name: torch.randn(index.size(1), 3, dtype=torch.float64) for name, index in edges.items()}
    arguments = (x, edges, attr) if "edge_dim" in options else (x, edges)
    results = []
    for layer in (sparse, dense):
        torch.manual_seed(1)
        out, weights = layer(*arguments, return_attention_weights=True)
        results.append(
            (out, {k: w for k, w in weights.items() if len(w)}, gradients(out, [*x.values(), *layer.parameters()]))
        )
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    sparse.register_message_forward_hook(lambda *_: None)
    torch.manual_seed(1)
    torch.testing.assert_close(sparse(*arguments), results[0][0])


def test_shared_projections_are_those_of_each_type_made_equal():
    shared = ours.HeteroGraphAttention(-1, 8, METADATA, 2, shared=True).double()
    apart = ours.HeteroGraphAttention(4, 8, METADATA, 2).double()
    x = {name: torch.randn(size, 4, dtype=torch.float64) for name, size in SIZES.items()}
    edges = draw()[1]
    expected, state = shared(x, edges), shared.state_dict()
    spread = {
        name: state[".".join(["shared" if part in ("<a>", *TYPES) else part for part in name.split(".")])]
        for name in apart.state_dict()
    }
    apart.load_state_dict(spread)
    torch.testing.assert_close(apart(x, edges), expected)


def test_order_of_types_relations_and_edges_changes_no_bit():
    torch.manual_seed(0)
    layer = ours.HeteroGraphAttention(CHANNELS, 8, METADATA, 2)
    x, edges = draw(dtype=torch.float32)
    expected = layer(x, edges)
    turned = {name: edges[name].flip(1) for name in reversed(edges)}
    found = layer(dict(reversed(x.items())), turned)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    # Nor does a relation without edges.
    del turned["a", "none", "c"]
    found = layer(x, turned)
    assert set(expected) - set(found) == {"c"}
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_one_relation_is_graph_attention():
    relation = ("node", "to", "node")
    layer = ours.HeteroGraphAttention(6, 8, (["node"], [relation]), 2, per_relation=False).double()
    plain = ours.GraphAttention(6, 8, 2).double()
    plain.load_state_dict(
        {
            f"{mine}.{kind}": getattr(getattr(layer, theirs)["node"], kind)
            for mine, theirs in (
                ("lin_query", "query_lin"),
                ("lin_key", "key_lin"),
                ("lin_value", "value_lin"),
                ("lin_out", "out_lin"),
            )
            for kind in ("weight", "bias")
        }
    )
    x, edge_index, edge_type = torch.randn(12, 6, dtype=torch.float64), *typed_edges()[1:]
    torch.testing.assert_close(layer({"node": x}, {relation: edge_index})["node"], plain(x, edge_index))
    # Relations with equal weights are one relation.
    names = [("node", str(number), "node") for number in range(3)]
    merged = ours.HeteroGraphAttention(6, 8, (["node"], names), 2, per_relation=False).double()
    merged.load_state_dict({**layer.state_dict(), "prior": torch.ones(3, 2)})
    parts = {name: edge_index[:, edge_type == number] for number, name in enumerate(names)}
    torch.testing.assert_close(merged({"node": x}, parts)["node"], plain(x, edge_index))


def hetero_data():
    x, edges = draw()
    data = HeteroData()
    for name, rows in x.items():
        data[name].x = rows.detach()
    for name, index in edges.items():
        data[name].edge_index = index
    return data


def without_edges():
    data = HeteroData()
    data["a"].x, data["b"].x = torch.ones(2, 1), torch.ones(2, 1)
    data["a", "labelled", "b"].edge_label_index = torch.tensor([[0], [1]])
    return data


def test_layers_read_hetero_data_and_its_batches():
    layer = ours.HeteroGraphAttention(CHANNELS, 8, METADATA, 2).double()
    data = hetero_data()
    one = layer(data.x_dict, data.edge_index_dict)
    torch.testing.assert_close(layer(data.x_dict, Relations.from_data(data)), one)
    # A relation that has labels alone.
    data["a", "labelled", "b"].edge_label_index = torch.tensor([[0], [1]])
    torch.testing.assert_close(layer(data.x_dict, Relations.from_data(data)), one)
    del data["a", "labelled", "b"]
    batch = Batch.from_data_list([data, data])
    for name, out in layer(batch.x_dict, batch.edge_index_dict).items():
        torch.testing.assert_close(out, torch.cat([one[name]] * 2))


def test_lazy_channels_are_found_at_the_first_call():
    layer = ours.HeteroGraphAttention(-1, 8, METADATA, 2).double()
    x, edges = draw()
    assert layer(x, edges)["a"].shape == (7, 8)
    assert layer.query_lin["b"].in_channels == 4


# Relations.


def test_relations_make_each_row_once():
    x, edges = draw()
    relations = Relations(edges, SIZES)
    assert list(relations.num_nodes) == ["a", "b", "c", "nobody"] and relations.relations == sorted(RELATIONS)
    pairs = {(name, int(j)) for name, index in edges.items() for j in index[0]}
    rows, begins = relations.source_rows, relations.begins
    found = []
    for r, name in enumerate(relations.relations):
        found += [(name, int(node) - begins[name[0]]) for node in rows.node[rows.ptr[r] : rows.ptr[r + 1]]]
    assert found == sorted(pairs) and len(found) == relations.across.num_sources
    assert relations.across.num_targets == sum(SIZES.values())
    assert relations.within.num_targets == len({(name, int(i)) for name, index in edges.items() for i in index[1]})
    joined = relations.join_edges({name: index[0] for name, index in edges.items()})
    assert all(torch.equal(part, edges[name][0]) for name, part in relations.split_edges(joined).items())
    rows = {name: row[:, :2] for name, row in x.items()}
    parts = relations.split_nodes(relations.join_nodes(rows))
    assert all(torch.equal(part, rows[name]) for name, part in parts.items())
    again = pickle.loads(pickle.dumps(relations)).to("cpu")
    assert again.across == relations.across and repr(again) == repr(relations)


def test_relations_of_types_keep_the_order_of_edges():
    _, edge_index, edge_type = typed_edges()
    relations = Relations.from_types(edge_index, edge_type, 12, 4)
    assert torch.equal(relations.across.edge_index[1], edge_index[1])
    assert torch.equal(relations.source_rows.node[relations.within.edge_index[0]], edge_index[0])
    assert torch.equal(relations.target_rows.node[relations.within.edge_index[1]], edge_index[1])
    parts = relations.split_edges(edge_index.t())
    assert torch.equal(relations.join_edges(parts), edge_index.t())
    edge_type[:] = 0
    assert relations.edge_type.any()
    edge_type = relations.edge_type
    assert all(torch.equal(parts["node", r, "node"], edge_index.t()[edge_type == r]) for r in range(4))


def test_many_keys_are_sorted_and_few_are_marked():
    key = torch.tensor([7, 3, 7, 2**40])
    found, index = module._number(key, 2**41)
    assert found.tolist() == [3, 7, 2**40] and index.tolist() == [1, 0, 1, 2]
    found, index = module._number(key[:3], 8)
    assert found.tolist() == [3, 7] and index.tolist() == [1, 0, 1]


def test_relations_of_repeated_calls_are_known_until_they_are_written_to():
    _, edges = draw()
    relations = module.known_relations(edges, SIZES)
    assert module.known_relations(dict(edges), SIZES) is relations
    edges["a", "x", "b"][0, 0] = 1 - edges["a", "x", "b"][0, 0].clamp(max=1)
    changed = module.known_relations(edges, SIZES)
    assert changed is not relations and changed.across != relations.across
    before = len(module._known)
    del edges
    assert len(module._known) < before


EDGES = torch.tensor([[0], [1]])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: Relations(EDGES), TypeError, "edges must be a dictionary, got Tensor"),
        (lambda: Relations({"a": EDGES}), TypeError, r"must have keys \(source type, relation, target type\), got 'a'"),
        (
            lambda: Relations({("a", "r", "b"): EDGES}, {"b": 1}),
            EdgeRangeError,
            r"edge_index\[1\].* because b has 1 nodes, got 1",
        ),
        (lambda: Relations({}, {"a": -1}), ValueError, r"num_nodes\['a'\] must be at least 0, got -1"),
        (
            lambda: Relations.from_data(without_edges()),
            ValueError,
            "data must have edges in one relation at least, got",
        ),
        (lambda: Relations.from_data(3), TypeError, "data must be a HeteroData, got int"),
        (
            lambda: Relations.from_types(EDGES, torch.tensor([0.5]), 2),
            TypeError,
            "edge_type must be a tensor of integers",
        ),
        (lambda: Relations.from_types(EDGES, torch.tensor([0, 1]), 2), ValueError, r"edge_type must have shape \[1\]"),
        (
            lambda: Relations.from_types(EDGES, torch.tensor([3]), 2, 3),
            ValueError,
            r"edge_type must lie in \[0, 3\), got 3",
        ),
        (lambda: ours.HeteroGraphAttention(4, 8, METADATA, 3), ValueError, "heads must divide out_channels, 8, got 3"),
        (lambda: ours.HeteroGraphAttention(4, 8, TYPES), TypeError, "metadata must be the types"),
        (
            lambda: ours.HeteroGraphAttention(4, 8, (["a"], [("a", "r", "b")])),
            ValueError,
            "must list the node types of",
        ),
        (
            lambda: ours.HeteroGraphAttention({"a": 4}, 8, METADATA),
            ValueError,
            "must have every node type, got none for 'b'",
        ),
        (
            lambda: ours.HeteroGraphAttention(CHANNELS, 8, METADATA, shared=True),
            ValueError,
            "in_channels must be as wide for each type of node, because they share their projections, got {'b': 4",
        ),
        (
            lambda: ours.HeteroGraphAttention(-1, 8, METADATA, shared=True).double()(*draw()),
            ValueError,
            "x_dict must be as wide for each type of node",
        ),
    ],
)
def test_bad_relations_are_told_in_one_line(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x, edges: (x["a"], edges), "x_dict must be a dictionary"),
        (lambda x, edges: ({**x, "d": x["a"]}, edges), "must have the metadata's node types"),
        (lambda x, edges: ({**x, "a": x["b"]}, edges), r"x_dict\['a'\] must have shape \[N, 6\]"),
        (lambda x, edges: (x, {("a", "q", "b"): EDGES}), "must have relations of the metadata"),
        (lambda x, edges: ({"a": x["a"]}, edges), "x_dict must have the node types of"),
        (lambda x, edges: (x, Relations(edges, {**SIZES, "a": 9})), "must have the numbers of nodes of x_dict"),
        (lambda x, edges: (x, edges, {}), "needs a layer with edge_dim"),
    ],
)
def test_bad_calls_are_told_in_one_line(change, text):
    layer = ours.HeteroGraphAttention(CHANNELS, 8, METADATA, 2).double()
    with pytest.raises((TypeError, ValueError), match=text) as caught:
        layer(*change(*draw()))
    assert "\n" not in str(caught.value)


# Sampled neighborhoods.


def large_data():
    generator = torch.Generator().manual_seed(0)
    sizes = {"a": 60, "b": 40, "c": 30}
    data = HeteroData()
    for name, size in sizes.items():
        data[name].x = torch.randn(size, 4, generator=generator)
    for source, relation, target in [("a", "x", "b"), ("b", "y", "a"), ("c", "w", "b"), ("a", "z", "a")]:
        ends = [torch.randint(sizes[end], (300,), generator=generator) for end in (source, target)]
        data[source, relation, target].edge_index = torch.stack(ends)
    return data


@pytest.mark.parametrize("replace", [False, True])
def test_laws_of_samples_over_relations(replace):
    data, fans = large_data(), [3, 2]
    sampler = HeteroNeighborSampler(data, fans, replace=replace)
    seeds = torch.tensor([5, 7, 0, 21])
    out = sampler.sample_from_nodes(NodeSamplerInput(None, seeds, input_type="b"))
    assert torch.equal(out.node["b"][:4], seeds) and out.num_sampled_nodes["b"][0] == 4
    for name, rows in out.node.items():
        assert rows.unique().numel() == rows.numel() == sum(out.num_sampled_nodes[name])
    for relation in data.edge_types:
        source, _, target = relation
        row, col, edge = out.row[relation], out.col[relation], out.edge[relation]
        ends = torch.stack([out.node[source][row], out.node[target][col]])
        assert torch.equal(ends, data[relation].edge_index[:, edge])
        # Nodes of a hop have their edges drawn in the next one; the last hop's have none.
        bounds = torch.tensor([0, *out.num_sampled_nodes[target]]).cumsum(0)
        degree = data[relation].edge_index[1].bincount(minlength=data[target].num_nodes)[out.node[target]]
        drawn = col.bincount(minlength=len(out.node[target]))
        for hop, fan in enumerate([*fans, 0]):
            part = slice(int(bounds[hop]), int(bounds[hop + 1]))
            expected = fan * (degree[part] > 0) if replace else degree[part].clamp(max=fan)
            assert torch.equal(drawn[part], expected)
        assert replace or edge.unique().numel() == edge.numel()
        assert len(edge) == sum(out.num_sampled_edges[relation])
    again = sampler.sample_from_nodes(NodeSamplerInput(None, seeds, input_type="b"))
    assert all(torch.equal(again.edge[name], out.edge[name]) for name in out.edge)


def test_all_neighbors_over_relations_give_the_seeds_their_results():
    data = large_data()
    layers = torch.nn.ModuleList(ours.HeteroGraphAttention(4, 4, data.metadata(), 2) for _ in range(2))

    def run(x, edges):
        for layer in layers:
            x = {**x, **layer(x, edges)}
        return x

    expected = run(data.x_dict, data.edge_index_dict)["b"]
    for batch in NeighborLoader(data, [-1, -1], ("b", torch.arange(10, 40)), batch_size=10):
        seeds = batch["b"].n_id[: batch["b"].batch_size]
        torch.testing.assert_close(run(batch.x_dict, batch.edge_index_dict)["b"][: len(seeds)], expected[seeds])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda data: NeighborLoader(data, [2], "d"), ValueError, "input_nodes must be .type, nodes. .* got 'd'"),
        (lambda data: NeighborLoader(data, [2], ("b", [40])), IndexError, "input_nodes must lie in .0, 40., .* got 40"),
        (
            lambda data: NeighborLoader(data, {("a", "x", "b"): [2]}, "b"),
            ValueError,
            "must name each relation, got none for",
        ),
        (lambda data: NeighborLoader(data, {"x": [2]}, "b"), ValueError, "must be of the relations"),
        (lambda data: NeighborLoader(data, [], "b"), ValueError, "Use num_neighbors=.10, 10. for two hops"),
        (lambda data: NeighborLoader(data, [2], "b", disjoint=True), NotImplementedError, "disjoint must be False"),
        (lambda data: HeteroNeighborSampler(data, [-1], replace=True), ValueError, "with replace=True"),
        (lambda data: NeighborLoader(ToSparseTensor()(data), [1], "b"), ValueError, "must have an edge_index"),
        (lambda data: NeighborLoader(data, [1], ["b", [40]]), IndexError, "input_nodes must lie in"),
        (lambda data: HeteroNeighborSampler(3, [1]), TypeError, "data must be a HeteroData, got int"),
    ],
)
def test_bad_samples_over_relations_are_told_in_one_line(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call(large_data())
    assert "\n" not in str(caught.value)

"""PyG's layers and ours: the same parameters, arguments, results, errors, hooks and explanations."""

from __future__ import annotations

import copy
import io
import os

import pytest
import torch
import torch_geometric.nn as pyg
from torch._dynamo.backends.common import aot_autograd
from torch_geometric import EdgeIndex
from torch_geometric.nn import GAT, GPSConv, HeteroConv, Sequential
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csc_tensor, to_torch_csr_tensor

import graphattn
from graphattn import Edges, Window
from graphattn import nn as ours
from graphattn.nn.pyg.fused import FUSED

NAMES = ["TransformerConv", "GATConv", "GATv2Conv"]
EDGES = torch.tensor([[0, 1, 2, 3, 0, 2, 2, 4, 1], [1, 2, 0, 1, 3, 2, 1, 0, 1]])
OPTIONS = {
    "TransformerConv": [
        {},
        {"heads": 2},
        {"heads": 2, "concat": False},
        {"heads": 2, "beta": True},
        {"heads": 2, "concat": False, "beta": True},
        {"heads": 2, "root_weight": False},
        {"heads": 2, "bias": False},
        {"heads": 2, "edge_dim": 3},
        {"heads": 8, "edge_dim": 1},
    ],
    "GATConv": [
        {},
        {"heads": 2},
        {"heads": 2, "concat": False},
        {"heads": 2, "residual": True},
        {"heads": 2, "add_self_loops": False},
        {"heads": 2, "bias": False, "negative_slope": 0.5},
        {"heads": 2, "edge_dim": 3},
        {"heads": 2, "edge_dim": 3, "fill_value": 0.5},
        {"heads": 2, "edge_dim": 3, "fill_value": "max", "concat": False},
        {"heads": 2, "edge_dim": 1, "add_self_loops": False},
        {"heads": 2, "edge_dim": 1},
    ],
}
OPTIONS["GATv2Conv"] = [*OPTIONS["GATConv"], {"heads": 2, "share_weights": True}]
CASES = [(name, options) for name in NAMES for options in OPTIONS[name]]


def pair(name, *channels, dtype=torch.float64, **options):
    """PyG's layer and ours, with the same parameters."""
    torch.manual_seed(0)
    theirs = getattr(pyg, name)(*channels, **options).to(dtype)
    mine = getattr(ours, name)(*channels, **options).to(dtype)
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_serves_as_its_edges_do(name):
    mine, x = getattr(ours, name)(6, 4, heads=2).double(), torch.randn(5, 6, dtype=torch.float64)
    for pattern in (Edges(EDGES, 5), Window([3, 2], radius=1)):
        assert torch.equal(mine(x, pattern), mine(x, pattern.edge_index.clone()))
        compiled = torch.compile(mine, backend="eager")
        torch.testing.assert_close(compiled(x, pattern), mine(x, pattern))
    with pytest.raises(ValueError, match=rf"{name}: .* 5"):
        mine(x[:4], Edges(EDGES, 5))


def test_a_pattern_knows_how_many_targets_without_features_there_are():
    edges = Edges(torch.tensor([[0, 1, 4], [0, 2, 2]]), num_sources=5, num_targets=3)
    layer = ours.GATConv((6, 6), 4, add_self_loops=False)
    out = layer((torch.randn(5, 6), None), edges)
    assert out.shape == (3, 4) and torch.equal(out[1], layer.bias)


def edge_attr_for(options, edges=EDGES, dtype=torch.float64):
    if "edge_dim" not in options:
        return None
    return torch.randn(edges.size(1), options["edge_dim"], generator=torch.Generator().manual_seed(3), dtype=dtype)


def assert_same(theirs, mine, tolerance, *args, **kwargs):
    """Outputs, and the gradients of inputs and parameters."""
    results = []
    for layer in (theirs, mine):
        leaves = [
            x.detach().requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in args
        ]
        out = layer(*leaves, **kwargs)
        parameters = [p for p in layer.parameters() if p.requires_grad]
        inputs = [x for x in leaves if isinstance(x, torch.Tensor) and x.requires_grad]
        weigh = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        gradients = torch.autograd.grad((out * weigh).sum(), [*inputs, *parameters], allow_unused=True)
        results.append((out, [g for g in gradients if g is not None]))
    (theirs_out, theirs_gradients), (mine_out, mine_gradients) = results
    torch.testing.assert_close(mine_out, theirs_out, atol=tolerance, rtol=tolerance)
    assert len(theirs_gradients) == len(mine_gradients)
    for a, b in zip(mine_gradients, theirs_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("name", "options", "dtype"),
    [(*case, torch.float64) for case in CASES]
    + [(*case, torch.float32) for case in CASES if "edge_dim" not in case[1] or "GRAPHATTN_FUZZ" in os.environ],
    ids=str,
)
def test_outputs_and_gradients_are_pygs(name, options, dtype):
    theirs, mine = pair(name, 6, 4, dtype=dtype, **options)
    assert repr(mine) == repr(theirs)
    assert {k: v.shape for k, v in mine.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(5, 6, dtype=dtype)
    attr = edge_attr_for(options, dtype=dtype)
    args = (x, EDGES) if attr is None else (x, EDGES, attr)
    assert_same(theirs, mine, 1e-10 if dtype == torch.float64 else 1e-5, *args)
    if options.get("edge_dim") == 1 and name != "TransformerConv":
        torch.testing.assert_close(mine(x, EDGES, attr.flatten()), theirs(x, EDGES, attr.flatten()))


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_fused_unless_someone_watches(name, monkeypatch):
    calls, attend = [], graphattn.nn.pyg.fused.attention
    monkeypatch.setattr(graphattn.nn.pyg.fused, "attention", lambda *a, **k: calls.append(1) or attend(*a, **k))
    _, layer = pair(name, 6, 4, heads=2)
    x = torch.randn(5, 6, dtype=torch.float64)
    layer(x, EDGES)
    layer(x, EDGES, return_attention_weights=True)
    assert len(calls) == 2
    handle = layer.register_message_forward_hook(lambda *_: None)
    layer(x, EDGES)
    assert len(calls) == 2
    handle.remove()
    layer.explain = True
    layer.explain = False
    accelerated = getattr(pyg, name)(6, 4, heads=2).double()
    accelerated.explain = True
    graphattn.accelerate(accelerated)
    accelerated.explain = False
    layer(x, EDGES), accelerated(x, EDGES)
    assert len(calls) == 4


def test_the_loops_of_a_graph_are_renewed_once(monkeypatch):
    from graphattn.patterns import Edges

    builds, renew = [], Edges._renew_self_loops
    monkeypatch.setattr(Edges, "_renew_self_loops", lambda *a: builds.append(1) or renew(*a))
    edges, x = EDGES.clone(), torch.randn(5, 6)
    layers = [ours.GATConv(6, 4), ours.GATv2Conv(6, 4)]
    for _ in range(3):
        for layer in layers:
            layer(x, edges).sum().backward()
    assert len(builds) == 1


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_pygs_in_pygs_order(name):
    theirs, mine = pair(name, 6, 4, heads=2)
    x = torch.randn(5, 6, dtype=torch.float64)
    for flag in (True, False) if name == "TransformerConv" else (True,):
        expected = theirs(x, EDGES, return_attention_weights=flag)
        out, (edge_index, alpha) = mine(x, EDGES, return_attention_weights=flag)
        torch.testing.assert_close(out, expected[0])
        assert torch.equal(edge_index, expected[1][0])
        torch.testing.assert_close(alpha, expected[1][1])
    assert isinstance(mine(x, EDGES, return_attention_weights=None), torch.Tensor)
    assert getattr(mine, "_alpha", None) is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loops", [True, False])
def test_every_container_of_edges(name, loops):
    options = {} if name == "TransformerConv" else {"add_self_loops": loops}
    theirs, mine = pair(name, 6, 4, heads=2, **options)
    x = torch.randn(5, 6, dtype=torch.float64)
    expected = theirs(x, EDGES)
    index = EdgeIndex(EDGES, sparse_size=(5, 5))
    by_row, by_column = index.sort_by("row")[0], index.sort_by("col")[0]
    adjacencies = [make(EDGES, size=(5, 5)) for make in (to_torch_coo_tensor, to_torch_csr_tensor, to_torch_csc_tensor)]
    for edges in (EDGES.int(), index, by_row, by_column, *(adj.transpose(0, 1) for adj in adjacencies)):
        torch.testing.assert_close(mine(x, edges), expected)
    if loops:
        adj = adjacencies[2].t()
        for flag in (True, None):
            both = (_flat(layer(x, adj, return_attention_weights=flag)) for layer in (mine, theirs))
            for ours_part, theirs_part in zip(*both, strict=True):
                torch.testing.assert_close(ours_part, theirs_part)


def _flat(result):
    if isinstance(result, torch.Tensor):
        return [result.to_dense() if result.layout != torch.strided else result]
    return [x for part in result for x in _flat(part)]


@pytest.mark.parametrize("name", NAMES)
def test_features_in_a_sparse_adjacency(name):
    options = {} if name == "TransformerConv" else {"add_self_loops": False}
    theirs, mine = pair(name, 6, 4, heads=2, edge_dim=3, **options)
    x, attr = torch.randn(5, 6, dtype=torch.float64), edge_attr_for({"edge_dim": 3})
    adj = to_torch_coo_tensor(EDGES, attr, size=(5, 5)).transpose(0, 1).coalesce()
    torch.testing.assert_close(mine(x, adj), theirs(x, EDGES, attr))
    torch.testing.assert_close(mine(x, adj), theirs(x, adj))


@pytest.mark.parametrize("name", NAMES)
def test_bipartite_graphs(name):
    theirs, mine = pair(name, (6, 3), 4, heads=2)
    edges = torch.tensor([[0, 1, 2, 3, 0], [0, 0, 1, 1, 1]])
    x = (torch.randn(4, 6, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64))
    torch.testing.assert_close(mine(x, edges), theirs(x, edges))
    if name == "GATConv":
        torch.testing.assert_close(mine(x, edges, size=(4, 2)), theirs(x, edges, size=(4, 2)))
        alone = (x[0], None)
        torch.testing.assert_close(mine(alone, edges, size=(4, 2)), theirs(alone, edges, size=(4, 2)))
        adj = to_torch_csc_tensor(edges, size=(4, 2)).t()
        torch.testing.assert_close(mine(alone, adj), theirs(alone, adj))


@pytest.mark.parametrize("name", NAMES)
def test_empty_graphs(name):
    _, mine = pair(name, 8, 8, heads=8)
    none = torch.zeros(2, 0, dtype=torch.int64)
    assert mine(torch.zeros(0, 8, dtype=torch.float64), none).shape == (0, 64)
    theirs, mine = pair(name, 8, 8, heads=8)
    x = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(mine(x, none), theirs(x, none))


@pytest.mark.parametrize("name", NAMES)
def test_lazy_channels_reset_copies_and_pickles(name):
    torch.manual_seed(0)
    layer = getattr(ours, name)(-1, 4, heads=2)
    x = torch.randn(5, 6)
    out = layer(x, EDGES)
    assert out.shape == (5, 8)
    torch.testing.assert_close(copy.deepcopy(layer)(x, EDGES), out)
    stored = io.BytesIO()
    torch.save(layer, stored)
    stored.seek(0)
    torch.testing.assert_close(torch.load(stored, weights_only=False)(x, EDGES), out)
    layer.reset_parameters()
    assert not torch.equal(layer(x, EDGES), out)


@pytest.mark.parametrize("name", NAMES)
def test_hooks_see_messages_and_may_change_them(name):
    theirs, mine = pair(name, 6, 4, heads=2)
    x = torch.randn(5, 6, dtype=torch.float64)
    plain = mine(x, EDGES)
    for layer in (theirs, mine):
        layer.register_message_forward_hook(lambda module, inputs, out: 2 * out)
    torch.testing.assert_close(mine(x, EDGES), theirs(x, EDGES))
    assert not torch.allclose(mine(x, EDGES), plain)


@pytest.mark.parametrize("kind", ["propagate", "message", "aggregate", "edge_update"])
@pytest.mark.parametrize("name", NAMES)
def test_hooks_of_every_kind_fire_until_they_are_removed(name, kind):
    if name == "TransformerConv" and kind == "edge_update":
        pytest.skip("TransformerConv has no edge_update, in PyG either")
    _, layer = pair(name, 6, 4, heads=2)
    x, seen = torch.randn(5, 6, dtype=torch.float64), []
    plain = layer(x, EDGES)
    handles = [
        getattr(layer, f"register_{kind}_forward_{when}")(lambda *_: seen.append(1)) for when in ("pre_hook", "hook")
    ]
    torch.testing.assert_close(layer(x, EDGES), plain)
    assert len(seen) == 2
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(layer(x, EDGES), plain)
    assert len(seen) == 2


@pytest.mark.parametrize("name", NAMES)
def test_explaining_is_pygs_and_ends(name):
    theirs, mine = pair(name, 6, 4, heads=2)
    x = torch.randn(5, 6, dtype=torch.float64)
    plain = mine(x, EDGES)
    mask = torch.rand(EDGES.size(1), dtype=torch.float64)
    for layer in (theirs, mine):
        layer.explain = True
        with pytest.raises(ValueError, match="pre-defined 'edge_mask'"):
            layer(x, EDGES)
        layer._edge_mask, layer._apply_sigmoid = mask, False
        layer._loop_mask = EDGES[0] != EDGES[1]
    torch.testing.assert_close(mine(x, EDGES), theirs(x, EDGES))
    for layer in (theirs, mine):
        layer.explain = False
        layer._edge_mask = None
    torch.testing.assert_close(mine(x, EDGES), plain)


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_may_remove_edges(name):
    _, mine = pair(name, 6, 4, heads=2)
    x = torch.randn(5, 6, dtype=torch.float64)
    mask = torch.ones(EDGES.size(1), dtype=torch.float64)
    mask[[0, 4]] = 0
    mine.explain, mine.mask_removes_edges = True, True
    mine._edge_mask, mine._apply_sigmoid = mask, False
    masked = mine(x, EDGES)
    mine.explain = False
    torch.testing.assert_close(masked, mine(x, EDGES[:, mask.bool()]))


def test_explainers_run_on_our_layers():
    from torch_geometric.explain import AttentionExplainer, Explainer, GNNExplainer

    class Net(torch.nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.first = layers.GATConv(3, 16, heads=4)
            self.second = layers.GATv2Conv(4 * 16, 16, heads=2)
            self.third = layers.TransformerConv(2 * 16, 7, heads=1)

        def forward(self, x, edge_index):
            x = self.second(self.first(x, edge_index).relu(), edge_index).relu()
            return self.third(x, edge_index)

    torch.manual_seed(0)
    theirs = Net(pyg)
    mine = Net(ours)
    mine.load_state_dict(theirs.state_dict())
    x, edges = torch.randn(5, 3), EDGES[:, EDGES[0] != EDGES[1]]
    config = dict(mode="multiclass_classification", task_level="node", return_type="raw")
    for edge_index in (edges, EdgeIndex(edges, sparse_size=(5, 5)).sort_by("col")[0]):
        for index in (None, 2, torch.arange(3)):
            masks = []
            for model in (theirs, mine):
                explainer = Explainer(
                    model, AttentionExplainer(), explanation_type="model", model_config=config, edge_mask_type="object"
                )
                masks.append(explainer(x, edge_index, index=index).edge_mask)
            torch.testing.assert_close(*masks)
    explainer = Explainer(
        mine, GNNExplainer(epochs=2), explanation_type="model", model_config=config, edge_mask_type="object"
    )
    assert explainer(x, edges).edge_mask.shape == (edges.size(1),)
    torch.testing.assert_close(mine(x, edges), theirs(x, edges))


def test_attention_explanations_are_those_of_the_callers_own_edges():
    from torch_geometric.explain import AttentionExplainer, Explainer

    edges = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 1]])
    x = torch.randn(3, 4, dtype=torch.float64)
    theirs, mine = pair("GATConv", 4, 4)
    _, (listed, alpha) = mine(x, edges, return_attention_weights=True)
    expected = [alpha[(listed.t() == edge).all(1)].item() for edge in edges.t()]
    config = dict(mode="multiclass_classification", task_level="node", return_type="raw")
    found = []
    for model in (theirs, mine):
        explainer = Explainer(
            model, AttentionExplainer(), explanation_type="model", model_config=config, edge_mask_type="object"
        )
        found.append(explainer(x, edges).edge_mask)
    torch.testing.assert_close(found[1], torch.tensor(expected, dtype=torch.float64))
    # PyG's own layer renews the loops at the end, and its explainer takes the first weights as those of the edges.
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
def test_weights_in_training_are_those_of_before_dropout_unless_pygs_are_asked_for(name):
    theirs, mine = pair(name, 6, 4, heads=2, dropout=0.5)
    x = torch.randn(5, 6, dtype=torch.float64)
    _, (_, alpha) = mine(x, EDGES, return_attention_weights=True)
    _, (_, evaluated) = mine.eval()(x, EDGES, return_attention_weights=True)
    torch.testing.assert_close(alpha, evaluated)
    _, (edge_index, dropped) = theirs(x, EDGES, return_attention_weights=True)
    assert not torch.allclose(dropped, evaluated)
    mine.train()
    mine.returns_dropped_weights = True
    _, (listed, alpha) = mine(x, EDGES, return_attention_weights=True)
    assert torch.equal(listed, edge_index)
    kept = alpha != 0
    torch.testing.assert_close(alpha[kept], 2 * evaluated[kept])


def test_dropout_has_pygs_distribution():
    theirs, mine = pair("GATConv", 6, 4, heads=2, dropout=0.5, dtype=torch.float32)
    x = torch.randn(5, 6)
    torch.manual_seed(0)
    means = [torch.stack([layer(x, EDGES) for _ in range(3000)]) for layer in (theirs, mine)]
    torch.testing.assert_close(means[0].mean(0), means[1].mean(0), atol=0.06, rtol=0)
    torch.testing.assert_close(means[0].std(0), means[1].std(0), atol=0.06, rtol=0)


def test_half_precision_with_sorted_edges_is_right_where_pygs_is_not():
    degree = 2000
    edges = torch.stack([torch.arange(degree), torch.zeros(degree, dtype=torch.int64)])
    index = EdgeIndex(edges, sparse_size=(degree, degree), sort_order="col")
    theirs, mine = pair("TransformerConv", 8, 8, heads=2, dtype=torch.float32)
    x = torch.randn(degree, 8)
    exact = theirs(x, edges)[0]
    theirs, mine = theirs.bfloat16(), mine.bfloat16()
    torch.testing.assert_close(mine(x.bfloat16(), index)[0].float(), exact, atol=0.05, rtol=0.05)
    assert (theirs(x.bfloat16(), index)[0].float() - exact).abs().max() > 0.2


def test_no_parameter_of_a_layer_goes_unused():
    layer = ours.TransformerConv(6, 4, heads=2, root_weight=False)
    layer(torch.randn(5, 6), EDGES).sum().backward()
    assert all(p.grad is not None for p in layer.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_layers_take_raw_edges_in_one_graph_and_new_sizes(name):
    torch._dynamo.reset()
    from torch._dynamo.testing import CompileCounterWithBackend

    layer = getattr(ours, name)(6, 4, heads=2)
    layer.backend = "numba"
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for nodes, edges in ((5, 9), (7, 20), (9, 30), (12, 33), (20, 50), (31, 99)):
        x, edge_index = torch.randn(nodes, 6, requires_grad=True), torch.randint(nodes, (2, edges))
        out, expected = compiled(x, edge_index), layer(x, edge_index)
        torch.testing.assert_close(out, expected)
        both = (torch.autograd.grad(y.square().sum(), x) for y in (out, expected))
        torch.testing.assert_close(*both)
    assert counter.frame_count <= 2
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["auto", "numba"])
@pytest.mark.parametrize("edges", [9, 3000])
def test_a_compiled_layer_of_a_small_graph_is_pygs(edges, backend):
    torch._dynamo.reset()
    called = []

    def look(module, _):
        called.extend(node.name for node in module.graph.nodes if "csr_forward" in str(node.target))
        return module

    layer = ours.TransformerConv(6, 8, heads=2)
    layer.backend = backend
    x, edge_index = torch.randn(5, 6), torch.randint(5, (2, edges))
    compiled = torch.compile(layer, backend=aot_autograd(fw_compiler=look), fullgraph=True)
    torch.testing.assert_close(compiled(x, edge_index), layer(x, edge_index))
    assert bool(called) == (edges > 9 or backend == "numba")


@pytest.mark.parametrize("name", NAMES)
def test_layers_export_with_dynamic_sizes(name):
    layer = getattr(ours, name)(6, 4, heads=2).eval()
    shapes = {"x": {0: torch.export.Dim("n")}, "edge_index": {1: torch.export.Dim("e")}}
    program = torch.export.export(layer, (), {"x": torch.randn(5, 6), "edge_index": EDGES}, dynamic_shapes=shapes)
    x, edge_index = torch.randn(9, 6), torch.randint(9, (2, 17))
    torch.testing.assert_close(program.module()(x=x, edge_index=edge_index), layer(x, edge_index))


@pytest.mark.parametrize("name", NAMES)
def test_layers_under_autocast(name):
    theirs, mine = pair(name, 6, 4, heads=2, dtype=torch.float32)
    x = torch.randn(5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        expected, out = theirs(x, EDGES), mine(x, EDGES)
    assert out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_bad_edges_are_refused_by_pygs_error_type(name):
    layer = getattr(ours, name)(6, 4)
    x = torch.randn(5, 6)
    with pytest.raises(IndexError, match=rf"^{name}: edge_index\[0\] must lie in \[0, 5\) because x has 5 rows"):
        layer(x, torch.tensor([[9], [0]]))
    bipartite = getattr(ours, name)((6, 6), 4)
    with pytest.raises(IndexError, match=rf"^{name}: edge_index\[1\] must lie in \[0, 3\) because x\[1\] has 3 rows"):
        bipartite((x, x[:3]), torch.tensor([[4], [3]]))
    with pytest.raises(IndexError, match=rf"^{name}: edge_index\[1\] must lie in \[0, 5\)"):
        layer(x, torch.tensor([[0], [-1]]))
    with pytest.raises(ValueError, match=f"^{name}: edge_index must have an integer dtype"):
        layer(x, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=f"^{name}: edge_index must have shape"):
        layer(x, torch.zeros(3, 3, dtype=torch.int64))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("edges", [EDGES, EDGES[:, EDGES[0] != EDGES[1]]], ids=["loops given", "none given"])
def test_features_of_another_number_of_edges_are_refused(name, loops, edges):
    options = {} if name == "TransformerConv" else {"add_self_loops": loops}
    x, count = torch.randn(5, 6), edges.size(1)
    # Between the edges given and those with renewed loops, and beyond, nothing may be padded, cut or indexed.
    for rows in (0, 1, count - 1, count + 1, count + 3, count + 5):
        text = rf"^{name}: edge_attr must have shape \[{count}, 3\], one row per edge, got \[{rows}, 3\]\.$"
        with pytest.raises(ValueError, match=text):
            getattr(ours, name)(6, 4, edge_dim=3, **options)(x, edges, torch.randn(rows, 3))
    layer = getattr(ours, name)(6, 4, edge_dim=3, **options)
    with pytest.raises(ValueError, match=rf"edge_attr must have shape \[{count}, 3\], one row per edge, got \[{count}"):
        layer(x, edges, torch.randn(count))
    layer.register_message_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="edge_attr must have shape"):
        layer(x, edges, torch.randn(count - 1, 3))
    with pytest.raises(TypeError, match=f"{name}: edge_attr must be a tensor, got list"):
        layer(x, edges, [[1.0, 2.0, 3.0]] * count)


@pytest.mark.parametrize("name", NAMES)
def test_features_of_more_dimensions_are_read_as_pygs(name):
    theirs, mine = pair(name, 6, 4, heads=2, edge_dim=3)
    x, attr = torch.randn(5, 6, dtype=torch.float64), edge_attr_for({"edge_dim": 3}).unsqueeze(1)
    torch.testing.assert_close(mine(x, EDGES, attr), theirs(x, EDGES, attr))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("edge_dim", [None, 1])
def test_batch_in_place_of_features_of_edges_is_recognized(name, edge_dim):
    layer, batch = getattr(ours, name)(6, 4, edge_dim=edge_dim), torch.tensor([0, 0, 0, 1, 1])
    with pytest.raises(TypeError, match=f"^{name}: edge_attr must hold features of edges, .* like batch. Leave batch"):
        layer(torch.randn(5, 6), EDGES, batch)


def test_an_explainers_mask_of_another_length_is_refused():
    layer = ours.GATConv(6, 4)
    layer.explain, layer.mask_removes_edges = True, True
    for count in (8, 10, 14):
        layer._edge_mask = torch.ones(count)
        with pytest.raises(ValueError, match=rf"GATConv: _edge_mask must have shape \[9\], .* got \[{count}\]"):
            layer(torch.randn(5, 6), EDGES)


def test_bad_features_are_refused_by_pygs_error_type():
    x = torch.randn(5, 6)
    with pytest.raises(AssertionError, match="TransformerConv: edge_attr must be given with edge_dim"):
        ours.TransformerConv(6, 4, edge_dim=3)(x, EDGES)
    with pytest.raises(AssertionError, match="GATv2Conv: edge_attr needs a layer with edge_dim"):
        ours.GATv2Conv(6, 4)(x, EDGES, torch.randn(9, 3))
    with pytest.raises(AssertionError, match=r"GATv2Conv: x must be a tensor, or a pair of tensors"):
        ours.GATv2Conv(6, 4)((x, None), EDGES)
    for name in ("GATConv", "GATv2Conv"):
        layer = getattr(ours, name)(6, 4)
        with pytest.raises(
            AssertionError, match=rf"^{name}: x must have shape \[N, F\], got \[1, 5, 6\]. Use x.squeeze"
        ):
            layer(x[None], EDGES)
        with pytest.raises(AssertionError, match=r"got \[2, 5, 6\]. Use GraphAttention for x of \[\*B, N, F\]"):
            layer((x, torch.stack([x, x])), EDGES)
    for name in NAMES:
        with pytest.raises(TypeError, match=rf"^{name}: x must be a tensor or a pair \(x_source, x_target\), got None"):
            getattr(ours, name)(6, 4)(None, EDGES)
        with pytest.raises(TypeError, match=r"got \(NoneType, Tensor\)"):
            getattr(ours, name)(6, 4)((None, x), EDGES)
    with pytest.raises(ValueError, match=r"GATConv: size must be \(5, 5\) like x, got \(4, 5\)"):
        ours.GATConv(6, 4)(x, EDGES, size=(4, 5))


@pytest.mark.parametrize("name", NAMES)
def test_other_aggregations_and_directions_are_pygs(name):
    for options in ({"aggr": "mean"}, {"aggr": "max"}, {"flow": "target_to_source"}):
        theirs, mine = pair(name, 6, 4, heads=2, **options)
        x = torch.randn(5, 6, dtype=torch.float64)
        torch.testing.assert_close(mine(x, EDGES), theirs(x, EDGES))


MODELS = {
    "GAT": (lambda: GAT(6, 8, 2, 4, heads=2), ["convs.0", "convs.1"]),
    "GAT v2": (lambda: GAT(6, 8, 2, 4, heads=2, v2=True), ["convs.0", "convs.1"]),
    "Sequential": (
        lambda: Sequential(
            "x, edge_index",
            [(pyg.GATConv(6, 8), "x, edge_index -> x"), (pyg.TransformerConv(8, 4), "x, edge_index -> x")],
        ),
        ["module_0", "module_1"],
    ),
    "GPSConv": (lambda: GPSConv(6, pyg.TransformerConv(6, 3, heads=2), heads=2), ["", "conv"]),
    "layer": (lambda: pyg.GATv2Conv(6, 4), [""]),
}


@pytest.mark.parametrize("name", MODELS)
def test_accelerate_changes_models_in_place_and_back(name):
    torch.manual_seed(0)
    make, layers = MODELS[name]
    model = make().double().eval()
    x = torch.randn(5, 6, dtype=torch.float64)
    expected, names = model(x, EDGES), list(model.state_dict())
    report = graphattn.accelerate(model)
    assert [change.name for change in report.changed] == layers
    assert not report.left
    assert all(isinstance(model.get_submodule(layer), tuple(FUSED.values())) for layer in layers)
    torch.testing.assert_close(model(x, EDGES), expected)
    assert list(model.state_dict()) == names
    assert not graphattn.accelerate(model).changed
    copied = copy.deepcopy(model)
    assert graphattn.restore(model) == graphattn.restore(copied) == len(layers)
    assert all(type(model.get_submodule(layer)) in FUSED for layer in layers)
    torch.testing.assert_close(model(x, EDGES), expected)
    assert graphattn.restore(model) == 0


def test_accelerate_reaches_hetero_models():
    kinds = [("a", "to", "b"), ("b", "to", "a")]
    conv = HeteroConv({kind: pyg.GATConv((6, 6), 4, add_self_loops=False) for kind in kinds})
    x = {"a": torch.randn(4, 6), "b": torch.randn(3, 6)}
    edges = {kinds[0]: torch.tensor([[0, 3, 1], [0, 2, 2]]), kinds[1]: torch.tensor([[0, 2], [3, 3]])}
    expected = conv(x, edges)
    assert len(graphattn.accelerate(conv).changed) == 2
    torch.testing.assert_close(conv(x, edges), expected)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = pyg.TransformerConv((-1, -1), 4)

        def forward(self, x, edge_index):
            return self.conv(x, edge_index)

    model = pyg.to_hetero(Net(), (["a", "b"], kinds))
    expected = model(x, edges)
    assert len(graphattn.accelerate(model).changed) == 2
    torch.testing.assert_close(model(x, edges), expected)


def test_a_model_in_training_goes_on_with_its_optimizer_and_hooks():
    torch.manual_seed(0)
    models = [GAT(6, 8, 2, 4, heads=2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [torch.optim.Adam(model.parameters(), 0.01) for model in models]
    x, seen = torch.randn(5, 6), []
    models[1].convs[0].register_forward_hook(lambda *_: seen.append(1))
    for step in range(6):
        if step == 3:
            graphattn.accelerate(models[1])
        losses = []
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            loss = model(x, EDGES).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses)
    assert len(seen) == 6
    assert models[0].state_dict().keys() == models[1].state_dict().keys()


def test_accelerate_says_what_it_left_and_why():
    class Mine(pyg.GATConv):
        pass

    model = torch.nn.ModuleList(
        [
            pyg.GATConv(6, 4, aggr="mean"),
            pyg.TransformerConv(6, 4, flow="target_to_source"),
            Mine(6, 4),
            pyg.GATConv(6, 4),
        ]
    )
    report = graphattn.accelerate(model)
    assert str(report) == (
        "1 layer accelerated, 3 left\n"
        "  3: GATConv\n"
        "  0: left, aggr='mean' is not 'add'\n"
        "  1: left, flow='target_to_source' is not 'source_to_target'\n"
        "  2: left, Mine is a subclass of GATConv, and may behave differently\n"
        "  small calls run as in PyG; given its inputs, accelerate times each layer instead"
    )
    assert str(graphattn.accelerate(model)).startswith("0 layers accelerated, 3 left, 1 already ours\n")
    with pytest.raises(TypeError, match=r"accelerate: model must be a torch.nn.Module, got int"):
        graphattn.accelerate(3)


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
def test_returned_edges_are_the_callers_to_write_to(name):
    _, layer = pair(name, 6, 4, edge_dim=3)
    x, attr = torch.randn(5, 6, dtype=torch.float64), edge_attr_for({"edge_dim": 3})
    expected = layer(x, EDGES, attr)
    _, (listed, _) = layer(x, EDGES, attr, return_attention_weights=True)
    listed.zero_()
    torch.testing.assert_close(layer(x, EDGES, attr), expected)
    _, alone = pair(name, 6, 4, add_self_loops=False)
    assert alone(x, EDGES, return_attention_weights=True)[1][0] is EDGES
    assert layer(x, EDGES.int(), attr, return_attention_weights=True)[1][0].dtype == torch.int32
    index = EdgeIndex(EDGES, sparse_size=(5, 5))
    assert isinstance(layer(x, index, attr, return_attention_weights=True)[1][0], EdgeIndex)


@pytest.mark.parametrize(
    ("name", "options"),
    [("GATConv", {"bias": False}), ("GATv2Conv", {"bias": False}), ("TransformerConv", {"root_weight": False})],
)
def test_outputs_may_be_written_to(name, options):
    theirs, mine = pair(name, 6, 4, **options)
    x = torch.randn(5, 6, dtype=torch.float64)
    gradients = []
    for layer in (theirs, mine):
        leaf = x.clone().requires_grad_()
        torch.relu_(layer(leaf, EDGES)).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


# torch looks at the .grad of tensors in the middle of a graph that it continues after a break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_explaining_is_pygs_in_a_compiled_layer(name):
    _, layer = pair(name, 6, 4, heads=2)
    x = torch.randn(5, 6, dtype=torch.float64)
    layer.explain, layer._edge_mask, layer._loop_mask = True, torch.randn(9, dtype=torch.float64), EDGES[0] != EDGES[1]
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager")(x, EDGES), layer(x, EDGES))


@pytest.mark.parametrize("name", NAMES)
def test_transforms_take_pygs_route_and_second_order_the_scatter_kernel(name):
    theirs, mine = pair(name, 6, 4, heads=2)
    x, tangent = torch.randn(2, 5, 6, dtype=torch.float64)
    both = (torch.func.jvp(lambda x: layer(x, EDGES), (x,), (tangent,))[1] for layer in (theirs, mine))  # noqa: B023
    torch.testing.assert_close(*both)
    mine.backend = "scatter"
    found = []
    for layer in (theirs, mine):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(layer(leaf, EDGES).square().sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), leaf)[0])
    torch.testing.assert_close(*found)


def test_a_replaced_method_is_obeyed_and_reported():
    theirs, mine = pair("GATConv", 6, 4)
    x = torch.randn(5, 6, dtype=torch.float64)
    for layer in (theirs, mine):
        layer.message = lambda x_j, alpha: 3 * x_j * alpha.unsqueeze(-1)
    torch.testing.assert_close(mine(x, EDGES), theirs(x, EDGES))
    assert str(graphattn.accelerate(theirs)).endswith("the model itself: left, its message was replaced")


def test_restore_in_the_middle_of_an_explanation():
    theirs, _ = pair("GATConv", 6, 4)
    x = torch.randn(5, 6, dtype=torch.float64)
    theirs.explain, theirs._edge_mask, theirs._loop_mask = True, torch.randn(9).double(), EDGES[0] != EDGES[1]
    expected = theirs(x, EDGES)
    graphattn.accelerate(theirs)
    torch.testing.assert_close(theirs(x, EDGES), expected)
    graphattn.restore(theirs)
    torch.testing.assert_close(theirs(x, EDGES), expected)


@pytest.mark.parametrize("name", NAMES)
def test_layers_compile_with_dynamic_shapes_from_the_start(name):
    _, layer = pair(name, 6, 4, heads=2)
    x = torch.randn(5, 6, dtype=torch.float64)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(x, EDGES), layer(x, EDGES))


def test_mixed_dtypes_meet_where_pygs_do():
    theirs, mine = pair("GATv2Conv", 6, 4, heads=2, dtype=torch.float32)
    x = torch.randn(5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        both = [layer(x, EDGES, return_attention_weights=True)[1][1] for layer in (theirs, mine)]
    assert both[0].dtype == both[1].dtype == torch.float32
    for layer in (theirs, mine):
        layer.att.data = layer.att.data.double()
    torch.testing.assert_close(mine(x, EDGES), theirs(x, EDGES))


def test_backward_hooks_on_the_projection_of_edges_fire():
    _, layer = pair("GATConv", 6, 4, edge_dim=3)
    seen = []
    layer.lin_edge.register_full_backward_hook(lambda *_: seen.append(1))
    attr = edge_attr_for({"edge_dim": 3}).requires_grad_()
    layer(torch.randn(5, 6, dtype=torch.float64), EDGES, attr).sum().backward()
    assert seen == [1]

"""PyG's other attending convolutions against ours: results, gradients, and when ours leave the call to PyG."""

from __future__ import annotations

import copy

import pytest
import torch
import torch_geometric.nn as pyg
from torch_geometric import seed_everything
from torch_geometric.nn.models.attentive_fp import GATEConv
from torch_geometric.utils import to_torch_coo_tensor

from graphattn import accelerate, restore
from graphattn.nn.pyg.fused import FUSED, Fused
from graphattn.nn.pyg.whole import FusedConv

NODES, EDGES = 12, 50
GENERATOR = torch.Generator().manual_seed(0)
# Loops and parallel edges are among them, and the last node has no edge.
EDGE_INDEX = torch.randint(NODES - 1, (2, EDGES), generator=GENERATOR)
PAIR = torch.stack([EDGE_INDEX[0], EDGE_INDEX[1] % 5])


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape))).requires_grad_()


def x(width=6, nodes=NODES):
    return draw(nodes, width)


def mlp(*widths):
    return torch.nn.Sequential(torch.nn.Linear(*widths), torch.nn.ReLU(), torch.nn.Linear(widths[-1], widths[-1]))


# The layer, its other arguments, and what is called with edges at the place of the Ellipsis.
CASES = {
    "agnn": (lambda: pyg.AGNNConv(), (x(), ...)),
    "agnn without loops": (lambda: pyg.AGNNConv(requires_grad=False, add_self_loops=False), (x(), ...)),
    "fa": (lambda: pyg.FAConv(6, eps=0.2), (x(), x(), ...)),
    "fa without loops": (lambda: pyg.FAConv(6, eps=0.0, add_self_loops=False), (x(), x(), ...)),
    "supergat mx": (lambda: pyg.SuperGATConv(6, 4, heads=2, is_undirected=True), (x(), ...)),
    "supergat sd": (
        lambda: pyg.SuperGATConv(6, 4, heads=2, concat=False, attention_type="SD", add_self_loops=False, bias=False),
        (x(), ...),
    ),
    "gate": (lambda: GATEConv(6, 6, 3), (x(), ..., draw(EDGES, 3))),
    "general additive": (lambda: pyg.GeneralConv(6, 4, heads=2, attention=True), (x(), ...)),
    "general edges": (
        lambda: pyg.GeneralConv(6, 6, 3, heads=2, attention=True, l2_normalize=True),
        (x(), ..., draw(EDGES, 3)),
    ),
    "general dot product": (
        lambda: pyg.GeneralConv(6, 4, 3, heads=2, attention=True, attention_type="dot_product"),
        (x(), ..., draw(EDGES, 3)),
    ),
    "general pair": (
        lambda: pyg.GeneralConv((6, 6), 4, attention=True, attention_type="dot_product", skip_linear=True),
        ((x(), x(6, 5)), PAIR),
    ),
    "gated": (lambda: pyg.ResGatedGraphConv(6, 5), (x(), ...)),
    "gated edges": (
        lambda: pyg.ResGatedGraphConv(6, 5, edge_dim=3, root_weight=False, bias=False),
        (x(), ..., draw(EDGES, 3)),
    ),
    "gated pair": (lambda: pyg.ResGatedGraphConv((6, 3), 5), ((x(), x(3, 5)), PAIR)),
    "points": (lambda: pyg.PointTransformerConv(6, 5), (x(), draw(NODES, 3), ...)),
    "points pair": (
        lambda: pyg.PointTransformerConv((6, 4), 5, add_self_loops=False),
        ((x(), x(4, 5)), (draw(NODES, 3), draw(5, 3)), PAIR),
    ),
    "points pos_nn": (lambda: pyg.PointTransformerConv(6, 5, pos_nn=mlp(3, 5)), (x(), draw(NODES, 3), ...)),
    "points attn_nn": (lambda: pyg.PointTransformerConv(6, 5, attn_nn=mlp(5, 5)), (x(), draw(NODES, 3), ...)),
    "gen": (lambda: pyg.GENConv(6, 6, learn_t=True, t=0.5, norm="layer"), (x(), ...)),
    "gen edges": (
        lambda: pyg.GENConv(6, 5, edge_dim=3, msg_norm=True, learn_msg_scale=True, norm="layer"),
        (x(), ..., draw(EDGES, 3)),
    ),
    "gen pair": (lambda: pyg.GENConv((6, 3), 5, norm="layer"), ((x(), x(3, 5)), PAIR)),
    "gmm": (lambda: pyg.GMMConv(6, 5, dim=2, kernel_size=3), (x(), ..., draw(EDGES, 2))),
    "gmm pair": (
        lambda: pyg.GMMConv((6, 3), 5, dim=2, kernel_size=3, aggr="add", bias=False),
        ((x(), x(3, 5)), PAIR, draw(EDGES, 2)),
    ),
    # The second row of the edges are hyperedges, of which the last has no node.
    "hyper": (lambda: pyg.HypergraphConv(6, 5), (x(), PAIR)),
    "hyper weights": (lambda: pyg.HypergraphConv(6, 5, bias=False), (x(), PAIR, draw(6).square(), None, 6)),
    "hyper node": (
        lambda: pyg.HypergraphConv(6, 5, use_attention=True, heads=2, dropout=0.4),
        (x(), PAIR, draw(6).square(), x(6, 6), 6),
    ),
    "hyper edge": (
        lambda: pyg.HypergraphConv(6, 5, use_attention=True, attention_mode="edge", heads=2, concat=False),
        (x(), PAIR, None, x(6, 5)),
    ),
}


def both(name):
    """PyG's layer and ours with the same random parameters, and what they are called with."""
    torch.manual_seed(0)
    build, arguments = CASES[name]
    theirs = build().double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ours = copy.deepcopy(theirs)
    assert len(accelerate(ours).changed) == 1
    return theirs, ours, [EDGE_INDEX if part is ... else part for part in arguments]


def in_dtype(dtype, arguments):
    """The arguments, tensors of real numbers in this dtype and without a gradient."""
    is_real = lambda x: isinstance(x, torch.Tensor) and x.is_floating_point()
    return [x.detach().to(dtype) if is_real(x) else x for x in arguments]


def leaves(arguments):
    flat = [x for part in arguments for x in (part if isinstance(part, tuple) else (part,))]
    return [x for x in flat if isinstance(x, torch.Tensor) and x.requires_grad]


def gradients(layer, arguments):
    torch.manual_seed(1)
    out = layer(*arguments)
    inputs = [*leaves(arguments), *layer.parameters()]
    found = torch.autograd.grad(out.square().sum(), inputs, allow_unused=True)
    return out, [torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, found, strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_are_pygs(name):
    theirs, ours, arguments = both(name)
    ours.backend = "scatter"
    (expected, grads), (found, own) = gradients(theirs, arguments), gradients(ours, arguments)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for first, second in zip(own, grads, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-10)
    # What comes out may be written to before the backward pass.
    ours(*arguments).relu_().sum().backward()
    assert restore(ours) == 1 and type(ours) is type(theirs)


# Others call the loops with heads that GAT's tests have.
@pytest.mark.parametrize("name", ["gen", *(name for name in CASES if name.startswith("gated") and "edges" not in name)])
def test_the_loops_compute_the_same(name):
    theirs, ours, arguments = both(name)
    single = lambda x: tuple(map(single, x)) if isinstance(x, tuple) else x.float() if x.is_floating_point() else x
    theirs, ours, arguments = theirs.float(), ours.float(), [single(x) for x in arguments]
    (expected, grads), (found, own) = gradients(theirs, arguments), gradients(ours, arguments)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for first, second in zip(own, grads, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


def test_the_loops_over_channels_find_the_same_bits_whatever_the_order_of_edges_and_the_threads():
    _, ours, _ = both("gated")
    features, threads = draw(400, 6), torch.get_num_threads()
    edges = torch.randint(400, (2, 3000), generator=torch.Generator().manual_seed(0))
    found = []
    try:
        for count, order in ((1, torch.arange(3000)), (2, torch.arange(3000).flip(0))):
            torch.set_num_threads(count)
            out = ours(features, edges[:, order].contiguous())
            found.append((out, *torch.autograd.grad(out.square().sum(), [features, *ours.parameters()])))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    (slope,) = torch.autograd.grad(ours(features, edges).square().sum(), features, create_graph=True)
    with pytest.raises(NotImplementedError, match="second order"):
        slope.sum().backward()


def test_weights_of_faconv_are_pygs():
    theirs, ours, arguments = both("fa")
    ours.backend = "scatter"
    (expected, (edges, alpha)), (found, (own_edges, weights)) = (
        layer(*arguments, return_attention_weights=True) for layer in (theirs, ours)
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close((own_edges, weights), (edges, alpha))


def test_supergat_learns_from_the_same_samples():
    theirs, ours, arguments = both("supergat mx")
    losses = []
    for layer in (theirs, ours):
        seed_everything(2)
        layer(*arguments)
        losses.append(layer.get_attention_loss())
    torch.testing.assert_close(*losses)
    assert losses[0] > 0
    ours.eval()(*arguments)
    assert ours.get_attention_loss() == 0


def test_the_scale_of_generalconv_is_the_buffers():
    theirs, ours, arguments = both("general dot product")
    ours.backend = "scatter"
    for layer in (theirs, ours):
        layer.scaler.fill_(0.7)
    torch.testing.assert_close(ours(*arguments), theirs(*arguments))


def test_hooks_on_the_aggregation_still_run():
    theirs, ours, arguments = both("agnn")
    for layer in (theirs, ours):
        layer.aggr_module.register_forward_hook(lambda module, inputs, output: output * 3)
    torch.testing.assert_close(ours(*arguments), theirs(*arguments))


@pytest.mark.parametrize("name", ["gated edges", "gate", "gen edges", "general edges"])
def test_features_of_edges_of_another_dtype_and_width(name):
    theirs, ours, arguments = both(name)
    ours.backend, last = "scatter", arguments[-1].detach()
    if name in ("gated edges", "gate"):
        arguments[-1] = last.float()
        torch.testing.assert_close(ours(*arguments), theirs(*arguments))
    with pytest.raises(ValueError, match=r"edge_attr must have shape \[50, 3\], one row per edge, got \[50, 2\]"):
        ours(*arguments[:-1], last[:, :2])


def test_points_and_rows_of_other_numbers_are_left_to_pyg():
    _, ours, (rows, positions, edges) = both("points")
    with pytest.raises(ValueError, match="Encountered tensor with size 11 in dimension"):
        ours(rows, positions[:-1], edges)


def test_hyperedges_without_features_or_weights_are_named():
    _, ours, (rows, edges, weights, features, count) = both("hyper node")
    with pytest.raises(ValueError, match=r"hyperedge_attr must have 6 rows, got \[5, 6\]"):
        ours(rows, edges, weights, features[:5], count)
    with pytest.raises(ValueError, match=r"hyperedge_weight must have 6 rows, got \[5\]"):
        ours(rows, edges, weights[:5], features, count)


def test_gaussians_of_one_dimension_may_be_a_vector():
    layer = pyg.GMMConv(6, 5, dim=1, kernel_size=3).double()
    expected = layer(x(), EDGE_INDEX, draw(EDGES, 1))
    accelerate(layer)
    layer.backend = "scatter"
    torch.testing.assert_close(layer(x(), EDGE_INDEX, draw(EDGES, 1).flatten()), expected)


def test_gaussians_without_a_root_weight():
    # PyG asks for a `root` that the layer lacks.
    layer = pyg.GMMConv(6, 5, dim=2, kernel_size=3, root_weight=False)
    arguments = (x().detach().float(), EDGE_INDEX, draw(EDGES, 2).detach().float())
    with pytest.raises(AttributeError, match="root"):
        layer(*arguments)
    layer.root = torch.nn.Linear(6, 5)
    expected = layer(*arguments) - layer.root(arguments[0])
    del layer.root
    accelerate(layer)
    layer.backend = "scatter"
    torch.testing.assert_close(layer(*arguments), expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_of_points_has_a_gradient():
    _, ours, arguments = both("points")
    ours(*arguments).sum().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


def test_points_far_from_the_origin_keep_their_distances():
    layer = pyg.PointTransformerConv(6, 5)
    far = torch.randn(NODES, 3) + 1e4
    expected = copy.deepcopy(layer).double()(x().detach(), far.double(), EDGE_INDEX)
    accelerate(layer)
    layer.backend = "scatter"
    torch.testing.assert_close(layer(x().detach().float(), far, EDGE_INDEX).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gen", "points", "gated", "agnn", "gmm", "hyper", "hyper edge"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_and_autocast(name, dtype):
    theirs, ours, arguments = both(name)
    ours.backend = "scatter"
    expected = theirs.eval()(*arguments).detach()
    found = ours.to(dtype).eval()(*in_dtype(dtype, arguments)).detach()
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))
    with torch.autocast("cpu", torch.bfloat16):
        found = ours.float()(*in_dtype(torch.float32, arguments)).detach()
    torch.testing.assert_close(found.double(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "name", ["agnn", "gated pair", "points pair", "gen pair", "general pair", "hyper", "hyper node"]
)
def test_no_edges(name):
    theirs, ours, arguments = both(name)
    ours.backend = "scatter"
    arguments = [x[:, :0] if x is PAIR or x is EDGE_INDEX else x for x in arguments]
    (expected, grads), (found, own) = gradients(theirs, arguments), gradients(ours, arguments)
    for first, second in zip((found, *own), (expected, *grads), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "name",
    ["agnn", "fa", "supergat mx", "gate", "general edges", "gated", "points", "gen", "gmm", "hyper node"],
)
def test_hooks_explainers_and_sparse_edges_are_left_to_pyg(name, monkeypatch):
    theirs, ours, arguments = both(name)
    monkeypatch.setattr(FusedConv, "_attend_to", None)
    handle = ours.register_message_forward_hook(lambda module, inputs, output: output * 2)
    theirs.register_message_forward_hook(lambda module, inputs, output: output * 2)
    torch.manual_seed(0)
    expected = theirs.eval()(*arguments).detach()
    torch.testing.assert_close(ours.eval()(*arguments), expected)
    handle.remove()
    if name == "agnn":
        adjacency = to_torch_coo_tensor(EDGE_INDEX.unique(dim=1), size=NODES).transpose(0, 1).to(torch.float64)
        with torch.no_grad():
            theirs = pyg.AGNNConv().double()
            theirs.load_state_dict(ours.state_dict())
            torch.testing.assert_close(ours(arguments[0], adjacency), theirs(arguments[0], adjacency))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (pyg.GENConv(4, 4, aggr="mean"), "aggr='mean' is not 'softmax'"),
        (pyg.AGNNConv(aggr="max"), "aggr='max' is not 'add'"),
        (pyg.GMMConv(4, 4, 2, 3, aggr="max"), "aggr='max' is not 'add' or 'mean'"),
        (pyg.FAConv(4, flow="target_to_source"), "flow='target_to_source'"),
    ],
)
def test_what_cannot_be_fused_is_said(layer, reason):
    (left,) = accelerate(layer).left
    assert reason in left.reason


@pytest.mark.parametrize(
    "layer",
    [
        pyg.GeneralConv(6, 4, heads=2),
        pyg.GeneralConv(6, 4, attention=True, directed_msg=False),
        pyg.ResGatedGraphConv(6, 4, act=torch.nn.Tanh()),
        pyg.FAConv(6, cached=True),
        pyg.GENConv(6, 6, aggr="softmax_sg"),
        pyg.GMMConv(6, 4, 1, 2, separate_gaussians=True),
    ],
    ids=["no attention", "undirected", "tanh", "cached", "semi_grad", "separate gaussians"],
)
def test_options_that_ours_lacks_run_as_in_pyg(layer, monkeypatch):
    monkeypatch.setattr(FusedConv, "_attend_to", None)
    ours = copy.deepcopy(layer)
    accelerate(ours)
    rows = x().detach().float()
    arguments = (rows, rows, EDGE_INDEX) if isinstance(layer, pyg.FAConv) else (rows, EDGE_INDEX)
    arguments += (torch.randn(EDGES, 1),) if isinstance(layer, pyg.GMMConv) else ()
    torch.testing.assert_close(ours.eval()(*arguments), layer.eval()(*arguments))


def test_accelerate_finds_them_in_models():
    model = pyg.AttentiveFP(6, 8, 2, edge_dim=3, num_layers=2, num_timesteps=1)
    expected = model(
        x().detach().float(), EDGE_INDEX, draw(EDGES, 3).detach().float(), torch.zeros(NODES, dtype=torch.int64)
    )
    report = accelerate(model)
    assert {change.kind for change in report.changed} == {"GATEConv", "GATConv"} and not report.left
    for module in model.modules():
        if isinstance(module, Fused):
            module.backend = "scatter"
    found = model(
        x().detach().float(), EDGE_INDEX, draw(EDGES, 3).detach().float(), torch.zeros(NODES, dtype=torch.int64)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_each_replaces_its_own_class():
    assert all(theirs is not ours and issubclass(ours, theirs) for theirs, ours in FUSED.items())

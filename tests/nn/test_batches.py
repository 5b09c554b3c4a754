"""What attends within the graphs of a batch: PyG's layers, which pad, against ours, which don't."""

from __future__ import annotations

import copy

import pytest
import torch
import torch_geometric.nn as pyg
from torch_geometric.nn import aggr
from torch_geometric.nn.attention import PerformerAttention, PolynormerAttention, SGFormerAttention

from graphattn import Full, accelerate, restore
from graphattn.nn.pyg import batches

# The third graph has one node, and no graph is numbered 4.
BATCH = torch.tensor([0] * 4 + [1] * 7 + [2] + [3] * 3)
NODES = len(BATCH)
EDGES = torch.randint(NODES, (2, 40), generator=torch.Generator().manual_seed(0))


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def both(layer, backend="scatter"):
    """PyG's layer and ours, with the same parameters; on a kernel that needs no compiling, unless another is named."""
    theirs = layer.double()
    ours = copy.deepcopy(theirs)
    assert accelerate(ours).changed[0].name == ""
    ours.backend = backend
    return theirs, ours


def assert_same(theirs, ours, x, *arguments, **options):
    """The same results and gradients."""
    pairs = []
    for layer in (theirs, ours):
        out = layer(x, *arguments, **options)
        inputs = [x, *layer.parameters()]
        grads = torch.autograd.grad(out.square().sum(), inputs, allow_unused=True)
        zeros = (torch.zeros_like(y) if grad is None else grad for y, grad in zip(inputs, grads, strict=True))
        pairs.append((out, *zeros))
    for expected, found in zip(*pairs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch", [BATCH, None], ids=["batch", "one graph"])
@pytest.mark.parametrize("norm", ["batch_norm", "graph_norm", None])
def test_gps_is_pygs(norm, batch):
    conv = pyg.GINConv(torch.nn.Linear(6, 6)) if norm else None
    theirs, ours = both(pyg.GPSConv(6, conv, heads=2, norm=norm), "auto" if norm is None else "scatter")
    assert_same(theirs, ours, draw(NODES, 6), EDGES, batch)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert restore(ours) == 1 and type(ours) is pyg.GPSConv


@pytest.mark.parametrize("batch", [BATCH, None], ids=["batch", "one graph"])
@pytest.mark.parametrize("bias", [False, True])
def test_gps_with_performer_is_pygs_without_its_padding(bias, batch):
    attention = {"qkv_bias": bias, "head_channels": 4, "kernel": torch.nn.GELU()}
    layer = pyg.GPSConv(6, None, heads=2, norm=None, attn_type="performer", attn_kwargs=attention)
    theirs, ours = both(layer)
    assert_same(theirs, ours, draw(NODES, 6), EDGES, batch)
    with pytest.raises(ValueError, match="pair_bias needs attn_type='multihead'"):
        ours(draw(NODES, 6), EDGES, batch, pair_bias=torch.zeros(3))


LINEAR = {
    "performer": lambda: PerformerAttention(6, 2, head_channels=4, qkv_bias=True),
    "performer, softmax": lambda: PerformerAttention(6, 2, head_channels=4, kernel=torch.nn.Softmax(-2)),
    "polynormer": lambda: PolynormerAttention(6, 2, head_channels=4, qkv_bias=True),
    "polynormer, two": lambda: PolynormerAttention(6, 2, head_channels=4, qk_shared=False),
    "sgformer": lambda: SGFormerAttention(6, 2, head_channels=4),
}


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("name", LINEAR)
def test_linear_attention_is_pygs(name, mask):
    theirs, ours = both(LINEAR[name]())
    x = draw(2, 5, 6)
    kept = torch.rand(2, 5, generator=torch.Generator().manual_seed(0)) > 0.3
    masks = [kept] if mask else []
    assert list(ours.state_dict()) == list(theirs.state_dict()) and repr(ours) == repr(theirs)
    assert ours(x[:, :0]).shape[:2] == (2, 0)
    if name != "sgformer":
        assert_same(theirs, ours, x, *masks)
        return
    # PyG's works in float32 alone. It replaces zeros, as rows of padding are.
    x = torch.where(kept[:, :, None], x.detach().float(), 0).requires_grad_()
    grads = []
    for layer in (theirs.float(), ours.float()):
        out = layer(x, *masks)
        grads.append((out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])))
    for expected, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_models_of_linear_attention_are_pygs():
    torch.manual_seed(0)
    x = torch.randn(NODES, 6)
    for model in (pyg.SGFormer(6, 8, 3), pyg.Polynormer(6, 8, 3, local_layers=1, heads=1)):
        model.eval()._global = True
        expected = model(x, EDGES, BATCH)
        assert len(accelerate(model).changed) == 2
        torch.testing.assert_close(model(x, EDGES, BATCH), expected)


def test_linear_attention_in_half_precision_sums_in_single():
    theirs = PerformerAttention(6, 2, head_channels=4).bfloat16()
    ours = copy.deepcopy(theirs)
    accelerate(ours)
    x = torch.randn(1, 50, 6)
    exact = copy.deepcopy(theirs).float()(x.bfloat16().float())
    found = ours(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("shape", [(), (2,)], ids=["shared", "per head"])
def test_gps_adds_a_bias_to_the_scores_of_pairs(shape):
    theirs, ours = both(pyg.GPSConv(6, None, heads=2, norm=None))
    pattern, x = Full.from_batch(BATCH), draw(NODES, 6)
    bias = draw(pattern.num_edges, *shape)
    out = ours(x, None, BATCH, pair_bias=bias)
    # Torch's attention takes a matrix of all pairs for each head.
    matrix = torch.full((2, NODES, NODES), -torch.inf, dtype=torch.float64)
    source, target = pattern.edge_index
    matrix[:, target, source] = bias.detach().view(len(bias), -1).expand(-1, 2).t()
    attended = theirs.attn(x, x, x, attn_mask=matrix)[0] + x
    torch.testing.assert_close(out, attended + theirs.mlp(attended))
    assert torch.autograd.grad(out.sum(), bias)[0].abs().sum() > 0
    with pytest.raises(ValueError, match=r"pair_bias must have shape \[75\] or \[75, 2\], .* got \[3\]"):
        ours(x, None, BATCH, pair_bias=torch.zeros(3))
    ours.attn.register_forward_hook(lambda module, inputs, output: None)
    with pytest.raises(ValueError, match="pair_bias needs a layer that runs here"):
        ours(x, None, BATCH, pair_bias=bias)


def test_gps_drops_weights_in_training_alone():
    layer = pyg.GPSConv(6, None, heads=2, norm=None, attn_kwargs={"dropout": 0.5})
    accelerate(layer)
    layer.backend = "scatter"
    x = torch.randn(NODES, 6)
    assert not torch.equal(layer(x, None, BATCH), layer(x, None, BATCH))
    layer.eval()
    torch.testing.assert_close(layer(x, None, BATCH), layer(x, None, BATCH), rtol=0, atol=0)


def test_layers_of_a_model_share_the_pattern_of_a_batch(monkeypatch):
    made = []
    build = batches.Full.from_batch
    monkeypatch.setattr(batches.Full, "from_batch", lambda batch: made.append(batch) or build(batch))
    layers = [pyg.GPSConv(6, None, heads=2, norm=None) for _ in range(3)]
    batch, x = BATCH.clone(), torch.randn(NODES, 6)
    for layer in layers:
        accelerate(layer)
        x = layer(x, None, batch)
    assert len(made) == 1
    batch[4:6] = 0
    layers[0](x, None, batch)
    assert len(made) == 2


def test_a_batch_that_is_not_sorted_is_an_error():
    layer = pyg.GPSConv(6, None, heads=2, norm=None)
    accelerate(layer)
    with pytest.raises(ValueError, match="batch must be sorted and not negative"):
        layer(torch.randn(4, 6), None, torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ValueError, match=r"GPSConv: batch must have one number per node, 4, got \[3\]"):
        layer(torch.randn(4, 6), None, torch.tensor([0, 0, 1]))


def test_a_group_that_cannot_be_is_named():
    layer = aggr.AttentionalAggregation(torch.nn.Linear(6, 1))
    accelerate(layer)
    with pytest.raises(IndexError, match="AttentionalAggregation: index must be at least 0, got -1 at row 2"):
        layer(torch.randn(3, 6), torch.tensor([0, 1, -1]))


def test_hooks_on_the_attention_still_run():
    layer = pyg.GPSConv(6, None, heads=2, norm=None)
    accelerate(layer)
    seen = []
    layer.attn.register_forward_hook(lambda *_: seen.append(1))
    layer(torch.randn(NODES, 6), None, BATCH)
    assert seen == [1]


AGGREGATIONS = {
    "softmax": lambda: aggr.SoftmaxAggregation(0.5),
    "learned": lambda: aggr.SoftmaxAggregation(learn=True),
    "channels": lambda: aggr.SoftmaxAggregation(learn=True, channels=6),
    "attentional": lambda: aggr.AttentionalAggregation(torch.nn.Linear(6, 1)),
    "channels of gates": lambda: aggr.AttentionalAggregation(torch.nn.Linear(6, 6)),
    "with values": lambda: aggr.AttentionalAggregation(torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)),
    "set2set": lambda: aggr.Set2Set(6, 3, num_layers=2),
    "set transformer": lambda: aggr.SetTransformerAggregation(6, 2, 2, 1, heads=2, layer_norm=True),
    "multiset": lambda: aggr.GraphMultisetTransformer(6, 3, heads=2, layer_norm=True),
    "mlp": lambda: aggr.AttentionalAggregation(pyg.MLP([6, 8, 1], norm=None), pyg.MLP([6, 4], norm=None)),
}


@pytest.mark.parametrize("name", ["softmax", "learned", "channels", "attentional"])
def test_compiled_loops_over_groups_are_pygs(name):
    theirs, ours = both(AGGREGATIONS[name](), "auto")
    # Unsorted, with groups of many rows and groups of none.
    index = torch.randint(7, (90,), generator=torch.Generator().manual_seed(0)) // 2 * 2
    assert_same(theirs, ours, draw(90, 6), index, dim_size=9)
    x = draw(90, 6)
    out = ours(x, index, dim_size=9)
    if name == "attentional":
        (grad,) = torch.autograd.grad(out.sum(), ours.gate_nn.bias, retain_graph=True)
        assert grad.item() == 0
    (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second order"):
        slope.sum().backward()
    far = x.detach() * 1e4
    torch.testing.assert_close(ours(far, index, dim_size=9), theirs(far, index, dim_size=9))


@pytest.mark.parametrize("channels", [1, 5, 16, 43])
@pytest.mark.parametrize("is_gated", [False, True], ids=["softmax", "gated"])
def test_loops_over_groups_take_any_number_of_channels_on_any_number_of_threads(channels, is_gated):
    gate = torch.nn.Linear(channels, 1)
    layer = aggr.AttentionalAggregation(gate) if is_gated else aggr.SoftmaxAggregation(learn=True, channels=channels)
    theirs, ours = both(layer, "auto")
    index = torch.randint(300, (2000,), generator=torch.Generator().manual_seed(0))
    x, threads = draw(2000, channels), torch.get_num_threads()
    assert_same(theirs, ours, x, index)
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            out = ours(x, index)
            found.append((out, *torch.autograd.grad(out.square().sum(), [x, next(ours.parameters())])))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_aggregations_are_pygs(name):
    theirs, ours = both(AGGREGATIONS[name]())
    index = torch.tensor([2, 0, 0, 2, 4, 0, 2])
    if name not in ("set transformer", "multiset"):
        assert_same(theirs, ours, draw(7, 6), index, dim_size=6)
    assert_same(theirs, ours, draw(NODES, 6), BATCH)
    if name not in ("set transformer", "multiset"):
        torch.testing.assert_close(ours(draw(0, 6), BATCH[:0], dim_size=2), theirs(draw(0, 6), BATCH[:0], dim_size=2))
    if name not in ("set2set", "set transformer", "multiset"):
        # Pointers are left to PyG.
        assert_same(theirs, ours, draw(NODES, 6), None, torch.tensor([0, 4, NODES]))


@pytest.mark.parametrize("name", ["set transformer", "multiset"])
def test_graphs_without_nodes_have_pygs_results_and_finite_gradients(name):
    theirs, ours = both(AGGREGATIONS[name]())
    index, x = torch.tensor([0, 0, 2, 2, 2]), draw(5, 6)
    expected, found = theirs(x, index, dim_size=4), ours(x, index, dim_size=4)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in ours.parameters())
    for layer in (theirs, ours):
        with pytest.raises(ValueError, match="not sorted"):
            layer(x[:3], index[[2, 0, 1]])


@pytest.mark.parametrize("place", ["pma", "encoders.0", "encoders.0.mab", "pma.lin", "decoders.0"])
def test_hooks_inside_of_a_set_transformer_still_run(place):
    theirs, ours = both(aggr.SetTransformerAggregation(6, heads=2))
    for layer in (theirs, ours):
        layer.get_submodule(place).register_forward_hook(lambda module, inputs, output: output * 2)
    torch.testing.assert_close(ours(draw(NODES, 6), BATCH), theirs(draw(NODES, 6), BATCH))


@pytest.mark.parametrize("name", AGGREGATIONS)
@pytest.mark.parametrize(
    ("index", "options"),
    [
        (BATCH, {"dim_size": 2}),
        (BATCH[1:], {}),
        (BATCH - 1, {}),
    ],
    ids=["dim_size", "short", "negative"],
)
def test_bad_indices_are_errors_as_in_pyg(name, index, options):
    theirs, ours = both(AGGREGATIONS[name]())
    for layer in (theirs, ours):
        with pytest.raises((ValueError, IndexError, RuntimeError)):
            layer(draw(NODES, 6), index, **options)


def test_the_results_dtype_is_pygs():
    learned = aggr.SoftmaxAggregation(learn=True).double()
    gate = aggr.AttentionalAggregation(torch.nn.Linear(6, 1))
    for layer, dtype in ((learned, torch.float64), (gate, torch.float32)):
        accelerate(layer)
        layer.backend = "scatter"
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            assert layer(torch.randn(NODES, 6), BATCH).dtype == dtype


def test_gps_without_nodes_is_empty():
    layer = pyg.GPSConv(6, None, heads=2, norm=None)
    accelerate(layer)
    assert layer(torch.randn(0, 6), None, BATCH[:0]).shape == (0, 6)


@pytest.mark.parametrize("largest", [100.0, float("inf")])
@pytest.mark.parametrize("channels", [1, 2])
def test_scores_may_be_far_apart(channels, largest):
    layer = aggr.AttentionalAggregation(torch.nn.Identity())
    accelerate(layer)
    x = torch.tensor([[0.0], [largest], [-50.0], [-51.0]]).expand(-1, channels)
    out = layer(x, torch.tensor([0, 0, 1, 1]))
    expected = aggr.AttentionalAggregation(torch.nn.Identity())(x, torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(out, expected, equal_nan=True)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (pyg.GPSConv(6, None, heads=2, attn_kwargs={"add_zero_attn": True}), "add_zero_attn"),
        (aggr.SoftmaxAggregation(semi_grad=True), "semi_grad=True leaves out a part of the gradient"),
    ],
    ids=["gps", "softmax"],
)
def test_what_cannot_be_changed_is_said(layer, reason):
    assert reason in accelerate(layer).left[0].reason

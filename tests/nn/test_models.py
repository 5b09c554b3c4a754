"""Networks for node classification equal PyG's of these names, or their formulas, and say what doesn't fit."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch_geometric.nn as pyg
from torch.nn.functional import normalize

from graphattn import Edges, Full
from graphattn.nn import GATConv, GATv2Conv, TransformerConv
from graphattn.nn.models import GAT, Polynormer, SGFormer

N, C = 12, 6
OPTIONS = {"add_self_loops": False, "bias": False}


@pytest.fixture
def graph():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, C, generator=generator, dtype=torch.float64)
    return x, torch.randint(N, (2, 40), generator=generator)


def on_scatter(model):
    """The model in float64 on a kernel that compiles nothing: tests of the kernels judge the others."""
    for conv in model.convs:
        conv.backend = "scatter"
    return model.double()


def trained(model, x, edge_index):
    """The model in float64 with other running means than at the start, in evaluation."""
    on_scatter(model)
    for _ in range(3):
        model(x, edge_index)
    return model.eval()


@pytest.mark.parametrize("kind", ["GATConv", "GATv2Conv", "TransformerConv"])
def test_the_same_network_on_pygs_layers(kind, graph):
    x, edge_index = graph
    options = {} if kind == "TransformerConv" else {"add_self_loops": False}
    options |= {"jump": True, "norm": "layer", "gate": 0.3}
    ours = {"GATConv": GATConv, "GATv2Conv": GATv2Conv, "TransformerConv": TransformerConv}[kind]
    model = GAT(C, 8, 3, 2, heads=2, layer=ours, **options)
    theirs = GAT(C, 8, 3, 2, heads=2, layer=getattr(pyg, kind), **options).double()
    theirs.load_state_dict(on_scatter(model).state_dict())
    torch.testing.assert_close(model(x, Edges(edge_index, N)), theirs(x, edge_index))


def test_a_gat_is_its_formula(graph):
    x, edge_index = graph
    model = trained(GAT(C, 8, 3, 3, heads=2, jump=True, **OPTIONS), x, edge_index)
    h, total = x, 0
    for conv, lin, norm in zip(model.convs, model.lins, model.norms, strict=True):
        h = norm(conv(h, edge_index) + lin(h)).relu()
        total = total + h
    torch.testing.assert_close(model(x, edge_index), model.lin_out(total))
    last = trained(GAT(C, 8, 3, 1, norm="none", residual=False, **OPTIONS), x, edge_index)
    torch.testing.assert_close(last(x, edge_index), last.lin_out(last.convs[0](x, edge_index).relu()))


def test_polynormer_equals_pygs(graph):
    theirs = pytest.importorskip("torch_geometric.nn.models.polynormer", reason="PyG has Polynormer since 2.7")
    x, edge_index = graph
    model = Polynormer(C, 8, 3, 2, num_global_layers=2, gate=0.7, **OPTIONS)
    peer = theirs.Polynormer(C, 8, 3, local_layers=2, global_layers=2, beta=0.7, local_attn=True)
    peer.lin_in = torch.nn.Identity()  # PyG's is never used.
    # The same modules, so that names needn't be the same.
    peer.local_convs, peer.lins, peer.post_bns = model.convs, model.lins, model.norms
    peer.h_lins, peer.lns, peer.ln = model.gates, model.gate_norms, model.global_norm
    peer.pred_local, peer.pred_global = model.lin_local, model.lin_out
    for part, layer in zip(peer.global_attn, model.global_layers, strict=True):
        part.h_lins, part.q, part.k, part.v = layer.lin_gate, layer.lin_query, layer.lin_key, layer.lin_value
        part.lns, part.lin_out = layer.norm, layer.lin_out
    trained(model, x, edge_index), peer.double().eval()
    # Graphs of one size, because PyG counts padding among the keys.
    batch = torch.arange(N) // 4
    for model.is_local in (True, False):
        peer._global = not model.is_local
        expected = peer(x, edge_index, batch)
        torch.testing.assert_close(model(x, edge_index, batch).log_softmax(1), expected, rtol=1e-5, atol=1e-5)


def test_global_attention_of_polynormer_has_heads(graph):
    x, _ = graph
    layer = Polynormer(C, 6, 3, 1, heads=2, **OPTIONS).double().global_layers[0].eval()
    query, key, value = (lin(x).view(N, 2, 3) for lin in (layer.lin_query, layer.lin_key, layer.lin_value))
    weight = torch.einsum("ihd,jhd->hij", query.sigmoid(), key.sigmoid())
    weight = weight / weight.sum(-1, keepdim=True)
    mean = torch.einsum("hij,jhd->ihd", weight, value).flatten(1)
    expected = layer.lin_out(layer.norm(mean) * (layer.lin_gate(x) + layer.gate)).relu()
    torch.testing.assert_close(layer(x, Full(N)), expected)


def test_sgformer_is_its_formula_within_each_graph(graph):
    x, edge_index = graph
    batch = torch.arange(N) // 5
    edge_index = edge_index[:, batch[edge_index[0]] == batch[edge_index[1]]]
    model = trained(SGFormer(C, 8, 3, 2, heads=2, global_weight=0.3, **OPTIONS), x, edge_index)
    z = model.norm_in(model.lin_in(x)).relu()
    layer = model.global_layers[0]
    query, key = normalize(layer.lin_query(z), dim=1), normalize(layer.lin_key(z), dim=1)
    same = batch[:, None] == batch
    weight = (query @ key.T) * same + torch.diag(same.sum(1))
    z = model.global_norms[0]((weight @ layer.lin_value(z) / weight.sum(1, keepdim=True) + z) / 2).relu()
    expected = model.lin_out(0.3 * z + 0.7 * model.embed(x, edge_index))
    torch.testing.assert_close(model(x, edge_index, batch), expected)


@pytest.mark.parametrize("kind", [GAT, Polynormer, SGFormer])
def test_every_parameter_learns_and_starts_again(kind, graph):
    x, edge_index = graph
    model = on_scatter(
        kind(C, 8, 3, 2, heads=2, gate=0.9, dropout=0.1, in_dropout=0.1, attention_dropout=0.1, **OPTIONS)
    )
    model(x, edge_index).square().sum().backward()
    unused = {"lin_local.weight", "lin_local.bias"} if kind is Polynormer else set()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == unused
    before = copy.deepcopy(model.state_dict())
    model.reset_parameters()
    after = model.state_dict()
    constant = {name for name in before if torch.equal(before[name], after[name])}
    assert all("norm" in name or name.endswith("bias") for name in constant)


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (GAT, {"norm": "group"}, "GAT: norm must be one of 'batch', 'layer', 'none', got 'group'"),
        (GAT, {"heads": 3}, "GAT: heads must divide hidden_channels, 8, got 3"),
        (GAT, {"dropout": 1.5}, "GAT: dropout must lie in [0, 1], got 1.5"),
        (Polynormer, {"gate": 2.0}, "Polynormer: gate must lie in [0, 1], got 2.0"),
        (Polynormer, {"num_global_layers": 0}, "Polynormer: num_global_layers must be at least 1, got 0"),
        (SGFormer, {"global_weight": -1.0}, "SGFormer: global_weight must lie in [0, 1], got -1.0"),
    ],
)
def test_what_does_not_fit_is_named(kind, options, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        kind(C, 8, 3, 2, **options)


def test_features_of_another_width_are_named(graph):
    with pytest.raises(ValueError, match=r"GAT: x must have shape \[\*B, N, 5\], got \[12, 6\]"):
        GAT(5, 8, 3, 2)(graph[0].float(), graph[1])

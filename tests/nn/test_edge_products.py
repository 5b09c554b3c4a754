"""Updated features of edges: what they are, in all routes, and what of them is kept."""

from __future__ import annotations

import copy

import pytest
import torch

from graphattn import Edges, Full
from graphattn.memory import peak_memory
from graphattn.nn import DenseGraphAttention, GraphAttention, edge_products
from graphattn.testing import graph_zoo

NAMES = ("empty graph", "no edges", "one self-loop", "parallel edges", "unsorted edges")
ZOO = {name: graph_zoo()[name] for name in NAMES}


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


def build(**options):
    torch.manual_seed(0)
    layer = GraphAttention(5, 8, heads=2, edge_dim=3, update_edges=True, **options).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def with_gradients(layer, x, pattern, edge_attr):
    out, edges = layer(x, pattern, edge_attr)
    loss = (out * torch.linspace(-1, 1, 8)).sum() + (edges * torch.tensor([1.0, -2.0, 3.0])).sum()
    return out, edges, *torch.autograd.grad(loss, [x, edge_attr, *layer.parameters()])


def test_they_are_a_linear_map_of_products_whose_sum_is_the_score():
    layer, pattern = build(), graph_zoo()["unsorted edges"]
    x, edge_attr = draw(pattern.num_targets, 5), draw(pattern.num_edges, 3)
    _, edges = layer(x, pattern, edge_attr)
    source, target = pattern.edge_index
    products = layer.lin_query(x)[target] * (layer.lin_key(x)[source] + layer.lin_edge(edge_attr)) / 2
    torch.testing.assert_close(edges, layer.lin_edge_out(products))


@pytest.mark.parametrize("name", ZOO)
def test_every_route_and_the_dense_reference_agree(name, monkeypatch):
    # Rows end within chunks, and chunks within rows.
    monkeypatch.setattr(edge_products, "CHUNK", 5)
    pattern, layer = ZOO[name], build(kv_heads=1, backend="scatter")
    x, edge_attr = draw(pattern.num_targets, 5), draw(pattern.num_edges, 3)
    watched, fused = copy.deepcopy(layer), copy.deepcopy(layer)
    watched.register_message_forward_hook(lambda module, inputs, output: None)
    # The sparse operator stays "scatter": this is about products alone.
    fused._update_edges = lambda *given: update(fused, *given)
    others = [watched, fused]
    if pattern.occurrence() is None:
        twin = DenseGraphAttention(5, 8, heads=2, kv_heads=1, edge_dim=3, update_edges=True).double()
        twin.load_state_dict(layer.state_dict())
        others.append(twin)
    expected = with_gradients(layer, x, pattern, edge_attr)
    for other in others:
        for found, wanted in zip(with_gradients(other, x, pattern, edge_attr), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


def update(layer, *given):
    layer.backend = "auto"
    found = GraphAttention._update_edges(layer, *given)
    layer.backend = "scatter"
    return found


def test_a_mask_gives_features_of_all_pairs():
    pattern = Full(4)
    layer, x, edge_attr = build(), draw(4, 5), draw(4, 4, 3)
    twin = DenseGraphAttention(5, 8, heads=2, edge_dim=3, update_edges=True).double()
    twin.load_state_dict(layer.state_dict())
    source, target = pattern.edge_index
    _, pairs = twin(x, pattern.mask(), edge_attr)
    _, edges, (_, weights) = layer(x, pattern, edge_attr[target, source], return_attention_weights=True)
    torch.testing.assert_close(pairs[target, source], edges)
    assert weights.shape == (16, 2)


def test_a_batch_of_features_and_loops_that_the_layer_adds():
    pattern = ZOO["unsorted edges"]
    layer = build(add_self_loops=True, backend="scatter")
    x, edge_attr = draw(2, pattern.num_targets, 5), draw(2, pattern.num_edges, 3)
    _, edges = layer(x, pattern, edge_attr)
    for one, given, found in zip(x, edge_attr, edges, strict=True):
        # Those of the given edges, so that the next layer takes them.
        torch.testing.assert_close(layer(one, pattern, given)[1], found)


def test_nothing_of_each_edge_and_head_is_kept():
    edges, rows, width = 200_000, 1000, 64
    x, edge_attr = torch.randn(rows, width, requires_grad=True), torch.randn(edges, width)
    index, weight = torch.randint(rows, (2, edges)), torch.randn(4, width)
    pattern = Edges(index, rows)
    heads = [x.view(-1, 4, 16), x.view(-1, 4, 16), edge_attr.view(-1, 4, 16)]
    run = lambda: edge_products.edge_products(*heads, weight, None, pattern)
    run()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        run()
    # `edge_attr` itself is the caller's.
    assert sum(x.numel() for x in kept if x.data_ptr() != edge_attr.data_ptr()) < 3 * rows * width
    assert peak_memory(run) < edges * width * 4 / 2


def test_second_derivatives_are_plain_torchs():
    pattern, layer = ZOO["unsorted edges"], build()
    x, edge_attr = draw(pattern.num_targets, 5), draw(pattern.num_edges, 3)
    for layer.backend in ("auto", "scatter"):
        _, edges = layer(x, pattern, edge_attr)
        (slope,) = torch.autograd.grad(edges.square().sum(), edge_attr, create_graph=True)
        if layer.backend == "scatter":
            assert torch.autograd.grad(slope.sum(), x)[0].abs().sum() > 0
        else:
            with pytest.raises(NotImplementedError, match="no derivatives of second order"):
                slope.sum().backward()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"edge_dim": None}, "update_edges needs features of edges, got edge_dim=None. Use edge_dim"),
        ({"score": "gatv2"}, "score must be 'dot_product' with update_edges, which returns its products, got 'gatv2'"),
    ],
)
def test_what_it_excludes_is_named(options, error):
    with pytest.raises(ValueError, match=error):
        GraphAttention(4, 4, **{"edge_dim": 2, "update_edges": True, **options})


def test_the_option_is_written():
    assert "update_edges=True" in repr(build())

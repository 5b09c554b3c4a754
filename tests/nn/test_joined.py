"""Projections of the same rows as one product: the same numbers, and only where nothing could tell."""

from __future__ import annotations

import copy

import pytest
import torch
from torch_geometric import nn as pyg

from graphattn import Edges, Window, accelerate
from graphattn.nn import GraphAttention, TransformerConv, joined

NODES, WIDTH = 30, 8
EDGES = torch.randint(NODES, (2, 90), generator=torch.Generator().manual_seed(0))
LAYERS = {
    "GraphAttention": lambda: GraphAttention(WIDTH, 16, heads=4),
    "fewer keys": lambda: GraphAttention(WIDTH, 16, heads=4, kv_heads=2, bias=False),
    "TransformerConv": lambda: TransformerConv(WIDTH, 4, heads=4),
    "beta": lambda: TransformerConv(WIDTH, 4, heads=4, beta=True, concat=False),
    "no skip": lambda: TransformerConv(WIDTH, 4, heads=4, root_weight=False, bias=False),
}


@pytest.fixture
def products(monkeypatch):
    """Shapes of the matrices that rows are multiplied with, with as few rows as there are."""
    seen, linear = [], torch.nn.functional.linear
    monkeypatch.setattr(joined, "LEAST_ROWS", 0)
    note = lambda x, weight, bias=None: seen.append(tuple(weight.shape)) or linear(x, weight, bias)
    monkeypatch.setattr(torch.nn.functional, "linear", note)
    return seen


@pytest.fixture
def x():
    return torch.randn(NODES, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "pattern", [Edges(EDGES, NODES), EDGES, Window(NODES, radius=2)], ids=["edges", "index", "window"]
)
@pytest.mark.parametrize("name", LAYERS)
def test_one_product_equals_three(name, pattern, x, products, monkeypatch):
    layer = LAYERS[name]().eval()
    with torch.no_grad():
        one = layer(x, pattern)
        count = len(products)
        monkeypatch.setattr(joined, "LEAST_ROWS", 2**14)
        three = layer(x, pattern)
    assert len(products) - count == count + 2
    torch.testing.assert_close(one, three)


def test_an_accelerated_layer_equals_pygs(x, products):
    layer = pyg.TransformerConv(WIDTH, 4, heads=4, beta=True).eval()
    ours = copy.deepcopy(layer)
    accelerate(ours)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, EDGES), layer(x, EDGES))


def hooked(linears):
    linears[0].register_forward_hook(lambda *_: None)


def parametrized(linears):
    torch.nn.utils.parametrizations.weight_norm(linears[1])


def other_bias(linears):
    linears[2].bias = None


def other_class(linears):
    linears[0].__class__ = type("Linear", (type(linears[0]),), {})


@pytest.mark.parametrize("change", [None, hooked, parametrized, other_bias, other_class])
def test_whatever_could_tell_gets_its_own_product(change, x, products):
    linears = [torch.nn.Linear(WIDTH, 16) for _ in range(3)]
    if change is not None:
        change(linears)
    with torch.no_grad():
        found = joined.project(x, linears)
    assert len(products) == (1 if change is None else 3)
    for part, linear in zip(found, linears, strict=True):
        torch.testing.assert_close(part, linear(x))


def test_many_bytes_are_three_products(x, products, monkeypatch):
    linears = [torch.nn.Linear(WIDTH, 16) for _ in range(3)]
    for most in (NODES * 48 * 4, NODES * 48 * 4 - 1):
        monkeypatch.setattr(joined, "MOST_BYTES", most)
        with torch.no_grad():
            joined.project(x, linears)
    assert len(products) == 4


def test_training_autocast_and_hooks_on_all_modules_get_three(x, products):
    linears = [torch.nn.Linear(WIDTH, 16) for _ in range(3)]
    joined.project(x, linears)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert joined.project(x, linears)[0].dtype == torch.bfloat16
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    with torch.no_grad():
        joined.project(x, linears)
    hook.remove()
    assert len(products) == 9

"""torch.func and torch.vmap around attention: derivatives and maps that fused kernels leave to plain torch."""

from __future__ import annotations

import pytest
import torch

from graphattn import Edges, Full, Window, attention, explain_backend
from graphattn.nn import GraphAttention

EDGES = torch.tensor([[0, 1, 2, 3, 1, 4], [1, 2, 3, 0, 3, 4]])
PATTERNS = {"raw": lambda: EDGES.clone(), "Edges": lambda: Edges(EDGES, 5), "window": lambda: Window(5, radius=1)}
SCORES = [
    {},
    {"normalizer": "entmax15"},
    {"normalizer": "sigmoid"},
    {"score": lambda q, k, e: (q - k).square().sum(-1)},
]


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(params=PATTERNS, ids=str)
def pattern(request):
    """A pattern that has derived nothing yet."""
    return PATTERNS[request.param]()


@pytest.mark.parametrize("options", SCORES, ids=["softmax", "entmax15", "sigmoid", "callable"])
def test_maps_are_loops(pattern, options):
    x = draw(3, 5, 2, 4)
    run = lambda x: attention(x, x, x, pattern, **options)
    mapped = torch.vmap(run)(x)
    torch.testing.assert_close(mapped, torch.stack([run(row) for row in x]))
    torch.testing.assert_close(torch.vmap(run, in_dims=-1, out_dims=-1)(x.movedim(0, -1)), mapped.movedim(0, -1))
    torch.testing.assert_close(torch.vmap(torch.vmap(run))(x.unsqueeze(0)), mapped.unsqueeze(0))


def test_derivatives_are_those_of_autograd(pattern):
    x = draw(5, 2, 4)
    loss = lambda x: attention(x, x, x, pattern).square().sum()
    by_scatter = lambda x: attention(x, x, x, pattern, backend="scatter").square().sum()
    torch.testing.assert_close(torch.func.hessian(loss)(x), torch.autograd.functional.hessian(by_scatter, x))
    torch.testing.assert_close(torch.func.jacrev(loss)(x), torch.func.grad(loss)(x))
    torch.testing.assert_close(torch.func.jvp(loss, (x,), (x,))[1], (torch.func.grad(loss)(x) * x).sum())


def test_gradients_of_each_example():
    layer, pattern = GraphAttention(4, 4, heads=2).double(), Full(5)
    x = draw(3, 5, 4)
    parameters = dict(layer.named_parameters())
    loss = lambda parameters, x: torch.func.functional_call(layer, parameters, (x, pattern)).square().sum()
    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for k, row in enumerate(x):
        gradients = torch.autograd.grad(layer(row, pattern).square().sum(), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(each[name][k], gradient)


def test_a_pattern_outlives_the_transform_that_first_used_it(pattern):
    x = draw(5, 2, 4)
    loss = lambda x: attention(x, x, x, pattern).square().sum()
    torch.vmap(torch.func.grad(loss))(x.unsqueeze(0))
    y = x.clone().requires_grad_()
    loss(y).backward()
    torch.testing.assert_close(torch.func.grad(loss)(x), y.grad)


def test_fused_kernels_say_that_they_lack_transforms():
    x = draw(5, 2, 4)
    chosen = []
    torch.vmap(lambda x: chosen.append(explain_backend(x, x, x, EDGES).chosen) or x)(x.unsqueeze(0))
    assert chosen == ["scatter"] != [explain_backend(x, x, x, EDGES).chosen]
    with pytest.raises(NotImplementedError, match=r"nor torch.func. Use backend='scatter' or 'auto'"):
        torch.vmap(lambda x: attention(x, x, x, EDGES, backend="numba"))(x.unsqueeze(0))


def test_edges_can_not_be_mapped_over():
    x = draw(5, 2, 4)
    with pytest.raises(NotImplementedError, match=r"must be the same for all examples that torch.func maps over"):
        torch.vmap(lambda edge_index: attention(x, x, x, edge_index))(torch.stack([EDGES, EDGES.flip(0)]))

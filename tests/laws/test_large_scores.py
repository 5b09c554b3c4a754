"""Scores far beyond a float's resolution of one: weights and gradients stay as close to the truth as scatter's.

Two numbers are kept of a row, the shift of its scores and the sum of their exponentials, and every pass over the edges
finds a score's very bits again.
"""

from __future__ import annotations

import copy
import os

import pytest
import torch
from conftest import EDGE_KERNELS
from covering import pairwise
from torch_geometric.nn import TransformerConv

import graphattn
from graphattn import Additive, Edges, Full, Window, attention, dense_attention, merge
from graphattn.kernels.rows.op import SCORE_CODES

SCALES = (1e2, 1e4, 1e8, 1e15, 1e30)
HEADS, WIDTH = 2, 8
# Loops of half types take seconds to compile: these are for `make fuzz`, but for one law.
HALVES = [torch.bfloat16, torch.float16] if "GRAPHATTN_FUZZ" in os.environ else []


def random_graph(generator):
    return Edges(torch.randint(60, (2, 400), generator=generator), 60)


def parallel_edges(generator):
    return Edges(torch.randint(60, (2, 130), generator=generator).repeat(1, 3), 60)


def hub(generator):
    """A row of 700 edges that are cut into pieces, each source twice, and a column of as many."""
    spokes = torch.arange(350).repeat(2)
    edges = torch.stack([spokes, torch.zeros_like(spokes)])
    return Edges(torch.cat([edges, edges.flip(0), torch.randint(350, (2, 300), generator=generator)], 1), 350)


def window(generator):
    return Window(50, radius=6)


# Tiles have the dot product alone.
CASES = [(make, kind, "numba") for make in (random_graph, parallel_edges, hub) for kind in SCORE_CODES]
CASES.append((window, "dot_product", "tiles"))


def results(pattern, tensors, dtype, backend, kind, directions, dropout_p=0.0):
    """Weights, output, and gradients by all inputs, in float64."""
    leaves = {name: x.to(dtype).requires_grad_() for name, x in tensors.items()}
    options = {"dropout_p": dropout_p}
    if kind != "dot_product":
        number = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        leaves["vector"] = torch.linspace(-1, 1, HEADS * WIDTH, dtype=number).view(HEADS, WIDTH).requires_grad_()
        options["score"] = Additive(leaves["vector"], kind)
    torch.manual_seed(0)
    query, key, value, *_ = leaves.values()
    out, weights = attention(query, key, value, pattern, backend=backend, return_weights=True, **options)
    total = sum((x.double() * direction).sum() for x, direction in zip((out, weights), directions, strict=False))
    found = {"weights": weights, "out": out}
    found |= dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))
    return {name: x.detach().double() for name, x in found.items()}


@pytest.mark.parametrize(
    ("case", "scale", "dropout_p", "dtype"),
    pairwise(CASES, SCALES, [0.0, 0.4], [torch.float32, *HALVES]),
    ids=lambda x: f"{x[0].__name__}-{x[1]}-{x[2]}" if isinstance(x, tuple) else str(x),
)
def test_errors_are_those_of_scatter_at_any_score(case, scale, dropout_p, dtype):
    """Root mean squares over draws: of one draw, a single row near a tie decides, and its rounding is luck."""
    make, kind, backend = case
    errors = {"scatter": {}, backend: {}}
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape, g=generator: torch.randn(*shape, generator=g, dtype=torch.float64)
        pattern = make(generator)
        nodes, few = pattern.num_sources, torch.randint(7, (pattern.num_sources,), generator=generator)
        query, key, value = (draw(nodes, HEADS, WIDTH) for _ in range(3))
        # Every other draw has seven keys alone, so that scores tie.
        key = key[few] if seed % 2 else key
        query, key, value = ((x * by).to(dtype) for x, by in ((query, scale**0.5), (key, scale**0.5), (value, 1)))
        tensors = {"query": query, "key": key, "value": value}
        directions = [draw(nodes, HEADS, WIDTH).to(dtype).double()]
        directions += [draw(pattern.num_edges, HEADS).float().double()] if seed == 3 else []
        truth = results(pattern, tensors, torch.float64, "scatter", kind, directions, dropout_p)
        for kernel, found in errors.items():
            for what, x in results(pattern, tensors, dtype, kernel, kind, directions, dropout_p).items():
                scatters = (x - truth[what]).square().sum()
                # Below this, a rounding of the result itself decides.
                least = (torch.finfo(torch.float32).eps * truth[what].abs().max()) ** 2
                found[what] = found.get(what, 0) + scatters + (least if kernel == "scatter" else 0)
    for what, theirs in errors["scatter"].items():
        ratio = float((errors[backend][what] / theirs) ** 0.5) if theirs else float(errors[backend][what] > 0)
        assert ratio <= 4, f"{what} at scores near {scale:.0e}: {ratio:.1f} times as far off as scatter"


@pytest.mark.parametrize("pattern", [Edges(torch.tensor([[0, 0], [1, 1]]), 2), Full([2])], ids=str)
@pytest.mark.parametrize("score", [1e3, 1e4, 1e6, 1e8, 1e15, 1e30])
@pytest.mark.parametrize("backend", ["numba", "scatter", "auto"])
def test_equal_scores_have_equal_weights(backend, score, pattern):
    x = torch.full((2, 1, 1), score**0.5, requires_grad=True)
    out, weights = attention(x, x, torch.ones(2, 1, 1), pattern, return_weights=True, backend=backend)
    assert (weights == 0.5).all()
    assert torch.autograd.grad(out.sum(), x)[0].abs().max() == 0


@pytest.mark.parametrize(
    ("kernel", "dropout_p", "dtype"),
    pairwise(EDGE_KERNELS, [0.0, 0.6], [torch.float32, *HALVES]),
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_a_row_that_one_edge_takes_has_no_gradient(kernel, dropout_p, dtype):
    """Cut rows as well, where the one weight is far from most of the pieces."""
    pattern = hub(torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    x = torch.randn(350, HEADS, 1) * 100
    sources = x.sign() * (1 + torch.arange(350).view(-1, 1, 1))
    query, key = (y.to(dtype).requires_grad_() for y in (x.sign() * 200, sources))
    value = torch.randn(350, HEADS, WIDTH).to(dtype).requires_grad_()
    # Sources of the hub are twice there: of each pair, the bias takes one away.
    bias = torch.zeros(pattern.num_edges, HEADS)
    bias[350:700] = -torch.inf
    options = {"backend": kernel.name, "dropout_p": dropout_p, "edge_bias": bias}
    for inputs in ((query, key), (key,), (query,)):
        torch.manual_seed(1)
        out, weights = attention(query, key, value, pattern, return_weights=True, **options)
        of_hub = weights[pattern.edge_index[1] == 0]
        assert ((of_hub == 0) | (of_hub == 1)).all() and (of_hub.sum(0) == 1).all()
        gradients = torch.autograd.grad(out[0].square().sum(), inputs)
        assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize(
    ("dtype", "kind", "width"),
    pairwise([torch.float32, torch.bfloat16], SCORE_CODES, [1, 2, 3, 8, 16, 20, 40]),
    ids=str,
)
def test_every_pass_finds_the_same_bits(dtype, kind, width):
    """Of a graph where each source has one edge: its weight, and gradients of a sum of outputs that are its weight."""
    target = torch.randint(9, (300,), generator=torch.Generator().manual_seed(0))
    pattern = Edges(torch.stack([torch.arange(300), target]), num_sources=300, num_targets=9)
    for heads, kv_heads in ((1, 1), (4, 4), (6, 6), (8, 8), (8, 2)):
        torch.manual_seed(width)
        draw = lambda *shape, by=1e3: (torch.randn(*shape) * by).to(dtype).requires_grad_()
        query, key, bias = draw(9, heads, width), draw(300, kv_heads, width), draw(300, heads)
        edge_key, value, edge_value = draw(300, kv_heads, width), draw(300, kv_heads, 1), draw(300, kv_heads, 1)
        of_edges = {"edge_bias": bias, "edge_key": edge_key, "edge_value": edge_value}
        options = {} if kind == "dot_product" else {"score": Additive(draw(heads, width), kind)}
        out, weights = attention(
            query, key, value, pattern, return_weights=True, backend="numba", **of_edges, **options
        )
        by_target, by_source = torch.autograd.grad(out.sum(), [edge_value, value])
        expected = weights if kv_heads == heads else weights.unflatten(1, (kv_heads, -1)).sum(-1)
        if kv_heads == heads:
            assert torch.equal(by_source.squeeze(-1), expected.to(dtype))
        assert torch.equal(by_target, by_source)


@pytest.mark.parametrize("score", [1.0, 1e4, 1e8, 1e30])
@pytest.mark.parametrize("backend", ["numba", "scatter", "tiles", "dense"])
def test_parts_are_merged_exactly_by_a_split_lse(backend, score):
    """Three equal edges, two in one part: each has a third of the weight."""
    function = dense_attention if backend == "dense" else attention
    options = {} if backend == "dense" else {"backend": backend}
    if backend == "tiles":
        patterns = [Full([1], [2]), Full([1], [1])]
    else:
        ends = (torch.tensor([[0, 1], [0, 0]]), torch.tensor([[0], [0]]))
        patterns = [Edges(edges, num_sources=edges.size(1), num_targets=1) for edges in ends]
    x = torch.full((3, 1, 1), score**0.5, requires_grad=True)
    value = torch.tensor([0.0, 3.0, 6.0]).view(3, 1, 1)
    parts = []
    for pattern, rows in zip(patterns, (slice(0, 2), slice(2, 3)), strict=True):
        parts += function(x[:1], x[rows], value[rows], pattern, return_lse="split", **options)
    assert parts[1].shape == (1, 1, 2)
    out, lse = merge(*parts)
    torch.testing.assert_close(out, torch.full_like(out, 3.0))
    whole = Edges(torch.tensor([[0, 1, 2], [0, 0, 0]]), num_sources=3, num_targets=1)
    expected, together = dense_attention(x[:1], x, value, whole, return_lse="split")
    torch.testing.assert_close(lse, together)
    torch.testing.assert_close(lse.sum(-1), dense_attention(x[:1], x, value, whole, return_lse=True)[1])
    for merged, once in ((out, expected), (lse.sum(-1), together.sum(-1))):
        gradients = [torch.autograd.grad(result.sum(), x, retain_graph=True)[0] for result in (merged, once)]
        torch.testing.assert_close(*(gradient / score**0.5 for gradient in gradients))


def test_raw_columns_have_no_gradient_where_one_edge_takes_all():
    torch.manual_seed(0)
    x = torch.stack([torch.randint(1950, 2020, (200,)), torch.randint(1, 90000, (200,))], 1).float()
    edge_index, layer = torch.randint(200, (2, 2000)), TransformerConv(2, 8, heads=2)
    found = []
    for convert in (lambda layer: layer, graphattn.accelerate):
        one = copy.deepcopy(layer)
        convert(one)
        one(x, edge_index).square().mean().backward()
        found.append(one.lin_query.weight.grad)
    assert found[0].abs().max() == 0 and found[1].abs().max() == 0


def test_a_deep_stack_without_norms_is_as_exact_as_pyg():
    torch.manual_seed(0)
    edge_index = torch.randint(200, (2, 1000))
    layers = torch.nn.ModuleList([TransformerConv(16, 16, heads=2, concat=False) for _ in range(30)])
    gradients = []
    for dtype, is_ours in ((torch.float64, False), (torch.float32, False), (torch.float32, True)):
        model = copy.deepcopy(layers).to(dtype)
        if is_ours:
            graphattn.accelerate(model)
        x = torch.randn(200, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
        for layer in model:
            x = layer(x, edge_index)
        x.square().mean().backward()
        gradients.append(torch.cat([parameter.grad.double().flatten() for parameter in model.parameters()]))
    truth, theirs, ours = gradients
    assert (ours - truth).norm() <= 4 * (theirs - truth).norm()

"""Products of nodes' rows with vectors, and rows of length one: what torch's own operators say, in fewer passes."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from graphattn.nn.products import MOST_HEADS, products_with, unit_rows


def draw(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("heads", [1, 3, MOST_HEADS + 1])
@pytest.mark.parametrize("nodes", [5, 0])
def test_products_are_those_of_each_head(nodes, heads):
    rows, vectors = draw(nodes, heads, 4), draw(2, heads, 4)
    found = products_with(rows, *vectors)
    for x, vector in zip(found, vectors, strict=True):
        torch.testing.assert_close(x, (rows * vector).sum(-1))
    expected = torch.autograd.grad([(rows * vector).sum(-1).square().sum() for vector in vectors], [rows, vectors])
    torch.testing.assert_close(torch.autograd.grad([x.square().sum() for x in found], [rows, vectors]), expected)


def test_products_have_the_dtype_of_torchs():
    rows, vector = draw(5, 2, 4), draw(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = products_with(rows.bfloat16(), vector.float())
    assert found.dtype == torch.float32


@pytest.mark.parametrize("which", [0, 1, 2])
def test_unit_rows_are_normalized_rows(which):
    x, scale = draw(6, 5), draw(1)
    with torch.no_grad():
        # No length, and one that is too short to divide by.
        x[2], x[3] = 0, 1e-14
    unit = normalize(x, dim=-1)
    expected, found = [unit * scale, unit], list(unit_rows(x, scale))
    torch.testing.assert_close(found, expected)
    chosen = [[0], [1], [0, 1]][which]
    grads = [
        torch.autograd.grad([pair[i].sin().sum() for i in chosen], [x, scale], allow_unused=True)
        for pair in (found, expected)
    ]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs)


def test_unit_rows_have_derivatives_of_second_order():
    x, scale = draw(4, 3), draw(1)
    assert torch.autograd.gradcheck(unit_rows, (x, scale))
    assert torch.autograd.gradgradcheck(unit_rows, (x, scale))

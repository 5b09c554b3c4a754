"""Query, key and value that are columns of one matrix, as `qkv.chunk(3, -1)` makes them: read in place, not copied."""

from __future__ import annotations

import pytest
import torch
from covering import pairwise

from graphattn import Edges, attention
from graphattn.kernels.rows import operands
from graphattn.testing import assert_matches_dense

NODES = 40
CASES = pairwise(
    [torch.float32, torch.float64, torch.bfloat16],
    [(), (3,), (2, 2)],
    [(4, 4, 8, 8), (4, 2, 8, 16), (1, 1, 1, 1), (3, 1, 5, 5)],
    [{}, {"dropout_p": 0.3}, {"normalizer": "sigmoid"}, {"return_weights": True}],
)


def edges():
    """Random ones, with a target and a source of so many that loops cut them."""
    edge_index = torch.randint(NODES, (2, 1500), generator=torch.Generator().manual_seed(0))
    edge_index[1, :600], edge_index[0, 600:1200] = 3, 5
    return Edges(edge_index, NODES)


def columns(dtype, batch, sizes):
    """Query, key and value side by side in one matrix, and the matrix."""
    heads, kv_heads, width, value_width = sizes
    shapes = ((heads, width), (kv_heads, width), (kv_heads, value_width))
    widths = [heads * width for heads, width in shapes]
    joined = torch.randn(*batch, NODES, sum(widths), generator=torch.Generator().manual_seed(1)).to(dtype)
    joined.requires_grad_()
    parts = joined.split(widths, -1)
    return joined, [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]


@pytest.mark.parametrize(("dtype", "batch", "sizes", "options"), CASES, ids=str)
def test_columns_of_one_matrix_give_the_bits_of_their_copies(dtype, batch, sizes, options):
    found = []
    for copies in (False, True):
        joined, rows = columns(dtype, batch, sizes)
        rows = [row.contiguous() if copies else row for row in rows]
        torch.manual_seed(0)
        result = attention(*rows, edges(), backend="numba", **options)
        outs = result if isinstance(result, tuple) else (result,)
        found.append((*outs, *torch.autograd.grad([out.sin().sum() for out in outs], joined)))
    assert all(map(torch.equal, *found))


def test_they_equal_the_oracle():
    _, rows = columns(torch.float64, (2,), (4, 2, 8, 16))
    tensors = dict(zip(("query", "key", "value"), (row.detach() for row in rows), strict=True))
    assert_matches_dense({name: x.requires_grad_() for name, x in tensors.items()}, edges(), backend="numba")


def test_none_of_them_is_copied(monkeypatch):
    copied = []
    contiguous = torch.Tensor.contiguous
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda x: copied.append(tuple(x.shape)) or contiguous(x))
    with torch.no_grad():
        attention(*columns(torch.float32, (), (4, 4, 8, 8))[1], edges(), backend="numba")
    assert not [shape for shape in copied if len(shape) > 2]


@pytest.mark.parametrize(
    ("x", "pitch"),
    [
        (torch.zeros(5, 2, 4), 8),
        (torch.zeros(5, 12)[:, 4:].unflatten(1, (2, 4)), 12),
        (torch.zeros(3, 5, 12)[..., :8].unflatten(2, (2, 4)), 12),
        (torch.zeros(3, 6, 12)[:, 1:, :8].unflatten(2, (2, 4)), 0),
        (torch.zeros(2, 5, 4).transpose(0, 1), 0),
        (torch.zeros(5, 4, 2).transpose(1, 2), 0),
        (torch.zeros(1, 2, 4).expand(5, 2, 4), 0),
        (torch.zeros(20).as_strided((5, 2, 4), (2, 4, 1)), 2),
        (torch.zeros(10, 2, 4)[::2], 16),
        (torch.zeros(5, 8)[:, ::2].unflatten(1, (4, 1)), 0),
        (torch.zeros(0, 2, 4), 8),
    ],
    ids=lambda x: str(x) if isinstance(x, int) else f"{tuple(x.shape)} {x.stride()}",
)
def test_the_distance_between_rows(x, pitch):
    assert operands.pitch_of(x) == pitch
    if pitch:
        flat = torch.arange(1.0, 1 + x.untyped_storage().nbytes() // 4)
        x = flat.as_strided(x.shape, x.stride(), x.storage_offset())
        rows = x.reshape(-1, *x.shape[-2:])
        begin = x.storage_offset()
        for i, row in enumerate(rows):
            assert torch.equal(row.flatten(), flat[begin + i * pitch : begin + i * pitch + row.numel()])

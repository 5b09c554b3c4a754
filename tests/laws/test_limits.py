"""Beyond 2^31: indices of 64 bits, and arrays whose numbers 32 bits can't count, without a graph of that size."""

from __future__ import annotations

import pytest
import torch

from graphattn import Edges, attention
from graphattn.csr import CSR
from graphattn.kernels.rows import operands
from graphattn.kernels.rows.cpu.plan import TaskPlan
from graphattn.testing import random_call

HEADS, WIDE, ROWS = 8, 2**16, 2**12 + 1


@pytest.mark.parametrize("backend", ["scatter", "numba"])
def test_wide_indices_give_the_same_bits(backend, monkeypatch):
    edge_index = torch.randint(40, (2, 700), generator=torch.Generator().manual_seed(0))
    edge_index[1, :300] = 7
    narrow = Edges(edge_index, 40)
    tensors = {name: x.detach() for name, x in random_call(narrow).items()}
    expected = attention(**tensors, pattern=narrow, backend=backend)
    assert narrow.csr().index.dtype == narrow.csr().perm.dtype == torch.int32
    monkeypatch.setattr("graphattn.csr.index_dtype", lambda bound: torch.int64)
    wide = Edges(edge_index, 40)
    assert torch.equal(attention(**tensors, pattern=wide, backend=backend), expected)
    assert wide.csr().index.dtype == wide.csr().perm.dtype == torch.int64


def in_file(path, rows: dict[int, torch.Tensor]) -> torch.Tensor:
    """[1, ROWS, H, D] zeros but for some rows, in a file that has no blocks for the zeros."""
    shape = (1, ROWS, *next(iter(rows.values())).shape)
    x = torch.from_file(str(path), shared=True, size=torch.Size(shape).numel(), dtype=torch.float64).view(shape)
    for row, numbers in rows.items():
        x[0, row] = numbers
    return x


@pytest.mark.parametrize(("width", "value_width"), [(WIDE, 1), (1, WIDE)], ids=["keys", "values"])
def test_rows_beyond_two_to_the_31_numbers_are_found(width, value_width, tmp_path):
    """Two edges, numbers 3 and ROWS - 1, from sources 5 and ROWS - 1 to one target."""
    assert ROWS * HEADS * WIDE > 2**31
    near = random_call(
        Edges(torch.tensor([[0, 1], [0, 0]]), num_sources=2, num_targets=1),
        heads=HEADS,
        width=width,
        value_width=value_width,
        edge_tensors=True,
    )
    near = {name: x.detach() for name, x in near.items()}
    expected = attention(**near, pattern=torch.tensor([[0, 1], [0, 0]]), backend="scatter")
    # An output for every target must stay small, so that only narrow values may have many.
    targets, target = (ROWS, ROWS - 1) if value_width == 1 else (1, 0)
    places = {"key": (5, ROWS - 1), "value": (5, ROWS - 1), "edge_key": (3, ROWS - 1), "edge_value": (3, ROWS - 1)}
    far = {name: in_file(tmp_path / name, dict(zip(places[name], near[name], strict=True))) for name in places}
    far["query"] = near["query"][None]
    if targets > 1:
        far["query"] = in_file(tmp_path / "query", {target: near["query"][0]})
    bias = torch.zeros(1, ROWS, HEADS, dtype=torch.float64)
    bias[0, [3, ROWS - 1]] = near["edge_bias"]
    ptr = torch.zeros(targets + 1, dtype=torch.int64)
    ptr[-1] = 2
    csr = CSR(ptr, torch.tensor([5, ROWS - 1], dtype=torch.int32), torch.tensor([3, ROWS - 1], dtype=torch.int32))
    tensors = operands.Tensors(
        far["query"], far["key"], far["value"], None, bias, far["edge_key"], far["edge_value"], None
    )
    edges = operands.EdgeLists(None, None, list(TaskPlan.of(csr)), [])
    mode = operands.Mode(operands.DOT_PRODUCT, operands.SOFTMAX, width**-0.5, 0.0, 0.0)
    out, *_ = torch.ops.graphattn.csr_forward(*operands.pack(operands.Forward(tensors, edges, False, mode)))
    torch.testing.assert_close(out[0, target], expected[0], rtol=1e-10, atol=1e-10)

"""The operators keep torch.library's promises: schema, fakes, dispatch."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from graphattn.kernels import numba_csr
from graphattn.testing import graph_zoo, random_call

MODES = {
    "softmax of dots with dropout": (0, 0, 0.5, 0.0, 0.2),
    "relu of dots": (0, 1, 0.5, 0.0, 0.0),
    "softmax of tanh": (1, 0, 1.0, 0.0, 0.0),
    "sigmoid of leaky_relu": (2, 2, 1.0, 0.1, 0.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODES)
def test_operators_pass_opcheck(name, dtype):
    mode, pattern = MODES[name], graph_zoo()["unsorted edges"]
    drawn = {key: x.detach() for key, x in random_call(pattern, batch=(2,), dtype=dtype, edge_tensors=True).items()}
    query, key, value, *edges = drawn.values()
    has_vector = mode[0] > 0
    vector = torch.randn(2, 4) if has_vector else None
    seed = torch.tensor([5]) if mode[4] > 0 else None
    shared = (query, key, value, vector, *(x[None] for x in edges), seed)
    rows, columns = numba_csr._plan(pattern.csr()), numba_csr._plan(pattern.csc())
    operators = torch.ops.graphattn
    out, lse = operators.csr_forward(*shared, rows, *mode)
    weights = operators.csr_weights(*shared, lse, rows, *mode)
    needs = [True, True, True, has_vector, True, True, True]
    grads = (torch.ones_like(out), torch.ones_like(lse), torch.ones_like(weights))
    for operator, arguments in (
        (operators.csr_forward, (*shared, rows, *mode)),
        (operators.csr_weights, (*shared, lse, rows, *mode)),
        (operators.csr_backward, (*grads, *shared, out, lse, rows, columns, needs, *mode)),
        # The form in which torch.compile passes edges that nobody has read yet.
        (operators.csr_forward, (*shared, [pattern.edge_index], *mode)),
        (operators.csr_weights, (*shared, lse, [pattern.edge_index], *mode)),
        (
            operators.csr_backward,
            (*grads, *shared, out, lse, [pattern.edge_index], [pattern.edge_index], needs, *mode),
        ),
    ):
        assert set(opcheck(operator.default, arguments).values()) == {"SUCCESS"}

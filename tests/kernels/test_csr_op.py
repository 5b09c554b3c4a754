"""The operators keep torch.library's promises: schema, fakes, dispatch."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from graphattn.kernels.rows.cpu import kernel as cpu_kernel
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
    rows, columns = cpu_kernel._plan(pattern.csr()), cpu_kernel._plan(pattern.csc())
    operators = torch.ops.graphattn
    is_exact = mode[1] == 0 and (dtype == torch.bfloat16 or mode[4] > 0)
    out, sums, exact = operators.csr_forward(*shared, rows, is_exact, *mode)
    weights = operators.csr_weights(*shared, sums, rows, *mode)
    needs = [True, True, True, has_vector, True, True, True]
    saved = (exact if is_exact else out, sums)
    grads = (torch.ones_like(out), torch.ones(out.shape[:3]), torch.ones_like(weights))
    for operator, arguments in (
        (operators.csr_forward, (*shared, rows, is_exact, *mode)),
        (operators.csr_weights, (*shared, sums, rows, *mode)),
        (operators.csr_backward, (*grads, *shared, *saved, rows, columns, needs, *mode)),
        # The form in which torch.compile passes edges that nobody has read yet.
        (operators.csr_forward, (*shared, [pattern.edge_index], is_exact, *mode)),
        (operators.csr_weights, (*shared, sums, [pattern.edge_index], *mode)),
        (
            operators.csr_backward,
            (*grads, *shared, *saved, [pattern.edge_index], [pattern.edge_index], needs, *mode),
        ),
    ):
        assert set(opcheck(operator.default, arguments).values()) == {"SUCCESS"}

"""The operators keep torch.library's promises: schema, fakes, dispatch."""

from __future__ import annotations

import os
from typing import get_type_hints

import pytest
import torch
from covering import in_turn
from torch.library import opcheck

from graphattn.kernels.rows import operands
from graphattn.kernels.rows.cpu.plan import TaskPlan
from graphattn.kernels.rows.operands import Backward, EdgeLists, Forward, Mode, Needs, Tensors, Weights, pack, unpack
from graphattn.testing import graph_zoo, random_call

# Torch checks each operator in many ways, which takes half a minute for a mode: all but one are for `make fuzz`.
MODES = {
    "softmax of dots with dropout": Mode(operands.DOT_PRODUCT, operands.SOFTMAX, 0.5, 0.0, 0.2),
    "sigmoid of leaky_relu": Mode(operands.LEAKY_RELU, operands.SIGMOID, 1.0, 0.1, 0.0),
}
KINDS = {"csr_forward": Forward, "csr_weights": Weights, "csr_backward": Backward}


@pytest.mark.parametrize(
    ("name", "dtype"), in_turn(MODES, [torch.bfloat16, torch.float32])[: None if "GRAPHATTN_FUZZ" in os.environ else 1]
)
def test_operators_pass_opcheck(name, dtype):
    mode, pattern = MODES[name], graph_zoo()["unsorted edges"]
    drawn = {key: x.detach() for key, x in random_call(pattern, batch=(2,), dtype=dtype, edge_tensors=True).items()}
    query, key, value, *of_edges = drawn.values()
    vector = torch.randn(2, 4) if mode.score != operands.DOT_PRODUCT else None
    seed = torch.tensor([5]) if mode.dropout_p > 0 else None
    tensors = Tensors(query, key, value, vector, *(x[None] for x in of_edges), seed)
    planned = EdgeLists(None, None, list(TaskPlan.of(pattern.csr())), list(TaskPlan.of(pattern.csc(), pattern.csr())))
    # The form in which torch.compile passes edges that nobody has read yet.
    unread = EdgeLists(pattern.edge_index, None, [], [])
    operators = torch.ops.graphattn
    is_exact = mode.normalizer == operands.SOFTMAX and (dtype == torch.bfloat16 or mode.dropout_p > 0)
    out, sums, exact = operators.csr_forward(*pack(Forward(tensors, planned, is_exact, mode)))
    weights = operators.csr_weights(*pack(Weights(tensors, sums, planned, mode)))
    grads = (torch.ones_like(out), torch.ones(out.shape[:3]), torch.ones_like(weights))
    needs = Needs(*(x is not None for x in tensors[:7]))
    used = exact if is_exact else out
    calls = {
        "csr_forward": lambda edges: Forward(tensors, edges, is_exact, mode),
        "csr_weights": lambda edges: Weights(tensors, sums, edges, mode),
        "csr_backward": lambda edges: Backward(*grads, tensors, used, sums, edges, needs, mode),
    }
    for kind, edges in in_turn(calls, [unread, planned]):
        operator = getattr(torch.ops.graphattn, kind).default
        assert set(opcheck(operator, tuple(pack(calls[kind](edges)))).values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_packed_is_unpacked_and_lies_where_the_schema_says(name):
    kind = KINDS[name]
    fill = lambda kind, prefix: kind(*(f"{prefix}{field}" for field in kind._fields))
    given = {}
    for field, hint in get_type_hints(kind).items():
        given[field] = fill(hint, "") if hint in operands.GROUPS else fill(Needs, "") if hint is Needs else field
    flat = pack(kind(**given))
    assert unpack(kind, tuple(flat)) == kind(**given)
    arguments = [argument.name for argument in getattr(torch.ops.graphattn, name).default._schema.arguments]
    assert arguments == ["needs" if isinstance(x, list) else x for x in flat]

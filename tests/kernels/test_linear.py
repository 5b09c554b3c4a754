"""Linear attention: the same numbers as all pairs one by one, in time proportional to the nodes."""

from __future__ import annotations

import pytest
import torch

from graphattn import Additive, Full, Window, attention, explain_backend
from graphattn.kernels.linear import CHUNK
from graphattn.testing import assert_matches_dense, random_call

PATTERNS = [
    Full(7),
    Full([5, 5]),
    Full([3, 0, 9, 70]),
    Full([0, 0]),
    Full([3, 0, 2], source_sizes=[1, 2, 4]),
    Full([3, 4], causal=True),
    Full([2 * CHUNK + 3], causal=True),
    Full([2, CHUNK + 1, 70], source_sizes=[3, 90, 1], causal=True),
]
LINEAR = {"normalizer": "identity", "backend": "linear"}
ASKED_FOR = {"return_weights": False, "return_lse": False}


@pytest.mark.parametrize("batch", [(), (2, 3)], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_linear_equals_the_oracle(pattern, batch):
    tensors = random_call(pattern, batch=batch, heads=4, kv_heads=2, width=5, value_width=3)
    assert_matches_dense(tensors, pattern, **LINEAR, **ASKED_FOR)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_half_types_are_summed_in_float32(dtype):
    pattern = Full([40, 9])
    assert_matches_dense(random_call(pattern, dtype=dtype), pattern, **LINEAR, **ASKED_FOR)


@pytest.mark.parametrize("pattern", [Full([30, 30]), Full([9, 50, 17])], ids=repr)
def test_linear_equals_tiles(pattern):
    tensors = random_call(pattern, batch=(2,), dtype=torch.float64)
    ours, theirs = (
        attention(**tensors, pattern=pattern, normalizer="identity", backend=name) for name in ("linear", "tiles")
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_causal_equals_a_loop_over_targets():
    pattern = Full([CHUNK + 5], causal=True)
    query, key, value = (x.detach() for x in random_call(pattern, heads=2, width=4).values())
    state, expected = torch.zeros(2, 4, 4, dtype=torch.float64), []
    for q, k, v in zip(query, key, value, strict=True):
        state = state + k[:, :, None] * v[:, None, :]
        expected.append((q[:, None] @ state).squeeze(1) / 2)
    torch.testing.assert_close(attention(query, key, value, pattern, **LINEAR), torch.stack(expected))


@pytest.mark.parametrize("pattern", [Full([3, 3]), Full([2, 4], causal=True)], ids=repr)
def test_derivatives_of_every_order_and_mode(pattern):
    inputs = tuple(x.detach().requires_grad_() for x in random_call(pattern, heads=2, width=3).values())
    attend = lambda *inputs: attention(*inputs, pattern, **LINEAR)
    assert torch.autograd.gradcheck(attend, inputs) and torch.autograd.gradgradcheck(attend, inputs)
    tangents = tuple(torch.randn_like(x) for x in inputs)
    _, forward_mode = torch.func.jvp(attend, tuple(x.detach() for x in inputs), tangents)
    expected = torch.autograd.functional.jvp(attend, inputs, tangents)[1]
    torch.testing.assert_close(forward_mode, expected)


def test_what_a_missing_row_is_padded_with_does_not_count():
    pattern = Full([3, 5])
    tensors = {name: x.detach() for name, x in random_call(pattern).items()}
    tensors["value"][0] = torch.nan
    out = attention(**tensors, pattern=pattern, **LINEAR)
    assert out[:3].isnan().all() and out[3:].isfinite().all()


def test_compiled_code_is_one_graph():
    pattern = Full(20)
    inputs = [x.float().detach().requires_grad_() for x in random_call(pattern).values()]
    attend = lambda *inputs: attention(*inputs, pattern, **LINEAR)
    expected = attend(*inputs)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(attend, fullgraph=True, backend="eager")(*inputs), expected)
    torch._dynamo.reset()


@pytest.mark.parametrize(("nodes", "chosen"), [(20, False), (20_000, True)])
def test_auto_takes_it_where_all_pairs_would_take_longer(nodes, chosen):
    x = torch.empty(nodes, 4, 32)
    report = explain_backend(x, x, x, Full(nodes), normalizer="identity")
    assert (report.chosen == "linear") == chosen
    assert explain_backend(x, x, x, Full(nodes)).chosen != "linear"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pattern": Window(5, 1)}, "only Full has all pairs, not Window"),
        ({"normalizer": "softmax"}, "only the dot product with the identity normalizer"),
        ({"score": Additive(torch.ones(2, 4))}, "only the dot product with the identity normalizer"),
        ({"edge_bias": torch.zeros(25, 2)}, "no edge tensors"),
        ({"dropout_p": 0.5}, "no weights, which dropout and return_weights need"),
        ({"return_weights": True}, "no weights, which dropout and return_weights need"),
    ],
    ids=["pattern", "normalizer", "score", "bias", "dropout", "weights"],
)
def test_what_linear_cannot_run_is_said(options, reason):
    x = torch.zeros(5, 2, 4)
    arguments = {"query": x, "key": x, "value": x, "pattern": Full(5), "normalizer": "identity", **options}
    with pytest.raises(NotImplementedError, match=f"backend='linear' cannot run this call: .*{reason}"):
        attention(**arguments, backend="linear")

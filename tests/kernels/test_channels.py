"""The loops for a head per channel, against the oracle and the loops for heads of any width."""

from __future__ import annotations

import pytest
import torch

from graphattn import Edges, attention, dense_attention
from graphattn.kernels.rows.cpu import kernel
from graphattn.testing import assert_matches_dense, error_budget, pattern_zoo, random_call

# A row, and a column, of 1,400 edges is cut into pieces.
ENDS = torch.arange(1500) % 700, torch.arange(1500) // 1400
PATTERNS = {
    **pattern_zoo(),
    "cut row": Edges(torch.stack(ENDS), num_sources=700, num_targets=2),
    "cut column": Edges(torch.stack(ENDS[::-1]), num_sources=2, num_targets=700),
}


@pytest.fixture
def loops(monkeypatch):
    """The names of all loops that run."""
    seen, run = [], kernel._run
    note = lambda loop, *rest, **named: (seen.append(loop.__name__), run(loop, *rest, **named))
    monkeypatch.setattr(kernel, "_run", note)
    return seen


def results(function, tensors, pattern, dtype=None, **options):
    """Output and gradients; asked for nothing else, which other loops would compute."""
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors.values()]
    out = function(*leaves, pattern, **options)
    generator = torch.Generator().manual_seed(1)
    slope = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return out.detach(), *torch.autograd.grad(out, leaves, slope)


OURS = ["channel_forward_tasks", "channel_target_tasks", "channel_source_tasks"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PATTERNS)
def test_they_match_the_oracle(name, dtype, loops):
    batch = () if dtype == torch.float64 else (2, 1)
    tensors = random_call(PATTERNS[name], batch=batch, heads=32, width=1, dtype=dtype)
    found = results(attention, tensors, PATTERNS[name], backend="numba")
    rounded = results(dense_attention, tensors, PATTERNS[name])
    exact = results(dense_attention, tensors, PATTERNS[name], torch.float64)
    for ours, low, high in zip(found, rounded, exact, strict=True):
        assert not ours.numel() or (ours.double() - high).abs().max() <= error_budget(high, low)
    assert [loop for loop in loops if loop in OURS] == OURS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_they_give_what_the_other_loops_give(size, dtype, monkeypatch):
    found, pattern = [], PATTERNS["parallel edges"]
    tensors = random_call(pattern, heads=48, width=1, dtype=dtype)
    tensors["query"] = tensors["query"] * size
    for is_theirs in (False, True):
        if is_theirs:
            monkeypatch.setattr(kernel, "_is_by_channel", lambda *_: False)
        _, weights = attention(**tensors, pattern=pattern, backend="numba", return_weights=True)
        found.append((weights.detach(), *results(attention, tensors, pattern, backend="numba")))
    for ours, theirs in zip(*found, strict=True):
        bound = 1e-5 if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound * size)


@pytest.mark.parametrize(
    "options",
    [
        {"dropout_p": 0.5},
        {"normalizer": "sigmoid"},
        {"heads": 16, "kv_heads": 8},
        {"heads": 24},
        {"value_width": 2},
        {"edge_tensors": True},
    ],
    ids=str,
)
def test_what_they_lack_is_left_to_the_others(options, loops):
    pattern, names = PATTERNS["unsorted edges"], ("heads", "kv_heads", "value_width", "edge_tensors")
    sizes = {"heads": 16, "width": 1} | {name: options[name] for name in names if name in options}
    rest = {name: x for name, x in options.items() if name not in names}
    assert_matches_dense(random_call(pattern, **sizes), pattern, backend="numba", **rest)
    assert not set(OURS) & set(loops)


def test_rows_without_edges_and_pieces_without_scores():
    """A shift is 0 where no score is above -inf; a piece without scores doesn't shift the others of its row."""
    pattern = PATTERNS["cut row"]
    query = torch.full((2, 16, 1), 300.0)
    key = torch.full((700, 16, 1), -1.0)
    # All edges of the first piece, and of the last row.
    key[:512] = -torch.inf
    value = torch.randn(700, 16, 1, generator=torch.Generator().manual_seed(0))
    found = attention(query, key, value, pattern, backend="numba", return_lse="split")
    expected = attention(query, key, value, pattern, backend="scatter", return_lse="split")
    torch.testing.assert_close(found, expected)
    assert found[0][0].abs().min() > 0 and not found[0][1].any()
    empty = Edges(torch.tensor([[0], [0]]), 3)
    rows = [torch.ones(3, 16, 1)] * 3
    _, lse = attention(*rows, empty, backend="numba", return_lse="split")
    assert (lse[1:, :, 0] == 0).all() and (lse[1:, :, 1] == -torch.inf).all()


def test_gradients_by_weights_and_lse_are_left_to_the_others(loops):
    pattern = PATTERNS["unsorted edges"]
    tensors = random_call(pattern, heads=16, width=1)
    for options in ({"return_weights": True}, {"return_lse": True}):
        out, more = attention(**tensors, pattern=pattern, backend="numba", **options)
        (out.sum() + more[more.isfinite()].sin().sum()).backward()
    assert "channel_forward_tasks" in loops and "channel_target_tasks" not in loops


def test_only_the_query_has_a_gradient(loops):
    pattern = PATTERNS["hub"]
    tensors = random_call(pattern, heads=16, width=1)
    rows = {name: x if name == "query" else x.detach() for name, x in tensors.items()}
    expected = torch.autograd.grad(attention(**rows, pattern=pattern, backend="scatter").sum(), rows["query"])
    found = torch.autograd.grad(attention(**rows, pattern=pattern, backend="numba").sum(), rows["query"])
    torch.testing.assert_close(found, expected)
    assert "channel_source_tasks" not in loops

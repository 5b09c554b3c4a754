"""FlexAttention, uncompiled on the CPU: the mask, the blocks and the biases that a GPU would compile.

On a CPU torch has no backward of it: gradients are compared by `make gpu`.
"""

from __future__ import annotations

import pytest
import torch

from graphattn import Additive, Edges, Full, Grid, OffsetBias, Window, attention, dense_attention, explain_backend
from graphattn.kernels import KERNELS
from graphattn.kernels.flex import BLOCK, Flex, _blocks
from graphattn.testing import assert_matches_dense, pattern_zoo, random_call

# Uncompiled, it says that it holds all scores.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

PATTERNS = {
    name: pattern
    for name, pattern in pattern_zoo().items()
    if isinstance(pattern, Full | Window | Grid) and not getattr(pattern, "global_tokens", ())
} | {"window of blocks": Window([300, 40], 20), "grid of blocks": Grid((20, 15), 2, border="shift")}


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(Flex, "device", "cpu")


# With biases the oracle compares every target with every edge.
CASES = [(name, False) for name in PATTERNS] + [(name, True) for name in PATTERNS if PATTERNS[name].num_edges < 2000]


@pytest.mark.parametrize(("name", "offset_table"), CASES)
def test_flex_matches_the_oracle(name, offset_table, on_cpu):
    pattern = PATTERNS[name]
    drawn = random_call(pattern, batch=(2,), kv_heads=1, width=16, dtype=torch.float32, offset_table=offset_table)
    tensors = {name: x.detach() for name, x in drawn.items()}
    if offset_table:
        tensors["edge_bias"] = OffsetBias(tensors.pop("edge_bias.table"))
    found = attention(**tensors, pattern=pattern, backend="flex", return_lse=True)
    expected = dense_attention(**tensors, pattern=pattern, return_lse=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", [7, [5, 5, 5]])
def test_full_patterns_of_one_size_need_no_mask(sizes, causal, on_cpu, monkeypatch):
    monkeypatch.setattr("graphattn.kernels.flex._flex_attention", None)
    pattern = Full(sizes, causal=causal)
    tensors = random_call(pattern, batch=(2,), width=16, dtype=torch.float32)
    assert_matches_dense(tensors, pattern, backend="flex", return_weights=False, return_lse=False)


@pytest.mark.parametrize("name", PATTERNS)
def test_blocks_that_are_skipped_hold_no_pair(name):
    pattern = PATTERNS[name]
    low, number = _blocks(pattern)
    mask = torch.nn.functional.pad(pattern.mask(), (0, -pattern.num_sources % BLOCK, 0, -pattern.num_targets % BLOCK))
    has_pairs = mask.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK)).any(3).any(1)
    column = torch.arange(has_pairs.size(1))
    is_computed = (column >= low[:, None]) & (column < (low + number)[:, None])
    assert not bool((has_pairs & ~is_computed).any())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "tensors are on cpu"),
        ({"pattern": Edges(torch.tensor([[0], [1]]), 5)}, "only Full, Window and Grid without global tokens"),
        ({"pattern": Window(5, 1, global_tokens=(0,))}, "only Full, Window and Grid without global tokens"),
        ({"score": Additive(torch.ones(2, 16))}, "only the dot product with softmax"),
        ({"normalizer": "relu"}, "only the dot product with softmax"),
        ({"edge_bias": torch.zeros(25, 2)}, "no edge tensors except an OffsetBias"),
        ({"dropout_p": 0.1}, "no dropout and returns no weights"),
        ({"query": torch.zeros(5, 2, 24), "key": torch.zeros(5, 2, 24)}, "powers of two from 16 to 256, not 24 and 16"),
    ],
    ids=["cpu", "edges", "tokens", "additive", "relu", "bias", "dropout", "width"],
)
def test_what_flex_cannot_run_is_said(options, reason, monkeypatch):
    if reason != "tensors are on cpu":
        monkeypatch.setattr(Flex, "device", "cpu")
    x = torch.zeros(5, 2, 16)
    arguments = {"query": x, "key": x, "value": x, "pattern": Full(5), **options}
    with pytest.raises(NotImplementedError, match=rf"backend='flex' cannot run this call: .*{reason}"):
        attention(**arguments, backend="flex")


def test_auto_never_takes_flex_on_a_cpu():
    x = torch.zeros(5, 2, 16)
    assert "flex" in {kernel.name for kernel in KERNELS}
    assert explain_backend(x, x, x, Full(5)).chosen != "flex"

"""The dropout hash is frozen, uniform and a pure function of the edge's identity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import EDGE_KERNELS

from graphattn import attention
from graphattn.compiled import load
from graphattn.dropout import GOLDEN, MULTIPLIERS, WORD, edge_hash, keep_edges, keep_scale, threshold
from graphattn.testing import graph_zoo, random_call

# Frozen: a kernel written in another language must give these numbers, in every release.
VECTORS = [
    # seed, batch, target, source, occurrence, head, hash
    (0, 0, 0, 0, 0, 0, 1282570995),
    (1, 0, 0, 0, 0, 0, 3669121193),
    (2**63 - 1, 0, 0, 0, 0, 0, 316964209),
    (1234567890123456789, 3, 17, 42, 0, 5, 2897479860),
    (1234567890123456789, 3, 17, 42, 1, 5, 1774206445),
    (1234567890123456789, 3, 42, 17, 0, 5, 632753878),
    (99, 1, 2**31 + 7, 2**31 - 1, 2, 127, 10623461),
    (99, 1, 2**33 + 7, 2**40 + 1, 2, 127, 3513265485),
]


def plain_hash(seed, batch, target, source, occurrence, head):
    """The same hash in Python's own integers."""

    def mix(word):
        word ^= word >> 16
        word = word * MULTIPLIERS[0] & WORD
        word ^= word >> 15
        word = word * MULTIPLIERS[1] & WORD
        return word ^ word >> 16

    def fold(word):
        return (word ^ (word >> 32) * GOLDEN) & WORD

    state = mix(seed & WORD ^ GOLDEN)
    state = mix(state ^ seed >> 32 & WORD)
    for word in (batch, target, fold(source) + occurrence * GOLDEN & WORD, head):
        state = mix(state ^ fold(word))
    return state


def hash_one(seed, batch, target, source, occurrence, head):
    words = dict(batch=batch, target=target, source=source, occurrence=occurrence, head=head)
    tensors = {name: torch.tensor([word]) for name, word in words.items()}
    return int(edge_hash(torch.tensor([seed]), **tensors))


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_vectors_are_frozen(vector):
    *identity, expected = vector
    assert hash_one(*identity) == expected == plain_hash(*identity)


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_the_compiled_hash_is_the_same(vector):
    seed, batch, target, source, occurrence, head, expected = vector
    compiled = load("kernels.rows.cpu.jit.dropout")
    state = compiled.hash_source(compiled.hash_target(seed, batch, target), source, occurrence)
    assert compiled.mix(np.uint64(state) ^ np.uint64(head)) == expected


def test_tensors_and_python_integers_agree():
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        identity = [int(torch.randint(0, bound, (), generator=generator)) for bound in (2**62, 9, 2**34, 2**34, 5, 64)]
        assert hash_one(*identity) == plain_hash(*identity)


@pytest.mark.parametrize("dropout_p", [0.01, 0.1, 0.5, 0.9])
def test_edges_are_kept_with_the_right_probability_on_every_coordinate(dropout_p):
    index = torch.arange(200)
    grid = dict(target=index[:, None, None], source=index[None, :, None], head=torch.arange(8))
    keep = keep_edges(torch.tensor([7]), dropout_p, batch=0, occurrence=0, **grid).double()
    spread = (dropout_p * (1 - dropout_p)) ** 0.5
    for dims in ((0, 1, 2), (0, 1), (1, 2), (0, 2)):
        mean = keep.mean(dims)
        draws = keep.numel() / mean.numel()
        # Of some 400 means, each normal, none should be five deviations off.
        assert (mean - (1 - dropout_p)).abs().max() < 5 * spread / draws**0.5


@pytest.mark.parametrize("name", ["seed", "batch", "target", "source", "occurrence", "head"])
def test_neighboring_identities_are_uncorrelated(name):
    identity = {word: torch.zeros(1, dtype=torch.int64) for word in ("batch", "target", "source", "occurrence", "head")}
    seed = torch.arange(20_001) if name == "seed" else torch.tensor([5])
    if name != "seed":
        identity[name] = torch.arange(20_001)
    bits = edge_hash(seed, **identity)
    kept = (bits >= threshold(0.5)).double() - 0.5
    assert abs(float((kept[1:] * kept[:-1]).mean()) / 0.25) < 5 / 20_000**0.5
    assert bits.unique().numel() > 19_990


def test_probabilities_of_zero_and_one():
    index = torch.arange(1000)
    for dropout_p, expected in ((0.0, True), (1.0, False)):
        keep = keep_edges(torch.tensor([3]), dropout_p, batch=0, target=index, source=index, occurrence=0, head=0)
        assert bool((keep == expected).all())
    assert (keep_scale(0.0), keep_scale(0.5), keep_scale(1.0)) == (1.0, 2.0, 0.0)


@pytest.mark.parametrize("kernel", EDGE_KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("dropout_p", [1.0, 1 - 2**-40])
def test_a_probability_that_rounds_to_one_drops_every_weight(kernel, dropout_p):
    """Its threshold is 2^32, which no hash of 32 bits reaches; the scale of what would be kept is 2^40."""
    assert threshold(dropout_p) == 2**32
    tensors = random_call(graph_zoo()["unsorted edges"])
    out = attention(**tensors, pattern=graph_zoo()["unsorted edges"], dropout_p=dropout_p, backend=kernel.name)
    gradients = torch.autograd.grad(out.sum(), list(tensors.values()))
    assert not any(x.any() for x in (out, *gradients))

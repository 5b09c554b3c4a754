"""A pattern remembers what was checked and chosen for a kind of call: the next one of the kind equals the first.

Lists of edges remember it together, by their sizes. And what is wrong with a call is said as on a pattern that has seen
none.
"""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from graphattn import Additive, DotProduct, Edges, Full, Window, attention, functional
from graphattn.testing import assert_matches_dense, random_call


def edges():
    return Edges(torch.tensor([[0, 1, 2, 2, 4, 3], [1, 1, 0, 3, 3, 3]]), 5)


PATTERNS = {"edges": edges, "window": lambda: Window(5, radius=1), "full": lambda: Full([2, 3])}
VECTOR = torch.linspace(-1, 1, 8).view(2, 4)
OPTIONS = [
    {},
    {"normalizer": "relu"},
    {"score": DotProduct(0.3)},
    {"score": Additive(VECTOR.double())},
    {"score": Additive(VECTOR.double(), "leaky_relu", 0.1), "dropout_p": 0.4},
    {"backend": "scatter", "dropout_p": 0.4},
    {"normalizer": "sparsemax"},
]


def remembered(pattern):
    return functional._calls_of_edges if isinstance(pattern, Edges) else pattern.keep("calls", dict)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(functional, "_calls_of_edges", {})


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)], ids=str)
@pytest.mark.parametrize("name", PATTERNS)
def test_every_kind_of_call_equals_the_oracle_when_it_comes_again(name, batch):
    pattern = PATTERNS[name]()
    for seed in range(2):
        for options in OPTIONS:
            for edge_tensors in (False, True):
                tensors = random_call(pattern, batch=batch, edge_tensors=edge_tensors, seed=seed)
                assert_matches_dense(tensors, pattern, **options)
    assert len(remembered(pattern)) >= len(OPTIONS)


@pytest.mark.parametrize("edge_tensors", [False, True], ids=str)
def test_lists_of_edges_of_the_same_sizes_differ(edge_tensors):
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        pattern = Edges(torch.randint(5, (2, 6), generator=generator), 5)
        assert_matches_dense(random_call(pattern, edge_tensors=edge_tensors), pattern)
    assert not pattern.keep("calls", dict)


def test_edges_of_other_sizes_are_refused_after_those_of_the_same():
    x = torch.randn(5, 2, 4)
    attention(x, x, x, edges())
    for more in ({"num_sources": 9, "num_targets": 5}, {"num_sources": 5, "num_targets": 9}):
        with pytest.raises(ValueError, match=r"must have as many .* rows, 5, got 9"):
            attention(x, x, x, Edges(edges().edge_index, **more))


def damaged(tensors):
    """Calls that differ from a good one in one respect; what each must raise is found on a pattern of its own."""
    query, key, value = (tensors[name].detach() for name in ("query", "key", "value"))
    yield {"query": query[:4]}
    yield {"key": key[:4], "value": value[:4]}
    yield {"value": value[:4]}
    yield {"query": query.float()}
    yield {"key": key.float(), "value": value.float()}
    yield {"value": value.half()}
    yield {"query": query.long()}
    yield {"query": query[..., :3]}
    yield {"key": key[:, :1].expand(-1, 3, -1), "value": value[:, :1].expand(-1, 3, -1)}
    yield {"value": value.to_sparse()}
    yield {"query": query.tolist()}
    yield {"query": query.to("meta")}
    yield {"edge_bias": torch.zeros(5, 2, dtype=torch.float64)}
    yield {"edge_bias": torch.zeros(6, 2)}
    yield {"edge_key": torch.zeros(6, 2, 3, dtype=torch.float64)}
    yield {"dropout_p": True}
    yield {"dropout_p": 1.5}
    yield {"normalizer": "softmix"}
    yield {"normalizer": "relu", "return_lse": True}
    yield {"return_lse": "both"}
    yield {"return_lse": "True"}
    yield {"backend": ["numba"]}
    yield {"backend": "tile"}
    yield {"backend": "tiles", "edge_value": torch.zeros(6, 2, 4, dtype=torch.float64)}
    yield {"score": Additive(VECTOR)}
    yield {"score": "dot"}


def test_what_is_wrong_is_said_after_a_good_call_as_before(monkeypatch):
    pattern = edges()
    tensors = {name: x.detach() for name, x in random_call(pattern).items()}
    for options in ({}, {"dropout_p": 1.0}, {"return_lse": True}, {"edge_bias": torch.zeros(6, 2).double()}):
        attention(**tensors, pattern=pattern, **options)
    known = functional._calls_of_edges
    assert len(known) == 4
    for change in damaged(tensors):
        said = []
        for one in (edges(), pattern):
            # The first of them knows nothing.
            monkeypatch.setattr(functional, "_calls_of_edges", known if one is pattern else {})
            with pytest.raises((TypeError, ValueError, NotImplementedError)) as error:
                attention(**{**tensors, **change}, pattern=one)
            said.append((type(error.value), str(error.value)))
        assert said[0] == said[1], change


def test_autocast_and_transforms_are_noticed_after_a_plain_call():
    pattern = edges()
    query, key, value = (torch.randn(5, 2, 4) for _ in range(3))
    expected = attention(query, key, value, pattern)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(query, key, value, pattern).dtype == torch.bfloat16
    _, slope = torch.func.jvp(lambda x: attention(x, key, value, pattern), (query,), (torch.ones_like(query),))
    assert slope.isfinite().all()
    by_example = torch.func.vmap(lambda x: attention(x, key, value, pattern))(query.expand(3, -1, -1, -1))
    torch.testing.assert_close(by_example[2], expected)
    assert torch.equal(attention(query, key, value, pattern), expected)


@pytest.mark.parametrize("name", ["window", "edges"])
def test_calls_are_remembered_without_their_tensors_and_not_for_ever(name, monkeypatch):
    most, pattern = 20, PATTERNS[name]()
    for limit in ("MOST_SIGNATURES", "MOST_OF_EDGES"):
        monkeypatch.setattr(functional, limit, most)
    watched = []
    for width in range(1, most + 3):
        x = torch.randn(5, 2, width)
        vector = torch.randn(2, width)
        watched += [weakref.ref(x), weakref.ref(vector)]
        attention(x, x, x, pattern, score=Additive(vector))
    del x, vector
    gc.collect()
    assert not any(reference() is not None for reference in watched)
    assert len(remembered(pattern)) == 2


def test_what_a_score_captures_does_not_outlive_the_pattern():
    pattern, x = edges(), torch.randn(5, 2, 4)
    attention(x, x, x, pattern, score=lambda query_i, key_j, edge_key: (query_i * key_j).sum(-1))
    assert not functional._calls_of_edges and pattern.keep("calls", dict)

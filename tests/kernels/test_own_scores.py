"""Scores of the user's own, traced and fused: numbers, gradients, changes between calls, and what is refused."""

from __future__ import annotations

import functools
import itertools
import os
import random
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from covering import in_turn
from random_scores import RandomScore

from graphattn import Additive, Edges, Elementwise, Normalized, attention, explain_backend, explain_score
from graphattn.compiled import folders
from graphattn.nn import GraphAttention
from graphattn.testing import assert_matches_dense, pattern_zoo, random_call

ROOT = Path(__file__).resolve().parents[2]
ZOO = pattern_zoo()
F = torch.nn.functional
HEADS, WIDTH = 4, 3


def gaussian(query_i, key_j, edge_key):
    return -(query_i - key_j).square().sum(-1)


class LearnedWidth(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.width = torch.nn.Parameter(torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64))

    def forward(self, query_i, key_j, edge_key):
        return -(query_i - key_j).square().sum(-1) * F.softplus(self.width)


class MixedSuperGAT(torch.nn.Module):
    """SuperGAT's mixed score: an additive one of both ends, times the sigmoid of their product."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = lambda: torch.nn.Parameter(torch.randn(HEADS, WIDTH, generator=generator, dtype=torch.float64))
        self.of_target, self.of_source = draw(), draw()

    def forward(self, query_i, key_j, edge_key):
        ends = (query_i * self.of_target).sum(-1) + (key_j * self.of_source).sum(-1)
        return F.leaky_relu(ends * (query_i * key_j).sum(-1).sigmoid(), 0.2)


class Projected(torch.nn.Module):
    """A linear layer on one end, and a norm of it: both are computed per node."""

    def __init__(self):
        super().__init__()
        self.project = torch.nn.Linear(WIDTH, WIDTH, dtype=torch.float64)

    def forward(self, query_i, key_j, edge_key):
        return F.cosine_similarity(query_i, self.project(key_j), -1) + self.project(query_i).norm(dim=-1)


def gated(query_i, key_j, edge_key):
    return (query_i * key_j * edge_key.sigmoid()).sum(-1)


def decayed(query_i, key_j, edge_key):
    """The first feature of an edge is its age; the others are a bias."""
    return (query_i * key_j).sum(-1) * (-edge_key[..., :1].abs()).exp() + edge_key[..., 1:].sum(-1, keepdim=True)


def kinks(query_i, key_j, edge_key):
    x = query_i - key_j
    parts = (x.abs(), x.relu(), x.clamp(-0.5, 0.5), torch.maximum(query_i, key_j), torch.minimum(query_i, 0.5 * key_j))
    return sum(part.sum(-1) for part in parts) + x.norm(dim=-1)


SCORES = {
    "Gaussian": (gaussian, None),
    "cosine": (lambda query_i, key_j, edge_key: F.cosine_similarity(query_i, key_j, -1), None),
    "learned width": (LearnedWidth(), None),
    "SuperGAT": (MixedSuperGAT(), None),
    "projected": (Projected(), None),
    "gate over edges": (gated, (HEADS, WIDTH)),
    "gate shared by heads": (gated, (1, WIDTH)),
    "decay": (decayed, (4,)),
    "kinks": (kinks, None),
    # Not zero where all that it reads is.
    "waves": (lambda query_i, key_j, edge_key: (query_i - key_j).cos().sum(-1), None),
    "one side": (lambda query_i, key_j, edge_key: key_j.tanh().sum(-1), None),
}
NAMES = list(SCORES)


def tensors_of(pattern, shape, *, batch=(), dtype=torch.float64, **sizes):
    tensors = random_call(
        pattern, batch=batch, heads=HEADS, kv_heads=2, width=WIDTH, value_width=5, dtype=dtype, **sizes
    )
    if shape is not None:
        generator = torch.Generator().manual_seed(7)
        drawn = torch.randn(*batch[:1], pattern.num_edges, *shape, generator=generator, dtype=torch.float64)
        tensors["edge_key"] = drawn.to(dtype).requires_grad_()
    return tensors


# One test for all of a score's calls, as to compile it takes most of the time. Each pattern has one score; under
# `make fuzz` all of them.
@pytest.mark.parametrize("name", NAMES)
def test_every_score_equals_the_oracle(name):
    score, shape = SCORES[name]
    names = list(ZOO) if "GRAPHATTN_FUZZ" in os.environ else list(ZOO)[NAMES.index(name) :: len(NAMES)]
    for pattern, normalizer in zip(names, itertools.cycle(["softmax", "relu", "sigmoid", "identity"]), strict=False):
        tensors = tensors_of(ZOO[pattern], shape)
        assert_matches_dense(tensors, ZOO[pattern], score=score, backend="numba", normalizer=normalizer)
    assert_cut_rows_match(name)


def assert_cut_rows_match(name):
    """On a row and a column that are cut into pieces, in batches that share their edge tensors or don't."""
    score, shape = SCORES[name]
    spokes, hub = torch.arange(1, 400), torch.zeros(399, dtype=torch.int64)
    pattern = Edges(torch.cat([torch.stack([spokes, hub]), torch.stack([hub, spokes])], 1)[:, torch.randperm(798)], 400)
    tensors = tensors_of(pattern, shape, batch=(2,))
    tensors["edge_bias"] = torch.randn(pattern.num_edges, HEADS, dtype=torch.float64, requires_grad=True)
    if shape is not None:
        tensors["edge_key"] = tensors["edge_key"][len(name) % 2].detach().requires_grad_()
    assert_matches_dense(tensors, pattern, score=score, backend="numba")


# float16 is read as bfloat16 is; the interpreted loops of the GPU are tested with it.
@pytest.mark.parametrize(
    ("name", "dtype"), in_turn(["Gaussian", "gate over edges", "kinks"], [torch.bfloat16, torch.float32])
)
def test_other_dtypes_equal_the_oracle(name, dtype):
    score, shape = SCORES[name]
    pattern = ZOO["unsorted edges"]
    assert_matches_dense(tensors_of(pattern, shape, dtype=dtype), pattern, score=score, backend="numba")


# `make fuzz` draws more.
@pytest.mark.parametrize("seed", range(min(int(os.environ.get("GRAPHATTN_FUZZ", 3)), 400)))
def test_random_scores_equal_the_oracle(seed):
    pattern = ZOO[list(ZOO)[seed % len(ZOO)]]
    heads, kv_heads, width = [(4, 2, 3), (2, 2, 20), (3, 1, 1), (1, 1, 16), (5, 5, 7)][seed % 5]
    tensors = random_call(pattern, batch=[(), (2,), (2, 2)][seed % 3], heads=heads, kv_heads=kv_heads, width=width)
    if seed % 2:
        tensors["edge_key"] = torch.randn(pattern.num_edges, heads, width, dtype=torch.float64, requires_grad=True)
    assert_matches_dense(tensors, pattern, score=RandomScore(seed, heads, width), backend="numba")


def test_a_hub_of_70_000_edges_equals_the_oracle_in_bfloat16():
    count = 70_000
    edges = torch.stack([torch.arange(count) % 50, torch.zeros(count, dtype=torch.int64)])
    pattern = Edges(edges, 50)
    tensors = random_call(pattern, heads=2, width=4, dtype=torch.bfloat16)
    tensors["edge_bias"] = torch.where(torch.rand(count, 2) < 0.1, -torch.inf, 0.0).requires_grad_()
    out = attention(**tensors, pattern=pattern, score=gaussian, backend="numba")
    found = torch.autograd.grad(out.float().square().sum(), list(tensors.values()))
    exact = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
    wanted = attention(**exact, pattern=pattern, score=gaussian, backend="scatter")
    expected = torch.autograd.grad(wanted.square().sum(), list(exact.values()))
    torch.testing.assert_close(out.double(), wanted, rtol=2e-2, atol=2e-2)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=5e-2, atol=5e-2 * theirs.abs().max().item())


def test_gradients_pass_gradcheck():
    pattern = ZOO["unsorted edges"]
    tensors, module = tensors_of(pattern, None), LearnedWidth()

    def out(query, key, value, width):
        score = lambda q, k, e: torch.func.functional_call(module, {"width": width}, (q, k, e))
        return attention(query, key, value, pattern, score=score, backend="numba")

    assert torch.autograd.gradcheck(out, (*tensors.values(), module.width))


@pytest.mark.parametrize(
    ("name", "normalizer"),
    in_turn(
        ["unsorted edges", "no edges", "hub"],
        ["sparsemax", "entmax15", Elementwise(F.softplus), Normalized(torch.square)],
    ),
)
def test_every_normalizer_is_fused_with_every_score(name, normalizer):
    for score in (gaussian, Additive(torch.ones(HEADS, WIDTH, dtype=torch.float64))):
        tensors = tensors_of(ZOO[name], None)
        assert_matches_dense(tensors, ZOO[name], score=score, normalizer=normalizer, backend="numba")


def test_a_normalizer_trains_its_parameters():
    pattern, scale = ZOO["unsorted edges"], torch.nn.Linear(1, 1, dtype=torch.float64)

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = scale

        def forward(self, score):
            return (score * self.scale.weight[0]).exp()

    found = []
    for backend in ("numba", "scatter"):
        out = attention(**tensors_of(pattern, None), pattern=pattern, normalizer=Normalized(Scaled()), backend=backend)
        found.append(torch.autograd.grad(out.square().sum(), scale.weight)[0])
    torch.testing.assert_close(*found)


def test_dropout_keeps_the_weights_that_scatter_keeps():
    pattern = ZOO["parallel edges"]
    tensors = tensors_of(pattern, None)
    found = []
    for backend in ("numba", "scatter"):
        torch.manual_seed(3)
        found.append(attention(**tensors, pattern=pattern, score=gaussian, dropout_p=0.5, backend=backend))
    torch.testing.assert_close(*found)


def test_edges_without_a_finite_score_are_as_in_scatter():
    pattern = ZOO["unsorted edges"]
    tensors = tensors_of(pattern, None)
    score = lambda query_i, key_j, edge_key: (query_i * key_j).sum(-1).log()
    results = [
        attention(**tensors, pattern=pattern, score=score, backend=backend, return_weights=True)
        for backend in ("numba", "scatter")
    ]
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, equal_nan=True)
    assert results[0][1].isnan().any()


def test_any_number_of_threads_gives_the_same_bits():
    pattern = Edges(torch.randint(300, (2, 20_000), generator=torch.Generator().manual_seed(0)), 300)
    tensors, score = random_call(pattern, heads=HEADS, width=WIDTH, dtype=torch.float32), LearnedWidth().float()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = attention(**tensors, pattern=pattern, score=score, backend="numba")
            results.append((out, *torch.autograd.grad(out.square().sum(), [*tensors.values(), score.width])))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))


# What may change between two calls.


def test_captured_numbers_and_tensors_are_those_of_each_call():
    pattern = ZOO["unsorted edges"]
    tensors = tensors_of(pattern, None)
    factor, shift = 1.0, torch.zeros(HEADS, dtype=torch.float64)
    options = types.SimpleNamespace()

    def score(query_i, key_j, edge_key):
        return factor * (query_i * key_j).sum(-1) + shift * (query_i - key_j).sum(-1)

    def compare():
        found, expected = (
            attention(**tensors, pattern=pattern, score=score, backend=backend) for backend in ("numba", "scatter")
        )
        torch.testing.assert_close(found, expected)
        return found

    first = compare()
    factor = 2.0
    second = compare()
    shift = torch.ones(HEADS, dtype=torch.float64)
    third = compare()
    shift.mul_(3)
    fourth = compare()
    assert not any(torch.allclose(x, y) for x, y in ((first, second), (second, third), (third, fourth)))
    del options


SCALE = 1.0


class Scaled(torch.nn.Module):
    factor = 1.0

    def __init__(self):
        super().__init__()
        self.own = 1.0
        self.numbers = {"more": [1.0]}

    def forward(self, query_i, key_j, edge_key):
        scale = SCALE * self.factor * self.own * self.numbers["more"][0] * (1.0 if self.training else 2.0)
        return scale * (query_i * key_j).sum(-1)


def test_numbers_of_modules_classes_and_globals_are_those_of_each_call(monkeypatch):
    pattern, score = ZOO["unsorted edges"], Scaled()
    tensors = tensors_of(pattern, None)

    def run():
        found, expected = (
            attention(**tensors, pattern=pattern, score=score, backend=backend) for backend in ("numba", "scatter")
        )
        torch.testing.assert_close(found, expected)
        return found

    results = [run()]
    for change in (
        lambda: setattr(score, "own", 1.5),
        lambda: score.numbers["more"].__setitem__(0, 1.25),
        lambda: score.eval(),
        lambda: monkeypatch.setattr(Scaled, "factor", 0.75),
        lambda: monkeypatch.setitem(globals(), "SCALE", 3.0),
    ):
        change()
        results.append(run())
    assert not any(torch.allclose(x, y) for i, x in enumerate(results) for y in results[:i])


def test_a_partial_and_a_method_are_traced_too():
    pattern = ZOO["unsorted edges"]
    tensors = tensors_of(pattern, None)

    def scaled(query_i, key_j, edge_key, factor):
        return factor * (query_i * key_j).sum(-1)

    for score in (functools.partial(scaled, factor=0.5), LearnedWidth().forward):
        found, expected = (
            attention(**tensors, pattern=pattern, score=score, backend=backend) for backend in ("numba", "scatter")
        )
        torch.testing.assert_close(found, expected)


def assert_equals_scatter(score, **options):
    """The fused output, which must be scatter's."""
    pattern = ZOO["unsorted edges"]
    tensors = tensors_of(pattern, None)
    found, expected = (
        attention(**tensors, pattern=pattern, score=score, backend=backend, **options)
        for backend in ("numba", "scatter")
    )
    torch.testing.assert_close(found, expected)
    return found


def scaled_by(w):
    return lambda x: x * w


def of_both(a, b):
    f, g = scaled_by(a), scaled_by(b)
    return lambda query_i, key_j, edge_key: (f(query_i) * g(key_j)).sum(-1)


def test_tensors_of_the_same_name_or_twice_the_same_are_told_apart():
    a, b, c = torch.rand(3, WIDTH, dtype=torch.float64)
    results = [assert_equals_scatter(of_both(*pair)) for pair in ((a, b), (c, b), (a, a), (a, c))]
    assert not any(torch.allclose(x, y) for i, x in enumerate(results) for y in results[:i])


class OfItsClass(torch.nn.Module):
    kind, numbers, center = "product", {"scale": 1.0}, torch.ones(WIDTH, dtype=torch.float64)

    def forward(self, query_i, key_j, edge_key):
        if self.kind == "product":
            return (query_i * key_j * self.center).sum(-1) * self.numbers["scale"]
        return gaussian(query_i, key_j, edge_key)


def test_every_attribute_of_a_class_is_that_of_each_call(monkeypatch):
    score, results = OfItsClass(), [assert_equals_scatter(OfItsClass())]
    for name, value in (("numbers", {"scale": 0.5}), ("center", 3 * OfItsClass.center), ("kind", "distance")):
        monkeypatch.setattr(OfItsClass, name, value)
        results.append(assert_equals_scatter(score))
    assert not any(torch.allclose(x, y) for i, x in enumerate(results) for y in results[:i])


def test_a_trace_holds_in_other_modes_than_that_of_the_first_call():
    project = torch.nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
    score = lambda query_i, key_j, edge_key: (project(query_i) * key_j).sum(-1)
    pattern = ZOO["unsorted edges"]
    tensors = tensors_of(pattern, None)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        attention(**tensors, pattern=pattern, score=score, backend="numba")
    assert_matches_dense(tensors, pattern, score=score, backend="numba")


def test_threads_may_trace_at_once():
    scores = [functools.partial(lambda q, k, e, factor: factor * (q * k).sum(-1), factor=float(i)) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(assert_equals_scatter, scores))


TRUTHS = {
    "a truth as a number": lambda q, k, e: (q * k).sum(-1) * ((q * k).sum(-1) > 0).to(q.dtype),
    "a truth in a product": lambda q, k, e: ((q > k) * q + (q > k) * k).sum(-1),
    "truths of truths": lambda q, k, e: torch.where((q > k) & ~(q > 0), q, k).sum(-1),
    "layer norm": (lambda norm: lambda q, k, e: (norm(q) * k).sum(-1))(torch.nn.LayerNorm(WIDTH, dtype=torch.float64)),
    "largest of one side": lambda q, k, e: (q * k).sum(-1) + q.max(-1).values,
    "log of a sigmoid": lambda q, k, e: F.logsigmoid((q * k).sum(-1)),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_more_that_can_be_fused(name):
    assert_equals_scatter(TRUTHS[name])


# What can't be fused.


class Counting(torch.nn.Module):
    """Changes a buffer in place, replaces another, and keeps its scores."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(1, dtype=torch.float64))
        self.last = None

    def forward(self, query_i, key_j, edge_key):
        self.calls.add_(1)
        self.mean = 0.9 * self.mean + 0.1 * query_i.detach().mean()
        self.last = (query_i * key_j).sum(-1)
        return self.last * self.calls


def test_a_function_that_changes_what_it_reads_is_left_as_it_was():
    pattern, score, seen = ZOO["unsorted edges"], Counting(), []
    tensors = tensors_of(pattern, None)
    with pytest.raises(NotImplementedError, match="it changes what it reads"):
        attention(**tensors, pattern=pattern, score=score, backend="numba")
    assert score.calls == 0 and type(score.mean) is torch.Tensor and score.mean == 0 and score.last is None
    attention(**tensors, pattern=pattern, score=score)
    assert score.calls == 1 and score.last.shape == (pattern.num_edges, HEADS)
    attention(**tensors, pattern=pattern, score=lambda q, k, e: seen.append(0) or (q * k).sum(-1))
    assert seen == [0]


def test_a_score_that_is_no_float_says_so_as_in_scatter():
    pattern = ZOO["unsorted edges"]
    with pytest.raises(TypeError, match="score must have a floating-point dtype"):
        attention(**tensors_of(pattern, None), pattern=pattern, score=lambda q, k, e: (q > k).sum(-1))


def test_features_that_are_indices_are_looked_up():
    pattern, table = ZOO["unsorted edges"], torch.nn.Embedding(1, HEADS, dtype=torch.float64)
    edge_key = torch.zeros(pattern.num_edges, dtype=torch.int64)
    score = lambda query_i, key_j, kind: (query_i * key_j).sum(-1) + table(kind)
    assert_equals_scatter(score, edge_key=edge_key)


def mixes_edges(query_i, key_j, edge_key):
    score = (query_i * key_j).sum(-1)
    return score - score.mean(-2, keepdim=True)


def mixes_nodes(query_i, key_j, edge_key):
    return ((query_i - query_i.mean(-3, keepdim=True)) * key_j).sum(-1)


def depends_on_values(query_i, key_j, edge_key):
    return (query_i * key_j).sum(-1) * (1 if query_i.sum() > 0 else 2)


def writes_in_place(query_i, key_j, edge_key):
    return query_i.mul_(key_j).sum(-1)


def without_gradient(query_i, key_j, edge_key):
    with torch.no_grad():
        score = (query_i * key_j).sum(-1)
    return score + (query_i + key_j).sum(-1)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


TABLE = torch.ones(1)
RECORD = types.SimpleNamespace(factor=1.0)
REFUSED = {
    "mixes edges": (mixes_edges, "aten.mean in `return score - score.mean(-2, keepdim=True)"),
    "mixes nodes": (mixes_nodes, "its result for an edge depends on other edges"),
    "depends on values": (
        depends_on_values,
        "it depends on the values of its arguments (aten._local_scalar_dense.default in `return (query_i * key_j)",
    ),
    "writes in place": (writes_in_place, "writes in place: use its form without the underscore"),
    "without gradient": (without_gradient, "a block without any"),
    "own derivative": (lambda q, k, e: Doubled.apply((q * k).sum(-1)), "it has derivatives of its own"),
    "random": (lambda q, k, e: F.dropout((q * k).sum(-1), 0.5), "draws random numbers"),
    "linear of both": (lambda q, k, e: F.linear(q - k, torch.eye(WIDTH, dtype=q.dtype)).sum(-1), "has no fused form"),
    "largest of a row": (lambda q, k, e: (q * k).amax(-1), 'aten.amax in `"largest of a row"'),
    "hidden reads": (lambda q, k, e: (q * k).sum(-1) * getattr(RECORD, "factor"), "it calls getattr, so that"),  # noqa: B009
    "numbers of a tensor": (lambda q, k, e: (q * k).sum(-1) * TABLE.tolist()[0], "it calls tolist, so that"),
    "random branch": (
        lambda q, k, e: (q * k).sum(-1) * (1 if random.random() < 0.5 else 2),
        "it captures random.random",
    ),
    "an object": (lambda q, k, e: (q * k).sum(-1) * RECORD.factor, "it captures RECORD, a SimpleNamespace, whose"),
    "another shape": (lambda q, k, e: q * k, "it returns [E, 4, 3] in place of [*B, E, H]"),
    "its own error": (lambda q, k, e: q @ k.mT @ q.new_ones(2), "it can't be traced (RuntimeError: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_fused_says_why_in_one_line(name):
    score, reason = REFUSED[name]
    pattern = ZOO["unsorted edges"]
    tensors = tensors_of(pattern, None, dtype=torch.float64)
    with pytest.raises(NotImplementedError) as caught:
        attention(**tensors, pattern=pattern, score=score, backend="numba")
    text = str(caught.value)
    assert reason in text and "\n" not in text and ".." not in text
    assert f"{reason}" in str(explain_backend(**tensors, pattern=pattern, score=score)).replace("\n", " ")


def test_second_derivatives_name_the_kernel_that_has_them():
    pattern = ZOO["unsorted edges"]
    tensors = tensors_of(pattern, None)
    out = attention(**tensors, pattern=pattern, score=gaussian, backend="numba")
    first = torch.autograd.grad(out.square().sum(), tensors["query"], create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="backend='scatter'"):
        torch.autograd.grad(first.sum(), tensors["query"])


def test_auto_fuses_large_calls_alone_and_the_layer_trains_its_score():
    few = Edges(torch.randint(10, (2, 30)), 10)
    x = torch.randn(10, 2, 8)
    assert explain_backend(x, x, x, few, score=gaussian).chosen == "scatter"
    many = Edges(torch.randint(2000, (2, 40_000)), 2000)
    x = torch.randn(2000, 4, 16)
    assert explain_backend(x, x, x, many, score=gaussian).chosen == "numba"
    layer = GraphAttention(16, 16, heads=4, score=LearnedWidth().float())
    layer(torch.randn(2000, 16), many).sum().backward()
    assert layer.score.width.grad.abs().min() > 0


def test_explain_score_shows_the_expression_and_the_loops():
    x = torch.randn(5, HEADS, WIDTH)
    report = explain_score(gaussian, x, x)
    assert "x3 = x0 - x1" in str(report) and str(report).endswith("score = x6")
    assert "def score(begin, end" in report.loops and "def gradients_by_targets_0(begin, end" in report.loops
    with pytest.raises(NotImplementedError, match="explain_score: score"):
        explain_score(mixes_edges, x, x)
    with pytest.raises(NotImplementedError, match="score must have one vector for all targets"):
        explain_score(Additive(torch.ones(*x.shape)), x, x)


def test_the_next_process_finds_the_compiled_loops():
    code = """
import torch
from graphattn import Edges, attention
x, edges = torch.randn(50, 2, 8), Edges(torch.randint(50, (2, 300)), 50)
attention(x, x, x, edges, score=lambda query_i, key_j, edge_key: (query_i - key_j).abs().sum(-1), backend="numba")
"""
    exec(code)
    folder = folders.in_use[0]
    written = {path: path.stat().st_mtime_ns for path in folder.glob("score_*")}
    assert {".py", ".nbc"} <= {path.suffix for path in written}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr
    found = {path: path.stat().st_mtime_ns for path in folder.glob("score_*")}
    assert all(found[path] == time for path, time in written.items())

"""Every kernel equals the oracle, over the zoo, in values and all gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import EDGE_KERNELS, KERNELS_WITH_NORMALIZERS, can_run
from covering import few, pairwise

from graphattn import Additive, DotProduct, Edges, Grid, OffsetBias, attention, dense_attention
from graphattn.call import prepare
from graphattn.kernels.rows.op import SCORE_CODES
from graphattn.kernels.rows.own import needs_scores
from graphattn.normalizers import NORMALIZERS, Entmax
from graphattn.scores import SCORES, FunctionScore, Score, repeat_heads
from graphattn.testing import assert_matches_dense, pattern_zoo, random_call

PATTERNS = pattern_zoo()
HEADS, WIDTH = 4, 3


def distance(query_i, key_j, edge_key):
    """A score of the user's own: minus the squared distance."""
    score = -(query_i - key_j).square().sum(-1)
    return score if edge_key is None else score + edge_key.sum((-1, -2)).unsqueeze(-1)


def examples(cls: type[Score]) -> list[Score]:
    vector = torch.randn(HEADS, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    made = {
        DotProduct: [DotProduct(), DotProduct(scale=-2.0)],
        Additive: [Additive(vector), Additive(vector, "leaky_relu", negative_slope=0.1)],
        FunctionScore: [FunctionScore(distance)],
    }
    return made[cls]


ALL_SCORES = [score for cls in SCORES for score in examples(cls)]


def id_of(x):
    return getattr(x, "name", repr(x))


def is_valid(name, kernel, normalizer, score):
    """The sparse normalizers run on scatter alone, which treats every score alike: one score will do."""
    has_both = (kernel, normalizer) in KERNELS_WITH_NORMALIZERS and can_run(kernel, score=score)
    return has_both and (score is ALL_SCORES[0] or not issubclass(normalizer, Entmax))


# Every pattern with each kernel, normalizer and score; then every choice of these three on parallel edges and a hub.
CALLS = pairwise(PATTERNS, EDGE_KERNELS, NORMALIZERS, ALL_SCORES, valid=is_valid)
EVERY_CHOICE = itertools.product(["unsorted edges", "parallel edges", "hub"], EDGE_KERNELS, NORMALIZERS, ALL_SCORES)
CALLS = list(dict.fromkeys([*CALLS, *(row for row in EVERY_CHOICE if is_valid(*row))]))


@pytest.mark.parametrize(("name", "kernel", "normalizer", "score"), CALLS, ids=id_of)
def test_kernel_matches_oracle(name, kernel, normalizer, score):
    pattern = PATTERNS[name]
    tensors = random_call(pattern, heads=HEADS, kv_heads=2, width=WIDTH, value_width=5)
    assert_matches_dense(tensors, pattern, score=score, normalizer=normalizer.name, backend=kernel.name)


class Distance(Score):
    """What step 1 of the recipe asks for, and no more."""

    def edgewise(self, query_i, key_j, edge_key):
        return -(query_i - repeat_heads(key_j, query_i.size(-2))).abs().sum(-1)

    def dense(self, query, key, edge_key):
        pairs = query.unsqueeze(-3) - repeat_heads(key, query.size(-2)).unsqueeze(-4)
        return -pairs.abs().sum(-1).movedim(-1, -3)


@pytest.mark.parametrize("name", ["hub", "window ragged", "full bipartite"])
def test_a_score_of_a_new_class_runs_on_the_kernels_that_trace_it(name):
    kernels = [kernel.name for kernel in EDGE_KERNELS if can_run(kernel, score=Distance())]
    assert kernels == ["numba", "scatter"]
    tensors = random_call(PATTERNS[name], heads=HEADS, kv_heads=2, width=WIDTH)
    for kernel in kernels:
        assert_matches_dense(tensors, PATTERNS[name], score=Distance(), backend=kernel)


def test_an_activation_that_the_loops_lack_is_traced(monkeypatch):
    monkeypatch.delitem(SCORE_CODES, "tanh")
    score, pattern = ALL_SCORES[2], PATTERNS["hub"]
    tensors = random_call(pattern, heads=HEADS, width=WIDTH)
    assert needs_scores(prepare("attention", **tensors, pattern=pattern, score=score))
    assert_matches_dense(tensors, pattern, score=score, backend="numba")


@pytest.mark.parametrize(
    ("name", "kernel", "score", "batch"),
    pairwise(
        [name for name in PATTERNS if name != "hub"],
        EDGE_KERNELS,
        ALL_SCORES,
        [(), (2,), (2, 3)],
        valid=lambda name, kernel, score, batch: can_run(kernel, score=score),
    ),
    ids=id_of,
)
def test_kernel_matches_oracle_with_edge_tensors_dropout_and_batch(name, kernel, score, batch):
    pattern = PATTERNS[name]
    tensors = random_call(pattern, batch=batch, heads=HEADS, kv_heads=2, width=WIDTH, edge_tensors=True)
    assert_matches_dense(tensors, pattern, score=score, backend=kernel.name, dropout_p=0.4)


@pytest.mark.parametrize("kernel", ["numba", "scatter"])
@pytest.mark.parametrize(
    ("pattern", "batch", "width", "options"),
    [
        (PATTERNS["hub"], (), WIDTH, {}),
        (PATTERNS["parallel edges"], (2, 3), WIDTH, {"dropout_p": 0.4, "normalizer": "sigmoid"}),
        (PATTERNS["full bipartite"], (2,), WIDTH, {"dropout_p": 0.4}),
        # A row of 1,400 edges is cut into pieces.
        (
            Edges(torch.stack([torch.arange(1500) % 7, torch.arange(1500) // 1400]), num_sources=7, num_targets=2),
            (2,),
            WIDTH,
            {},
        ),
        # Scores are computed again for sources.
        (PATTERNS["unsorted edges"], (), 1, {"normalizer": "identity"}),
    ],
    ids=id_of,
)
def test_each_target_has_a_vector_of_its_own(pattern, batch, width, options, kernel):
    shape = (pattern.num_targets, HEADS, width)
    vector = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    sizes = dict(heads=HEADS, kv_heads=2, width=width, value_width=width, edge_tensors=True)
    for activation in ("tanh", "leaky_relu"):
        tensors = random_call(pattern, batch=batch, **sizes)
        assert_matches_dense(tensors, pattern, score=Additive(vector, activation), backend=kernel, **options)


@pytest.mark.parametrize("kernel", ["numba", "scatter"])
def test_targets_with_vectors_may_attend_to_nan(kernel):
    pattern = Edges(torch.tensor([[0, 1, 2], [0, 1, 1]]), 3)
    rows = torch.ones(3, 2, 4, dtype=torch.float64)
    value = torch.tensor([torch.nan, 1, 2], dtype=torch.float64)[:, None, None].expand(3, 2, 4)
    score = Additive(torch.linspace(-1, 1, 24, dtype=torch.float64).view(3, 2, 4))
    out = attention(rows, rows, value, pattern, score=score, backend=kernel)
    torch.testing.assert_close(out, dense_attention(rows, rows, value, pattern, score=score), equal_nan=True)
    assert out[0].isnan().all() and out[1:].isfinite().all()
    # Without targets there is no row to compute by itself.
    nothing = Edges(torch.zeros(2, 0, dtype=torch.long), num_sources=3, num_targets=0)
    assert dense_attention(rows[:0], rows, value, nothing).shape == (0, 2, 4)


def test_vectors_of_targets_that_no_loop_has_are_left_to_plain_torch():
    pattern, vector = PATTERNS["hub"], torch.ones(PATTERNS["hub"].num_targets, 2, 4, dtype=torch.float64)
    tensors = random_call(pattern)
    assert_matches_dense(tensors, pattern, score=Additive(vector), normalizer="sparsemax")
    rows = [x.detach() for x in tensors.values()]
    with pytest.raises(NotImplementedError, match="only a few loops know scores with a vector for each target"):
        attention(*rows, pattern, score=Additive(vector), normalizer="sparsemax", backend="numba")


@pytest.mark.parametrize(
    ("name", "kernel", "normalizer", "dtype"),
    pairwise(
        ["hub", "unsorted edges", "parallel edges", "window ragged"],
        EDGE_KERNELS,
        NORMALIZERS,
        few([torch.float32, torch.bfloat16, torch.float16], 2),
        valid=lambda name, kernel, normalizer, dtype: (kernel, normalizer) in KERNELS_WITH_NORMALIZERS,
    ),
    ids=id_of,
)
def test_low_precision_stays_within_the_oracles_own_error(name, kernel, normalizer, dtype):
    pattern = PATTERNS[name]
    tensors = random_call(pattern, width=8, dtype=dtype, edge_tensors=name != "hub")
    score = Additive(torch.ones(2, 8)) if normalizer.name == "relu" else DotProduct()
    assert_matches_dense(tensors, pattern, score=score, normalizer=normalizer.name, backend=kernel.name)


@pytest.mark.parametrize("kernel", EDGE_KERNELS, ids=lambda kernel: kernel.name)
def test_edge_tensors_may_have_batch_dimensions_of_their_own(kernel):
    pattern = PATTERNS["parallel edges"]
    tensors = random_call(pattern, batch=(2,), edge_tensors=True)
    for name in ("edge_bias", "edge_key", "edge_value"):
        tensors[name] = torch.stack([tensors[name], -tensors[name]]).detach().requires_grad_()
    assert_matches_dense(tensors, pattern, backend=kernel.name)


@pytest.mark.parametrize("kernel", EDGE_KERNELS, ids=lambda kernel: kernel.name)
def test_edge_bias_of_minus_infinity_removes_the_edge(kernel):
    pattern = PATTERNS["unsorted edges"]
    for normalizer in (cls for other, cls in KERNELS_WITH_NORMALIZERS if other is kernel):
        tensors = random_call(pattern, edge_tensors=True)
        bias = tensors["edge_bias"].detach().clone()
        bias[::3] = -torch.inf
        bias[pattern.edge_index[1] == 2] = -torch.inf
        tensors["edge_bias"] = bias
        assert_matches_dense(tensors, pattern, normalizer=normalizer.name, backend=kernel.name)


@pytest.mark.parametrize("kernel", EDGE_KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("name", [name for name, pattern in PATTERNS.items() if not isinstance(pattern, Edges)])
def test_a_table_of_offsets_is_a_bias(name, kernel):
    tensors = random_call(PATTERNS[name], batch=(2,), offset_table=True)
    assert_matches_dense(tensors, PATTERNS[name], backend=kernel.name, dropout_p=0.1)


@pytest.mark.parametrize("dtype", few([torch.bfloat16, torch.float16]), ids=str)
@pytest.mark.parametrize("normalizer", ["softmax", "sigmoid", "identity"])
@pytest.mark.parametrize("backend", ["scatter", "numba", "tiles", "dense"])
def test_the_gradient_of_a_table_is_rounded_once(backend, normalizer, dtype):
    """Each offset sums the slopes of a thousand pairs, of both signs: rounded one by one they would be 10 % off."""
    pattern = Grid((40, 40), radius=1)
    tensors = random_call(pattern, heads=1, width=8, offset_table=True, dtype=dtype)
    direction = torch.randn(1600, 1, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)
    function = dense_attention if backend == "dense" else attention
    options = {} if backend == "dense" else {"backend": backend}

    def gradient(dtype, function, **options):
        query, key, value, table = (x.detach().to(dtype).requires_grad_() for x in tensors.values())
        out = function(query, key, value, pattern, edge_bias=OffsetBias(table), normalizer=normalizer, **options)
        return torch.autograd.grad((out.double() * direction.double()).sum(), table)[0].double()

    truth = gradient(torch.float64, attention)
    error = (gradient(dtype, function, **options) - truth).abs()
    assert (error <= 2 * torch.finfo(dtype).eps * truth.abs().clamp(min=0.1)).all()


@pytest.mark.parametrize(("kernel", "normalizer"), KERNELS_WITH_NORMALIZERS, ids=lambda x: x.name)
@pytest.mark.parametrize("culprit", ["query", "key", "value"])
def test_nan_goes_where_the_oracle_has_it(culprit, normalizer, kernel):
    pattern = PATTERNS["unsorted edges"]
    tensors = {name: x.detach() for name, x in random_call(pattern).items()}
    tensors[culprit][3, 0] = torch.nan
    assert_matches_dense(tensors, pattern, normalizer=normalizer.name, backend=kernel.name)

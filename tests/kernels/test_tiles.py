"""Tiles equal the oracle on every pattern that has them, build nothing of size N x N, and say what they can't run."""

from __future__ import annotations

import pytest
import torch
from covering import each_in_turn, in_turn
from hypothesis import given, settings
from hypothesis import strategies as st

from graphattn import Additive, DotProduct, Edges, Full, Grid, OffsetBias, Window, attention
from graphattn.kernels.tiles.op import SLOPES
from graphattn.kernels.tiles.plan import read_groups, tile_shapes, why_not_cut, write_plan
from graphattn.memory import peak_memory
from graphattn.normalizers import NORMALIZERS
from graphattn.testing import assert_matches_dense, pattern_zoo, random_call

# The zoo's patterns fit into a tile each; these have many, regular ones and those at a border.
LARGE = {
    "window of strips": Window(70, radius=2),
    "window of strips, causal": Window([40, 3, 50], radius=3, causal=True),
    "window of strips, ragged": Window([60, 40], radius=4),
    "window dilated, many": Window([40, 10], radius=3, dilation=4),
    "grid of patches": Grid((9, 11), radius=1),
    "grid of patches, shift": Grid((9, 11), radius=1, border="shift"),
    "grid of patches, wrap": Grid((10, 12), radius=2, dilation=2, border="wrap"),
    "grid of patches, 3-D": Grid((3, 4, 5), radius=1),
    "grid of patches, ragged": Grid([(5, 9), (10, 3)], radius=(1, 2)),
    "full padded": Full([5, 9, 12, 30], [3, 9, 0, 20]),
    "full alike": Full([8, 8, 8]),
    "full alike, causal": Full([9, 9], causal=True),
    "full, large beside small": Full([300, 2], [3, 2]),
}
PATTERNS = {name: x for name, x in pattern_zoo().items() if isinstance(x, Full | Window | Grid)} | LARGE
PATTERNS = {name: x for name, x in PATTERNS.items() if why_not_cut(x) is None}


@pytest.mark.parametrize(
    ("name", "normalizer"), each_in_turn(PATTERNS, NORMALIZERS), ids=lambda x: getattr(x, "name", x)
)
def test_tiles_match_the_oracle(name, normalizer):
    pattern = PATTERNS[name]
    tensors = random_call(pattern, heads=4, kv_heads=2, width=3, value_width=5)
    assert_matches_dense(tensors, pattern, normalizer=normalizer.name, backend="tiles")


# The oracle compares every target with every edge.
@pytest.mark.parametrize(
    ("name", "batch"),
    in_turn([name for name, pattern in PATTERNS.items() if pattern.num_edges < 400], [(), (2, 3)]),
    ids=str,
)
def test_tiles_match_the_oracle_with_biases_dropout_and_batch(name, batch):
    pattern = PATTERNS[name]
    options = dict(score=DotProduct(scale=-2.0), backend="tiles", dropout_p=0.4)
    tensors = random_call(pattern, batch=batch, heads=2, width=4, edge_tensors=True)
    del tensors["edge_key"], tensors["edge_value"]
    assert_matches_dense(tensors, pattern, **options)
    tensors["edge_bias"] = torch.randn(*batch, pattern.num_edges, 2, dtype=torch.float64, requires_grad=True)
    assert_matches_dense(tensors, pattern, **options)
    assert_matches_dense(random_call(pattern, batch=batch, offset_table=True), pattern, **options)


@pytest.mark.parametrize("name", PATTERNS)
def test_torchs_own_attention_matches_the_products(name):
    # What is asked for decides the way: weights need the products, a bare call may leave all to torch.
    pattern = PATTERNS[name]
    tensors = random_call(pattern, batch=(2,), heads=2, width=8)
    bare = attention(**tensors, pattern=pattern, backend="tiles")
    out, _ = attention(**tensors, pattern=pattern, backend="tiles", return_weights=True)
    torch.testing.assert_close(bare, out)


@pytest.mark.parametrize(
    ("name", "dtype"),
    in_turn(
        ["window of strips", "grid of patches", "full padded", "full alike, causal"],
        [torch.float32, torch.float16, torch.bfloat16],
    ),
    ids=str,
)
def test_low_precision_stays_within_the_oracles_own_error(name, dtype):
    pattern = PATTERNS[name]
    tensors = random_call(pattern, width=8, dtype=dtype)
    assert_matches_dense(tensors, pattern, backend="tiles")
    bare = attention(**tensors, pattern=pattern, backend="tiles")
    exact = attention(**{key: x.double() for key, x in tensors.items()}, pattern=pattern, backend="scatter")
    torch.testing.assert_close(bare.double(), exact, rtol=16 * torch.finfo(dtype).eps, atol=16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("normalizer", SLOPES)
@pytest.mark.parametrize("name", ["window ragged", "grid 2-D"])
def test_a_bias_of_minus_infinity_removes_the_edge(name, normalizer):
    pattern = PATTERNS[name]
    tensors = random_call(pattern)
    bias = torch.randn(pattern.num_edges, 2, dtype=torch.float64)
    bias[::3] = -torch.inf
    bias[pattern.edge_index[1] == 2] = -torch.inf
    assert_matches_dense({**tensors, "edge_bias": bias}, pattern, normalizer=normalizer, backend="tiles")


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=4),
    st.integers(0, 20),
    st.integers(1, 3),
    st.booleans(),
    st.integers(1, 2),
)
def test_any_window_matches_scatter(sizes, radius, dilation, causal, heads):
    if dilation > 1 and radius and max(sizes) <= dilation:
        dilation = 1
    pattern = Window(sizes, radius, dilation=dilation, causal=causal)
    _assert_matches_scatter(pattern, heads)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=3),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.sampled_from(["clip", "shift", "wrap"]),
    st.tuples(st.booleans(), st.booleans()),
)
def test_any_grid_matches_scatter(shape, radius, border, causal):
    shortest = [min((row[axis] for row in shape if min(row)), default=9) for axis in (0, 1)]
    if border != "clip":
        radius = tuple(min(reach, (extent - 1) // 2) for reach, extent in zip(radius, shortest, strict=True))
    causal = (False, False) if border == "wrap" else causal
    _assert_matches_scatter(Grid(shape, radius, border=border, causal=causal), 1)


def _assert_matches_scatter(pattern, heads):
    tensors = random_call(pattern, heads=heads)
    found = {}
    for backend in ("tiles", "scatter"):
        out, weights = attention(**tensors, pattern=pattern, backend=backend, return_weights=True)
        gradients = torch.autograd.grad(out.square().sum() + weights.square().sum(), list(tensors.values()))
        found[backend] = (out, weights, *gradients)
    for ours, theirs in zip(found["tiles"], found["scatter"], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", PATTERNS)
def test_every_edge_is_in_one_tile(name):
    pattern = PATTERNS[name]
    groups = read_groups(*map(list, write_plan(pattern)))
    rows = torch.cat([x.targets(0, x.tiles, 0, x.height).flatten()[_kept(x)] for x in groups])
    assert torch.equal(rows.sort().values, torch.arange(pattern.num_targets))
    edges = sum(int(x.count.prod(-1).expand(x.tiles, -1).flatten()[_kept(x)].sum()) for x in groups)
    assert edges == pattern.num_edges


def _kept(group):
    return group.kept if group.kept.numel() else slice(None)


def test_nothing_of_the_size_of_the_mask_or_the_edges_is_built():
    nodes, radius = 20_000, 64
    pattern = Window(nodes, radius)
    x = torch.randn(nodes, 1, 16, requires_grad=True)
    step = lambda: torch.autograd.grad(attention(x, x, x, pattern, backend="tiles").sum(), x)
    step()
    assert not pattern.has_kept("edge_index") and not pattern.has_kept("csr")
    # 2.6 million edges: their index alone would take 39 MiB.
    assert peak_memory(step) < 16 * x.nbytes + 16 * 2**20


def test_results_repeat_bit_for_bit():
    for pattern in (Window([300, 100], 20), Grid((30, 20), 2), Full([40, 50])):
        results = []
        for _ in range(2):
            tensors = random_call(pattern, dtype=torch.float32, width=16)
            out = attention(**tensors, pattern=pattern, backend="tiles")
            results.append((out, *torch.autograd.grad(out.square().sum(), list(tensors.values()))))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_inputs_may_have_any_strides():
    pattern = Window(50, 3)
    tensors = {name: x.detach() for name, x in random_call(pattern, batch=(2,), width=4).items()}
    expected = attention(**tensors, pattern=pattern, backend="tiles")
    for order in ((2, 0, 1, 3), (3, 1, 0, 2), (1, 0, 2, 3)):
        strided = {name: x.permute(order).contiguous().permute(_inverse(order)) for name, x in tensors.items()}
        torch.testing.assert_close(attention(**strided, pattern=pattern, backend="tiles"), expected)
    expanded = {name: x[:1].expand(2, -1, -1, -1) for name, x in tensors.items()}
    assert torch.equal(*attention(**expanded, pattern=pattern, backend="tiles"))


def _inverse(order):
    return [order.index(dim) for dim in range(len(order))]


def test_a_batch_of_nothing_has_an_empty_result():
    pattern = Window(60, 4)
    x = torch.zeros(0, 60, 2, 8, requires_grad=True)
    for options in ({}, {"normalizer": "sparsemax"}, {"return_weights": True}):
        out = attention(x, x, x, pattern, backend="tiles", **options)
        out = out[0] if isinstance(out, tuple) else out
        assert out.shape == x.shape and torch.autograd.grad(out.sum(), x)[0].shape == x.shape


COMPILED = [(Window([40, 20], 3), {}), (Window([40, 20], 3), {"normalizer": "relu"})]
COMPILED += [(Window([40, 20], 3), {"return_weights": True}), (Grid((8, 8), 1, border="wrap"), {}), (Full([5, 9]), {})]


@pytest.mark.parametrize(("pattern", "options"), COMPILED, ids=str)
def test_a_compiled_graph_holds_tiles(pattern, options):
    tensors = random_call(pattern, dtype=torch.float32)
    run = lambda query, key, value: attention(query, key, value, pattern, backend="tiles", **options)
    expected = run(**tensors)
    found = torch.compile(run, fullgraph=True, backend="aot_eager")(**tensors)
    expected, found = (x if isinstance(x, tuple) else (x,) for x in (expected, found))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(x[0].square().sum(), list(tensors.values())) for x in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_the_operators_keep_torchs_rules():
    pattern = Window([20, 5], 2)
    plan, numbers = map(list, write_plan(pattern))
    tensors = [x.detach() for x in random_call(pattern, batch=(2,)).values()]
    mode = (plan, numbers, "softmax", 0.5, 0.0)
    for asked in ((False, False), (False, True)):
        torch.library.opcheck(torch.ops.graphattn.tiles_forward.default, (*tensors, None, None, None, *mode, *asked))
    grad = torch.randn_like(tensors[0])
    needs = [True, False, True, False, False]
    arguments = (grad, None, None, *tensors, None, None, None, *mode, needs)
    torch.library.opcheck(torch.ops.graphattn.tiles_backward.default, arguments)


def test_derivatives_that_tiles_lack_raise():
    pattern = Window(6, 1)
    tensors = random_call(pattern)
    out = attention(**tensors, pattern=pattern, backend="tiles")
    first = torch.autograd.grad(out.sum(), tensors["query"], create_graph=True)[0]
    with pytest.raises(NotImplementedError, match=r"no derivatives of second order. Use backend='scatter'"):
        torch.autograd.grad(first.sum(), tensors["query"])
    plain = {name: x.detach() for name, x in tensors.items()}
    run = lambda query: attention(query, plain["key"], plain["value"], pattern, backend="tiles")
    with pytest.raises(NotImplementedError, match="neither forward-mode derivatives"):
        torch.func.jvp(run, (plain["query"],), (plain["query"],))


@pytest.mark.parametrize(
    ("pattern", "options", "reason"),
    [
        (Edges(torch.tensor([[0], [1]]), 5), {}, "only Full, Window and Grid have tiles, not Edges"),
        (Window(5, 1, global_tokens=(0,)), {}, "global tokens don't fit"),
        (Grid((5,), 1, dilation=2, border="wrap"), {}, "extents that the dilation divides"),
        (Full(5), {"score": Additive(torch.ones(2, 4))}, "is not a matrix product"),
        (Full(5), {"score": lambda query, key, edge: (query * key).sum(-1)}, "is not a matrix product"),
        (Full(5), {"edge_value": torch.zeros(25, 2, 4)}, "edge_key and edge_value differ from pair to pair"),
    ],
    ids=["edges", "global tokens", "wrapped dilation", "additive", "own score", "edge tensors"],
)
def test_what_tiles_cannot_run_is_said(pattern, options, reason):
    x = torch.zeros(5, 2, 4)
    with pytest.raises(NotImplementedError, match=rf"backend='tiles' cannot run this call: .*{reason}"):
        attention(x, x, x, pattern, backend="tiles", **options)
    attention(x, x, x, pattern, **options)


def test_a_normalizer_of_the_users_own_is_not_for_tiles():
    class Halve:
        edgewise = staticmethod(lambda score, target, num_targets: score / 2)
        dense = staticmethod(lambda score, mask: score / 2)

    x = torch.zeros(5, 2, 4)
    with pytest.raises(NotImplementedError, match="it has no normalizer like"):
        attention(x, x, x, Full(5), normalizer=Halve(), backend="tiles")


def test_every_normalizer_of_the_library_has_its_slope():
    assert list(SLOPES) == [cls.name for cls in NORMALIZERS]


@pytest.mark.parametrize("name", PATTERNS)
def test_the_estimate_knows_how_many_pairs_tiles_have(name):
    pattern = PATTERNS[name]
    guess = sum(tiles * height * width for tiles, height, width in tile_shapes(pattern))
    groups = read_groups(*map(list, write_plan(pattern)))
    assert guess >= 0.4 * sum(x.tiles * x.height * x.width for x in groups)


def test_an_offset_table_that_requires_no_gradient_is_read():
    pattern = Window(40, 2)
    tensors = random_call(pattern, offset_table=True)
    table = tensors.pop("edge_bias.table").detach()
    found = [
        attention(**tensors, pattern=pattern, edge_bias=OffsetBias(table), backend=b) for b in ("tiles", "scatter")
    ]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("width", [5, 16])
def test_the_output_may_be_written_to(batch, width):
    window = Window(30, radius=2)
    tensors = random_call(window, batch=batch, width=width, dtype=torch.float32)
    expected = torch.autograd.grad((attention(**tensors, pattern=window) + 1).square().sum(), tensors["query"])
    out = attention(**tensors, pattern=window, backend="tiles")
    out += 1
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), tensors["query"]), expected)

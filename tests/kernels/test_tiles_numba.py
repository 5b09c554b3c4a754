"""Panels: softmax of bare products over windows, grids and full patterns, compiled for the CPU."""

from __future__ import annotations

import pytest
import torch
from covering import each_in_turn, in_turn
from torch.library import opcheck

from graphattn import Full, Grid, OffsetBias, Pattern, Window, attention, explain_backend
from graphattn.kernels.tiles.panels import plan as panels_plan
from graphattn.kernels.tiles.panels.plan import panel_sizes, write_panels
from graphattn.kernels.tiles.plan import why_not_cut
from graphattn.testing import assert_matches_dense, pattern_zoo, random_call

LARGER = {
    "window wide": Window(200, radius=64),
    "window wide causal": Window([150, 3, 0, 50], radius=20, causal=True),
    "window many": Window(600, radius=3),
    "window one": Window([9, 1, 70], radius=0),
    "grid": Grid((20, 37), radius=3),
    "grid thin": Grid((2, 100), radius=3),
    "grid shift": Grid((20, 37), radius=3, border="shift"),
    "grid wrap": Grid((12, 10), radius=2, dilation=2, border="wrap"),
    "grid causal": Grid((20, 9), radius=(3, 1), causal=(True, False)),
    "grid 3-D large": Grid((12, 7, 9), radius=1),
    "full large": Full([300, 20]),
    "full causal large": Full([100, 70], causal=True),
    "full padded": Full([5, 9, 12, 30], [3, 9, 0, 20]),
    # Components without targets or sources on both sides of a border between chunks, and at the ends.
    "full ragged": Full([0, 500, 0, 30, 600, 7, 0], [2, 3, 4, 0, 5, 6, 1]),
}
ZOO = {name: pattern for name, pattern in pattern_zoo().items() if why_not_cut(pattern) is None} | LARGER


def run(tensors: dict, pattern: Pattern) -> tuple:
    out = attention(**tensors, pattern=pattern, backend="tiles")
    return out, *torch.autograd.grad(out.square().sum(), list(tensors.values()))


OPTIONS = {
    "float64": {},
    "float32": dict(dtype=torch.float32),
    "shared heads": dict(batch=(2,), heads=4, kv_heads=2, value_width=48),
}


@pytest.mark.parametrize(("name", "kind"), each_in_turn(ZOO, OPTIONS))
def test_panels_equal_the_oracle(name, kind):
    pattern, options = ZOO[name], OPTIONS[kind]
    assert_matches_dense(random_call(pattern, width=16, **options), pattern, backend="tiles", return_weights=False)
    assert pattern.has_kept("panels") and not pattern.has_kept("tiles")


@pytest.mark.parametrize(("width", "value_width"), [(16, 64), (96, 32), (256, 16)])
def test_any_number_of_vectors_equals_the_oracle(width, value_width):
    assert_equals_oracle(Window(70, radius=9), width, value_width)


@pytest.mark.parametrize(
    ("pattern", "widths"),
    [
        # One graph, so that only the head differs from one task to the next: of five heads, two threads take parts.
        (Full(300), (96, 32)),
        (Window(420, radius=150, causal=True), (32, 96)),
        (Window([350, 90], radius=160), (64, 64)),
    ],
    ids=repr,
)
def test_many_sources_some_at_a_time_equal_the_oracle(pattern, widths):
    assert_equals_oracle(pattern, *widths)


def assert_equals_oracle(pattern, width, value_width):
    tensors = random_call(pattern, heads=5, width=width, value_width=value_width, dtype=torch.float32)
    assert_matches_dense(tensors, pattern, backend="tiles", return_weights=False)
    assert not pattern.has_kept("tiles")


@pytest.mark.parametrize("window", [Window(90, radius=7), Full([150, 200])], ids=repr)
def test_rows_may_lie_anywhere_in_memory(window):
    nodes, generator = window.num_targets, torch.Generator().manual_seed(0)
    packed = torch.randn(nodes, 2, 3, 48, generator=generator)
    views = [packed[:, :, i, 16:] for i in range(3)]
    turned = [x.permute(2, 1, 0).contiguous().permute(2, 1, 0) for x in views]
    expected, *gradients = run_leaves([x.contiguous() for x in views], window)
    for inputs in (views, turned):
        out, *others = run_leaves(inputs, window)
        assert torch.equal(out, expected)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(others, gradients, strict=True))


def run_leaves(inputs: list[torch.Tensor], pattern: Pattern) -> list[torch.Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attention(*leaves, pattern, backend="tiles")
    # The gradient of a sum has strides of 0.
    return [out, *torch.autograd.grad(out.sum(), leaves)]


@pytest.mark.parametrize(
    "pattern", [Window(3000, radius=40), Grid((40, 50), radius=2), Full([700, 90])], ids=["window", "grid", "full"]
)
def test_any_number_of_threads_and_any_call_gives_the_same_bits(pattern):
    tensors = random_call(pattern, width=16, kv_heads=1, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(run(tensors, pattern))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(results[0], other, strict=True))


@pytest.mark.parametrize("pattern", [Window([3000, 4], radius=40), Grid((40, 50), radius=2), ZOO["full ragged"]])
def test_chunks_of_a_color_share_no_source(pattern):
    (panels, rows, columns, _, _, chunks, fresh), (widest, *ends) = write_panels(pattern)
    assert torch.equal(rows.sort().values, torch.arange(pattern.num_targets))
    assert torch.equal(fresh.sort().values, torch.arange(pattern.num_sources)) and chunks[-1, 3] == len(fresh)
    assert ends[-1] == len(chunks) and len(ends) > 1
    covered = torch.cat([torch.arange(*chunk[:2]) for chunk in chunks.tolist()])
    assert torch.equal(covered.sort().values, torch.arange(len(panels)))
    for begin, end in zip([0, *ends], ends, strict=False):
        seen = []
        for first, last, *_ in chunks[begin:end].tolist():
            inside = [columns[column : column + count] for _, _, column, count, *_ in panels[first:last].tolist()]
            assert all(len(part) <= widest for part in inside)
            seen.append(torch.cat(inside).unique())
        assert len(torch.cat(seen)) == len(torch.cat(seen).unique())


def test_chunks_without_a_color_of_their_own_run_one_after_another(monkeypatch):
    monkeypatch.setattr(panels_plan, "BITS", 1)
    window = Window(1500, radius=40)
    assert len(write_panels(window)[1]) > 2
    assert_matches_dense(random_call(window, width=16), window, backend="tiles", return_weights=False)


@pytest.mark.parametrize(
    ("widths", "dtype"),
    in_turn([(24, 16), (1, 8), (3, 70)], [torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    ids=str,
)
def test_rows_that_arent_whole_vectors_are_made_so(widths, dtype):
    window = Window(30, radius=2)
    tensors = random_call(window, batch=(2,), width=widths[0], value_width=widths[1], dtype=dtype)
    assert_matches_dense(tensors, window, backend="tiles", return_weights=False)
    assert window.has_kept("panels") and not window.has_kept("tiles")


@pytest.mark.parametrize(
    ("options", "width"),
    [({}, 257), (dict(normalizer="relu"), 16), (dict(dropout_p=0.5), 16)],
    ids=["width", "normalizer", "dropout"],
)
def test_other_calls_take_the_products_of_torch(options, width):
    window = Window(30, radius=2)
    tensors = random_call(window, width=width, dtype=torch.float32)
    assert_matches_dense(tensors, window, backend="tiles", return_weights=False, **options)
    assert window.has_kept("tiles") and not window.has_kept("panels")


def test_operators_pass_opcheck_with_panels():
    window = Window(70, radius=5)
    query, key, value = (x.detach()[None] for x in random_call(window, width=16, dtype=torch.float32).values())
    plan, numbers = (list(part) for part in write_panels(window))
    mode = (None, None, None, plan, numbers, "softmax", 0.5, 0.0)
    needs = [True, False, True, False, False]
    forward, backward = torch.ops.graphattn.tiles_forward, torch.ops.graphattn.tiles_backward
    for op, inputs in (
        (forward, (query, key, value, *mode, False, True)),
        (backward, (query, None, query[..., 0].contiguous(), query, key, value, *mode, needs)),
    ):
        assert set(opcheck(op, inputs, test_utils=("test_schema", "test_faketensor")).values()) == {"SUCCESS"}


@pytest.mark.parametrize(("nodes", "batch"), [(0, 3), (20, 0)])
def test_empty_tensors_have_empty_results(nodes, batch):
    window, x = Window(nodes, radius=1), torch.zeros(batch, nodes, 2, 16, requires_grad=True)
    out = attention(x, x, x, window, backend="tiles")
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert out.shape == gradient.shape == x.shape


def test_the_cost_model_knows_about_how_much_panels_compute():
    for name in ("window wide", "window many", "grid", "grid thin", "grid 3-D large", "full padded"):
        scores, panels, widest = panel_sizes(ZOO[name])
        (table, _, _, spans, *_), (truth, *_) = write_panels(ZOO[name])
        computed = sum(
            16 * int(spans[1, row : row + 16].max() - spans[0, row : row + 16].min())
            for begin, count, *_ in table.tolist()
            for row in range(begin, begin + count, 16)
            if spans[1, row : min(row + 16, begin + count)].max() > 0
        )
        assert 0.5 < scores / computed < 2 and 0.5 <= panels / len(table) <= 2 and 0.5 < widest / truth < 2, name


@pytest.mark.parametrize("pattern", [Full([30, 17, 25]), Window(400, 8), Grid((20, 20), 3)], ids=repr)
def test_learned_biases_take_rows_where_no_panel_knows_them(pattern):
    tensors = random_call(pattern, width=32, offset_table=True, dtype=torch.float32)
    table = tensors.pop("edge_bias.table")
    chosen = lambda **bias: str(explain_backend(**tensors, pattern=pattern, **bias)).split()[2]
    assert chosen() == "'tiles'" and chosen(edge_bias=OffsetBias(table)) == "'numba'"


def test_tiles_too_wide_for_the_cache_take_the_products_of_torch(monkeypatch):
    monkeypatch.setattr(panels_plan, "MOST_COLUMNS", 50)
    full = Full([20, 51])
    assert_matches_dense(random_call(full, width=16), full, backend="tiles", return_weights=False)
    assert full.has_kept("tiles")


def test_an_infinite_score_makes_nan_of_its_own_rows_alone():
    window = Window(20, radius=1)
    x = torch.ones(20, 1, 16)
    x[5, 0, 0] = torch.inf
    out = attention(x, x, torch.ones_like(x), window, backend="tiles")
    assert torch.equal(out.isnan().any(-1).flatten().nonzero().flatten(), torch.tensor([4, 5, 6]))

"""The comparison says the truth about errors, memory and where it stopped; the command line says what is wrong."""

from __future__ import annotations

import dataclasses
import math
import os
import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from covering import few, pairwise

import graphattn
from graphattn import Additive, DotProduct, Edges, Full, Grid, Window, cli, dense_attention
from graphattn.cli.compare import PATTERNS, random_edges
from graphattn.compare.result import LINES
from graphattn.compare.run import _masked_attention, compare, dense_memory
from graphattn.functional import attention
from graphattn.memory import format_bytes, parse_bytes, peak_memory
from graphattn.normalizers import NORMALIZERS
from graphattn.scores import FunctionScore
from graphattn.testing import pattern_zoo, random_call

MEASURED = {
    "full": Full(80),
    "full bipartite": Full(40, 150),
    "window ragged": Window([60, 50], radius=3),
    "grid 3-D": Grid((5, 5, 4), radius=1),
    "edges": Edges(Window(90, radius=2).edge_index, 90),
    "parallel edges": Edges(torch.arange(600).view(2, 300) % 40, 60),
}
SCORES = {
    "dot product": DotProduct(),
    "tanh": Additive(torch.linspace(-1, 1, 32).view(2, 16), "tanh"),
    "leaky_relu": Additive(torch.linspace(-1, 1, 32).view(2, 16), "leaky_relu"),
    "function": FunctionScore(lambda query_i, key_j, edge_key: -(query_i - key_j).square().sum(-1)),
}


def window(size):
    return Window(size, radius=2)


def small(**options):
    return compare(window, [8, 16, 32], heads=2, width=4, repeats=1, **options)


def limit_between(low, high):
    """A memory limit that the dense side keeps at one size and breaks at the other."""
    return (dense_memory(window(low), 2, 4) + dense_memory(window(high), 2, 4)) // 2


@pytest.mark.parametrize("name", [name for name in pattern_zoo() if name != "hub"])
def test_errors_are_tiny_on_every_pattern(name):
    pattern = pattern_zoo()[name]
    comparison = compare(lambda size: pattern, 1, heads=2, width=4, repeats=1)
    assert comparison.largest_error(torch.float64) < 1e-13
    assert comparison.largest_error(torch.float32) < 1e-5
    assert (comparison.rows[0].targets, comparison.rows[0].edges) == (pattern.num_targets, pattern.num_edges)


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_errors_name_the_output_and_every_gradient(score):
    row = compare(window, 20, heads=2, width=16, score=score, repeats=1).rows[0]
    names = ["out", "query", "key", "value"] + ["score.vector"] * isinstance(score, Additive)
    assert [list(errors) for errors in row.errors.values()] == [names, names]
    assert max(row.errors[torch.float64].values()) < 1e-13
    # Exact agreement in half the digits would mean that float32 was never used.
    assert 1e-9 < max(row.errors[torch.float32].values()) < 1e-5


@pytest.mark.parametrize("wrong", ["out", "query", "key", "value", "score.vector"])
def test_a_wrong_output_or_gradient_shows_in_its_column(wrong, monkeypatch):
    def off(name, x):
        """The value of x, and 1.01 times its gradient where `name` is the wrong one."""
        return x + 0.01 * (x - x.detach()) if name == wrong else x

    def wrong_attention(query, key, value, pattern, *, score, **options):
        score = Additive(off("score.vector", score.vector))
        out = attention(off("query", query), off("key", key), off("value", value), pattern, score=score, **options)
        return out + 0.01 * out.detach() if wrong == "out" else out

    monkeypatch.setattr("graphattn.compare.run.attention", wrong_attention)
    comparison = compare(window, 16, heads=2, width=16, score=SCORES["tanh"], repeats=1)
    for errors in comparison.rows[0].errors.values():
        assert errors.pop(wrong) == pytest.approx(0.01, rel=1e-3)
        assert max(errors.values()) < 1e-5


def test_a_score_may_ignore_the_key():
    comparison = compare(window, 8, score=lambda query_i, key_j, edge_key: query_i.sum(-1), repeats=1)
    assert comparison.rows[0].errors[torch.float32]["key"] == 0


def test_the_largest_error_lets_nan_through():
    first, second, third = small().rows
    spoiled = dataclasses.replace(second, errors={torch.float32: {"out": math.nan, "query": 1.0}})
    comparison = dataclasses.replace(small(), rows=(first, spoiled, third))
    assert math.isnan(comparison.largest_error())
    assert not math.isnan(comparison.largest_error(torch.float64))


def test_the_memory_meter_counts_known_allocations_exactly():
    held = torch.empty(5000)

    def allocate():
        first, second = torch.empty(1000), torch.empty(3000)
        del first
        third = torch.empty(500, dtype=torch.float64)
        return second, third, held

    assert peak_memory(allocate) == 4 * (1000 + 3000)


def test_the_memory_meter_sees_the_backward():
    x = torch.zeros(1000, requires_grad=True)
    # Two results of exp are saved; a gradient comes on top.
    assert 3 * 4000 <= peak_memory(lambda: x.exp().exp().sum().backward()) < 4 * 4000


def test_memory_is_not_measured_where_torch_keeps_no_records(monkeypatch):
    class Blind:
        profiler = SimpleNamespace()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    assert peak_memory(lambda: None) is None
    monkeypatch.setattr(torch.profiler, "profile", lambda **_: Blind())
    comparison = small()
    assert comparison.rows[0].sparse.memory is None
    assert "not measured" in str(comparison)
    assert [text.get_text() for text in comparison.plot()[1].texts] == ["not measured"]


@pytest.mark.parametrize(
    ("name", "score", "normalizer", "dtype"),
    pairwise(MEASURED, SCORES.values(), NORMALIZERS, [torch.float32, torch.float64]),
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_the_estimate_of_dense_memory_is_within_a_factor_of_two(name, score, normalizer, dtype):
    pattern = MEASURED[name]
    tensors = random_call(pattern, heads=2, width=16, dtype=dtype)

    def step():
        out = dense_attention(**tensors, pattern=pattern, score=score.to(dtype), normalizer=normalizer.name)
        torch.autograd.grad(out, list(tensors.values()), torch.ones_like(out))

    step()
    estimate = dense_memory(pattern, 2, 16, score=score, normalizer=normalizer.name, dtype=dtype)
    assert 0.5 <= estimate / peak_memory(step) <= 2


def test_memory_of_a_comparison_is_that_of_one_forward_and_backward():
    row = compare(Full, 64, heads=2, width=16, repeats=1, backend="scatter").rows[0]
    assert 0.5 <= dense_memory(Full(64), 2, 16, dtype=torch.float32) / row.dense.memory <= 2
    # The scatter kernel gathers query, key and value for each edge, all in float32.
    assert row.sparse.memory > 3 * 64 * 64 * 2 * 16 * 4


@pytest.mark.parametrize("score", [DotProduct(), DotProduct(scale=0.1)], ids=repr)
@pytest.mark.parametrize("name", ["full", "full bipartite", "window ragged", "grid 3-D", "edges"])
def test_sdpa_with_the_mask_computes_the_same(name, score):
    tensors = random_call(MEASURED[name], heads=2, width=16, dtype=torch.float64)
    ours = attention(**tensors, pattern=MEASURED[name], score=score)
    torch.testing.assert_close(_masked_attention(**tensors, pattern=MEASURED[name], score=score), ours)


@pytest.mark.parametrize("name", ["window ragged", "grid 3-D", "edges"])
def test_the_estimate_of_sdpa_is_within_a_factor_of_two(name):
    # Large enough for the mask to be nearly all.
    pattern = {"window ragged": Window([600, 500], 3), "grid 3-D": Grid((10, 10, 9), 1)}.get(name)
    pattern = Edges(Window(900, radius=2).edge_index, 900) if pattern is None else pattern
    row = compare(lambda size: pattern, 1, heads=1, width=4, repeats=1).rows[0]
    assert 0.5 <= row.estimates["masked"] / row.masked.memory <= 2


@pytest.mark.parametrize(
    ("pattern", "options"),
    [
        (MEASURED["edges"], {"normalizer": "relu"}),
        (MEASURED["edges"], {"score": SCORES["tanh"], "width": 16}),
        (MEASURED["parallel edges"], {}),
    ],
    ids=["relu", "additive", "parallel edges"],
)
def test_sdpa_is_left_out_where_it_would_compute_something_else(pattern, options):
    comparison = compare(lambda size: pattern, 1, heads=2, repeats=1, **options)
    assert comparison.rows[0].masked is None and comparison.sides == ("sparse", "dense")
    assert "SDPA" not in str(comparison) and "dense oracle/" in str(comparison)
    assert [len(axis.lines) for axis in comparison.plot()] == [2, 2]


def test_the_oracle_is_named_and_sdpa_stands_beside_it():
    comparison = small()
    assert "\ndense oracle, for verification: dense_attention()\n" in str(comparison)
    assert "\nSDPA: scaled_dot_product_attention() with the pattern as its mask\n" in str(comparison)
    first = str(comparison).splitlines()[2]
    assert first.split() == ["sparse", "SDPA", "dense", "oracle", "SDPA/"] * 2
    for axis in comparison.plot():
        names = [text.get_text() for text in axis.get_legend().get_texts()]
        assert names == ["sparse: attention()", "SDPA with the mask", "dense oracle, for verification"]
        assert "SDPA / sparse" in axis.get_title(loc="left")


def test_what_a_pattern_keeps_is_not_counted():
    pattern = Window(200, radius=2)
    first, second = (
        compare(lambda size: pattern, 1, heads=1, width=4, repeats=1, memory_limit=0).rows[0].sparse for _ in range(2)
    )
    assert first.memory == second.memory


def test_bytes_are_written_with_three_digits():
    assert [format_bytes(count) for count in (999, 1000, 2**20 - 1)] == ["999 B", "0.977 KiB", "1 MiB"]


@pytest.mark.parametrize("count", [0, 1, 999, 1536, 2**20, 2**31, 3 * 2**40])
def test_bytes_are_read_as_they_are_written(count):
    assert parse_bytes("compare", "--memory-limit", format_bytes(count)) == count


@pytest.mark.parametrize(("text", "count"), [("7", 7), ("2GB", 2 * 10**9), ("2 gib", 2**31), (" .5KiB ", 512)])
def test_bytes_may_have_decimal_units_and_any_case(text, count):
    assert parse_bytes("compare", "--memory-limit", text) == count


def test_dense_stops_at_the_limit_and_the_table_says_so():
    comparison = small(memory_limit=limit_between(8, 16))
    assert [row.dense is None for row in comparison.rows] == [False, True, True]
    assert [bool(row.errors) for row in comparison.rows] == [True, False, False]
    assert all(row.sparse.seconds > 0 for row in comparison.rows)
    need, limit = format_bytes(comparison.rows[1].estimates["dense"]), format_bytes(comparison.memory_limit)
    said = f"skipped: dense oracle stops before N = 16, where it needs about {need} in float64. The limit is {limit}."
    assert said in str(comparison).splitlines()
    # Time and memory of two sizes, and the line itself.
    assert str(comparison).count("skipped") == 5


def test_dense_does_not_start_again_after_it_stopped():
    def make(size):
        return window(64 if size == 2 else 8)

    assert not compare(make, [1, 2, 3], heads=2, width=4, repeats=1).skipped("dense")
    stopped = compare(make, [1, 2, 3], heads=2, width=4, repeats=1, memory_limit=limit_between(8, 64))
    assert [row.size for row in stopped.skipped("dense")] == [2, 3]


def test_without_a_stop_nothing_is_said_of_one():
    comparison = small()
    assert "skipped" not in str(comparison)
    assert not any(axis.texts for axis in comparison.plot())


def test_the_picture_ends_the_dense_line_at_the_stop_and_says_so():
    comparison = small(memory_limit=limit_between(16, 32))
    for axis in comparison.plot():
        sparse, masked, dense, stop = axis.lines
        assert list(sparse.get_xdata()) == list(masked.get_xdata()) == [8, 16, 32]
        assert list(dense.get_xdata()) == [8, 16]
        assert list(stop.get_xdata()) == [16]
        assert "dense oracle stops before N = 32" in axis.texts[0].get_text()
        assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")


def test_the_picture_is_titled_with_pattern_heads_width_and_error():
    comparison = small(name="narrow window")
    figure = comparison.plot()[0].figure
    said = " ".join(text.get_text() for text in [figure._suptitle, *figure.texts])
    assert "narrow window" in said
    assert "2 heads of width 4" in said
    assert f"{comparison.largest_error():.1e}" in said


def test_the_picture_is_drawn_on_the_axes_that_are_given():
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots(1, 2)
    assert small().plot(axes) is axes
    assert len(axes[0].lines) == len(axes[1].lines) == 3
    assert figure._suptitle is None


@pytest.mark.parametrize("memory_limit", [0, 2**31], ids=["all skipped", "none skipped"])
def test_one_size_is_enough_for_table_and_picture(memory_limit):
    comparison = compare(window, 8, heads=1, width=4, repeats=1, memory_limit=memory_limit)
    assert "1 head of width 4" in str(comparison)
    assert comparison.plot()[0].figure.canvas.get_width_height()[0] > 0


def test_size_labels_do_not_crowd():
    comparison = small()
    rows = tuple(dataclasses.replace(comparison.rows[0], targets=size) for size in (100, 101, 102, 200, 800))
    for axis in dataclasses.replace(comparison, rows=rows).plot():
        assert [label.get_text() for label in axis.get_xticklabels()] == ["100", "200", "800"]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"sizes": [8, 0]}, ValueError, "compare: sizes must be at least 1, got 0."),
        ({"sizes": []}, ValueError, "compare: sizes must name at least one size."),
        ({"sizes": [2.5]}, TypeError, "compare: sizes must be an integer, got 2.5"),
        ({"heads": 0}, ValueError, "compare: heads must be at least 1, got 0."),
        ({"repeats": 0}, ValueError, "compare: repeats must be at least 1, got 0."),
        ({"memory_limit": -1}, ValueError, "compare: memory_limit must be at least 0, got -1."),
        ({"make_pattern": str}, TypeError, "compare: make_pattern must return a Pattern, got str."),
        ({"normalizer": "softmx"}, ValueError, "Did you mean 'softmax'?"),
        ({"score": 3}, TypeError, "compare: score must be"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(options, error, text):
    arguments = {"make_pattern": window, "sizes": 8, **options}
    with pytest.raises(error) as caught:
        compare(arguments.pop("make_pattern"), arguments.pop("sizes"), **arguments)
    assert text in str(caught.value)


def run(capsys, *arguments):
    status = cli.main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


SMALL = ("compare", "--sizes", "16", "25", "--heads", "2", "--width", "4", "--repeats", "1")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_prints_a_table_and_writes_a_picture(pattern, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    option = {"radius": ["--radius", "3"], "degree": ["--degree", "3"]}.get(PATTERNS[pattern].option, [])
    status, out, err = run(capsys, *SMALL, "--pattern", pattern, *option)
    assert status == 0
    assert out.splitlines()[-1] == f"Picture: outputs/compare_{pattern}.png"
    assert "2 heads of width 4, softmax of DotProduct(), float32 on cpu" in out.splitlines()[0]
    assert "compare:" in err

    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    picture = imread(tmp_path / "outputs" / f"compare_{pattern}.png")
    assert picture.shape[0] > 500
    for line in LINES.values():
        assert (abs(picture[..., :3] - to_rgb(line["color"])).sum(-1) < 0.02).any()


def test_options_reach_the_comparison(capsys, tmp_path, monkeypatch):
    seen = {}

    def spy(*arguments, **options):
        seen.update(options)
        return compare(*arguments, **options)

    monkeypatch.setattr(cli.compare, "compare", spy)
    path = tmp_path / "new" / "folder" / "picture.svg"
    options = ["--score", "tanh", "--normalizer", "relu", "--backend", "scatter", "--memory-limit", "1KB"]
    status, out, _ = run(capsys, *SMALL, *options, "--output", str(path))
    assert status == 0
    assert (seen["backend"], seen["repeats"]) == ("scatter", 1)
    assert "relu of Additive([2, 4], 'tanh')" in out
    assert f"The limit is {format_bytes(1000)}." in out
    assert path.read_text().startswith("<?xml")


def test_a_grid_says_which_square_it_took(capsys):
    status, out, _ = run(capsys, *SMALL, "--sizes", "9", "17", "--pattern", "grid", "--radius", "1", "--no-picture")
    assert status == 0
    assert out.splitlines()[-1] == "--sizes 17 became N = 16, the nearest square."
    assert "became N = 9" not in out


def test_random_edges_have_their_degree_and_never_change():
    edges = random_edges(50, 7)
    assert edges.mask().sum(1).tolist() == [7] * 50
    assert torch.equal(edges.edge_index, random_edges(50, 7).edge_index)
    assert random_edges(5, 5).mask().all()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--pattern", "widnow"],
            "--pattern must be one of 'full', 'causal', 'window', 'grid', 'random', 'relations', got 'widnow'",
        ),
        (["--pattern", "widnow"], "Did you mean 'window'?"),
        (["--memory-limit", "2 Gigs"], "got '2 Gigs'. Use --memory-limit 2GiB."),
        (["--radius", "-1"], "compare: --radius must be at least 0, got -1."),
        (["--sizes", "0"], "compare: --sizes must be at least 1, got 0."),
        (["--sizes", "few"], "argument --sizes: invalid int value: 'few'"),
        (["--heads", "0"], "compare: --heads must be at least 1, got 0."),
        (["--degree", "3"], "compare: --degree does not apply to --pattern window, got 3."),
        (
            ["--pattern", "random", "--degree", "20"],
            "compare: --degree must be at most 16, the number of nodes, got 20.",
        ),
        (["--score", "dot_produkt"], "Did you mean 'dot_product'?"),
        (["--normalizer", "softmx"], "Did you mean 'softmax'?"),
        (["--backend", "scater"], "Did you mean 'scatter'?"),
        (["--output", "picture.docx"], "must be one of '.png', '.svg', '.pdf', got '.docx'"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_status_two(arguments, text, capsys):
    status, out, err = run(capsys, *SMALL, "--no-picture", *arguments)
    assert (status, out) == (2, "")
    assert text in err.splitlines()[-1]
    assert "Traceback" not in err
    assert len([line for line in err.split("\n") if line]) == 1


def test_a_backend_that_cannot_run_the_call_is_one_line_and_status_two(capsys, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("attention: backend='other' cannot run this call: it is too hot.")

    monkeypatch.setattr("graphattn.compare.run.attention", refuse)
    status, out, err = run(capsys, *SMALL)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == "attention: backend='other' cannot run this call: it is too hot."


def test_a_picture_that_cannot_be_written_is_said_after_the_table(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    status, out, err = run(capsys, *SMALL, "--output", str(tmp_path / "file" / "picture.png"))
    assert status == 2
    assert "window of radius 16" in out
    assert "compare: --output must be a writable path" in err.splitlines()[-1]


def test_without_matplotlib_the_table_still_prints(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, _ = run(capsys, *SMALL)
    assert status == 0
    assert "Largest error" in out
    assert out.splitlines()[-1].endswith("Use pip install 'graphattn[plot]'")
    with pytest.raises(ImportError, match="plot: matplotlib must be installed"):
        small().plot()


def test_the_package_alone_prints_its_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["graphattn"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("graphattn", run_name="__main__")
    assert left.value.code == 0
    assert "compare" in capsys.readouterr().out


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"graphattn {graphattn.__version__}\n"


@pytest.mark.parametrize("arguments", few([[*SMALL, "--no-picture"], ["--help"]]), ids=" ".join)
def test_a_reader_that_stops_ends_the_program_in_silence(arguments):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "graphattn", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    os.close(write)
    assert done.returncode == 141
    assert "Broken pipe" not in done.stderr and "Traceback" not in done.stderr


def test_a_fresh_process_loads_nothing_heavy_and_profiles_in_silence():
    code = (
        "import sys, os, torch, graphattn; assert 'graphattn.compare' not in sys.modules; "
        "from graphattn import cli; from graphattn.memory import peak_memory; assert 'matplotlib' not in sys.modules; "
        "assert peak_memory(lambda: torch.empty(10)) == 40 == peak_memory(lambda: torch.empty(10)); "
        "assert 'KINETO_LOG_LEVEL' not in os.environ"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

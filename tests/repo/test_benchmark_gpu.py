"""The GPU's benchmark on tiny sizes and a CPU: that its first run on a GPU doesn't end at a slip of the pen."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

import pytest
import torch

from graphattn import Edges
from graphattn.kernels import flex

pytest.importorskip("triton", reason="needs Triton, which Linux alone has")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    return gpu


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_every_case_measures_all_of_its_lines(gpu, monkeypatch, tmp_path):
    import gather_gpu

    (tmp_path / "README.md").write_text("not measured yet\n")
    monkeypatch.setattr(flex.Flex, "device", "cpu")
    monkeypatch.setattr(gpu, "compiled", lambda function: function)
    # Interpreted it takes seconds, so that it has a test of its own.
    monkeypatch.setattr(gather_gpu, "gathers", lambda *inputs: {"gather 1": lambda: None})

    def once(systems, seconds, most):
        for system in systems.values():
            system()
        return {name: [1.0 + place] * 3 for place, name in enumerate(systems)}

    monkeypatch.setattr(gpu.harness, "race", once)
    # A busy machine may take longer than a GPU's share of time.
    monkeypatch.setattr(gpu, "at_most", lambda seconds: contextlib.nullcontext())
    options = [
        "--seconds",
        "3600",
        "--device",
        "cpu",
        "--backend",
        "scatter",
        "--scale",
        "1000000",
        "--output",
        str(tmp_path),
    ]
    lines = gpu.main(options)
    assert [line.detail for line in lines if line.measured is None or "failed" in line.detail] == []
    assert all(line.detail for line in lines) and len({(line.work, line.against) for line in lines}) == len(lines)
    found = json.loads((tmp_path / "results.json").read_text())
    assert len(found["lines"]) == len(lines) >= 35
    assert {"gpu", "torch", "triton", "copy GB/s", "L2 copy GB/s", "row gather GB/s"} <= found["machine"].keys()
    assert (tmp_path / "results.md").read_text().count("\n| ") == len(lines) + 1
    assert not (tmp_path / "README.md").exists()


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="a GPU is here: make gpu runs the roof")
def test_the_roof_gathers_the_rows_of_each_target(gpu, monkeypatch):
    import gather_gpu

    made = []
    monkeypatch.setattr(
        torch, "empty", lambda *shape, **options: made.append(torch.zeros(*shape, **options)) or made[-1]
    )
    edge_index = torch.tensor([[0, 3, 3, 1, 2, 0], [0, 0, 4, 1, 4, 1]])
    key, value = (torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    loops = gather_gpu.gathers(key, value, Edges(edge_index, 5))
    expected = torch.zeros(5, 8).index_add(0, edge_index[1], (key + value).view(5, 8)[edge_index[0]])
    assert list(loops) == ["gather 1", "gather 4", "gather 16"]
    for name in ("gather 1", "gather 4"):
        made[-1].fill_(torch.nan)
        loops[name]()
        torch.testing.assert_close(made[-1], expected)


def test_a_case_that_fails_or_takes_too_long_is_written_down_and_the_next_one_runs(gpu, tmp_path):
    def fail(lines):
        lines[0].measured = 3.0
        raise RuntimeError("no kernel image | is available\nfor this device")

    def measure(lines):
        lines[0].measured, lines[0].detail = 2.0, "fine"

    case = lambda measure, *names: gpu.Case([gpu.asked(name, "peer", 1.0) for name in names], measure, 0.2)
    found = [case(fail, "a", "b"), case(lambda lines: time.sleep(5), "c"), case(measure, "d")]
    gpu.run(found, gpu.Setting("cpu"), 10, tmp_path)
    lines = {line["work"]: line for line in json.loads((tmp_path / "results.json").read_text())["lines"]}
    assert lines["b"]["detail"] == "failed: RuntimeError: no kernel image / is available"
    assert lines["b"]["reached"] == "not measured" and lines["a"]["detail"].startswith("failed: RuntimeError")
    assert lines["c"]["detail"] == "failed: TimeoutError: stopped after 0 s"
    assert lines["d"]["reached"] == "reached" and lines["d"]["detail"] == "fine"
    late = [case(measure, "late")]
    gpu.run(late, gpu.Setting("cpu"), 0, tmp_path)
    assert late[0].lines[0].detail == "failed: TimeoutError: no time was left"


def test_a_power_law_has_the_hub_that_was_asked_for(gpu):
    torch.manual_seed(0)
    setting = gpu.Setting("cpu")
    source, target = gpu.power_law(setting, 1000, 100_000, 10_000)
    for end in (source, target):
        assert 9_500 < int(end.bincount(minlength=1000).max()) < 10_500
    assert target.diff().ge(0).all() and source.max() < 1000
    assert gpu.uniform(setting, 10, 3)[1].bincount().tolist() == [3] * 10


def test_the_page_of_results_says_what_was_measured():
    page = ROOT / "benchmarks" / "results" / "gpu" / "README.md"
    results = page.with_name("results.json")
    assert page.read_text() == "not measured yet\n" if not results.exists() else not page.exists()

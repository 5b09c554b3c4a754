"""The file of a calibration, what is fitted, and the check of a GPU's kernels: with Triton's interpreter for a GPU."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import re
from dataclasses import replace

import pytest
import torch

import graphattn
from graphattn import Edges, Full, Window, attention, calibrated, explain_backend
from graphattn.calibrated import costs_of, identity_of, read_machines, write_machine
from graphattn.calibration import check, probes, rates, run
from graphattn.calibration.fit import fit_costs
from graphattn.cli import main
from graphattn.costs import CPU, allows, allows_any
from graphattn.errors import _warned
from graphattn.kernels import KERNELS, Result
from graphattn.kernels.rows.gpu import kernel as gpu_kernel
from graphattn.kernels.rows.gpu import plan as gpu_plan
from graphattn.kernels.rows.gpu.buffers import _guards
from graphattn.kernels.rows.op import FUNCTIONS
from graphattn.testing import random_call

DEVICE = torch.device("cpu")
EDGES = Edges(torch.tensor([[0, 1, 2, 0, 0], [1, 1, 1, 3, 3]]), 5)
X = torch.zeros(5, 2, 4)
RUNS = itertools.count()


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    """A file of this test alone, which is read at its first call; it isn't there yet."""
    path = tmp_path / "cache" / "calibration.json"
    monkeypatch.setenv("GRAPHATTN_CALIBRATION", str(path))
    monkeypatch.setattr(calibrated, "_known", {})
    _warned.discard("calibration")
    _warned.discard("unchecked gpu")
    return path


def machine(costs=None, **changes):
    found = {**identity_of(DEVICE), "costs": costs or {"scatter_call": 1e-9}, "features": [], "refused": []}
    return {**found, **changes}


def test_auto_chooses_by_the_file_and_says_so(file):
    assert explain_backend(X, X, X, EDGES).chosen == "numba"
    write_machine(file, machine())
    # It is read once.
    assert explain_backend(X, X, X, EDGES).chosen == "numba"
    calibrated.forget()
    report = explain_backend(X, X, X, EDGES)
    assert report.chosen == "scatter" and str(report).endswith(f"\ncalibration: {file}")
    assert costs_of(DEVICE) is costs_of(DEVICE) and costs_of(DEVICE).scatter_bytes == CPU.scatter_bytes


def test_a_pattern_remembers_its_choice_for_these_costs_alone(file, monkeypatch):
    ran = []
    for kernel in KERNELS:
        monkeypatch.setattr(
            type(kernel),
            "run",
            lambda self, call: ran.append(self.name) or Result(call.query, None, None),
        )
    for _ in range(2):
        attention(X, X, X, EDGES)
    write_machine(file, machine())
    calibrated.forget()
    attention(X, X, X, EDGES)
    assert ran == ["numba", "numba", "scatter"]


def test_the_variable_turns_it_off(file, monkeypatch):
    write_machine(file, machine())
    monkeypatch.setenv("GRAPHATTN_CALIBRATION", "off")
    assert costs_of(DEVICE) is CPU
    with pytest.raises(ValueError, match=r"GRAPHATTN_CALIBRATION must name a file to write, got 'off'. Unset it."):
        graphattn.calibrate()


@pytest.mark.parametrize(
    ("variables", "platform", "expected"),
    [
        ({"XDG_CACHE_HOME": "/x"}, "linux", "/x/graphattn"),
        ({"HOME": "/h"}, "linux", "/h/.cache/graphattn"),
        ({"HOME": "/h"}, "darwin", "/h/Library/Caches/graphattn"),
        ({"LOCALAPPDATA": "/local"}, "win32", "/local/graphattn/Cache"),
    ],
)
def test_the_file_lies_in_the_cache_of_the_system(variables, platform, expected, monkeypatch):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "GRAPHATTN_CALIBRATION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(calibrated.sys, "platform", platform)
    assert calibrated.path_of_file().as_posix() == f"{expected}/calibration.json"


@pytest.mark.parametrize(
    "change", [{"threads": 99}, {"name": "Z80"}, {"versions": {"torch": "0.1", "graphattn": "0.0"}}], ids=str
)
def test_what_was_measured_elsewhere_is_left_alone_with_a_hint(change, file):
    write_machine(file, machine(**change))
    costs = costs_of(DEVICE)
    assert replace(costs, source=CPU.source).numbers() == CPU.numbers()
    assert f"that in {file} is for " in costs.source and "run python -m graphattn calibrate" in costs.source


def test_machines_share_a_file(file):
    write_machine(file, machine())
    write_machine(file, machine(threads=99))
    write_machine(file, machine({"linear_call": 1.0}))
    assert [found["threads"] for found in read_machines(file)] == [99, torch.get_num_threads()]
    assert costs_of(DEVICE).linear_call == 1.0


def _content(**changes):
    return json.dumps({"graphattn calibration": 1, "machines": [machine()], **changes}).encode()


DAMAGED = {
    "no text": lambda: b"\xff\x00",
    "cut off": lambda: _content()[:-9],
    "another format": lambda: _content(**{"graphattn calibration": 2}),
    "a list": lambda: b"[]",
    "a machine without costs": lambda: _content(machines=[{"device": "cpu"}]),
    "an unknown constant": lambda: _content(machines=[machine({"speed": 1.0})]),
    "a rate of nothing": lambda: _content(machines=[machine({"scatter_bytes": 0.0})]),
    "not a number": lambda: _content(machines=[machine({"scatter_call": math.nan})]),
    "features that aren't names": lambda: _content(machines=[machine(features=[1])]),
    "too long": lambda: b" " * 2**21,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=list(DAMAGED))
def test_a_damaged_file_is_a_warning(content, file):
    file.parent.mkdir()
    file.write_bytes(content())
    with pytest.warns(
        UserWarning, match=r"calibration is ignored: its file can't be used, got .*GRAPHATTN_CALIBRATION=off"
    ):
        assert costs_of(DEVICE) is CPU
    calibrated.forget()
    # Once for a process; the test would fail by another.
    assert costs_of(DEVICE) is CPU


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there are no owners here")
def test_a_file_of_another_user_is_a_warning(file, monkeypatch):
    write_machine(file, machine())
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.warns(UserWarning, match=f"it belongs to user {owner}, not to {owner + 1}"):
        assert costs_of(DEVICE) is CPU


def _write_often(path, threads):
    for _ in range(50):
        write_machine(path, machine(threads=threads))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_at_once_leave_a_whole_file(file):
    write_machine(file, machine(threads=1000))
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_write_often, args=(file, 1001 + n)) for n in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert read_machines(file)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert {found["threads"] for found in read_machines(file)} & {1001, 1002}
    assert list(file.parent.iterdir()) == [file]


def few_probes(*_):
    pattern = Window(40, radius=1)
    return [
        probes.Probe(("scatter", "linear"), pattern, random_call(pattern, dtype=torch.float32), {}),
        probes.Probe(("linear",), Full(9), random_call(Full(9)), {"normalizer": "identity"}),
    ]


@pytest.fixture
def small(monkeypatch):
    """Calls that take no time, on kernels that compile nothing."""
    monkeypatch.setattr(run, "probes_of", lambda *_: [few_probes()[1], few_probes()[0]._replace(kernels=("scatter",))])
    monkeypatch.setattr(run, "MOST_SPREAD", math.inf)
    monkeypatch.setattr(run, "measure_rates", lambda _: [rates.Rate("products", 7.0, "GFLOP/s", 0.0)] * 2)
    monkeypatch.setitem(run.SECONDS, "cpu", 0.0)


@pytest.mark.usefixtures("small")
def test_calibrate_writes_what_it_fitted_and_reports_it(file, capsys):
    assert main(["calibrate", "--quick"]) == 0
    printed = capsys.readouterr().out
    assert f"Wrote {file}" in printed and "chooses otherwise for" in printed
    assert "Window(40, radius=1), H2 D4 " in printed and "\nproducts: 7 GFLOP/s; " in printed
    (found,) = read_machines(file)
    assert found["rates"] == {"products": "7 GFLOP/s"}
    assert {"scatter_call", "linear_call"} <= found["costs"].keys() and "flex_call" not in found["costs"]
    assert costs_of(DEVICE).numbers() == {**CPU.numbers(), **found["costs"]}
    (report,) = graphattn.calibrate(progress=False)
    assert {line.kernel for line in report.lines} == {"scatter", "linear"}
    assert all(line.before > 0 and line.after > 0 and line.measured > 0 for line in report.lines)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("is_busy_at_first", [False, True])
def test_a_machine_too_busy_to_measure_keeps_the_old_file(is_busy_at_first, file, monkeypatch, capsys):
    """It is seen before anything is compiled, or by the calls themselves."""
    write_machine(file, machine())
    before = file.read_bytes()
    found = 0.9 if is_busy_at_first else 0.1
    monkeypatch.setattr(run, "measure_rates", lambda _: [rates.Rate("calls", 1.0, "us", found)] * 2)
    monkeypatch.setattr(run, "MOST_SPREAD", 0.5)
    monkeypatch.setattr(run, "spread", lambda _: 0.8)
    if is_busy_at_first:
        monkeypatch.setattr(run, "time_all", None)
    assert main(["calibrate"]) == 1
    # The last line, behind the progress bars.
    error = capsys.readouterr().err.rpartition("calibrate: machine must be idle enough")[2]
    assert error.count("\n") == 1
    assert f"got {90 if is_busy_at_first else 80}%. Stop other work" in error
    assert file.read_bytes() == before


def test_rates_of_the_machine_leave_its_threads_as_they_were(monkeypatch):
    monkeypatch.setattr(rates, "SECONDS", 1e-3)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = rates.measure_rates(DEVICE)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 8 and all(rate.amount > 0 and rate.spread >= 0 for rate in found)
    assert len({rate.name for rate in found}) == 8 and "gain of 2 threads in products" in str(found[5])


def test_what_calibrate_refuses_is_one_line(file, capsys, monkeypatch):
    for device, text in (("gpu", "must be one of 'cpu', 'cuda', 'all'"), ("cuda", "needs a GPU that torch sees")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert main(["calibrate", "--device", device]) == 2
        assert text in capsys.readouterr().err
    file.parent.write_text("not a folder")
    assert main(["calibrate"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"calibrate: file must be writable, got {file} (") and error.count("\n") == 1


def test_the_fit_finds_constants_again():
    truth = replace(CPU, scatter_call=9e-4, scatter_bytes=2e10, linear_call=2e-3, linear_flop=8e10)
    by_name = {kernel.name: kernel for kernel in KERNELS}
    timings = []
    for pattern, options in ((Window(9, 1), {}), (Window(4000, 3), {}), (Full(4), {"normalizer": "identity"}),
                             (Full(9000), {"normalizer": "identity"})):  # fmt: skip
        kernel = "linear" if options else "scatter"
        probe = probes.Probe((kernel,), pattern, random_call(pattern, width=16, dtype=torch.float32), options)
        for is_trained in (False, True):
            seconds = by_name[kernel].cost(probe.call(is_trained), truth)
            timings.append(probes.Timing(probe, kernel, is_trained, seconds, seconds))
    found = fit_costs(CPU, timings)
    for timing in timings:
        estimate = by_name[timing.kernel].cost(timing.probe.call(timing.is_trained), found)
        assert estimate == pytest.approx(timing.seconds, rel=0.02)
    assert found.numba_call == CPU.numba_call and found.tiles_flop == CPU.tiles_flop


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [{"tanh"}],
        [{"tanh", "bfloat16"}],
        [{"float64"}, {"dropout", "relu"}],
        [{"float32"}, {"dot_product"}],
        [set()],
    ],
    ids=lambda faults: " or ".join(" and ".join(sorted(some)) or "always" for some in faults) or "never",
)
def test_the_check_names_the_features_that_fail_and_enables_the_others(faults, monkeypatch):
    monkeypatch.setattr(
        check,
        "_failure",
        lambda case, *_: next((f"{fault}" for fault in faults if fault <= check._features(case)), None),
    )
    features, refusals = check.check_kernel(DEVICE, progress=False)
    assert sorted(sorted(refusal.features) for refusal in refusals) == sorted(map(sorted, faults))
    costs = replace(CPU, features=features, refused=tuple(refusal.features for refusal in refusals))
    every = {value for group in check.GROUPS for value in group if value is not None}
    singles = set().union(*(fault for fault in faults if len(fault) == 1)) if set() not in faults else every
    assert set(features) == every - singles
    for value in every:
        is_fine = not any(fault <= {value} for fault in faults)
        assert allows(costs, [value]) == is_fine, value
    for refusal in refusals:
        assert str(refusal).startswith("Stays off: ")


@pytest.fixture
def interpreted(monkeypatch):
    """Triton's interpreter, which takes milliseconds for each program, for a GPU: few features, on few edges."""
    pytest.importorskip("triton", reason="needs Triton, which Linux alone has")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("a GPU is here: calibrate runs the kernels compiled")
    monkeypatch.setattr(gpu_kernel.TritonCSR, "device", "cpu")
    monkeypatch.setitem(FUNCTIONS, "cpu", FUNCTIONS["cuda"])
    monkeypatch.setattr(gpu_plan, "PIECE_EDGES", (2, 2))
    monkeypatch.setattr(gpu_plan, "SHORT_ROW", 1)
    monkeypatch.setattr(check, "graphs", lambda: [EDGES])
    monkeypatch.setattr(check, "SIZES", {"narrow heads": (2, 1)})
    groups = (("float32",), ("dot_product",), ("softmax", "relu"), ("narrow heads",))
    monkeypatch.setattr(check, "GROUPS", (*groups, *[(None,)] * 6))


@pytest.mark.usefixtures("interpreted")
def test_the_right_kernel_is_enabled():
    features, refusals = check.check_kernel(DEVICE, progress=False)
    assert set(features) == {"float32", "dot_product", "softmax", "relu", "narrow heads"} and not refusals


def _wrong(found):
    found[0].mul_(1.001)


def _unsteady(found):
    found[0].add_(next(RUNS) * 1e-7)


def _outside(found):
    _guards[-1][-1][0] = 0.0


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (_wrong, "triton on .*: out is off by"),
        (_unsteady, "two runs differ in their bits"),
        (_outside, "something was written outside of the results"),
    ],
)
def test_a_kernel_with_a_fault_is_refused(fault, reason, monkeypatch):
    """The fault is in one normalizer."""
    right = FUNCTIONS["cpu"]

    def forward(operands):
        found = right.csr_forward(operands)
        if operands.mode.normalizer:
            fault(found)
        return found

    monkeypatch.setitem(FUNCTIONS, "cpu", right._replace(csr_forward=forward))
    if fault is _wrong:
        features, (refusal,) = check.check_kernel(DEVICE, progress=False)
        assert set(features) == {"float32", "dot_product", "softmax", "narrow heads"} and refusal.features == ("relu",)
        assert re.match(reason, refusal.reason)
        return
    case = ("float32", "dot_product", "relu", "narrow heads", *[None] * 6)
    with pytest.raises(AssertionError, match=reason):
        check._check(case, EDGES, DEVICE)


@pytest.mark.usefixtures("interpreted")
def test_a_kernel_that_does_not_compile_is_refused(monkeypatch):
    def forward(operands):
        raise ImportError("no compiler\nfor this chip")

    monkeypatch.setitem(FUNCTIONS, "cpu", FUNCTIONS["cpu"]._replace(csr_forward=forward))
    features, (refusal,) = check.check_kernel(DEVICE, progress=False)
    assert not features and str(refusal) == "Stays off: every call. ImportError: no compiler"


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("refused", [(), (("float32", "softmax"),)], ids=str)
def test_a_graph_of_torch_compile_has_only_what_was_checked(refused, monkeypatch):
    features = ("float32", "dot_product", "softmax", "narrow heads", "tanh")
    costs = replace(CPU, features=features, refused=(("tanh", "float32"), *refused), triton_call=1e-9)
    monkeypatch.setitem(calibrated._known, (DEVICE, torch.get_num_threads()), costs)
    ran = []
    for kernel in KERNELS:
        monkeypatch.setattr(
            type(kernel), "run", lambda self, call: ran.append(self.name) or Result(call.query, None, None)
        )
    torch._dynamo.reset()
    torch.compile(lambda x: attention(x, x, x, EDGES), fullgraph=True, backend="eager")(X)
    torch._dynamo.reset()
    assert (ran == ["triton"]) == (not refused)


@pytest.fixture
def gpu(monkeypatch):
    """What torch says of a chip that isn't there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some chip")
    monkeypatch.setattr(calibrated.importlib.util, "find_spec", lambda name: name)
    return torch.device("cuda", 0)


def test_a_gpu_without_a_file_says_once_that_faster_kernels_wait(gpu):
    expected = r"graphattn: Some chip waits for a check .* Run python -m graphattn calibrate --device cuda."
    with pytest.warns(UserWarning, match=expected):
        costs = costs_of(gpu)
    assert not allows_any(costs) and not allows(costs, ["float32"])
    calibrated.forget()
    assert not allows_any(costs_of(gpu))


def test_a_gpu_that_was_checked_by_us_needs_no_file(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert allows(costs_of(gpu), ["anything"])


def test_a_gpus_file_enables_what_passed(gpu, file):
    enabled = {"features": ["float32", "tanh", "dropout"], "refused": [["tanh", "dropout"]]}
    write_machine(file, {**identity_of(gpu), "costs": {"triton_call": 1e-5}, **enabled})
    costs = costs_of(gpu)
    assert costs.triton_call == 1e-5 and allows(costs, ["float32", "tanh"])
    assert not allows(costs, ["float32", "tanh", "dropout"]) and not allows(costs, ["float64"])

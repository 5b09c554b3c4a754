"""The CPU kernel among threads, forks and torch's own pool."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from covering import few

from graphattn import Edges, attention, errors
from graphattn.compiled import run_tasks, threads
from graphattn.kernels.rows.cpu import kernel
from graphattn.testing import random_call

ROOT = Path(__file__).resolve().parents[2]
# The package has a function of this name, too.
load = importlib.import_module("graphattn.compiled.load")


def large_call():
    generator = torch.Generator().manual_seed(0)
    pattern = Edges(torch.randint(0, 3000, (2, 60_000), generator=generator), 3000)
    return pattern, random_call(pattern, dtype=torch.float32, width=8)


def run(pattern, tensors):
    out = attention(**tensors, pattern=pattern, backend="numba")
    return out, *torch.autograd.grad(out.square().sum(), list(tensors.values()))


def hubs_of_a_batch():
    """A row and a column that are cut into pieces, and edge tensors to whose gradients the batch adds in turn."""
    spokes, hub = torch.arange(1, 2500), torch.zeros(2499, dtype=torch.int64)
    pattern = Edges(torch.cat([torch.stack([spokes, hub]), torch.stack([hub, spokes])], 1), 2500)
    return pattern, random_call(pattern, batch=(8,), dtype=torch.float32, edge_tensors=True)


@pytest.fixture(params=["torch's threads", "our own threads"])
def counts_of_threads(request, monkeypatch):
    """Runs loops on either kind of threads; a list of how many each call asks for, its own one left out."""
    asked, hand_over, spread = [], threads._Helpers.hand_over, load.Loop.spread
    if request.param == "our own threads":
        monkeypatch.setattr(threads, "_pool", 0)
        record = lambda helpers, work, count: asked.append(count) or hand_over(helpers, work, count)
        monkeypatch.setattr(threads._Helpers, "hand_over", record)
        return asked
    if not threads._pool:
        pytest.skip("torch's OpenMP runtime is called on Linux alone")

    def recorded(loop, pool, count, *rest):
        if count > 1:
            asked.append(count - 1)
        return spread(loop, pool, count, *rest)

    monkeypatch.setattr(load.Loop, "spread", recorded)
    return asked


@pytest.mark.parametrize("make", [large_call, hubs_of_a_batch])
def test_any_number_of_threads_gives_the_same_bits(make, counts_of_threads):
    pattern, tensors = make()
    before = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(run(pattern, tensors))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)
    # Forward and two passes backward, each on as many threads as there are: the caller's is one of them. Joining the
    # pieces of cut rows may have some as well.
    passes = len(counts_of_threads) // 2
    assert passes >= 3 and counts_of_threads == [1] * passes + [2] * passes
    for other in results[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(results[0], other, strict=True))


@pytest.mark.parametrize("make", [large_call, hubs_of_a_batch])
def test_runs_of_tasks_may_end_in_any_order(make, monkeypatch):
    """What threads may do, whether or not this machine lets them: the last run first gives the same bits."""
    pattern, tensors = make()
    before, counts = torch.get_num_threads(), []
    torch.set_num_threads(1)
    expected = run(pattern, tensors)

    def run_in_reverse(function, total, *arguments, **options):
        begins, ends = deque(), deque()
        run_tasks(functools.partial(lambda begin, end: begins.append(begin) or ends.append(end)), total, **options)
        counts.append(len(begins))
        for begin, end in sorted(zip(sorted(begins), sorted(ends), strict=True), reverse=True):
            function(begin, end, *arguments)

    monkeypatch.setattr(kernel, "run_tasks", run_in_reverse)
    try:
        torch.set_num_threads(2)
        found = run(pattern, tensors)
    finally:
        torch.set_num_threads(before)
    assert sum(count > 1 for count in counts) == 3
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_python_threads_may_call_at_once():
    pattern, tensors = large_call()
    expected = run(pattern, tensors)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: run(pattern, tensors), range(12)))
    for result in results:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(result, expected, strict=True))


def test_threads_that_wait_elsewhere_start_again():
    """Torch's threads belong to the Python thread that calls them: each of these has its own."""
    pattern, tensors = large_call()
    expected, found = run(pattern, tensors), []
    for _ in range(2):
        thread = threading.Thread(target=lambda: found.append(run(pattern, tensors)))
        thread.start()
        thread.join()
    for result in found:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(result, expected, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.parametrize("threads", few([2, 1]))
def test_a_forked_child_computes_after_its_parent_did(threads):
    code = f"""
import os, torch
from graphattn import Window, attention
torch.set_num_threads(2)
x = torch.randn(20_000, 2, 8, requires_grad=True)
window = Window(20_000, radius=4)
expected = attention(x, x, x, window, backend="numba")
expected.sum().backward()
child = os.fork()
if child == 0:
    # As in a DataLoader's worker. Torch's own operators on several threads hang after a fork: NumPy compares.
    torch.set_num_threads({threads})
    same = (attention(x, x, x, window, backend="numba").detach().numpy() == expected.detach().numpy()).all()
    os._exit(0 if same else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(torch.equal(attention(x, x, x, window, backend="numba"), expected))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("True", 0), done.stderr


def test_the_first_call_may_come_from_many_threads_at_once():
    code = """
import threading, numba, torch
from graphattn import attention
before, barrier = numba.config.CACHE_DIR, threading.Barrier(4)
x, edge_index = torch.randn(5, 2, 4), torch.tensor([[0, 1], [1, 0]])

def call():
    barrier.wait()
    attention(x, x, x, edge_index)

threads = [threading.Thread(target=call) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(numba.config.CACHE_DIR == before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("True", "")


def test_a_process_that_cannot_start_threads_computes_in_the_callers(monkeypatch):
    pattern, tensors = large_call()
    expected = run(pattern, tensors)

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_pool", 0)
    monkeypatch.setattr(threads.Thread, "start", refuse)
    monkeypatch.setattr(threads, "_helpers", threads._Helpers())
    monkeypatch.setattr(errors, "_warned", set())
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.warns(UserWarning, match="^graphattn: threads ") as caught:
            results = [run(pattern, tensors) for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    for result in results:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(result, expected, strict=True))
    (text,) = [str(warning.message) for warning in caught]
    assert text == (
        "graphattn: threads can't be started, so that calls run on fewer threads and take longer, got can't start "
        "new thread. Raise the limit of threads, or use torch.set_num_threads(1)."
    )


def test_an_error_in_a_task_reaches_the_caller():
    function = functools.partial(lambda begin, end: 1 // 0 if threading.current_thread().name == "graphattn" else None)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        # Any of the calls may be the first in which the thread takes a task.
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            for _ in range(1000):
                run_tasks(function, 10_000)
        # And the thread goes on.
        run_tasks(functools.partial(lambda begin, end: None), 10_000)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("pool", ["torch's", "none"])
def test_a_compiled_loop_that_runs_out_of_memory_says_so(pool):
    numba = pytest.importorskip("numba", reason="compiles a loop of its own")

    @numba.njit(nogil=True)
    def loop(begin, end, x):
        for task in range(begin, end):
            x[task] += 1
            if task == 70:
                raise MemoryError

    done = np.zeros(100)
    with pytest.raises(MemoryError, match=r"^graphattn: a compiled loop failed"):
        load.Loop(loop, (done,)).spread(threads._pool if pool == "torch's" else 0, 2, 0, 100, 10, (done,))
    # No task ran twice, and the other thread's runs went on.
    assert done.max() == 1 and done[:70].all() and not done[71:80].any()


@pytest.mark.parametrize("called_before", few([False, True]))
def test_what_python_calls_when_it_ends_may_attend(called_before):
    code = f"""
import atexit, torch
from graphattn import Edges, attention
torch.set_num_threads(2)
x = torch.randn(3000, 2, 8)
edges = Edges(torch.randint(3000, (2, 60_000)), 3000)
expected = attention(x, x, x, edges, backend="scatter")

def call():
    out = attention(x, x, x, edges, backend="numba")
    print(torch.allclose(out, expected, atol=1e-5))

atexit.register(call)
if {called_before}:
    call()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0 and done.stdout.split() == ["True"] * (1 + called_before), done.stderr
    # Python 3.12.0 and 3.12.1 alone start no threads by then, and say so.
    assert "Error" not in done.stderr


def test_ddp_processes_train_alike(tmp_path):
    code = """
import sys
import torch
import torch.distributed as dist
from graphattn import Window
from graphattn.nn import GraphAttention

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
layer = GraphAttention(16, 16, heads=2)
model = torch.nn.parallel.DistributedDataParallel(layer)
pattern = Window(5000, radius=3)
inputs = torch.randn(2, 5000, 16)
for _ in range(3):
    model.zero_grad()
    model(inputs[rank], pattern).square().mean().backward()
ours = [p.grad.clone() for p in layer.parameters()]
layer.zero_grad()
sum(layer(x, pattern).square().mean() for x in inputs).div(2).backward()
same = all(torch.allclose(a, p.grad, atol=1e-6) for a, p in zip(ours, layer.parameters()))
dist.barrier()
print(same, torch.get_num_threads())
dist.destroy_process_group()
"""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "2"},
        )
        for rank in range(2)
    ]
    for rank in ranks:
        out, error = rank.communicate(timeout=120)
        assert out.split() == ["True", "2"], error

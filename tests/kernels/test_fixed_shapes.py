"""Loops that are compiled again for the numbers of their shape."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from covering import few

from graphattn import Additive, Edges, attention
from graphattn.testing import random_call

ROOT = Path(__file__).resolve().parents[2]
load = importlib.import_module("graphattn.compiled.load")


def results(pattern, tensors, backend="numba", **options):
    out = attention(**tensors, pattern=pattern, backend=backend, **options)
    return out, *torch.autograd.grad(out.square().sum(), list(tensors.values()))


# Head counts and widths of each branch of the vector code: whole vectors, eights, ones, and what is left over.
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "dtype", "score"),
    [
        (4, 2, 16, torch.float32, "dot_product"),
        *few(
            [
                (5, 5, 1, torch.bfloat16, "leaky_relu"),
                (9, 9, 8, torch.float32, "dot_product"),
                (3, 1, 5, torch.float64, "leaky_relu"),
            ],
            0,
        ),
    ],
)
def test_constants_change_no_bit(heads, kv_heads, width, dtype, score, monkeypatch):
    monkeypatch.setattr(load, "_loops", {})
    pattern = Edges(torch.randint(40, (2, 500), generator=torch.Generator().manual_seed(0)), 40)
    tensors = random_call(pattern, heads=heads, kv_heads=kv_heads, width=width, dtype=dtype, edge_tensors=True)
    options = {}
    if score != "dot_product":
        options["score"] = Additive(torch.ones(heads, width, dtype=dtype), score)
    results(pattern, tensors, **options)
    # Forward, and two passes backward.
    loops = list(load._loops.values())
    assert len(loops) == 3
    # An earlier run of this test may have left code for these shapes.
    for loop in loops:
        loop._compile(loop._types)
    expected, before = results(pattern, tensors, **options), [loop._address for loop in loops]
    for loop in loops:
        loop._compile(loop._fixed)
    found = results(pattern, tensors, **options)
    assert all(loop._address != old for loop, old in zip(loops, before, strict=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_constants_of_one_shape_are_not_used_for_another():
    pattern = Edges(torch.randint(40, (2, 500), generator=torch.Generator().manual_seed(0)), 40)
    narrow, wide = (random_call(pattern, heads=2, width=width, dtype=torch.float32) for width in (4, 5))
    load.settle(lambda: results(pattern, narrow))
    for found, expected in zip(results(pattern, wide), results(pattern, wide, backend="scatter"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_loop_is_compiled_again_when_it_has_run_for_long_and_at_once_in_later_processes(tmp_path):
    code = """
import importlib, sys, torch
from graphattn import Edges, attention
load = importlib.import_module("graphattn.compiled.load")
x, edges = torch.randn(50, 2, 3), Edges(torch.randint(50, (2, 300)), 50)
states = []
for seconds in (3.0, 0.0):
    for loop in load._loops.values():
        loop.seconds_left = min(loop.seconds_left, seconds)
    attention(x, x, x, edges, backend="numba")
    states += [loop._types is not loop._fixed and loop.seconds_left == float("inf") for loop in load._loops.values()]
print(states)
"""
    printed = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=120,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.strip())
    assert printed == ["[False, True]", "[True, True]"]

"""A lower bound for kernels over random rows: a loop that only gathers them."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import torch
from harness import machine, race
from numba import njit
from systems import random_edges
from torch import Tensor

from graphattn import Edges, attention
from graphattn.compiled import compiled_loop, run_tasks
from graphattn.compiled.jit.llvm import OPTIONS, prefetch
from graphattn.kernels.rows.cpu.jit.heads import axpy_heads


@njit(**OPTIONS)
def _gather_tasks(begin, end, tasks, ptr, index, key, value, width, out):
    """Sum the rows of key and value of each target, with the kernel's own vector code and prefetching."""
    total, first, one = np.empty(width, key.dtype), np.zeros(1, np.int64), np.ones(1, key.dtype)
    last = index.size - 1
    ahead = max(4, min(32, 8192 // (2 * width * key.itemsize)))
    for t in range(begin, end):
        for i in range(tasks[t, 0], tasks[t, 1]):
            for d in range(width):
                total[d] = 0
            for e in range(max(ptr[i], tasks[t, 2]), min(ptr[i + 1], tasks[t, 3])):
                soon = np.int64(index[min(e + ahead, last)]) * width
                prefetch(key, soon, width)
                prefetch(value, soon, width)
                row = np.int64(index[e]) * width
                axpy_heads(total, 0, first, one, 0, key, row, value, row, first, 1, 1, width)
            for d in range(width):
                out[i * width + d] = total[d]


def gather_loop(key: Tensor, value: Tensor, pattern: Edges) -> Callable[[], None]:
    """A loop that only gathers the rows of key and value and sums them, over the kernel's own tasks."""
    attention(key.detach(), key.detach(), value.detach(), pattern, backend="numba")
    plan = pattern.keep("numba rows", dict)
    ptr, index, tasks = (x.numpy() for x in (plan.ptr, plan.index, plan.tasks))
    flat = [x.detach().reshape(-1).numpy() for x in (key, value)]
    width = key.size(1) * key.size(2)
    out = np.empty(pattern.num_targets * width, np.float32)
    arguments = (tasks, ptr, index, *flat, width, out)
    loop = compiled_loop(_gather_tasks, (index.dtype,), *arguments)
    return lambda: run_tasks(loop, len(tasks), *arguments)


def machine_and_gather() -> dict[str, object]:
    """Describe the machine, with the bandwidth of rows of 100,000 nodes that a million edges read at random."""
    nodes, edges, heads, width = 100_000, 1_000_000, 4, 32
    key, value = (torch.randn(nodes, heads, width) for _ in range(2))
    taken = race({"gather": gather_loop(key, value, Edges(random_edges(nodes, edges), nodes))}, 2)
    return machine(2 * edges * heads * width * 4 / statistics.median(taken["gather"]))

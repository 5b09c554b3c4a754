"""Softmax by what sources alone say, channel by channel, in loops that Numba compiles: a quotient of two sums.

    out_ic = sum over j -> i of w_jc v_jc / sum over j -> i of w_jc,    w_jc = exp(s_jc - top_c)

Arrays are flat; a task is a row. What is summed lies side by side, so that each edge reads one row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from ....compiled.jit.channels import over_channels
from ....compiled.jit.llvm import INNER, add, edges_ahead, exp_lanes, multiply, multiply_add, prefetch, subtract


def _weigh(builder: Any, weight: Any, weighted: Any, score: Any, value: Any, top: Any) -> list[Any]:
    found = exp_lanes(builder, subtract(builder, score, top))
    return [found, multiply(builder, found, value)]


def _differentiate(
    builder: Any, of_score: Any, of_value: Any, score: Any, value: Any, top: Any, first: Any, second: Any
) -> list[Any]:
    weight = exp_lanes(builder, subtract(builder, score, top))
    along = multiply_add(builder, first, value, second)
    return [multiply(builder, weight, along), multiply(builder, weight, first)]


weigh, differentiate = over_channels(_weigh), over_channels(_differentiate)
add_row = over_channels(lambda builder, to, x: [add(builder, to, x)])


@njit(**INNER)
def weigh_tasks(begin, end, score, value, top, channels, rows):
    """Weights of each source, and behind them these times its values."""
    for j in range(begin, end):
        at, to = j * channels, 2 * j * channels
        weigh(channels, (rows, rows, score, value, top), (to, to + channels, at, at, 0), ())


@njit(**INNER)
def add_rows(acc, rows, index, first, stop, width):
    """Set acc to the sum of the rows of some edges."""
    ahead, last = edges_ahead(rows, width), index.size - 1
    acc[:] = acc.dtype.type(0)
    for e in range(first, stop):
        prefetch(rows, np.int64(index[min(e + ahead, last)]) * width, width)
        add_row(width, (acc, rows), (0, np.int64(index[e]) * width), ())


@njit(**INNER)
def forward_tasks(begin, end, rows, ptr, index, channels, total, out):
    """Rows are targets."""
    acc, zero = np.empty(2 * channels, rows.dtype), rows.dtype.type(0)
    for i in range(begin, end):
        add_rows(acc, rows, index, ptr[i], ptr[i + 1], 2 * channels)
        for c in range(channels):
            total[i * channels + c] = acc[c]
            out[i * channels + c] = acc[channels + c] / acc[c] if acc[c] != 0 else zero


@njit(**INNER)
def slope_tasks(begin, end, grad, total, out, channels, rows):
    """The gradient by each target's sum of weighted values, and behind it that by its sum of weights."""
    zero = grad.dtype.type(0)
    for i in range(begin, end):
        for c in range(channels):
            at = i * channels + c
            slope = grad[at] / total[at] if total[at] != 0 else zero
            rows[2 * i * channels + c] = slope
            rows[(2 * i + 1) * channels + c] = -slope * out[at]


@njit(**INNER)
def backward_tasks(begin, end, rows, ptr, index, channels, score, value, top, of_score, of_value):
    """Rows are sources."""
    acc = np.empty(2 * channels, rows.dtype)
    for j in range(begin, end):
        add_rows(acc, rows, index, ptr[j], ptr[j + 1], 2 * channels)
        at = j * channels
        arrays = (of_score, of_value, score, value, top, acc, acc)
        differentiate(channels, arrays, (at, at, at, at, 0, 0, channels), ())

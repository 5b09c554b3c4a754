"""Softmax within groups of rows, channel by channel, in loops that Numba compiles: nothing is kept per row.

    out_ic = sum over rows j of group i of w_jc x_jc,    w_jc = exp(t_c x_jc - top_ic) / total_ic

Arrays are flat. A task is a group; its numbers per channel are arrays that stay in the first-level cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from ....compiled.jit.channels import dot, over_channels
from ....compiled.jit.llvm import INNER, add, exp_lanes, exponential, multiply, multiply_add, subtract


def _raise(builder: Any, top: Any, x: Any, factor: Any) -> list[Any]:
    exponent = multiply(builder, x, factor)
    return [builder.select(builder.fcmp_ordered(">", exponent, top), exponent, top)]


def _add(builder: Any, total: Any, out: Any, x: Any, factor: Any, top: Any) -> list[Any]:
    weight = _weight(builder, x, factor, top)
    return [add(builder, total, weight), multiply_add(builder, weight, x, out)]


def _slope(builder: Any, of_x: Any, x: Any, factor: Any, top: Any, share: Any, out: Any, one: Any) -> list[Any]:
    slope = multiply(builder, _weight(builder, x, factor, top), share)
    return [multiply(builder, slope, multiply_add(builder, factor, subtract(builder, x, out), one))]


def _slopes(
    builder: Any, of_x: Any, of_t: Any, x: Any, factor: Any, top: Any, share: Any, out: Any, one: Any
) -> list[Any]:
    (slope,) = _slope(builder, of_x, x, factor, top, share, out, one)
    along = multiply(builder, multiply(builder, _weight(builder, x, factor, top), share), subtract(builder, x, out))
    return [slope, multiply_add(builder, along, x, of_t)]


def _weight(builder: Any, x: Any, factor: Any, top: Any) -> Any:
    return exp_lanes(builder, subtract(builder, multiply(builder, x, factor), top))


raise_top, add_row = over_channels(_raise), over_channels(_add)
set_slope, set_slopes = over_channels(_slope), over_channels(_slopes)
# With a gate, one number for all channels of a row: its weight, and the gradients.
add_weighted = over_channels(lambda builder, out, x, weight: [multiply_add(builder, weight, x, out)])
set_gated = over_channels(
    lambda builder, of_x, of_vector, x, grad, vector, weight, slope: [
        multiply_add(builder, slope, vector, multiply(builder, weight, grad)),
        multiply_add(builder, slope, x, of_vector),
    ]
)


@njit(**INNER)
def gated_forward_tasks(begin, end, x, vector, ptr, index, channels, results):
    """The same with exp(x_j . vector) for each channel: weights of rows, in the order of groups, and outputs."""
    weights, out = results
    zero = x.dtype.type(0)
    for i in range(begin, end):
        low, high, to = ptr[i], ptr[i + 1], i * channels
        top, total = x.dtype.type(-np.inf), zero
        for c in range(channels):
            out[to + c] = zero
        for e in range(low, high):
            weights[e] = dot(x, np.int64(index[e]) * channels, vector, 0, channels)
            top = max(top, weights[e])
        for e in range(low, high):
            weights[e] -= top
        exponential(weights[low:high])
        for e in range(low, high):
            total += weights[e]
        for e in range(low, high):
            weights[e] /= total
            add_weighted(channels, (out, x), (to, np.int64(index[e]) * channels), (weights[e],))


@njit(**INNER)
def gated_backward_tasks(begin, end, x, vector, ptr, index, channels, results, grad, of_x, of_vector):
    """Gradients of the rows, and each group's part of that of the vector."""
    weights, out = results
    for i in range(begin, end):
        to = i * channels
        for c in range(channels):
            of_vector[to + c] = 0
        delta = dot(grad, to, out, to, channels)
        for e in range(ptr[i], ptr[i + 1]):
            at, weight = np.int64(index[e]) * channels, weights[e]
            slope = weight * (dot(grad, to, x, at, channels) - delta)
            set_gated(channels, (of_x, of_vector, x, grad, vector), (at, to, at, to, 0), (weight, slope))


@njit(**INNER)
def forward_tasks(begin, end, x, factor, ptr, index, channels, results):
    """The largest exponent, the sum of exponentials and the output of each group and channel."""
    top, total, out = results
    zero = x.dtype.type(0)
    for i in range(begin, end):
        low, high, to = ptr[i], ptr[i + 1], i * channels
        for c in range(channels):
            top[to + c], total[to + c], out[to + c] = -np.inf, zero, zero
        for e in range(low, high):
            raise_top(channels, (top, x, factor), (to, np.int64(index[e]) * channels, 0), ())
        for e in range(low, high):
            add_row(channels, (total, out, x, factor, top), (to, to, np.int64(index[e]) * channels, 0, to), ())
        if high > low:
            for c in range(channels):
                out[to + c] /= total[to + c]


@njit(**INNER)
def backward_tasks(begin, end, x, factor, ptr, index, channels, results, grad, of_x, of_factor):
    """Gradients of the rows, and each group's part of those of the factors, unless there is no room for it."""
    top, total, out = results
    share, has_factor, one = np.empty(channels, x.dtype), of_factor.size > 0, x.dtype.type(1)
    for i in range(begin, end):
        low, high, to = ptr[i], ptr[i + 1], i * channels
        if has_factor:
            for c in range(channels):
                of_factor[to + c] = 0
        if high > low:
            for c in range(channels):
                share[c] = grad[to + c] / total[to + c]
        for e in range(low, high):
            at = np.int64(index[e]) * channels
            if has_factor:
                arrays, offsets = (of_x, of_factor, x, factor, top, share, out), (at, to, at, 0, to, 0, to)
                set_slopes(channels, arrays, offsets, (one,))
            else:
                set_slope(channels, (of_x, x, factor, top, share, out), (at, at, 0, to, 0, to), (one,))

"""Sums over sources that pass a gate, channel by channel, in loops that Numba compiles: nothing is kept per edge.

    out_ic = sum over j -> i of s_ijc v_jc,    s_ijc = sigmoid(q_ic + k_jc)

Arrays are flat; a task is a row. Gates are computed again in each pass, as to read a number for each edge and channel
takes longer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from ....compiled.jit.channels import over_channels
from ....compiled.jit.llvm import INNER, add, divide, edges_ahead, exp_lanes, multiply, multiply_add, prefetch, subtract


def _gate(builder: Any, q: Any, k: Any, one: Any) -> Any:
    return divide(builder, one, add(builder, one, exp_lanes(builder, builder.fneg(add(builder, q, k)))))


def _add(builder: Any, out: Any, q: Any, k: Any, v: Any, one: Any) -> list[Any]:
    return [multiply_add(builder, _gate(builder, q, k, one), v, out)]


def _slope(builder: Any, gate: Any, v: Any, grad: Any, one: Any) -> Any:
    steep = multiply(builder, gate, subtract(builder, one, gate))
    return multiply(builder, steep, multiply(builder, v, grad))


def _add_slope(builder: Any, of_q: Any, q: Any, k: Any, v: Any, grad: Any, one: Any) -> list[Any]:
    return [add(builder, of_q, _slope(builder, _gate(builder, q, k, one), v, grad, one))]


def _add_slopes(builder: Any, of_k: Any, of_v: Any, q: Any, k: Any, v: Any, grad: Any, one: Any) -> list[Any]:
    gate = _gate(builder, q, k, one)
    return [add(builder, of_k, _slope(builder, gate, v, grad, one)), multiply_add(builder, gate, grad, of_v)]


add_gated, add_slope, add_slopes = over_channels(_add), over_channels(_add_slope), over_channels(_add_slopes)


@njit(**INNER)
def forward_tasks(begin, end, q, k, v, ptr, index, channels, out):
    """Rows are targets."""
    one, zero, ahead, last = q.dtype.type(1), q.dtype.type(0), edges_ahead(q, 2 * channels), index.size - 1
    for i in range(begin, end):
        to = i * channels
        out[to : to + channels] = zero
        for e in range(ptr[i], ptr[i + 1]):
            soon, at = np.int64(index[min(e + ahead, last)]) * channels, np.int64(index[e]) * channels
            prefetch(k, soon, channels)
            prefetch(v, soon, channels)
            add_gated(channels, (out, q, k, v), (to, to, at, at), (one,))


@njit(**INNER)
def target_gradient_tasks(begin, end, q, k, v, ptr, index, channels, grad, of_q):
    """Gradient of q; rows are targets."""
    one, zero, ahead, last = q.dtype.type(1), q.dtype.type(0), edges_ahead(q, 2 * channels), index.size - 1
    for i in range(begin, end):
        to = i * channels
        of_q[to : to + channels] = zero
        for e in range(ptr[i], ptr[i + 1]):
            soon, at = np.int64(index[min(e + ahead, last)]) * channels, np.int64(index[e]) * channels
            prefetch(k, soon, channels)
            prefetch(v, soon, channels)
            add_slope(channels, (of_q, q, k, v, grad), (to, to, at, at, to), (one,))


@njit(**INNER)
def source_gradient_tasks(begin, end, q, k, v, ptr, index, channels, grad, of_k, of_v):
    """Gradients of k and v; rows are sources."""
    one, zero, ahead, last = q.dtype.type(1), q.dtype.type(0), edges_ahead(q, 2 * channels), index.size - 1
    for j in range(begin, end):
        to = j * channels
        of_k[to : to + channels] = zero
        of_v[to : to + channels] = zero
        for e in range(ptr[j], ptr[j + 1]):
            soon, at = np.int64(index[min(e + ahead, last)]) * channels, np.int64(index[e]) * channels
            prefetch(q, soon, channels)
            prefetch(grad, soon, channels)
            add_slopes(channels, (of_k, of_v, q, k, v, grad), (to, to, at, to, to, at), (one,))

"""Functions of numbers that Triton doesn't have, for the loops of traced scores."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """Tanh by the exponential of a number below zero, which can't overflow."""
    small = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - small) / (1.0 + small)
    return tl.where(x < 0, -y, y)


@triton.jit
def log1p(x):
    """log(1 + x): log(u) * x / (u - 1) for the rounded u = 1 + x, in which the rounding cancels."""
    u = 1.0 + x
    rest = u - 1.0
    exact = tl.log(u) * (x / tl.where(rest == 0, 1.0, rest))
    return tl.where((rest == 0) | (u == float("inf")), x, exact)


@triton.jit
def sign(x):
    """-1, 0 or 1; 0 of NaN, as torch has it."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0)).to(x.dtype)


@triton.jit
def minimum(x, y):
    """The smaller one; NaN if either is, as in torch."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def maximum(x, y):
    """The larger one; NaN if either is, as in torch."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def power(x, y):
    """The power of x, NaN where x is below zero and y no whole number."""
    size = tl.where(y == 0, 1.0, tl.exp(y * tl.log(tl.abs(x))))
    is_odd = tl.floor(y / 2) * 2 != y
    signed = tl.where(is_odd, -size, size)
    return tl.where(x < 0, tl.where(tl.floor(y) == y, signed, float("nan")), size)

"""Weights of scores, and gradients by scores from those by weights.

A new normalizer that looks at one score alone is a branch in `apply_normalizer` and one in `slope_of_weight`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ... import operands

SOFTMAX = tl.constexpr(operands.SOFTMAX)
RELU = tl.constexpr(operands.RELU)
SIGMOID = tl.constexpr(operands.SIGMOID)


@triton.jit
def apply_normalizer(s, NORMALIZER: tl.constexpr):
    """Weights of normalizers that look at one score alone; -inf is no edge."""
    if NORMALIZER == RELU:
        # Written so that NaN stays.
        return tl.where(s <= 0, 0.0, s)
    elif NORMALIZER == SIGMOID:
        return 1 / (1 + tl.exp(-s))
    else:
        return tl.where(s == float("-inf"), 0.0, s)


@triton.jit
def slope_of_weight(s, shift, factor, delta, grad, pairs, NORMALIZER: tl.constexpr):
    """Weight of a pair, and the gradient by its score where `grad` is that by its weight."""
    if NORMALIZER == SOFTMAX:
        p = tl.exp(tl.where(pairs, s - shift, float("-inf"))) * factor
        ds = p * (grad - delta)
    else:
        p = tl.where(pairs, apply_normalizer(s, NORMALIZER), 0.0)
        if NORMALIZER == RELU:
            ds = tl.where(s <= 0, 0.0, grad)
        elif NORMALIZER == SIGMOID:
            ds = p * (1 - p) * grad
        else:
            ds = tl.where(s == float("-inf"), 0.0, grad)
        ds = tl.where(pairs, ds, 0.0)
    return p, ds


@triton.jit
def invert(norm):
    """1 / norm, or 0 in a row without edges."""
    is_empty = norm == 0
    return tl.where(is_empty, 0.0, 1 / tl.where(is_empty, 1.0, norm))


@triton.jit
def finish(top, norm):
    """The factor that makes sums of softmax weights, and the shift of their scores: both 0 in a row without edges."""
    return invert(norm), tl.where(top == float("-inf"), 0.0, top)

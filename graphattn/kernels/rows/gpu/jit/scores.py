"""The scores of one edge per row, all heads, and their derivatives.

A new score is a branch in each of these functions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ... import operands
from .tiles import read_pairs

DOT_PRODUCT = tl.constexpr(operands.DOT_PRODUCT)
TANH = tl.constexpr(operands.TANH)

# Arguments on a line each would hide the code.
# fmt: off


@triton.jit
def read_vector(vector_ptr, head, is_head, column, WIDTH: tl.constexpr, NUMBER: tl.constexpr):
    """The vector of an additive score, [1, HEADS, WIDTH]."""
    at = head[None, :, None] * WIDTH + column[None, None, :]
    mask = is_head[None, :, None] & (column < WIDTH)[None, None, :]
    return tl.load(vector_ptr + at, mask=mask, other=0.0).to(NUMBER)


@triton.jit
def activate(x, slope, SCORE: tl.constexpr):
    """What an additive score does to query + key."""
    if SCORE == TANH:
        return 1 - 2 / (1 + tl.exp(2 * x))
    else:
        return tl.where(x > 0, x, slope * x)


@triton.jit
def score_heads(
    q, k, vector, scale, slope, bias_ptr, row, head, mask, SCORE: tl.constexpr, HEADS: tl.constexpr,
    NUMBER: tl.constexpr
):
    """Scores [ROWS, HEADS] of one edge per row, with its bias.

    Every kernel must find the same bits: where scores are large, a rounding that differs exceeds any difference between
    two of them. Hence the explicit multiply-add at the end, which no compiler contracts with what follows.
    """
    if bias_ptr is not None:
        bias = read_pairs(bias_ptr, row, head, mask, HEADS, NUMBER)
    else:
        bias = tl.zeros([q.shape[0], q.shape[1]], NUMBER)
    if SCORE == DOT_PRODUCT:
        return tl.fma(tl.sum(q * k, 2), tl.zeros_like(bias) + scale, bias)
    else:
        return tl.fma(tl.sum(activate(q + k, slope, SCORE) * vector, 2), tl.zeros_like(bias) + 1, bias)


@triton.jit
def score_slope(q, k, vector, scale, slope, SCORE: tl.constexpr):
    """Derivative [ROWS, HEADS, WIDTH] of an additive score by the query, which is that by the key."""
    if SCORE == TANH:
        a = activate(q + k, slope, SCORE)
        return (1 - a * a) * vector
    else:
        return tl.where(q + k > 0, vector, slope * vector)

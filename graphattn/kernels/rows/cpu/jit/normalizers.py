"""Weights of scores, and gradients by scores from those by weights.

A new normalizer that looks at one score alone is a branch in `apply_normalizer` and one in `apply_with_gradient`. What
softmax does in addition, over the rows of a task, stands in the loops.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .....compiled.jit.llvm import INNER, exponential
from ...operands import IDENTITY, RELU, SIGMOID, SOFTMAX


@njit(**INNER, forceinline=True)
def invert(total):
    """1 / total, or 0 for a row without edges."""
    return 0.0 if total == 0 else 1.0 / total


@njit(**INNER)
def apply_normalizer(s, normalizer):
    """Turn scores into weights in place; those of softmax come shifted, and leave without their row's factor."""
    if normalizer == SOFTMAX:
        exponential(s)
    elif normalizer == RELU:
        for t in range(s.size):
            s[t] = s[t] if not s[t] <= 0 else 0
    elif normalizer == SIGMOID:
        for t in range(s.size):
            s[t] = -s[t]
        exponential(s)
        for t in range(s.size):
            s[t] = 1 / (1 + s[t])
    else:
        for t in range(s.size):
            s[t] = s[t] if s[t] != -np.inf else 0


@njit(**INNER)
def apply_with_gradient(s, g, normalizer):
    """Turn scores into weights, and gradients by the weights into gradients by the scores, in place.

    Not those of softmax, which depend on their row.
    """
    if normalizer == RELU:
        for t in range(s.size):
            g[t] = g[t] if not s[t] <= 0 else 0
    elif normalizer == IDENTITY:
        for t in range(s.size):
            g[t] = g[t] if s[t] != -np.inf else 0
    apply_normalizer(s, normalizer)
    if normalizer == SIGMOID:
        for t in range(s.size):
            g[t] = s[t] * (1 - s[t]) * g[t]

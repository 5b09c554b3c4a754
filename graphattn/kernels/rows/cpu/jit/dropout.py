"""The dropout hash of `graphattn.dropout`, edge by edge: which weights are kept."""

from __future__ import annotations

import numpy as np
from numba import njit

from .....compiled.jit.llvm import INNER, OPTIONS
from .columns import drop_heads
from .edges import count_parallel

# Arguments on a line each would hide the loops.
# fmt: off


@njit(**OPTIONS)
def mix(word):
    """The mixer of `graphattn.dropout`, on 32 bits in a 64-bit word."""
    word &= np.uint64(0xFFFFFFFF)
    word ^= word >> np.uint64(16)
    word = (word * np.uint64(0x7FEB352D)) & np.uint64(0xFFFFFFFF)
    word ^= word >> np.uint64(15)
    word = (word * np.uint64(0x846CA68B)) & np.uint64(0xFFFFFFFF)
    return word ^ (word >> np.uint64(16))


@njit(**INNER)
def fold(index):
    """Indices of 2^32 and more fold their upper half in."""
    word = np.uint64(index)
    return (word ^ ((word >> np.uint64(32)) * np.uint64(0x9E3779B9))) & np.uint64(0xFFFFFFFF)


@njit(**OPTIONS)
def hash_target(seed, batch, target):
    """State of the dropout hash after seed, batch and target."""
    state = mix((np.uint64(seed) & np.uint64(0xFFFFFFFF)) ^ np.uint64(0x9E3779B9))
    state = mix(state ^ (np.uint64(seed) >> np.uint64(32)))
    return mix(mix(state ^ fold(batch)) ^ fold(target))


@njit(**OPTIONS)
def hash_source(state, source, occurrence):
    """State of the dropout hash after the edge."""
    word = fold(source) + np.uint64(occurrence) * np.uint64(0x9E3779B9)
    return mix(state ^ (word & np.uint64(0xFFFFFFFF)))


@njit(**INNER)
def drop_edges(g, f, b, begin, end, first, stop, ptr, index, seed, threshold, keep_scale, heads):
    """Set f to dropout's factors of a task's edges, and multiply g by them.

    This is no part of the loops over edges: so much code in them would slow down those that never run it.
    """
    for row in range(begin, end):
        state = hash_target(seed, b, row)
        for e in range(max(ptr[row], first), min(ptr[row + 1], stop)):
            kept = hash_source(state, index[e], count_parallel(index, ptr[row], e))
            drop_heads(f, (e - first) * heads, None, kept, threshold, keep_scale, heads)
    for d in range(g.size):
        g[d] = g[d] * f[d] if f[d] != 0 else 0

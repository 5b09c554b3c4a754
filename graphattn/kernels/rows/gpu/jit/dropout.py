"""The dropout hash of `graphattn.dropout`, on tiles: which weights are kept."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mix(word):
    """The mixer of `graphattn.dropout`, on uint32."""
    word = word ^ (word >> 16)
    word = word * 0x7FEB352D
    word = word ^ (word >> 15)
    word = word * 0x846CA68B
    return word ^ (word >> 16)


@triton.jit
def fold(index):
    """Indices of 2^32 and more fold their upper half in."""
    index = index.to(tl.uint64)
    return index.to(tl.uint32) ^ ((index >> 32).to(tl.uint32) * 0x9E3779B9)


@triton.jit
def hash_target(seed_ptr, batch, target):
    """State of the dropout hash after seed, batch and target."""
    seed = tl.load(seed_ptr).to(tl.uint64)
    state = mix(seed.to(tl.uint32) ^ 0x9E3779B9)
    state = mix(state ^ (seed >> 32).to(tl.uint32))
    return mix(mix(state ^ fold(batch)) ^ fold(target))


@triton.jit
def is_kept(state, source, occurrence, head, threshold):
    """Whether dropout keeps the weights [ROWS, HEADS] of one edge per row."""
    state = mix(state ^ (fold(source) + occurrence.to(tl.uint32) * 0x9E3779B9))
    bits = mix(state[:, None] ^ head.to(tl.uint32)[None, :])
    return bits.to(tl.int64) >= threshold

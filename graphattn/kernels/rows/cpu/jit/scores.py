"""The scores of one edge, all heads, and their derivatives by query, key and parameters.

A new score is a branch in each of these functions. An additive one keeps, of an edge, what its activation gives in `a`
and the derivative of that times the vector in `u`; a dot product has no vector and needs neither.
"""

from __future__ import annotations

from numba import njit

from .....compiled.jit.llvm import INNER
from .columns import add_heads
from .heads import activate_row, axpy_heads, dot_heads, scale_heads

# Arguments on a line each would hide the loops.
# fmt: off


@njit(**INNER, forceinline=True)
def activate(a, u, q, query, k, key, ek, edge, vector, of_vector, kv_head, heads, group, width, kind, slope):
    """Set a[h * width + d] to what an additive score of one edge activates, u to its derivative times the vector.

    Either may be None. The derivative by the query is that by the key too. The target's vector begins at of_vector.
    """
    if vector is None:
        return
    # Heads that have a key each are one long row.
    rows, n = (1, heads * width) if group == 1 else (heads, width)
    for row in range(rows):
        place = kv_head[row] * n
        activate_row(
            a, row * n, u, vector, of_vector + row * n, q, query + row * n, k, key + place, ek, edge + place,
            n, kind, slope
        )


# Numba drops a branch on what an argument lacks, not one on what a tuple lacks: hence two functions.
@njit(**INNER, forceinline=True)
def score_heads(
    s, at, a, q, query, k, key, ek, of_edge, vector, of_vector, head, kv_head, heads, group, width, kind, slope, scale
):
    """Score all heads of one edge into s[at:]; query, key and of_edge are offsets of its rows."""
    if vector is None:
        dot_heads(s, at, scale, q, query, k, key, ek, of_edge, kv_head, heads, group, width)
    else:
        activate(a, None, q, query, k, key, ek, of_edge, vector, of_vector, kv_head, heads, group, width, kind, slope)
        dot_heads(s, at, scale, vector, of_vector, a, 0, None, 0, head, heads, 1, width)


@njit(**INNER, forceinline=True)
def score_edge(s, at, a, call, b, i, j, edge, head, kv_head):
    """Score all heads of one edge of a batch element into s[at:], with its bias; a is scratch for additive scores."""
    _, targets, sources, heads, kv_heads, width, _, _, query_pitch, key_pitch, _, vector_pitch = call.shape
    q, k, _, vector = call.rows
    bias, bias_stride, ek, ek_stride, _, _ = call.of_edges
    kind, _, scale, slope, _ = call.mode
    group, query, key = heads // kv_heads, (b * targets + i) * query_pitch, (b * sources + j) * key_pitch
    of_edge = (b * ek_stride + edge) * kv_heads * width
    score_heads(
        s, at, a, q, query, k, key, ek, of_edge, vector, i * vector_pitch, head, kv_head,
        heads, group, width, kind, slope, scale
    )
    add_heads(s, at, bias, (b * bias_stride + edge) * heads, heads)


@njit(**INNER, forceinline=True)
def add_slope_by_query(acc, g, at, k, key, ek, of_edge, vector, u, head, kv_head, heads, group, width):
    """Add an edge's slopes g[at:] times the derivatives of its scores by the query to acc."""
    if vector is None:
        axpy_heads(acc, 0, head, g, at, k, key, ek, of_edge, kv_head, heads, group, width)
    else:
        axpy_heads(acc, 0, head, g, at, u, 0, None, 0, head, heads, 1, width)


@njit(**INNER, forceinline=True)
def set_slope_by_key(to, of_to, g, at, q, query, vector, u, heads, width, streams):
    """Set to[of_to:] to an edge's slopes g[at:] times the derivatives of its scores by the key, one key per head."""
    if vector is None:
        scale_heads(to, of_to, g, at, q, query, heads, width, streams)
    else:
        scale_heads(to, of_to, g, at, u, 0, heads, width, streams)


@njit(**INNER, forceinline=True)
def add_slope_by_key(acc, of_acc, g, at, q, query, vector, u, head, kv_head, heads, group, width):
    """Add an edge's slopes g[at:] times the derivatives of its scores by the key to acc[of_acc:], unless it is None."""
    if vector is None:
        axpy_heads(acc, of_acc, kv_head, g, at, q, query, None, 0, head, heads, group, width)
    else:
        axpy_heads(acc, of_acc, kv_head, g, at, u, 0, None, 0, head, heads, group, width)

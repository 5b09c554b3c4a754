"""How rows are cut into tasks, and what each loop does on its way from edge to edge."""

from __future__ import annotations

import numpy as np
from numba import njit

from .....compiled.jit.llvm import CACHE_LINE, INNER, OPTIONS, STREAM_LANES, prefetch
from .....compiled.jit.llvm import edges_ahead as edges_ahead

# Edges per task: the scratch of twice as many stays in the second-level cache.
TASK_EDGES = 256
# A row of that many may follow rows that have nearly as many together: no task has more.
MOST_EDGES = 2 * TASK_EDGES

# Arrays of so many bytes, as large as the caches, leave them before anything reads them.
STREAM_BYTES = 2**24

# Arguments on a line each would hide the loops.
# fmt: off


@njit(**OPTIONS)
def plan_tasks(ptr):
    """Cut rows into tasks: [tasks, 5] of first row, last row + 1, first edge, last edge + 1, and slot.

    A row of more than TASK_EDGES edges is cut into pieces, each a task with a slot of its own for its partial sums;
    the slot of whole rows is -1. The second result lists the cut rows: [rows, 3] of row, first slot, last slot + 1.
    """
    rows = ptr.size - 1
    bound = ptr[rows] // TASK_EDGES + 1
    tasks = np.empty((4 * bound + rows // TASK_EDGES + 2, 5), np.int64)
    cut = np.empty((bound, 3), np.int64)
    count, cuts, slots, begin = 0, 0, 0, 0
    for row in range(rows):
        degree = ptr[row + 1] - ptr[row]
        is_long = degree > TASK_EDGES
        # Rows without edges take time too.
        is_full = ptr[row] - ptr[begin] + row - begin >= TASK_EDGES
        if (is_long or is_full) and row > begin:
            tasks[count, 0], tasks[count, 1], tasks[count, 4] = begin, row, -1
            tasks[count, 2], tasks[count, 3] = ptr[begin], ptr[row]
            count += 1
            begin = row
        if is_long:
            pieces = (degree + TASK_EDGES - 1) // TASK_EDGES
            cut[cuts, 0], cut[cuts, 1], cut[cuts, 2] = row, slots, slots + pieces
            cuts += 1
            for piece in range(pieces):
                low = ptr[row] + piece * TASK_EDGES
                tasks[count, 0], tasks[count, 1], tasks[count, 4] = row, row + 1, slots
                tasks[count, 2], tasks[count, 3] = low, min(low + TASK_EDGES, ptr[row + 1])
                count += 1
                slots += 1
            begin = row + 1
    if rows > begin:
        tasks[count, 0], tasks[count, 1], tasks[count, 4] = begin, rows, -1
        tasks[count, 2], tasks[count, 3] = ptr[begin], ptr[rows]
        count += 1
    return tasks[:count].copy(), cut[:cuts].copy()


@njit(**INNER, forceinline=True)
def size_of(x):
    """How many numbers an array has, 0 if it is None."""
    return 0 if x is None else x.size


@njit(**INNER)
def streams(x, width):
    """Whether what is written to an array, in rows of this width, had better not go through the caches, and can."""
    if x is None:
        return False
    is_large = x.itemsize >= 4 and x.size * x.itemsize >= STREAM_BYTES
    return is_large and width % STREAM_LANES == 0 and x.ctypes.data % CACHE_LINE == 0


@njit(**INNER)
def cache_aligned(size, like):
    """Empty array that begins at a cache line: sums that straddle two lines are read back slowly."""
    room = np.empty(size + CACHE_LINE // like.itemsize, like.dtype)
    skip = -room.ctypes.data % CACHE_LINE // like.itemsize
    return room[skip : skip + size]


@njit(**INNER, forceinline=True)
def edge_at(perm, position):
    """Caller's edge at a position; an empty perm says that the caller's order is the sorted one."""
    return np.int64(perm[position]) if perm.size else np.int64(position)


@njit(**INNER)
def count_parallel(index, first, position):
    """How many edges of the same pair lie before `position` in the row that begins at `first`."""
    count = np.int64(0)
    while position - count > first and index[position - count - 1] == index[position]:
        count += 1
    return count


@njit(**INNER, forceinline=True)
def ask_for_key(call, b, position):
    """Ask for the key of the edge at a position, and for its part of the edge."""
    _, index, perm = call.edges
    _, _, sources, _, kv_heads, width, _, _ = call.shape[:8]
    place = (b * sources + np.int64(index[position])) * call.shape.key_pitch
    _, _, ek, ek_stride, _, _ = call.of_edges
    prefetch(call.rows.key, place, kv_heads * width)
    # In the caller's order, edge tensors are read one after another: the processor knows.
    if perm.size:
        prefetch(ek, (b * ek_stride + np.int64(perm[position])) * kv_heads * width, kv_heads * width)


@njit(**INNER, forceinline=True)
def ask_for_value(call, b, position):
    """Ask for the value of the edge at a position, and for its part of the edge."""
    _, index, perm = call.edges
    _, _, sources, _, kv_heads, _, width, _ = call.shape[:8]
    place = (b * sources + np.int64(index[position])) * call.shape.value_pitch
    _, _, _, _, ev, ev_stride = call.of_edges
    prefetch(call.rows.value, place, kv_heads * width)
    if perm.size:
        prefetch(ev, (b * ev_stride + np.int64(perm[position])) * kv_heads * width, kv_heads * width)

"""The compiled functions of `graphattn.sampling`: draw neighbors row by row, and number new nodes as they appear.

Random numbers are a hash of the batch, the row and a counter, so threads may take the rows in any order.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ...compiled.jit.llvm import INNER, OPTIONS

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@njit(**INNER)
def mix(word):
    """The finalizer of SplitMix64."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@njit(**OPTIONS)
def hash_seeds(seed, nodes):
    """The random state of a batch: a hash of the sampler's seed and of the nodes, in their order, as int64 bits."""
    key = mix(np.uint64(seed) + GOLDEN)
    for node in nodes:
        key = mix((key ^ np.uint64(node)) + GOLDEN)
    # Python would return an unsigned number as one of either type, depending on its size.
    return np.int64(key)


@njit(**INNER)
def below(state, bound):
    """An integer in [0, bound) from a state: 53 bits, uniform to within bound / 2^53."""
    return np.int64(np.float64(mix(state) >> np.uint64(11)) * 2.0**-53 * np.float64(bound))


@njit(**OPTIONS)
def count_rows(nodes, fan_out, with_replacement, ptr):
    """The position at which the drawn edges of each node begin: [nodes + 1]."""
    row_ptr = np.empty(len(nodes) + 1, np.int64)
    row_ptr[0] = 0
    for row in range(len(nodes)):
        count = ptr[nodes[row] + 1] - ptr[nodes[row]]
        if fan_out >= 0 and (count > fan_out or (with_replacement and count > 0)):
            count = fan_out
        row_ptr[row + 1] = row_ptr[row] + count
    return row_ptr


@njit(**INNER)
def draw_rows(begin, end, first, nodes, row_ptr, with_replacement, key, ptr, index, perm, source, edge):
    """Draw the edges of rows `begin` to `end`: their sources in the graph and their ids, in the order of its CSR.

    `first` is the number of rows of the hops before. An empty `perm` means that edges are in the caller's order.
    """
    for row in range(begin, end):
        start = ptr[nodes[row]]
        degree = ptr[nodes[row] + 1] - start
        picks = edge[row_ptr[row] : row_ptr[row + 1]]
        count = len(picks)
        state = mix(np.uint64(key) ^ np.uint64(first + row))
        if count == degree and not with_replacement:
            for place in range(count):
                picks[place] = start + place
        elif with_replacement:
            for place in range(count):
                state += GOLDEN
                picks[place] = start + below(state, degree)
        elif count * count <= 4 * degree:
            # Floyd: one of the first `top` + 1, or the last of them if that was drawn already.
            for place in range(count):
                state += GOLDEN
                top = degree - count + place
                pick = start + below(state, top + 1)
                for other in range(place):
                    if picks[other] == pick:
                        pick = start + top
                        break
                picks[place] = pick
        else:
            # Selection: each is taken with the probability (still wanted) / (still to come).
            place = 0
            for offset in range(degree):
                if place == count:
                    break
                state += GOLDEN
                if below(state, degree - offset) < count - place:
                    picks[place] = start + offset
                    place += 1
        for place in range(count):
            source[row_ptr[row] + place] = index[picks[place]]
            if len(perm):
                picks[place] = perm[picks[place]]


@njit(**OPTIONS)
def number_nodes(nodes, source):
    """Replace nodes of the graph by their positions in the batch; new ones are appended to `nodes` as they appear.

    Returns all nodes. A repeated node has its first position.
    """
    bits = 4
    while (1 << bits) < 2 * (len(nodes) + len(source)):
        bits += 1
    shift, last = np.uint64(64 - bits), (1 << bits) - 1
    names = np.full(1 << bits, -1, np.int64)
    places = np.empty(1 << bits, np.int64)
    found = np.empty(len(nodes) + len(source), np.int64)
    count = 0
    for step in range(len(found)):
        node = nodes[step] if step < len(nodes) else source[step - len(nodes)]
        slot = np.int64((np.uint64(node) * GOLDEN) >> shift)
        while names[slot] != -1 and names[slot] != node:
            slot = (slot + 1) & last
        is_new = names[slot] == -1
        if is_new:
            names[slot] = node
            places[slot] = count
        if is_new or step < len(nodes):
            found[count] = node
            count += 1
        if step >= len(nodes):
            source[step - len(nodes)] = places[slot]
    return found[:count].copy()


@njit(**INNER)
def order_rows(begin, end, first, row_ptr, source, edge, target):
    """Sort each row by source, then by edge, and write the row's own position for each of its edges."""
    for row in range(begin, end):
        row_begin, row_end = row_ptr[row], row_ptr[row + 1]
        target[row_begin:row_end] = first + row
        # Shell sort, which is insertion sort for short rows, and nearly all are short.
        gap = 1
        while gap < (row_end - row_begin) // 9:
            gap = 3 * gap + 1
        while gap > 0:
            for place in range(row_begin + gap, row_end):
                its_source, its_edge, hole = source[place], edge[place], place
                while hole >= row_begin + gap:
                    other = hole - gap
                    if source[other] < its_source or (source[other] == its_source and edge[other] <= its_edge):
                        break
                    source[hole] = source[other]
                    edge[hole] = edge[other]
                    hole = other
                source[hole] = its_source
                edge[hole] = its_edge
            gap //= 3

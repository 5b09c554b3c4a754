"""Passes over the scores of a task, in vector code: a row per edge, a column per head.

Arithmetic is the exact one of `compiled.jit.llvm`, so that each pass over the edges finds the same bits.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .....compiled.jit.llvm import (
    add,
    constant,
    divide,
    float_of,
    integer,
    lanes_loop,
    load_lanes,
    loop,
    multiply,
    multiply_add,
    nothing,
    pointer_at,
    splat,
    store_lanes,
    subtract,
    wide,
)


@intrinsic
def drop_heads(typingctx, to, at, s, state, threshold, keep_scale, heads):
    """Set to[at + h] to keep_scale, times s[at + h] where there is an s, if dropout keeps head h of an edge, else to 0.

    That is where the mixer of `graphattn.dropout`, here on 32-bit lanes, gives at least `threshold`, a 64-bit number up
    to 2^32; `state` is the hash's state after the edge.
    """
    signature = types.void(to, types.int64, s, types.uint64, types.uint64, to.dtype, types.int64)

    def codegen(context, builder, sig, args):
        place, align, i32 = pointer_at(context, builder, to, args[0], args[1]), to.dtype.bitwidth // 8, ir.IntType(32)
        given = None if s == types.none else pointer_at(context, builder, s, args[2], args[1])
        state, threshold, keep_scale, heads = builder.trunc(args[3], i32), *args[4:]
        # No 32-bit number is as large as 2^32.
        keeps_any = builder.icmp_unsigned("<", threshold, ir.Constant(threshold.type, 2**32))
        bound = builder.trunc(threshold, i32)

        def body(head, lanes):
            number = lambda value: constant(i32, lanes, value)
            word = splat(builder, builder.trunc(head, i32), lanes)
            if lanes > 1:
                word = builder.add(word, ir.Constant(wide(i32, lanes), list(range(lanes))))
            word = builder.xor(word, splat(builder, state, lanes))
            for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
                word = builder.mul(builder.xor(word, builder.lshr(word, number(shift))), number(factor))
            word = builder.xor(word, builder.lshr(word, number(16)))
            is_kept = builder.icmp_unsigned(">=", word, splat(builder, bound, lanes))
            is_kept = builder.and_(is_kept, splat(builder, keeps_any, lanes))
            kept, kind = splat(builder, keep_scale, lanes), float_of(to.dtype)
            if given is not None:
                kept = multiply(builder, kept, load_lanes(builder, s.dtype, given(head), lanes))
            x = builder.select(is_kept, kept, constant(kind, lanes, 0.0))
            builder.store(x, builder.bitcast(place(head), x.type.as_pointer()), align=align)

        lanes_loop(builder, heads, body, (16, 8, 4, 1))
        return context.get_dummy_value()

    return signature, codegen


def _over_columns(context: Any, builder: Any, signature: Any, arguments: Any, body: Any) -> None:
    """Run body(pointer to a head's result, lanes, over) over heads, for intrinsics of (s, at, to, of_to, edges, heads).

    over(action) runs action(pointer to that head's scores) over edges.
    """
    (s, _, result, *_), (scores, at, results, of_results, edges, heads) = signature.args, arguments[:6]
    place = pointer_at(context, builder, s, scores, at)
    to = pointer_at(context, builder, result, results, of_results)

    def chunk(head, lanes):
        def over(action):
            with loop(builder, integer(0), edges, 1) as (e, _):
                pointer = place(builder.add(builder.mul(e, heads), head))
                action(builder.bitcast(pointer, wide(pointer.type.pointee, lanes).as_pointer()))

        body(to(head), lanes, over)

    lanes_loop(builder, heads, chunk, (16, 8, 4, 1))


@intrinsic
def shift_columns(typingctx, s, at, top, of_top, edges, heads, none):
    """Subtract from the scores s[at + e * heads + h] the largest over edges, and write that to top[of_top + h].

    NaN is never the largest. Where nothing is larger than -inf, nothing is subtracted, and `none` is written.
    """
    i64 = types.int64
    signature = types.void(s, i64, top, i64, i64, i64, s.dtype)

    def codegen(context, builder, sig, args):
        align = s.dtype.bitwidth // 8

        def body(to, lanes, over):
            kind = wide(float_of(s.dtype), lanes)
            lowest = constant(float_of(s.dtype), lanes, float("-inf"))
            found = cgutils.alloca_once(builder, kind)
            builder.store(lowest, found)

            def compare(pointer):
                x, largest = builder.load(pointer, align=align), builder.load(found)
                builder.store(builder.select(builder.fcmp_ordered(">", x, largest), x, largest), found)

            over(compare)
            largest = builder.load(found)
            is_finite = builder.fcmp_ordered(">", largest, lowest)
            written = builder.select(is_finite, largest, splat(builder, args[6], lanes))
            builder.store(written, builder.bitcast(to, kind.as_pointer()), align=align)
            shift = builder.select(is_finite, largest, constant(float_of(s.dtype), lanes, 0.0))
            over(
                lambda pointer: builder.store(
                    subtract(builder, builder.load(pointer, align=align), shift), pointer, align=align
                )
            )

        _over_columns(context, builder, sig, args, body)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def sum_columns(typingctx, s, at, total, of_total, edges, heads):
    """Set total[of_total + h] to the sum of s[at + e * heads + h] over edges."""
    i64 = types.int64
    signature = types.void(s, i64, total, i64, i64, i64)

    def codegen(context, builder, sig, args):
        align = s.dtype.bitwidth // 8

        def body(to, lanes, over):
            kind = wide(float_of(s.dtype), lanes)
            found = cgutils.alloca_once(builder, kind)
            builder.store(constant(float_of(s.dtype), lanes, 0.0), found)
            over(
                lambda pointer: builder.store(
                    add(builder, builder.load(found), builder.load(pointer, align=align)), found
                )
            )
            builder.store(builder.load(found), builder.bitcast(to, kind.as_pointer()), align=align)

        _over_columns(context, builder, sig, args, body)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def invert_heads(typingctx, to, total, of_total, keep_scale, heads):
    """Set to[h] to keep_scale / total[of_total + h], 0 for a total of 0: that of a row without edges."""
    i64 = types.int64
    signature = types.void(to, total, i64, to.dtype, i64)

    def codegen(context, builder, sig, args):
        place = pointer_at(context, builder, to, args[0], integer(0))
        of = pointer_at(context, builder, total, args[1], args[2])

        def body(head, lanes):
            zero, one = (constant(float_of(to.dtype), lanes, number) for number in (0.0, 1.0))
            x = load_lanes(builder, total.dtype, of(head), lanes)
            inverse = multiply(builder, splat(builder, args[3], lanes), divide(builder, one, x))
            is_empty = builder.fcmp_ordered("==", x, zero)
            store_lanes(builder, to.dtype, place(head), builder.select(is_empty, zero, inverse))

        lanes_loop(builder, args[4], body, (16, 8, 4, 1))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def add_heads(typingctx, s, at, x, of_x, heads):
    """Add x[of_x + h] to s[at + h]; nothing where x is None."""
    signature = types.void(s, types.int64, x, types.int64, types.int64)
    if x == types.none:
        return nothing(types.void, signature.args)

    def codegen(context, builder, sig, args):
        to = pointer_at(context, builder, s, args[0], args[1])
        of = pointer_at(context, builder, x, args[2], args[3])

        def body(head, lanes):
            total = add(
                builder, load_lanes(builder, s.dtype, to(head), lanes), load_lanes(builder, x.dtype, of(head), lanes)
            )
            store_lanes(builder, s.dtype, to(head), total)

        lanes_loop(builder, args[4], body, (16, 8, 4, 1))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def clear(typingctx, x, i, n):
    """Set x[i : i + n] to zero; nothing where x is None."""
    signature = types.void(x, types.int64, types.int64)
    if x == types.none:
        return nothing(types.void, signature.args)

    def codegen(context, builder, sig, args):
        to = pointer_at(context, builder, x, args[0], args[1])
        zero = lambda lanes: constant(float_of(x.dtype), lanes, 0.0)
        lanes_loop(builder, args[2], lambda d, lanes: store_lanes(builder, x.dtype, to(d), zero(lanes)), (16, 8, 4, 1))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def write_stats(typingctx, stats, at, sums, of_sums, heads):
    """Copy a row's shifts, and behind them set the inverses of its sums, 0 where a sum is; each for all heads."""
    i64 = types.int64
    signature = types.void(stats, i64, sums, i64, i64)

    def codegen(context, builder, sig, args):
        to = pointer_at(context, builder, stats, args[0], args[1])
        of, heads, kind = pointer_at(context, builder, sums, args[2], args[3]), args[4], stats.dtype

        def body(head, lanes):
            store_lanes(builder, kind, to(head), load_lanes(builder, kind, of(head), lanes))
            behind = builder.add(heads, head)
            total, zero = load_lanes(builder, kind, of(behind), lanes), constant(float_of(kind), lanes, 0.0)
            inverse = divide(builder, constant(float_of(kind), lanes, 1.0), total)
            inverse = builder.select(builder.fcmp_ordered("==", total, zero), zero, inverse)
            store_lanes(builder, kind, to(behind), inverse)

        lanes_loop(builder, heads, body, (16, 8, 4, 1))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def sum_products(typingctx, s, g, at, factor, of_factor, total, of_total, edges, heads):
    """Set total[of_total + h] to the sum over edges of s * factor[of_factor + h] * g."""
    i64 = types.int64
    signature = types.void(s, g, i64, factor, i64, total, i64, i64, i64)

    def codegen(context, builder, sig, args):
        of_s, of_g = (pointer_at(context, builder, x, args[i], args[2]) for i, x in ((0, s), (1, g)))
        of_factor = pointer_at(context, builder, factor, args[3], args[4])
        to, edges, heads = pointer_at(context, builder, total, args[5], args[6]), args[7], args[8]

        def chunk(head, lanes):
            found = cgutils.alloca_once(builder, wide(float_of(s.dtype), lanes))
            builder.store(constant(float_of(s.dtype), lanes, 0.0), found)
            each = load_lanes(builder, factor.dtype, of_factor(head), lanes)
            with loop(builder, integer(0), edges, 1) as (e, _):
                place = builder.add(builder.mul(e, heads), head)
                weight = multiply(builder, load_lanes(builder, s.dtype, of_s(place), lanes), each)
                slope = load_lanes(builder, g.dtype, of_g(place), lanes)
                builder.store(multiply_add(builder, weight, slope, builder.load(found)), found)
            store_lanes(builder, total.dtype, to(head), builder.load(found))

        lanes_loop(builder, heads, chunk, (16, 8, 4, 1))
        return context.get_dummy_value()

    return signature, codegen


def _over_edges(builder: Any, edges: Any, heads: Any, begin: Any, body: Any) -> None:
    """Run body(place, lanes, *begin(head, lanes)) over edges and heads, where `begin` is the same for all edges."""

    def chunk(head, lanes):
        known = begin(head, lanes)
        with loop(builder, integer(0), edges, 1) as (e, _):
            body(builder.add(builder.mul(e, heads), head), lanes, *known)

    lanes_loop(builder, heads, chunk, (16, 8, 4, 1))


@intrinsic
def interleave(typingctx, to, at, s, g, edges, heads):
    """Write two numbers per edge and head to to[at:], of each edge those of s for all heads, then those of g."""
    i64 = types.int64
    signature = types.void(to, i64, s, g, i64, i64)

    def codegen(context, builder, sig, args):
        place = pointer_at(context, builder, to, args[0], args[1])
        given = [(x, pointer_at(context, builder, x, args[i], integer(0))) for i, x in ((2, s), (3, g))]
        edges, heads = args[4:]

        def body(at, lanes, head):
            # An edge's numbers lie at twice the distance.
            begin = builder.sub(builder.add(at, at), head)
            for (x, of), to_x in zip(given, (begin, builder.add(begin, heads)), strict=True):
                store_lanes(builder, to.dtype, place(to_x), load_lanes(builder, x.dtype, of(at), lanes))

        _over_edges(builder, edges, heads, lambda head, lanes: [head], body)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def shift_rows(typingctx, s, at, stats, of_stats, edges, heads):
    """Subtract stats[of_stats + h] from s[at + e * heads + h], over edges."""
    i64 = types.int64
    signature = types.void(s, i64, stats, i64, i64, i64)

    def codegen(context, builder, sig, args):
        to = pointer_at(context, builder, s, args[0], args[1])
        of = pointer_at(context, builder, stats, args[2], args[3])

        def body(place, lanes, shift):
            x = load_lanes(builder, s.dtype, to(place), lanes)
            store_lanes(builder, s.dtype, to(place), subtract(builder, x, shift))

        shifts = lambda head, lanes: [load_lanes(builder, stats.dtype, of(head), lanes)]
        _over_edges(builder, args[4], args[5], shifts, body)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def finish_rows(typingctx, s, g, at, stats, of_stats, edges, heads):
    """Multiply a row's exponentials s by its factor, and turn gradients g by weights into those by scores.

    They become s * factor and then s * (g - delta). The heads' factors begin at stats[of_stats], and their deltas
    follow. g may be None.
    """
    i64 = types.int64
    signature = types.void(s, g, i64, stats, i64, i64, i64)

    def codegen(context, builder, sig, args):
        of_s = pointer_at(context, builder, s, args[0], args[2])
        of_g = None if g == types.none else pointer_at(context, builder, g, args[1], args[2])
        of, heads = pointer_at(context, builder, stats, args[3], args[4]), args[6]

        def begin(head, lanes):
            places = (head,) if of_g is None else (head, builder.add(head, heads))
            return [load_lanes(builder, stats.dtype, of(place), lanes) for place in places]

        def body(place, lanes, factor, delta=None):
            weight = multiply(builder, load_lanes(builder, s.dtype, of_s(place), lanes), factor)
            store_lanes(builder, s.dtype, of_s(place), weight)
            if of_g is not None:
                slope = subtract(builder, load_lanes(builder, g.dtype, of_g(place), lanes), delta)
                store_lanes(builder, g.dtype, of_g(place), multiply(builder, weight, slope))

        _over_edges(builder, args[5], heads, begin, body)
        return context.get_dummy_value()

    return signature, codegen

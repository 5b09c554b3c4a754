"""Scores and weighted sums of all heads of an edge, in vector code.

Scores and weights of a task lie edge by edge, the heads of an edge side by side. Rows of queries, keys and values are
flat as well: their heads, each so many numbers wide, follow one another. Arithmetic is the exact one of
`compiled.jit.llvm`, so that each pass over the edges finds the same bits.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .....compiled.jit.channels import halve, sum_of_products
from .....compiled.jit.llvm import (
    STREAM_LANES,
    add,
    constant,
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
    stream_lanes,
    wide,
)
from .activations import ACTIVATIONS


def _loader(
    context: Any, builder: Any, kind: types.Type, array: Any, offset: Any, other: tuple = (types.none, None, None)
) -> Any:
    """Load from an array at an offset; where there is another array, the sum of both."""
    pointer, (other_kind, other_array, other_offset) = pointer_at(context, builder, kind, array, offset), other
    if other_kind == types.none:
        return lambda i, lanes: load_lanes(builder, kind.dtype, pointer(i), lanes)
    second = pointer_at(context, builder, other_kind, other_array, other_offset)
    parts = lambda i, lanes: (
        load_lanes(builder, kind.dtype, pointer(i), lanes),
        load_lanes(builder, other_kind.dtype, second(i), lanes),
    )
    return lambda i, lanes: add(builder, *parts(i, lanes))


def _grouped(builder: Any, heads: Any, width: Any, group: Any, bodies: tuple) -> None:
    """Run four(head), eight(head) or flat(head, lanes) over heads where the width allows, one(head) over the rest."""
    four, eight, flat, one = bodies
    done = cgutils.alloca_once(builder, ir.IntType(64))
    builder.store(integer(0), done)
    is_equal = lambda x, number: builder.icmp_signed("==", x, integer(number))
    is_alone = is_equal(group, 1)
    for condition, size, body in (
        (is_equal(builder.and_(width, integer(15)), 0), 4, four),
        (builder.and_(is_equal(width, 8), is_alone), 8, eight),
    ):
        with builder.if_then(condition):
            stop = builder.and_(heads, integer(-size))
            with loop(builder, integer(0), stop, size) as (head, _):
                body(head)
            builder.store(stop, done)
    with builder.if_then(builder.and_(is_equal(width, 1), is_alone)):
        lanes_loop(builder, heads, flat, (16, 8, 4, 1))
        builder.store(heads, done)
    with loop(builder, builder.load(done), heads, 1) as (head, _):
        one(head)


@intrinsic
def dot_heads(typingctx, s, at, scale, x, of_x, y, of_y, z, of_z, y_head, heads, group, width):
    """Set s[at + h] = scale * sum over d < width of x[of_x + h * width + d] * (y + z)[y_head[h] * width + d].

    y begins at of_y, and z, which may be None, at of_z. Sums across a vector are shared by four heads where the width
    is a multiple of 16, and by eight where it is 8 and each head has a y of its own (group is 1).
    """
    i64 = types.int64
    signature = types.void(s, i64, s.dtype, x, i64, y, i64, z, i64, y_head, i64, i64, i64)

    def codegen(context, builder, sig, args):
        to, kind, scale = pointer_at(context, builder, s, args[0], args[1]), float_of(s.dtype), args[2]
        load_x = _loader(context, builder, x, args[3], args[4])
        load_y = _loader(context, builder, y, args[5], args[6], (z, args[7], args[8]))
        of_head = pointer_at(context, builder, y_head, args[9], integer(0))
        heads, group, width = args[10:]

        def store(head, sums):
            lanes = sums.type.count if isinstance(sums.type, ir.VectorType) else 1
            pointer = builder.bitcast(to(head), sums.type.as_pointer())
            builder.store(multiply(builder, sums, splat(builder, scale, lanes)), pointer, align=s.dtype.bitwidth // 8)

        def four(head):
            sums = [cgutils.alloca_once(builder, wide(kind, 16)) for _ in range(4)]
            begins = []
            for i, total in enumerate(sums):
                builder.store(constant(kind, 16, 0.0), total)
                of_x = builder.add(head, integer(i))
                begins.append([builder.mul(width, place) for place in (of_x, builder.load(of_head(of_x)))])
            with loop(builder, integer(0), width, 16) as (d, _):
                for (of_x, of_y), total in zip(begins, sums, strict=True):
                    factors = load_x(builder.add(of_x, d), 16), load_y(builder.add(of_y, d), 16)
                    builder.store(multiply_add(builder, *factors, builder.load(total)), total)
            a, b, c, d = (builder.load(total) for total in sums)
            sixteen = halve(builder, [halve(builder, [a, b]), halve(builder, [c, d])])
            store(head, halve(builder, [halve(builder, [sixteen])]))

        def eight(head):
            begin = builder.mul(head, width)
            places = [builder.add(begin, integer(16 * i)) for i in range(4)]
            a, b, c, d = (multiply(builder, load_x(place, 16), load_y(place, 16)) for place in places)
            store(head, halve(builder, [halve(builder, [halve(builder, [a, b]), halve(builder, [c, d])])]))

        def flat(head, lanes):
            store(head, multiply(builder, load_x(head, lanes), load_y(head, lanes)))

        def one(head):
            of_x, of_y = (builder.mul(width, place) for place in (head, builder.load(of_head(head))))
            total = sum_of_products(
                builder,
                kind,
                lambda d, lanes: load_x(builder.add(of_x, d), lanes),
                lambda d, lanes: load_y(builder.add(of_y, d), lanes),
                width,
            )
            store(head, total)

        _grouped(builder, heads, width, group, (four, eight, flat, one))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def axpy_heads(typingctx, y, of_y, y_head, s, at, x, of_x, z, of_z, x_head, heads, group, width):
    """Add s[at + h] * (x + z)[x_head[h] * width + d] to y[of_y + y_head[h] * width + d], for d < width.

    x begins at of_x, and z, which may be None, at of_z. Nothing happens where y is None. Heads are taken two at a time
    where the width is 8 and each has an x and a y of its own (group is 1).
    """
    i64 = types.int64
    signature = types.void(y, i64, y_head, s, i64, x, i64, z, i64, x_head, i64, i64, i64)
    if y == types.none:
        return nothing(types.void, signature.args)

    def codegen(context, builder, sig, args):
        to, factors = (
            pointer_at(context, builder, y, args[0], args[1]),
            pointer_at(context, builder, s, args[3], args[4]),
        )
        load_x = _loader(context, builder, x, args[5], args[6], (z, args[7], args[8]))
        of_y, of_x = (pointer_at(context, builder, kind, args[i], integer(0)) for kind, i in ((y_head, 2), (x_head, 9)))
        heads, group, width = args[10:]
        align, i32 = y.dtype.bitwidth // 8, ir.IntType(32)

        def add_to(place, factor, new):
            pointer = builder.bitcast(to(place), new.type.as_pointer())
            old = builder.load(pointer, align=align)
            builder.store(multiply_add(builder, factor, new, old), pointer, align=align)

        def begins(head):
            return [builder.mul(width, builder.load(of(head))) for of in (of_y, of_x)]

        def four(first):
            for i in range(4):
                head = builder.add(first, integer(i))
                begin_y, begin_x = begins(head)
                factor = splat(builder, builder.load(factors(head)), 16)
                with loop(builder, integer(0), width, 16) as (d, _):
                    add_to(builder.add(begin_y, d), factor, load_x(builder.add(begin_x, d), 16))

        def eight(head):
            begin = builder.mul(head, width)
            kind = wide(float_of(s.dtype), 8)
            all_eight = builder.load(builder.bitcast(factors(head), kind.as_pointer()), align=align)
            for i in range(4):
                lanes = ir.Constant(wide(i32, 16), [2 * i + lane // 8 for lane in range(16)])
                place = builder.add(begin, integer(16 * i))
                add_to(place, builder.shuffle_vector(all_eight, all_eight, lanes), load_x(place, 16))

        def flat(head, lanes):
            pointer = builder.bitcast(factors(head), wide(float_of(s.dtype), lanes).as_pointer())
            add_to(head, builder.load(pointer, align=align), load_x(head, lanes))

        def one(head):
            begin_y, begin_x = begins(head)
            factor = builder.load(factors(head))

            def body(d, lanes):
                new = load_x(builder.add(begin_x, d), lanes)
                add_to(builder.add(begin_y, d), splat(builder, factor, lanes), new)

            lanes_loop(builder, width, body)

        _grouped(builder, heads, width, group, (four, eight, flat, one))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def scale_heads(typingctx, y, of_y, s, at, x, of_x, heads, width, streams):
    """Set y[of_y + h * width + d] to s[at + h] * x[of_x + h * width + d], for d < width; nothing where y is None.

    With `streams`, see `edges.streams`, the caches are left alone: y is aligned, and the width whole STREAM_LANES.
    """
    i64 = types.int64
    signature = types.void(y, i64, s, i64, x, i64, i64, i64, types.boolean)
    if y == types.none:
        return nothing(types.void, signature.args)

    def codegen(context, builder, sig, args):
        to, factors, of = (
            pointer_at(context, builder, kind, args[i], args[i + 1]) for kind, i in ((y, 0), (s, 2), (x, 4))
        )
        heads, width, streams = args[6:]

        def write(store, sizes):
            with loop(builder, integer(0), heads, 1) as (head, _):
                begin, factor = builder.mul(head, width), builder.load(factors(head))

                def body(d, lanes):
                    place = builder.add(begin, d)
                    new = load_lanes(builder, x.dtype, of(place), lanes)
                    store(builder, y.dtype, to(place), multiply(builder, splat(builder, factor, lanes), new))

                lanes_loop(builder, width, body, sizes)

        with builder.if_else(streams) as (past_caches, through_caches):
            with past_caches:
                write(stream_lanes, (STREAM_LANES,))
            with through_caches:
                write(store_lanes, (16, 8, 4, 1))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def activate_row(typingctx, a, of_a, u, vector, of_vector, q, of_q, k, of_k, ek, of_ek, n, score, slope):
    """Set a[of_a + d] to the activation of x = q[of_q + d] + k[of_k + d] + ek[of_ek + d], over d < n.

    And u[of_a + d] to its derivative times vector[of_vector + d]. ek and either result may be None.
    """
    i64 = types.int64
    signature = types.void(a, i64, u, vector, i64, q, i64, k, i64, ek, i64, i64, i64, vector.dtype)

    def codegen(context, builder, sig, args):
        of_a, n, score, slope = args[1], *args[11:]
        load_q = _loader(context, builder, q, args[5], args[6])
        load_k = _loader(context, builder, k, args[7], args[8], (ek, args[9], args[10]))
        factor = pointer_at(context, builder, vector, args[3], args[4])
        results = [
            None if x == types.none else pointer_at(context, builder, x, args[i], of_a) for x, i in ((a, 0), (u, 2))
        ]

        def body(activation, d, lanes):
            (to_a, to_u), x = results, add(builder, load_q(d, lanes), load_k(d, lanes))
            y, derivative = activation(builder, x, splat(builder, slope, lanes))
            if to_a is not None:
                store_lanes(builder, vector.dtype, to_a(d), y)
            if to_u is not None:
                slant = multiply(builder, derivative(), load_lanes(builder, vector.dtype, factor(d), lanes))
                store_lanes(builder, vector.dtype, to_u(d), slant)

        for code, activation in ACTIVATIONS.items():
            with builder.if_then(builder.icmp_signed("==", score, integer(code))):
                lanes_loop(builder, n, partial(body, activation), (16, 8, 4, 1))
        return context.get_dummy_value()

    return signature, codegen

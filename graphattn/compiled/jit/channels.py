"""Arithmetic over the channels of rows, for loops in which each channel is a head of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .llvm import (
    add,
    constant,
    float_of,
    lanes_loop,
    load_lanes,
    multiply_add,
    pointer_at,
    splat,
    store_lanes,
    wide,
)


def over_channels(compute: Callable[..., list[Any]]) -> Any:
    """An intrinsic f(n, arrays, offsets, numbers) that sets the n channels of the first arrays.

    `arrays` is a tuple of flat arrays of one dtype, `offsets` says where the channels begin in each, and `numbers` are
    the same for all channels. `compute` gets a builder, a vector of each array and then of each number, and returns the
    vectors of the first arrays.
    """

    @intrinsic
    def each_channel(typingctx, n, arrays, offsets, numbers):
        kinds = list(arrays)

        def codegen(context, builder, sig, args):
            parts = lambda x, count: [builder.extract_value(x, i) for i in range(count)]
            held = zip(kinds, parts(args[1], len(kinds)), parts(args[2], len(kinds)), strict=True)
            places = [pointer_at(context, builder, *place) for place in held]
            given = parts(args[3], len(numbers))

            def body(c, lanes):
                pairs = zip(kinds, places, strict=True)
                vectors = [load_lanes(builder, kind.dtype, at(c), lanes) for kind, at in pairs]
                found = compute(builder, *vectors, *(splat(builder, x, lanes) for x in given))
                for kind, at, x in zip(kinds, places, found, strict=False):
                    store_lanes(builder, kind.dtype, at(c), x)

            lanes_loop(builder, args[0], body, (16, 8, 4, 1))
            return context.get_dummy_value()

        return types.void(n, arrays, offsets, numbers), codegen

    return each_channel


def halve(builder: Any, vectors: list) -> Any:
    """Sums of neighboring lanes: of one vector, half as many; of two, one behind the other."""
    count = vectors[0].type.count * len(vectors) // 2
    even, odd = (ir.Constant(wide(ir.IntType(32), count), [2 * i + side for i in range(count)]) for side in (0, 1))
    parts = [builder.shuffle_vector(vectors[0], vectors[-1], places) for places in (even, odd)]
    return add(builder, *parts)


def sum_of_products(builder: Any, kind: ir.Type, load_x: Any, load_y: Any, n: Any) -> Any:
    """Sum of x[d] * y[d] over d < n."""
    sums = {lanes: cgutils.alloca_once(builder, wide(kind, lanes)) for lanes in (16, 4, 1)}
    for lanes, total in sums.items():
        builder.store(constant(kind, lanes, 0.0), total)

    def body(d, lanes):
        product = multiply_add(builder, load_x(d, lanes), load_y(d, lanes), builder.load(sums[lanes]))
        builder.store(product, sums[lanes])

    lanes_loop(builder, n, body)
    four = halve(builder, [halve(builder, [builder.load(sums[16])])])
    two = halve(builder, [add(builder, four, builder.load(sums[4]))])
    ends = [builder.extract_element(two, ir.Constant(ir.IntType(32), lane)) for lane in (0, 1)]
    return add(builder, add(builder, *ends), builder.load(sums[1]))


@intrinsic
def dot(typingctx, x, at, y, to, n):
    """Sum of x[at + c] * y[to + c] over n channels."""

    def codegen(context, builder, sig, args):
        (first, at), (second, to) = args[:2], args[2:4]
        of_x, of_y = pointer_at(context, builder, x, first, at), pointer_at(context, builder, y, second, to)
        load = lambda pointer, kind: lambda c, lanes: load_lanes(builder, kind.dtype, pointer(c), lanes)
        return sum_of_products(builder, float_of(x.dtype), load(of_x, x), load(of_y, y), args[4])

    return x.dtype(x, types.int64, y, types.int64, types.int64), codegen

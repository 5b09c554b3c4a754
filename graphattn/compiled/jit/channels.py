"""Arithmetic over the channels of rows, for loops in which each channel is a head of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic

from .llvm import lanes_loop, load_lanes, pointer_at, splat, store_lanes


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

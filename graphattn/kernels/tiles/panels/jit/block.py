"""Products of small matrices in registers, and passes over columns of scores, for `loops`.

Scores are stored column by column: a column [PANEL] has the scores of one source for the targets of a panel, one target
per lane. So a target's largest score and its sum need no operations across lanes. Arrays are flat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .....compiled.jit.llvm import (
    constant,
    exp_lanes,
    exp_of_rest,
    float_of,
    integer,
    load_lanes,
    loop,
    multiply_add,
    pointer_at,
    splat,
    store_lanes,
    wide,
)

# Number of targets computed at a time, and so the stride from one source's scores to the next one's.
PANEL = 64


def block_of(features: Mapping[str, bool]) -> tuple[int, int]:
    """Bytes of a vector, and rows of a product, on a processor that has these: the product's sums are in registers.

    It holds rows * 2 vectors: 16 of the 32 registers of AVX-512, 8 of the 16 of AVX. On Arm, whose 32 registers have 16
    bytes, a vector is two of them, so that it holds 16.
    """
    if features.get("avx512f", False):
        return 64, 8
    has_narrow = features.get("sse2", False) and not features.get("avx", False)
    return (16 if has_narrow else 32), 4


VECTOR_BYTES, ROWS = block_of(binding.get_host_cpu_features())


def lanes_of(dtype: types.Type) -> int:
    """Number of lanes of a vector."""
    return VECTOR_BYTES * 8 // dtype.bitwidth


@intrinsic
def lanes_in(typingctx, x):
    """Number of lanes of a vector of an array's dtype."""

    def codegen(context, builder, sig, args):
        return integer(lanes_of(x.dtype))

    return types.int64(x), codegen


def maximum(builder: Any, x: Any, y: Any) -> Any:
    """The larger one in each lane; y where x is NaN."""
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def _product(vectors: int, finish: str) -> Any:
    """An intrinsic for ROWS rows of this many vectors.

    It sets them, or scales them by each row's factor first, or adds them, or both, to the existing values; or, for
    scores, sets them to -inf where a row's bits are 0, and sets `factors` to the maximum of its value and the other
    scores in each lane.
    """

    @intrinsic
    def product(
        typingctx, c, c_rows, c_first, c_at, n, factors, bits, a, a_rows, a_at, a_step, b, b_rows, b_at, begin, end
    ):
        """Compute c[i, :] = sum over k from begin to end of a[i, k] * b[k, :].

        c[i, j] is c[c_rows[c_first + i] + c_at + j], a[i, k] is a[a_rows[c_first + i] + a_at + k * a_step], b[k, j] is
        b[b_rows[k] + b_at + j]. Rows from n on are read, but only written where they are set.
        """
        i64 = types.int64
        signature = types.void(c, c_rows, i64, i64, i64, factors, bits, a, a_rows, i64, i64, b, b_rows, i64, i64, i64)

        def codegen(context, builder, sig, args):
            of_c, of_c_rows, c_first, c_at, n, of_factors, of_bits, of_a, of_a_rows, a_at, a_step, *rest = args
            of_b, of_b_rows, b_at, begin, end = rest
            kind, lanes = float_of(c.dtype), lanes_of(c.dtype)
            at = lambda array, data, offset: pointer_at(context, builder, array, data, offset)
            row = lambda array, data, i: builder.load(at(array, data, integer(0))(i))
            places = [builder.add(c_first, integer(i)) for i in range(ROWS)]
            sources = [at(a, of_a, a_at)(row(a_rows, of_a_rows, place)) for place in places]
            start = builder.mul(begin, a_step)
            before = builder.block
            body, after = (builder.append_basic_block(name) for name in ("product", "product_end"))
            builder.cbranch(builder.icmp_signed("<", begin, end), body, after)

            builder.position_at_end(body)
            k, offset = (builder.phi(ir.IntType(64)) for _ in range(2))
            sums = [[builder.phi(wide(kind, lanes)) for _ in range(vectors)] for _ in range(ROWS)]
            from_b = at(b, of_b, b_at)(row(b_rows, of_b_rows, k))
            right = [
                load_lanes(builder, b.dtype, builder.gep(from_b, [integer(j * lanes)]), lanes) for j in range(vectors)
            ]
            totals = []
            for source, line in zip(sources, sums, strict=True):
                left = splat(builder, builder.load(builder.gep(source, [offset])), lanes)
                totals.append([multiply_add(builder, left, x, total) for x, total in zip(right, line, strict=True)])
            following = (builder.add(k, integer(1)), builder.add(offset, a_step))
            for phi, first, then in ((k, begin, following[0]), (offset, start, following[1])):
                phi.add_incoming(first, before)
                phi.add_incoming(then, body)
            zero = constant(kind, lanes, 0.0)
            for line, total in zip(sums, totals, strict=True):
                for phi, then in zip(line, total, strict=True):
                    phi.add_incoming(zero, before)
                    phi.add_incoming(then, body)
            builder.cbranch(builder.icmp_signed("<", following[0], end), body, after)

            builder.position_at_end(after)
            results = [[builder.phi(wide(kind, lanes)) for _ in range(vectors)] for _ in range(ROWS)]
            for line, total in zip(results, totals, strict=True):
                for phi, then in zip(line, total, strict=True):
                    phi.add_incoming(zero, before)
                    phi.add_incoming(then, body)

            lowest, tops = constant(kind, lanes, float("-inf")), at(factors, of_factors, c_at)
            largest = [lowest] * vectors

            def write(place, line):
                to = at(c, of_c, c_at)(row(c_rows, of_c_rows, place))
                for j, x in enumerate(line):
                    pointer = builder.gep(to, [integer(j * lanes)])
                    if finish == "hide":
                        seen = builder.lshr(row(bits, of_bits, place), builder.add(c_at, integer(j * lanes)))
                        seen = builder.bitcast(builder.trunc(seen, ir.IntType(lanes)), wide(ir.IntType(1), lanes))
                        x = builder.select(seen, x, lowest)
                        largest[j] = maximum(builder, x, largest[j])
                    if finish in ("scale", "add scaled"):
                        x = builder.fmul(x, splat(builder, row(factors, of_factors, place), lanes))
                    if finish in ("add", "add scaled"):
                        x = builder.fadd(load_lanes(builder, c.dtype, pointer, lanes), x)
                    store_lanes(builder, c.dtype, pointer, x)

            for i, (place, line) in enumerate(zip(places, results, strict=True)):
                if finish in ("set", "hide"):
                    write(place, line)
                else:
                    with builder.if_then(builder.icmp_signed("<", integer(i), n)):
                        write(place, line)
            if finish == "hide":
                for j, x in enumerate(largest):
                    pointer = tops(integer(j * lanes))
                    before = load_lanes(builder, c.dtype, pointer, lanes)
                    store_lanes(builder, c.dtype, pointer, maximum(builder, x, before))
            return context.get_dummy_value()

        return signature, codegen

    return product


hide_one, hide_two = _product(1, "hide"), _product(2, "hide")
set_one, set_two = _product(1, "set"), _product(2, "set")
scale_one, scale_two = _product(1, "scale"), _product(2, "scale")
add_one, add_two = _product(1, "add"), _product(2, "add")
add_scaled_one, add_scaled_two = _product(1, "add scaled"), _product(2, "add scaled")


@intrinsic
def copy_vector(typingctx, to, at, x, x_at):
    """Copy one vector of numbers."""

    def codegen(context, builder, sig, args):
        numbers = load_lanes(
            builder, x.dtype, pointer_at(context, builder, x, args[2], args[3])(integer(0)), lanes_of(x.dtype)
        )
        store_lanes(builder, to.dtype, pointer_at(context, builder, to, args[0], args[1])(integer(0)), numbers)
        return context.get_dummy_value()

    return types.void(to, types.int64, x, types.int64), codegen


@intrinsic
def transpose_square(typingctx, to, at, x, rows, first, x_at, factor):
    """Set to[at + d * PANEL + i] = factor * x[rows[first + i] + x_at + d] for a square as wide as a vector."""
    i64 = types.int64

    def codegen(context, builder, sig, args):
        lanes, i32 = lanes_of(x.dtype), ir.IntType(32)
        source = pointer_at(context, builder, x, args[2], args[5])
        row = pointer_at(context, builder, rows, args[3], args[4])
        factor = splat(builder, args[6], lanes)
        vectors = []
        for i in range(lanes):
            numbers = load_lanes(builder, x.dtype, source(builder.load(row(integer(i)))), lanes)
            vectors.append(builder.fmul(numbers, factor))
        half = lanes // 2
        while half:
            # Each pair of rows swaps its off-diagonal blocks.
            places = [[i if not i & half else lanes + i - half for i in range(lanes)]]
            places.append([i + half if not i & half else lanes + i for i in range(lanes)])
            masks = [ir.Constant(wide(i32, lanes), numbers) for numbers in places]
            for i in range(lanes):
                if not i & half:
                    pair = vectors[i], vectors[i + half]
                    vectors[i], vectors[i + half] = (builder.shuffle_vector(*pair, mask) for mask in masks)
            half //= 2
        place = pointer_at(context, builder, to, args[0], args[1])
        for d, numbers in enumerate(vectors):
            store_lanes(builder, to.dtype, place(integer(d * PANEL)), numbers)
        return context.get_dummy_value()

    return types.void(to, i64, x, rows, i64, i64, x.dtype), codegen


class _Columns:
    """The lanes of one vector of targets, column by column."""

    def __init__(self, context: Any, builder: Any, array: types.Type, lane: Any) -> None:
        self.context, self.builder, self.lane = context, builder, lane
        self.dtype, self.kind, self.lanes = array.dtype, float_of(array.dtype), lanes_of(array.dtype)

    def constant(self, number: float) -> Any:
        return constant(self.kind, self.lanes, number)

    def load(self, array: types.Type, data: Any) -> Any:
        """The values of an array for these targets."""
        pointer = pointer_at(self.context, self.builder, array, data, self.lane)(integer(0))
        return load_lanes(self.builder, array.dtype, pointer, self.lanes)

    def store(self, array: types.Type, data: Any, x: Any) -> None:
        store_lanes(
            self.builder, array.dtype, pointer_at(self.context, self.builder, array, data, self.lane)(integer(0)), x
        )

    def run(self, begin: Any, end: Any, arrays: list, start: Any, body: Callable[..., tuple]) -> Any:
        """Run body(column, total, one vector of each array), which returns the next total and new vectors."""
        builder = self.builder
        total = cgutils.alloca_once(builder, start.type)
        builder.store(start, total)
        with loop(builder, begin, end, 1) as (column, _):
            places = [
                pointer_at(self.context, builder, array, data, self.lane)(builder.mul(column, integer(PANEL)))
                for array, data in arrays
            ]
            vectors = [load_lanes(builder, self.dtype, place, self.lanes) for place in places]
            then, *results = body(column, builder.load(total), *vectors)
            builder.store(then, total)
            for place, x in zip(places, results, strict=False):
                if x is not None:
                    store_lanes(builder, self.dtype, place, x)
        return builder.load(total)


def _exp_below(builder: Any, x: Any) -> Any:
    """Exp in each lane for x <= 0 or NaN: `exp_lanes` without the steps for other numbers."""
    if isinstance(x.type.element, ir.DoubleType):
        return exp_lanes(builder, x)
    lanes = x.type.count
    number, i32 = (lambda value: constant(x.type.element, lanes, value)), wide(ir.IntType(32), lanes)
    # Adding 1.5 * 2^23 rounds to an integer, which is then in the last bits.
    shifted = multiply_add(builder, x, number(1.4426950408889634), number(12582912.0))
    n = builder.fsub(shifted, number(12582912.0))
    y = exp_of_rest(builder, x, n, number)
    bits = builder.shl(builder.bitcast(shifted, i32), constant(ir.IntType(32), lanes, 23))
    power = builder.bitcast(builder.add(bits, constant(ir.IntType(32), lanes, 127 << 23)), x.type)
    # Below this, 2^n would not be a normal number.
    return builder.select(builder.fcmp_ordered("<", x, number(-87.3)), number(0.0), builder.fmul(y, power))


@intrinsic
def exponentials(typingctx, s, lane, begin, end, top, scale, total):
    """Set s = exp(scale * (s - top)), and total to its sum; nothing is subtracted where top is -inf."""
    i64 = types.int64

    def codegen(context, builder, sig, args):
        columns = _Columns(context, builder, s, args[1])
        zero, largest = columns.constant(0.0), columns.load(top, args[4])
        is_empty = builder.fcmp_ordered("==", largest, columns.constant(float("-inf")))
        largest, scale = builder.select(is_empty, zero, largest), splat(builder, args[5], columns.lanes)

        def body(column, whole, x):
            x = _exp_below(builder, builder.fmul(builder.fsub(x, largest), scale))
            return builder.fadd(whole, x), x

        whole = columns.run(args[2], args[3], [(s, args[0])], zero, body)
        columns.store(total, args[6], whole)
        return context.get_dummy_value()

    return types.void(s, i64, i64, i64, top, s.dtype, total), codegen


@intrinsic
def weigh(typingctx, s, slope, lane, begin, end, factor, total):
    """Multiply s by factor, and set total to the sum of s * slope."""
    i64 = types.int64

    def codegen(context, builder, sig, args):
        columns = _Columns(context, builder, s, args[2])
        each = columns.load(factor, args[5])

        def body(column, whole, x, y):
            x = builder.fmul(x, each)
            return multiply_add(builder, x, y, whole), x

        arrays = [(s, args[0]), (slope, args[1])]
        columns.store(total, args[6], columns.run(args[3], args[4], arrays, columns.constant(0.0), body))
        return context.get_dummy_value()

    return types.void(s, slope, i64, i64, i64, factor, total), codegen


@intrinsic
def differentiate(typingctx, s, slope, lane, begin, end, shift, factor):
    """Set slope = factor * s * (slope - shift)."""
    i64 = types.int64

    def codegen(context, builder, sig, args):
        columns = _Columns(context, builder, s, args[2])
        less, factor = columns.load(shift, args[5]), splat(builder, args[6], columns.lanes)

        def body(column, nothing, x, y):
            return nothing, None, builder.fmul(builder.fmul(x, factor), builder.fsub(y, less))

        columns.run(args[3], args[4], [(s, args[0]), (slope, args[1])], columns.constant(0.0), body)
        return context.get_dummy_value()

    return types.void(s, slope, i64, i64, i64, shift, s.dtype), codegen

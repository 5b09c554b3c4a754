"""Vector primitives that Numba lacks: loads of half types, dot products, prefetching, an exp that vectorizes.

Arrays are flat. int16 stands for bfloat16 and uint16 for float16, which Numba has no types for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# Reassociation lets loops vectorize; NaN and infinities keep their meaning.
FAST = {"contract", "reassoc", "nsz", "arcp"}
OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": FAST, "error_model": "numpy", "cache": True}


def _accumulator(dtype: types.Type) -> types.Type:
    return types.float64 if dtype == types.float64 else types.float32


def _float(dtype: types.Type) -> ir.Type:
    return ir.DoubleType() if dtype == types.float64 else ir.FloatType()


def _wide(kind: ir.Type, lanes: int) -> ir.Type:
    return kind if lanes == 1 else ir.VectorType(kind, lanes)


def _constant(kind: ir.Type, lanes: int, number: float) -> ir.Constant:
    return ir.Constant(kind, number) if lanes == 1 else ir.Constant(_wide(kind, lanes), [number] * lanes)


def _load(builder: Any, dtype: types.Type, pointer: Any, lanes: int) -> Any:
    """Load numbers as float32, doubles as float64."""
    accumulate, i32 = _float(dtype), ir.IntType(32)
    stored = {types.int16: ir.IntType(16), types.uint16: ir.HalfType()}.get(dtype, accumulate)
    x = builder.load(builder.bitcast(pointer, _wide(stored, lanes).as_pointer()), align=dtype.bitwidth // 8)
    if dtype == types.int16:
        bits = builder.shl(builder.zext(x, _wide(i32, lanes)), _constant(i32, lanes, 16))
        return builder.bitcast(bits, _wide(accumulate, lanes))
    return builder.fpext(x, _wide(accumulate, lanes)) if dtype == types.uint16 else x


def _store(builder: Any, dtype: types.Type, pointer: Any, x: Any) -> None:
    """Store numbers of the accumulator's type, rounded to nearest even for half types."""
    lanes = x.type.count if isinstance(x.type, ir.VectorType) else 1
    i16, i32 = ir.IntType(16), ir.IntType(32)
    if dtype == types.uint16:
        x = builder.fptrunc(x, _wide(ir.HalfType(), lanes))
    if dtype == types.int16:
        bits = builder.bitcast(x, _wide(i32, lanes))
        odd = builder.and_(builder.lshr(bits, _constant(i32, lanes, 16)), _constant(i32, lanes, 1))
        rounded = builder.add(bits, builder.add(odd, _constant(i32, lanes, 0x7FFF)))
        # Rounding up could turn a NaN into an infinity.
        is_nan = builder.fcmp_unordered("uno", x, x)
        bits = builder.select(is_nan, builder.or_(bits, _constant(i32, lanes, 0x400000)), rounded)
        x = builder.trunc(builder.lshr(bits, _constant(i32, lanes, 16)), _wide(i16, lanes))
    builder.store(x, builder.bitcast(pointer, x.type.as_pointer()), align=dtype.bitwidth // 8)


def _at(context: Any, builder: Any, kind: types.Type, array: Any, offset: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return lambda i: builder.gep(data, [builder.add(offset, i)])


def _integer(number: int) -> ir.Constant:
    return ir.Constant(ir.IntType(64), number)


def _loop(builder: Any, start: Any, stop: Any, step: int) -> Any:
    return cgutils.for_range_slice(builder, start, stop, _integer(step), intp=ir.IntType(64))


def _lanes_loop(builder: Any, n: Any, body: Any, sizes: tuple = (16, 4, 1)) -> None:
    """Run body(start, lanes) over n elements: 16 at a time, then 4, then one."""
    start = _integer(0)
    for lanes in sizes:
        stop = builder.and_(n, _integer(-lanes))
        with _loop(builder, start, stop, lanes) as (i, _):
            body(i, lanes)
        start = stop


def _nothing(result: types.Type, arguments: tuple) -> tuple:
    """An intrinsic that does nothing: a branch on an absent array must still have a type."""

    def codegen(context, builder, sig, args):
        return context.get_dummy_value() if result == types.void else ir.Constant(_float(result), 0.0)

    return result(*arguments), codegen


def _splat(builder: Any, x: Any, lanes: int) -> Any:
    if lanes == 1:
        return x
    i32, empty = ir.IntType(32), ir.Constant(_wide(x.type, lanes), ir.Undefined)
    one = builder.insert_element(empty, x, ir.Constant(i32, 0))
    return builder.shuffle_vector(one, empty, _constant(i32, lanes, 0))


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    lanes = f"v{a.type.count}" if isinstance(a.type, ir.VectorType) else ""
    element = a.type.element if lanes else a.type
    name = f"llvm.fmuladd.{lanes}{'f64' if isinstance(element, ir.DoubleType) else 'f32'}"
    function = builder.module.declare_intrinsic(name, fnty=ir.FunctionType(a.type, [a.type] * 3))
    return builder.call(function, [a, b, c])


def _halve(builder: Any, vectors: list) -> Any:
    """Sums of neighboring lanes: of one vector, half as many; of two, one behind the other."""
    count = vectors[0].type.count * len(vectors) // 2
    even, odd = (ir.Constant(_wide(ir.IntType(32), count), [2 * i + side for i in range(count)]) for side in (0, 1))
    parts = [builder.shuffle_vector(vectors[0], vectors[-1], places) for places in (even, odd)]
    return builder.fadd(*parts)


def _loader(
    context: Any, builder: Any, kind: types.Type, array: Any, offset: Any, other: tuple = (types.none, None, None)
) -> Any:
    """Load from an array at an offset; where there is another array, the sum of both."""
    pointer, (other_kind, other_array, other_offset) = _at(context, builder, kind, array, offset), other
    if other_kind == types.none:
        return lambda i, lanes: _load(builder, kind.dtype, pointer(i), lanes)
    second = _at(context, builder, other_kind, other_array, other_offset)
    parts = lambda i, lanes: (
        _load(builder, kind.dtype, pointer(i), lanes),
        _load(builder, other_kind.dtype, second(i), lanes),
    )
    return lambda i, lanes: builder.fadd(*parts(i, lanes))


def _dot(builder: Any, kind: ir.Type, load_x: Any, load_y: Any, n: Any) -> Any:
    """Sum of x[d] * y[d] over d < n."""
    sums = {lanes: cgutils.alloca_once(builder, _wide(kind, lanes)) for lanes in (16, 4, 1)}
    for lanes, total in sums.items():
        builder.store(_constant(kind, lanes, 0.0), total)

    def body(d, lanes):
        product = _multiply_add(builder, load_x(d, lanes), load_y(d, lanes), builder.load(sums[lanes]))
        builder.store(product, sums[lanes])

    _lanes_loop(builder, n, body)
    four = _halve(builder, [_halve(builder, [builder.load(sums[16])])])
    two = _halve(builder, [builder.fadd(four, builder.load(sums[4]))])
    ends = [builder.extract_element(two, ir.Constant(ir.IntType(32), lane)) for lane in (0, 1)]
    return builder.fadd(builder.fadd(*ends), builder.load(sums[1]))


def _grouped(builder: Any, heads: Any, width: Any, group: Any, bodies: tuple) -> None:
    """Run four(head) or eight(head) over groups of heads where the width allows it, and one(head) over the rest."""
    four, eight, one = bodies
    done = cgutils.alloca_once(builder, ir.IntType(64))
    builder.store(_integer(0), done)
    is_wide = builder.icmp_signed("==", builder.and_(width, _integer(15)), _integer(0))
    is_eight = builder.and_(
        builder.icmp_signed("==", width, _integer(8)), builder.icmp_signed("==", group, _integer(1))
    )
    for condition, size, body in ((is_wide, 4, four), (is_eight, 8, eight)):
        with builder.if_then(condition):
            stop = builder.and_(heads, _integer(-size))
            with _loop(builder, _integer(0), stop, size) as (head, _):
                body(head)
            builder.store(stop, done)
    with _loop(builder, builder.load(done), heads, 1) as (head, _):
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
        to, kind, scale = _at(context, builder, s, args[0], args[1]), _float(s.dtype), args[2]
        load_x = _loader(context, builder, x, args[3], args[4])
        load_y = _loader(context, builder, y, args[5], args[6], (z, args[7], args[8]))
        of_head = _at(context, builder, y_head, args[9], _integer(0))
        heads, group, width = args[10:]

        def store(head, sums):
            lanes = sums.type.count if isinstance(sums.type, ir.VectorType) else 1
            pointer = builder.bitcast(to(head), sums.type.as_pointer())
            builder.store(builder.fmul(sums, _splat(builder, scale, lanes)), pointer, align=s.dtype.bitwidth // 8)

        def four(head):
            sums = [cgutils.alloca_once(builder, _wide(kind, 16)) for _ in range(4)]
            begins = []
            for i, total in enumerate(sums):
                builder.store(_constant(kind, 16, 0.0), total)
                of_x = builder.add(head, _integer(i))
                begins.append([builder.mul(width, place) for place in (of_x, builder.load(of_head(of_x)))])
            with _loop(builder, _integer(0), width, 16) as (d, _):
                for (of_x, of_y), total in zip(begins, sums, strict=True):
                    factors = load_x(builder.add(of_x, d), 16), load_y(builder.add(of_y, d), 16)
                    builder.store(_multiply_add(builder, *factors, builder.load(total)), total)
            a, b, c, d = (builder.load(total) for total in sums)
            sixteen = _halve(builder, [_halve(builder, [a, b]), _halve(builder, [c, d])])
            store(head, _halve(builder, [_halve(builder, [sixteen])]))

        def eight(head):
            begin = builder.mul(head, width)
            places = [builder.add(begin, _integer(16 * i)) for i in range(4)]
            a, b, c, d = (builder.fmul(load_x(place, 16), load_y(place, 16)) for place in places)
            store(head, _halve(builder, [_halve(builder, [_halve(builder, [a, b]), _halve(builder, [c, d])])]))

        def one(head):
            of_x, of_y = (builder.mul(width, place) for place in (head, builder.load(of_head(head))))
            total = _dot(
                builder,
                kind,
                lambda d, lanes: load_x(builder.add(of_x, d), lanes),
                lambda d, lanes: load_y(builder.add(of_y, d), lanes),
                width,
            )
            store(head, total)

        _grouped(builder, heads, width, group, (four, eight, one))
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
        return _nothing(types.void, signature.args)

    def codegen(context, builder, sig, args):
        to, factors = _at(context, builder, y, args[0], args[1]), _at(context, builder, s, args[3], args[4])
        load_x = _loader(context, builder, x, args[5], args[6], (z, args[7], args[8]))
        of_y, of_x = (_at(context, builder, kind, args[i], _integer(0)) for kind, i in ((y_head, 2), (x_head, 9)))
        heads, group, width = args[10:]
        align, i32 = y.dtype.bitwidth // 8, ir.IntType(32)

        def add(place, factor, new):
            pointer = builder.bitcast(to(place), new.type.as_pointer())
            old = builder.load(pointer, align=align)
            builder.store(_multiply_add(builder, factor, new, old), pointer, align=align)

        def begins(head):
            return [builder.mul(width, builder.load(of(head))) for of in (of_y, of_x)]

        def four(first):
            for i in range(4):
                head = builder.add(first, _integer(i))
                begin_y, begin_x = begins(head)
                factor = _splat(builder, builder.load(factors(head)), 16)
                with _loop(builder, _integer(0), width, 16) as (d, _):
                    add(builder.add(begin_y, d), factor, load_x(builder.add(begin_x, d), 16))

        def eight(head):
            begin = builder.mul(head, width)
            kind = _wide(_float(s.dtype), 8)
            all_eight = builder.load(builder.bitcast(factors(head), kind.as_pointer()), align=align)
            for i in range(4):
                lanes = ir.Constant(_wide(i32, 16), [2 * i + lane // 8 for lane in range(16)])
                place = builder.add(begin, _integer(16 * i))
                add(place, builder.shuffle_vector(all_eight, all_eight, lanes), load_x(place, 16))

        def one(head):
            begin_y, begin_x = begins(head)
            factor = builder.load(factors(head))

            def body(d, lanes):
                new = load_x(builder.add(begin_x, d), lanes)
                add(builder.add(begin_y, d), _splat(builder, factor, lanes), new)

            _lanes_loop(builder, width, body)

        _grouped(builder, heads, width, group, (four, eight, one))
        return context.get_dummy_value()

    return signature, codegen


def _columns(builder: Any, place: Any, edges: Any, heads: Any, body: Any) -> None:
    """Run body(head, lanes, over) over heads; over(action) runs action(pointer to that head's scores) over edges."""

    def chunk(head, lanes):
        def over(action):
            with _loop(builder, _integer(0), edges, 1) as (e, _):
                pointer = place(builder.add(builder.mul(e, heads), head))
                action(builder.bitcast(pointer, _wide(pointer.type.pointee, lanes).as_pointer()))

        body(head, lanes, over)

    _lanes_loop(builder, heads, chunk, (16, 8, 4, 1))


@intrinsic
def shift_columns(typingctx, s, at, top, edges, heads):
    """Set top[h] to the largest of the scores s[at + e * heads + h] over edges, and subtract it unless it is -inf.

    NaN is never the largest.
    """
    signature = types.void(s, types.int64, top, types.int64, types.int64)

    def codegen(context, builder, sig, args):
        place, to = _at(context, builder, s, args[0], args[1]), _at(context, builder, top, args[2], _integer(0))
        align = s.dtype.bitwidth // 8

        def body(head, lanes, over):
            kind = _wide(_float(s.dtype), lanes)
            lowest = _constant(_float(s.dtype), lanes, float("-inf"))
            found = cgutils.alloca_once(builder, kind)
            builder.store(lowest, found)

            def compare(pointer):
                x, largest = builder.load(pointer, align=align), builder.load(found)
                builder.store(builder.select(builder.fcmp_ordered(">", x, largest), x, largest), found)

            over(compare)
            largest = builder.load(found)
            builder.store(largest, builder.bitcast(to(head), kind.as_pointer()), align=align)
            is_finite = builder.fcmp_ordered(">", largest, lowest)
            shift = builder.select(is_finite, largest, _constant(_float(s.dtype), lanes, 0.0))
            subtract = lambda pointer: builder.store(
                builder.fsub(builder.load(pointer, align=align), shift), pointer, align=align
            )
            over(subtract)

        _columns(builder, place, args[3], args[4], body)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def sum_columns(typingctx, s, at, total, edges, heads):
    """Set total[h] to the sum of s[at + e * heads + h] over edges."""
    signature = types.void(s, types.int64, total, types.int64, types.int64)

    def codegen(context, builder, sig, args):
        place, to = _at(context, builder, s, args[0], args[1]), _at(context, builder, total, args[2], _integer(0))
        align = s.dtype.bitwidth // 8

        def body(head, lanes, over):
            kind = _wide(_float(s.dtype), lanes)
            found = cgutils.alloca_once(builder, kind)
            builder.store(_constant(_float(s.dtype), lanes, 0.0), found)
            over(
                lambda pointer: builder.store(
                    builder.fadd(builder.load(found), builder.load(pointer, align=align)), found
                )
            )
            builder.store(builder.load(found), builder.bitcast(to(head), kind.as_pointer()), align=align)

        _columns(builder, place, args[3], args[4], body)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def shift_rows(typingctx, s, at, by, row, index, first, is_lse, edges, heads):
    """Subtract by[(row + index[first + e]) * heads + h], or by[row * heads + h] without index, from s[at + e * heads + h].

    Where `is_lse`, an lse of -inf makes it -inf: its row has no weights.
    """
    i64 = types.int64
    signature = types.void(s, i64, by, i64, index, i64, types.boolean, i64, i64)

    def codegen(context, builder, sig, args):
        row, (edges, heads) = args[3], args[7:]
        place, other = _at(context, builder, s, args[0], args[1]), _at(context, builder, by, args[2], _integer(0))
        rows = None if index == types.none else _at(context, builder, index, args[4], args[5])
        kind, align = _float(s.dtype), s.dtype.bitwidth // 8

        def chunk(head, lanes):
            lowest = _constant(kind, lanes, float("-inf"))
            may_be_empty = _splat(builder, args[6], lanes)
            with _loop(builder, _integer(0), edges, 1) as (e, _):
                of_by = row
                if rows is not None:
                    of_by = builder.add(row, builder.sext(builder.load(rows(e)), ir.IntType(64)))
                shift = _load(builder, by.dtype, other(builder.add(builder.mul(of_by, heads), head)), lanes)
                pointer = place(builder.add(builder.mul(e, heads), head))
                pointer = builder.bitcast(pointer, _wide(kind, lanes).as_pointer())
                is_empty = builder.and_(builder.fcmp_ordered("==", shift, lowest), may_be_empty)
                shifted = builder.fsub(builder.load(pointer, align=align), shift)
                builder.store(builder.select(is_empty, lowest, shifted), pointer, align=align)

        _lanes_loop(builder, heads, chunk, (16, 8, 4, 1))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def store_row(typingctx, to, at, factor, x, of_x, n):
    """Set to[at + d] = factor * x[of_x + d] over d < n, rounded to a half type where `to` has one."""
    signature = types.void(to, types.int64, x.dtype, x, types.int64, types.int64)

    def codegen(context, builder, sig, args):
        place, source = _at(context, builder, to, args[0], args[1]), _at(context, builder, x, args[3], args[4])

        def body(d, lanes):
            number = builder.fmul(_splat(builder, args[2], lanes), _load(builder, x.dtype, source(d), lanes))
            _store(builder, to.dtype, place(d), number)

        _lanes_loop(builder, args[5], body, (16, 8, 4, 1))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def read(typingctx, x, i):
    """Return x[i] in the accumulator's type; zero where x is None."""
    if x == types.none:
        return _nothing(types.float32, (x, types.int64))

    def codegen(context, builder, sig, args):
        return _load(builder, x.dtype, _at(context, builder, x, *args)(ir.Constant(ir.IntType(64), 0)), 1)

    return _accumulator(x.dtype)(x, types.int64), codegen


@intrinsic
def put(typingctx, x, i, number):
    """Set x[i] = number, where x, an accumulator, is not None."""
    if x == types.none:
        return _nothing(types.void, (x, types.int64, number))

    def codegen(context, builder, sig, args):
        at = _at(context, builder, x, args[0], args[1])(ir.Constant(ir.IntType(64), 0))
        builder.store(args[2], at, align=x.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(x, types.int64, x.dtype), codegen


@intrinsic
def prefetch(typingctx, x, i, n):
    """Ask for the cache lines of x[i : i + n]."""

    def codegen(context, builder, sig, args):
        at, i32, i64 = _at(context, builder, x, args[0], args[1]), ir.IntType(32), ir.IntType(64)
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        function = builder.module.declare_intrinsic("llvm.prefetch.p0", fnty=kind)
        line = ir.Constant(i64, 64 * 8 // x.dtype.bitwidth)
        with cgutils.for_range_slice(builder, ir.Constant(i64, 0), args[2], line, intp=i64) as (d, _):
            hints = [ir.Constant(i32, hint) for hint in (0, 3, 1)]
            builder.call(function, [builder.bitcast(at(d), byte), *hints])
        return context.get_dummy_value()

    return types.void(x, types.int64, types.int64), codegen


@intrinsic
def power_of_two(typingctx, n):
    """Compute 2^n for a float32 that holds an integer in [-126, 127]: n becomes the exponent bits."""

    def codegen(context, builder, sig, args):
        i32 = ir.IntType(32)
        biased = builder.add(builder.fptosi(args[0], i32), ir.Constant(i32, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(i32, 23)), ir.FloatType())

    return types.float32(types.float32), codegen


@njit(**OPTIONS)
def exp32(x):
    """Compute exp in float32 to about one unit in the last place, in operations that vectorize (Cephes' polynomial)."""
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    # Comparisons in this direction also catch NaN, which must not become an integer.
    n = n if n > np.float32(-126) else np.float32(-126)
    n = n if n < np.float32(127) else np.float32(127)
    r = x - n * np.float32(0.693359375)
    r = r - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    y = (p * r * r + r + np.float32(1)) * power_of_two(n)
    y = np.float32(0) if x < np.float32(-87.33654) else y
    return np.float32(np.inf) if x > np.float32(88.72283) else y


@njit(**OPTIONS)
def exponential(x):
    """Compute exp of a scratch array in place."""
    for t in range(x.size):
        x[t] = exp32(x[t]) if x.itemsize == 4 else np.exp(x[t])


@njit(**OPTIONS)
def tanh(x, zero):
    """Compute tanh by way of exp in float32, by the library where `zero` is a float64."""
    if zero.itemsize == 8:
        return np.tanh(x)
    y = exp32(np.float32(-2) * abs(x))
    y = (np.float32(1) - y) / (np.float32(1) + y)
    return y if x >= 0 else -y

"""Vector primitives that Numba doesn't have: loads of half types, dot products, prefetching, an exp that vectorizes.

Arrays are flat. int16 stands for bfloat16 and uint16 for float16, which Numba has no types for.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic

CACHE_LINE = 64
# Rows of the next edges that are asked for ahead of their use, in bytes; measured, and flat from half to twice.
AHEAD_BYTES = 8192
# Numbers that `stream_lanes` stores at a time: a whole number of cache lines of float32 and of float64.
STREAM_LANES = 16
# Reassociation lets loops vectorize; NaN and infinities keep their meaning, and quotients are exact.
FAST = {"contract", "reassoc", "nsz"}
OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": FAST, "error_model": "numpy", "no_cfunc_wrapper": True}
# Of functions that only compiled code calls, because what Python calls a function by takes long to compile.
INNER: dict[str, Any] = {**OPTIONS, "no_cpython_wrapper": True}


def float_of(dtype: types.Type) -> ir.Type:
    """LLVM type of a sum of numbers of a dtype."""
    return ir.DoubleType() if dtype == types.float64 else ir.FloatType()


def wide(kind: ir.Type, lanes: int) -> ir.Type:
    """Vector type of this many lanes; the type itself for one."""
    return kind if lanes == 1 else ir.VectorType(kind, lanes)


def constant(kind: ir.Type, lanes: int, number: float) -> ir.Constant:
    """The same number in each lane."""
    return ir.Constant(kind, number) if lanes == 1 else ir.Constant(wide(kind, lanes), [number] * lanes)


def load_lanes(builder: Any, dtype: types.Type, pointer: Any, lanes: int) -> Any:
    """Load numbers as float32, doubles as float64."""
    accumulate, i32 = float_of(dtype), ir.IntType(32)
    stored = {types.int16: ir.IntType(16), types.uint16: ir.HalfType()}.get(dtype, accumulate)
    x = builder.load(builder.bitcast(pointer, wide(stored, lanes).as_pointer()), align=dtype.bitwidth // 8)
    if dtype == types.int16:
        bits = builder.shl(builder.zext(x, wide(i32, lanes)), constant(i32, lanes, 16))
        return builder.bitcast(bits, wide(accumulate, lanes))
    return builder.fpext(x, wide(accumulate, lanes)) if dtype == types.uint16 else x


def store_lanes(builder: Any, dtype: types.Type, pointer: Any, x: Any) -> None:
    """Store numbers of the accumulator's type, rounded to nearest even for half types."""
    lanes = x.type.count if isinstance(x.type, ir.VectorType) else 1
    i16, i32 = ir.IntType(16), ir.IntType(32)
    if dtype == types.uint16:
        x = builder.fptrunc(x, wide(ir.HalfType(), lanes))
    if dtype == types.int16:
        bits = builder.bitcast(x, wide(i32, lanes))
        odd = builder.and_(builder.lshr(bits, constant(i32, lanes, 16)), constant(i32, lanes, 1))
        rounded = builder.add(bits, builder.add(odd, constant(i32, lanes, 0x7FFF)))
        # Rounding up could turn a NaN into an infinity.
        is_nan = builder.fcmp_unordered("uno", x, x)
        bits = builder.select(is_nan, builder.or_(bits, constant(i32, lanes, 0x400000)), rounded)
        x = builder.trunc(builder.lshr(bits, constant(i32, lanes, 16)), wide(i16, lanes))
    builder.store(x, builder.bitcast(pointer, x.type.as_pointer()), align=dtype.bitwidth // 8)


def stream_lanes(builder: Any, dtype: types.Type, pointer: Any, x: Any) -> None:
    """Store numbers past the caches, to whole cache lines: memory that is not read soon is not read first, either."""
    if dtype in (types.int16, types.uint16):
        store_lanes(builder, dtype, pointer, x)
        return
    stored = builder.store(x, builder.bitcast(pointer, x.type.as_pointer()), align=CACHE_LINE)
    stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))


def pointer_at(context: Any, builder: Any, kind: types.Type, array: Any, offset: Any) -> Any:
    """Function from an index to a pointer into an array, counted from an offset."""
    data = context.make_array(kind)(context, builder, array).data
    return lambda i: builder.gep(data, [builder.add(offset, i)])


def integer(number: int) -> ir.Constant:
    """A 64-bit integer."""
    return ir.Constant(ir.IntType(64), number)


def loop(builder: Any, start: Any, stop: Any, step: int) -> Any:
    """A loop, as a context whose body gets the index first."""
    return cgutils.for_range_slice(builder, start, stop, integer(step), intp=ir.IntType(64))


def lanes_loop(builder: Any, n: Any, body: Any, sizes: tuple = (16, 4, 1)) -> None:
    """Run body(start, lanes) over n elements: 16 at a time, then 4, then one."""
    start = integer(0)
    for lanes in sizes:
        stop = builder.and_(n, integer(-lanes))
        with loop(builder, start, stop, lanes) as (i, _):
            body(i, lanes)
        start = stop


def nothing(result: types.Type, arguments: tuple) -> tuple:
    """An intrinsic that does nothing, because a branch on an absent array must still have a type."""

    def codegen(context, builder, sig, args):
        return context.get_dummy_value() if result == types.void else ir.Constant(float_of(result), 0.0)

    return result(*arguments), codegen


@intrinsic
def with_constants(typingctx, operands):
    """Return a named tuple with a named tuple `shape` inside, whose numbers are now constants where their types are."""
    at = operands.fields.index("shape")
    kinds = list(operands.types)
    numbers, shape = kinds[at].types, kinds[at].instance_class
    kinds[at] = types.NamedUniTuple(types.int64, len(numbers), shape)

    def codegen(context, builder, sig, args):
        members = [builder.extract_value(args[0], i) for i in range(len(kinds))]
        given = [builder.extract_value(members[at], i) for i in range(len(numbers))]
        known = [
            integer(kind.literal_value) if isinstance(kind, types.IntegerLiteral) else number
            for kind, number in zip(numbers, given, strict=True)
        ]
        members[at] = context.make_tuple(builder, kinds[at], known)
        return impl_ret_borrowed(
            context, builder, sig.return_type, context.make_tuple(builder, sig.return_type, members)
        )

    return types.NamedTuple(kinds, operands.instance_class)(operands), codegen


def splat(builder: Any, x: Any, lanes: int) -> Any:
    """Copy a number into each lane."""
    if lanes == 1:
        return x
    i32, empty = ir.IntType(32), ir.Constant(wide(x.type, lanes), ir.Undefined)
    one = builder.insert_element(empty, x, ir.Constant(i32, 0))
    return builder.shuffle_vector(one, empty, constant(i32, lanes, 0))


def call(builder: Any, name: str, *arguments: Any) -> Any:
    """Call one of LLVM's own functions on numbers, or on all lanes."""
    kind = arguments[0].type
    lanes = f"v{kind.count}" if isinstance(kind, ir.VectorType) else ""
    size = "f64" if isinstance(kind.element if lanes else kind, ir.DoubleType) else "f32"
    signature = ir.FunctionType(kind, [kind] * len(arguments))
    return builder.call(builder.module.declare_intrinsic(f"llvm.{name}.{lanes}{size}", fnty=signature), arguments)


# Numba gives its fast-math flags to every operation that has none. Scores must be bitwise the same in each pass that
# computes them. So their operations have only this flag, and no compiler may reassociate or contract them: at large
# scores, rounding that differs between passes would exceed the differences between scores.
EXACT = ("nsz",)


def add(builder: Any, x: Any, y: Any) -> Any:
    """X + y, rounded once, the same in every context."""
    return builder.fadd(x, y, flags=EXACT)


def subtract(builder: Any, x: Any, y: Any) -> Any:
    """X - y, rounded once, the same in every context."""
    return builder.fsub(x, y, flags=EXACT)


def multiply(builder: Any, x: Any, y: Any) -> Any:
    """X * y, rounded once, the same in every context."""
    return builder.fmul(x, y, flags=EXACT)


def divide(builder: Any, x: Any, y: Any) -> Any:
    """X / y, rounded once, the same in every context."""
    return builder.fdiv(x, y, flags=EXACT)


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """A * b + c, in one instruction if there is one; the same in every context."""
    if isinstance(a.type, ir.VectorType):
        return call(builder, "fmuladd", a, b, c)
    # Numba sets its flags on calls that return a number, not on those that return a vector.
    zero, empty = ir.Constant(ir.IntType(32), 0), ir.Constant(ir.VectorType(a.type, 1), ir.Undefined)
    vectors = (builder.insert_element(empty, x, zero) for x in (a, b, c))
    return builder.extract_element(call(builder, "fmuladd", *vectors), zero)


@intrinsic
def store_row(typingctx, to, at, factor, x, of_x, n):
    """Set to[at + d] = factor * x[of_x + d] over d < n, rounded if `to` has a half type."""
    signature = types.void(to, types.int64, x.dtype, x, types.int64, types.int64)

    def codegen(context, builder, sig, args):
        place, source = (
            pointer_at(context, builder, to, args[0], args[1]),
            pointer_at(context, builder, x, args[3], args[4]),
        )

        def body(d, lanes):
            number = builder.fmul(splat(builder, args[2], lanes), load_lanes(builder, x.dtype, source(d), lanes))
            store_lanes(builder, to.dtype, place(d), number)

        lanes_loop(builder, args[5], body, (16, 8, 4, 1))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def accumulate(typingctx, x, i, number):
    """Add a number to x[i], where x, an accumulator, is not None."""
    if x == types.none:
        return nothing(types.void, (x, types.int64, number))

    def codegen(context, builder, sig, args):
        at, align = pointer_at(context, builder, x, args[0], args[1])(integer(0)), x.dtype.bitwidth // 8
        builder.store(builder.fadd(builder.load(at, align=align), args[2]), at, align=align)
        return context.get_dummy_value()

    return types.void(x, types.int64, x.dtype), codegen


@intrinsic
def prefetch(typingctx, x, i, n):
    """Prefetch the cache lines of x[i : i + n]; do nothing if x is None."""
    if x == types.none:
        return nothing(types.void, (x, types.int64, types.int64))

    def codegen(context, builder, sig, args):
        at, i32, i64 = pointer_at(context, builder, x, args[0], args[1]), ir.IntType(32), ir.IntType(64)
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        function = builder.module.declare_intrinsic("llvm.prefetch.p0", fnty=kind)
        line = ir.Constant(i64, 64 * 8 // x.dtype.bitwidth)
        with cgutils.for_range_slice(builder, ir.Constant(i64, 0), args[2], line, intp=i64) as (d, _):
            hints = [ir.Constant(i32, hint) for hint in (0, 3, 1)]
            builder.call(function, [builder.bitcast(at(d), byte), *hints])
        return context.get_dummy_value()

    return types.void(x, types.int64, types.int64), codegen


@njit(**INNER)
def edges_ahead(x, numbers):
    """How many edges ahead to ask for rows, where a loop reads so many numbers of x's kind per edge."""
    return min(max(AHEAD_BYTES // (numbers * x.itemsize), 4), 32)


def exp_of_rest(builder: Any, x: Any, n: Any, number: Any) -> Any:
    """Exp of float32 x - n log 2 for the nearest integer n, by Cephes' polynomial; `number` makes constants."""
    r = multiply_add(builder, n, number(-0.693359375), x)
    r = multiply_add(builder, n, number(2.12194440e-4), r)
    p = number(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = multiply_add(builder, p, r, number(coefficient))
    return add(builder, multiply_add(builder, multiply(builder, p, r), r, r), number(1.0))


def exp_lanes(builder: Any, x: Any, is_negative: bool = False) -> Any:
    """Exp in each lane: float32 to about one unit in the last place (Cephes' polynomial), float64 by the library.

    Where no x is above 0, the same bits take less.
    """
    lanes = x.type.count if isinstance(x.type, ir.VectorType) else 1
    kind = x.type.element if isinstance(x.type, ir.VectorType) else x.type
    if isinstance(kind, ir.DoubleType):
        return call(builder, "exp", x)
    number, i32 = (lambda value: constant(kind, lanes, value)), ir.IntType(32)
    n = call(builder, "floor", multiply_add(builder, x, number(1.4426950408889634), number(0.5)))
    # Comparisons in this direction also catch NaN, which must not become an integer.
    n = builder.select(builder.fcmp_ordered(">", n, number(-126.0)), n, number(-126.0))
    if not is_negative:
        n = builder.select(builder.fcmp_ordered("<", n, number(127.0)), n, number(127.0))
    y = exp_of_rest(builder, x, n, number)
    # 2^n: n becomes the exponent's bits.
    bits = builder.shl(
        builder.add(builder.fptosi(n, wide(i32, lanes)), constant(i32, lanes, 127)), constant(i32, lanes, 23)
    )
    y = multiply(builder, y, builder.bitcast(bits, x.type))
    y = builder.select(builder.fcmp_ordered("<", x, number(-87.33654)), number(0.0), y)
    return y if is_negative else builder.select(builder.fcmp_ordered(">", x, number(88.72283)), number(float("inf")), y)


def tanh_lanes(builder: Any, x: Any) -> Any:
    """Tanh in each lane, exact to the rounding of 1."""
    one = constant(x.type, 1, 1.0)
    if isinstance(x.type, ir.VectorType):
        one = constant(x.type.element, x.type.count, 1.0)
    size = call(builder, "fabs", x)
    small = exp_lanes(builder, builder.fneg(add(builder, size, size)))
    y = divide(builder, subtract(builder, one, small), add(builder, one, small))
    return call(builder, "copysign", y, x)


@intrinsic
def exponential(typingctx, x):
    """Compute exp of a scratch array in place."""

    def codegen(context, builder, sig, args):
        place = pointer_at(context, builder, x, args[0], integer(0))
        size = context.make_array(x)(context, builder, args[0]).nitems

        def body(i, lanes):
            store_lanes(builder, x.dtype, place(i), exp_lanes(builder, load_lanes(builder, x.dtype, place(i), lanes)))

        lanes_loop(builder, size, body, (16, 8, 4, 1))
        return context.get_dummy_value()

    return types.void(x), codegen

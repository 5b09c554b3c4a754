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


def _at(context: Any, builder: Any, kind: types.Type, array: Any, offset: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return lambda i: builder.gep(data, [builder.add(offset, i)])


def _lanes_loop(builder: Any, n: Any, body: Any) -> None:
    """Run body(start, lanes) over n elements: 16 at a time, then 4, then one."""
    i64 = ir.IntType(64)
    start = ir.Constant(i64, 0)
    for lanes in (16, 4, 1):
        stop = builder.and_(n, ir.Constant(i64, -lanes))
        with cgutils.for_range_slice(builder, start, stop, ir.Constant(i64, lanes), intp=i64) as (i, _):
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


@intrinsic
def dot(typingctx, a, i, b, j, n):
    """Sum of a[i + d] * b[j + d] over d < n; zero where b is None."""
    if b == types.none:
        return _nothing(_accumulator(a.dtype), (a, types.int64, b, types.int64, types.int64))
    signature = _accumulator(a.dtype)(a, types.int64, b, types.int64, types.int64)

    def codegen(context, builder, sig, args):
        left, right = _at(context, builder, a, args[0], args[1]), _at(context, builder, b, args[2], args[3])
        kind, i32 = _float(a.dtype), ir.IntType(32)
        sums = {lanes: cgutils.alloca_once_value(builder, _constant(kind, lanes, 0.0)) for lanes in (16, 4, 1)}

        def body(d, lanes):
            x, y = _load(builder, a.dtype, left(d), lanes), _load(builder, b.dtype, right(d), lanes)
            builder.store(_multiply_add(builder, x, y, builder.load(sums[lanes])), sums[lanes])

        _lanes_loop(builder, args[4], body)
        part = lambda x, places: builder.shuffle_vector(x, x, ir.Constant(_wide(i32, len(places)), places))
        sixteen = builder.load(sums[16])
        quarters = [part(sixteen, [4 * k + lane for lane in range(4)]) for k in range(4)]
        four = builder.fadd(builder.fadd(quarters[0], quarters[1]), builder.fadd(quarters[2], quarters[3]))
        four = builder.fadd(four, builder.load(sums[4]))
        two = builder.fadd(part(four, [0, 1]), part(four, [2, 3]))
        one = builder.fadd(*(builder.extract_element(two, ir.Constant(i32, lane)) for lane in (0, 1)))
        return builder.fadd(one, builder.load(sums[1]))

    return signature, codegen


@intrinsic
def axpy(typingctx, y, i, factor, x, j, n):
    """Add y[i + d] += factor * x[j + d] over d < n, where y, an accumulator, and x aren't None."""
    if y == types.none or x == types.none:
        return _nothing(types.void, (y, types.int64, factor, x, types.int64, types.int64))
    signature = types.void(y, types.int64, y.dtype, x, types.int64, types.int64)

    def codegen(context, builder, sig, args):
        to, source = _at(context, builder, y, args[0], args[1]), _at(context, builder, x, args[3], args[4])
        align = y.dtype.bitwidth // 8

        def body(d, lanes):
            new = _load(builder, x.dtype, source(d), lanes)
            pointer = builder.bitcast(to(d), new.type.as_pointer())
            old = builder.load(pointer, align=align)
            builder.store(_multiply_add(builder, _splat(builder, args[2], lanes), new, old), pointer, align=align)

        _lanes_loop(builder, args[5], body)
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

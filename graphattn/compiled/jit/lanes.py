"""Vectors of numbers as values of compiled Python: what a score's expression is written with.

`load16(x, i)` is 16 numbers of an array, in the accumulator's type, `load4` and `load1` are fewer. Operators take them
lane by lane; where one operand has one lane, or is a number, it stands for all. Masks are lanes of booleans.
"""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from . import llvm


class Lanes(types.Type):
    """Numba's type of `lanes` numbers of a dtype: float32, float64 or boolean."""

    def __init__(self, dtype: Any, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(f"Lanes({dtype}, {lanes})")


@register_model(Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(_element(fe_type.dtype), fe_type.lanes))


def _element(dtype: Any) -> ir.Type:
    return ir.IntType(1) if dtype == types.boolean else llvm.float_of(dtype)


def _constant(kind: ir.Type, number: float) -> ir.Constant:
    return ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number)


def _as_lanes(context: Any, builder: Any, x: Any, kind: Any, to: Lanes) -> Any:
    """A number, or one lane, in each of the lanes of `to`."""
    if isinstance(kind, Lanes):
        if kind.lanes == to.lanes:
            return x
        x = builder.extract_element(x, ir.Constant(ir.IntType(32), 0))
    else:
        x = context.cast(builder, x, kind, to.dtype)
    return (
        llvm.splat(builder, x, to.lanes)
        if to.lanes > 1
        else builder.insert_element(
            ir.Constant(ir.VectorType(_element(to.dtype), 1), ir.Undefined), x, ir.Constant(ir.IntType(32), 0)
        )
    )


def _joined(*kinds: Any) -> Lanes | None:
    """The type that holds these operands lane by lane; None if they don't fit."""
    given = [kind for kind in kinds if isinstance(kind, Lanes)]
    if not given or not all(isinstance(kind, Lanes | types.Number) for kind in kinds):
        return None
    sizes, dtypes = {kind.lanes for kind in given if kind.lanes > 1}, {kind.dtype for kind in given}
    return Lanes(dtypes.pop(), sizes.pop() if sizes else 1) if len(sizes) <= 1 and len(dtypes) == 1 else None


def _loader(lanes: int) -> Any:
    @intrinsic
    def load(typingctx, x, i):
        """Numbers of an array from index i, in the accumulator's type."""
        dtype = types.float64 if x.dtype == types.float64 else types.float32

        def codegen(context, builder, sig, args):
            pointer = llvm.pointer_at(context, builder, x, args[0], args[1])(llvm.integer(0))
            found = llvm.load_lanes(builder, x.dtype, pointer, lanes)
            return _as_lanes(context, builder, found, dtype, Lanes(dtype, 1)) if lanes == 1 else found

        return Lanes(dtype, lanes)(x, types.int64), codegen

    return load


load16, load4, load1 = _loader(16), _loader(4), _loader(1)


def _number(lanes: int) -> Any:
    @intrinsic
    def number(typingctx, like, x):
        """A number in each lane, in the accumulator's type of an array."""
        to = Lanes(types.float64 if like.dtype == types.float64 else types.float32, lanes)

        def codegen(context, builder, sig, args):
            return _as_lanes(context, builder, args[1], sig.args[1], to)

        return to(like, x), codegen

    return number


number16, number4, number1 = _number(16), _number(4), _number(1)


def _widener(lanes: int) -> Any:
    @intrinsic
    def wide(typingctx, x):
        """One lane in each of more lanes; as many lanes as they are."""
        to = Lanes(x.dtype, lanes)
        return to(x), lambda context, builder, sig, args: _as_lanes(context, builder, args[0], x, to)

    return wide


wide16, wide4, wide1 = _widener(16), _widener(4), _widener(1)


def _storer(adds: bool = False, streams: bool = False) -> Any:
    @intrinsic
    def store(typingctx, x, i, lanes):
        """Set numbers of an array from index i, or add to them, or set them past the caches."""

        def codegen(context, builder, sig, args):
            pointer = llvm.pointer_at(context, builder, x, args[0], args[1])(llvm.integer(0))
            number = args[2]
            if adds:
                place = builder.bitcast(pointer, number.type.as_pointer())
                number = builder.fadd(builder.load(place, align=x.dtype.bitwidth // 8), number, flags=llvm.EXACT)
            (llvm.stream_lanes if streams else llvm.store_lanes)(builder, x.dtype, pointer, number)
            return context.get_dummy_value()

        return types.void(x, types.int64, lanes), codegen

    return store


store, add_to, stream16 = _storer(), _storer(adds=True), _storer(streams=True)


@intrinsic
def total(typingctx, x):
    """The sum of all lanes, as one lane."""
    to = Lanes(x.dtype, 1)

    def codegen(context, builder, sig, args):
        number, count = args[0], x.lanes
        while count > 1:
            count //= 2
            halves = []
            for begin in (0, count):
                picked = ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(begin, begin + count)))
                halves.append(builder.shuffle_vector(number, number, picked))
            number = llvm.add(builder, *halves)
        return number

    return to(x), codegen


def _one_by_one(name: str, build: Any, arity: int) -> Any:
    """An intrinsic of so many operands, lane by lane; `build` takes vectors, or numbers."""

    def typed(*kinds):
        joined = _joined(*kinds)
        if joined is None:
            return None

        def codegen(context, builder, sig, args):
            given = [_as_lanes(context, builder, x, kind, joined) for x, kind in zip(args, sig.args, strict=True)]
            if joined.lanes > 1:
                return build(builder, *given)
            zero = ir.Constant(ir.IntType(32), 0)
            number = build(builder, *(builder.extract_element(x, zero) for x in given))
            return builder.insert_element(given[0], number, zero)

        return joined(*kinds), codegen

    functions = {
        1: lambda typingctx, x: typed(x),
        2: lambda typingctx, x, y: typed(x, y),
        3: lambda typingctx, x, y, z: typed(x, y, z),
    }
    function = functions[arity]
    function.__name__ = name
    return intrinsic(function)


def _compare(name: str) -> Any:
    # As in torch: of NaN, only `!=` is true.
    kind = "fcmp_unordered" if name == "!=" else "fcmp_ordered"
    return lambda builder, x, y: getattr(builder, kind)(name, x, y)


OPERATORS = {
    operator.add: (llvm.add, False),
    operator.sub: (llvm.subtract, False),
    operator.mul: (llvm.multiply, False),
    operator.truediv: (llvm.divide, False),
    **{
        getattr(operator, name): (_compare(sign), True)
        for name, sign in (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="), ("eq", "=="), ("ne", "!="))
    },
}


def _register(function: Any, build: Any, gives_mask: bool) -> None:
    @infer_global(function)
    class Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            joined = _joined(*args)
            if joined is None:
                return None
            return signature(Lanes(types.boolean, joined.lanes) if gives_mask else joined, *args)

    def lower(context, builder, sig, args):
        joined = _joined(*sig.args)
        given = [_as_lanes(context, builder, x, kind, joined) for x, kind in zip(args, sig.args, strict=True)]
        return build(builder, *given)

    for pair in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        lower_builtin(function, *pair)(lower)


for _function, (_build, _gives_mask) in OPERATORS.items():
    _register(_function, _build, _gives_mask)


def _named(name: str) -> Any:
    return lambda builder, x: llvm.call(builder, name, x)


def _smaller(builder: Any, x: Any, y: Any, sign: str) -> Any:
    """The smaller or larger one; NaN if either is, as in torch."""
    found = builder.select(builder.fcmp_ordered(sign, x, y), x, y)
    return builder.select(builder.fcmp_unordered("uno", x, y), builder.fadd(x, y), found)


def _sigmoid(builder: Any, x: Any) -> Any:
    one = _constant(x.type, 1.0)
    return llvm.divide(builder, one, llvm.add(builder, one, llvm.exp_lanes(builder, builder.fneg(x))))


def _log1p(builder: Any, x: Any) -> Any:
    # log(u) * x / (u - 1) for the rounded u = 1 + x cancels the rounding.
    one = _constant(x.type, 1.0)
    u = llvm.add(builder, one, x)
    rest = llvm.subtract(builder, u, one)
    exact = llvm.multiply(builder, llvm.call(builder, "log", u), llvm.divide(builder, x, rest))
    is_kept = builder.or_(
        builder.fcmp_ordered("==", rest, _constant(x.type, 0.0)),
        builder.fcmp_ordered("==", u, _constant(x.type, float("inf"))),
    )
    return builder.select(is_kept, x, exact)


def _sign(builder: Any, x: Any) -> Any:
    zero = _constant(x.type, 0.0)
    is_zero = builder.or_(builder.fcmp_ordered("==", x, zero), builder.fcmp_unordered("uno", x, x))
    return builder.select(is_zero, zero, llvm.call(builder, "copysign", _constant(x.type, 1.0), x))


negative = _one_by_one("negative", lambda builder, x: builder.fneg(x), 1)
exp = _one_by_one("exp", llvm.exp_lanes, 1)
exp_negative = _one_by_one("exp_negative", partial(llvm.exp_lanes, is_negative=True), 1)
log = _one_by_one("log", _named("log"), 1)
log1p = _one_by_one("log1p", _log1p, 1)
sqrt = _one_by_one("sqrt", _named("sqrt"), 1)
absolute = _one_by_one("absolute", _named("fabs"), 1)
sin = _one_by_one("sin", _named("sin"), 1)
cos = _one_by_one("cos", _named("cos"), 1)
tanh = _one_by_one("tanh", llvm.tanh_lanes, 1)
sigmoid = _one_by_one("sigmoid", _sigmoid, 1)
sign = _one_by_one("sign", _sign, 1)
power = _one_by_one("power", lambda builder, x, y: llvm.call(builder, "pow", x, y), 2)
minimum = _one_by_one("minimum", partial(_smaller, sign="<"), 2)
maximum = _one_by_one("maximum", partial(_smaller, sign=">"), 2)
multiply_add = _one_by_one("multiply_add", llvm.multiply_add, 3)


@intrinsic
def where(typingctx, mask, x, y):
    """Lanes of x where the mask is true, else those of y."""
    joined = _joined(x, y)
    if joined is None or not isinstance(mask, Lanes):
        return None
    to = Lanes(joined.dtype, max(joined.lanes, mask.lanes))

    def codegen(context, builder, sig, args):
        kinds = (Lanes(types.boolean, to.lanes), to, to)
        return builder.select(
            *(_as_lanes(context, builder, z, kind, of) for z, kind, of in zip(args, sig.args, kinds, strict=True))
        )

    return to(mask, x, y), codegen


def _logical(name: str, method: str) -> Any:
    def typed(typingctx, x, y):
        to = Lanes(types.boolean, max(x.lanes, y.lanes))

        def codegen(context, builder, sig, args):
            given = [_as_lanes(context, builder, z, kind, to) for z, kind in zip(args, sig.args, strict=True)]
            return getattr(builder, method)(*given)

        return to(x, y), codegen

    typed.__name__ = name
    return intrinsic(typed)


both, either = _logical("both", "and_"), _logical("either", "or_")


@intrinsic
def inverted(typingctx, mask):
    """True where the mask is false."""
    return mask(mask), lambda context, builder, sig, args: builder.not_(args[0])

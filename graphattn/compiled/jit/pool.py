"""Runs a compiled loop over tasks on the threads of an OpenMP runtime, which call it without Python."""

from __future__ import annotations

import itertools
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from .llvm import OPTIONS, integer


def _work(context: Any, module: Any, kind: Any, arguments: tuple[types.Type, ...]) -> Any:
    """Define void work(data): take the next run of tasks until none are left; `data` is a struct of type `kind`.

    It holds the first task that nobody has taken, the end, how many to take, the loop's address, whether a run failed,
    and the loop's arguments.
    """
    byte, word = ir.IntType(8).as_pointer(), ir.IntType(64)
    work = ir.Function(module, ir.FunctionType(ir.VoidType(), [byte]), module.get_unique_name("work"))
    work.linkage = "internal"
    entry, again, run, fail, done = (work.append_basic_block(name) for name in ("entry", "again", "run", "fail", "end"))
    builder = ir.IRBuilder(entry)
    data = builder.bitcast(work.args[0], kind.as_pointer())
    fields = [cgutils.gep_inbounds(builder, data, 0, i) for i in range(len(kind.elements))]
    end, grain, loop = (builder.load(field) for field in fields[1:4])
    values = [builder.load(field) for field in fields[5:]]
    types_of_loop = (types.int64, types.int64, *arguments)
    function = context.call_conv.get_function_type(types.none, types_of_loop)
    callee = builder.inttoptr(loop, function.as_pointer())
    builder.branch(again)
    builder.position_at_end(again)
    first = builder.atomic_rmw("add", fields[0], grain, "monotonic")
    builder.cbranch(builder.icmp_signed("<", first, end), run, done)
    builder.position_at_end(run)
    after = builder.add(first, grain)
    after = builder.select(builder.icmp_signed("<", after, end), after, end)
    status, _ = context.call_conv.call_function(builder, callee, types.none, types_of_loop, [first, after, *values])
    builder.cbranch(status.is_error, fail, again)
    builder.position_at_end(fail)
    builder.store(ir.Constant(word, 1), fields[4])
    builder.branch(done)
    builder.position_at_end(done)
    builder.ret_void()
    return work


def _read(context: Any, builder: Any, kind: Any, words: Any, place: Any) -> Any:
    """Build an operand of Numba's type `kind` from the words at `place`, which is moved on; see `compiled.block`."""
    if isinstance(kind, types.BaseTuple):
        return context.make_tuple(builder, kind, [_read(context, builder, x, words, place) for x in kind])
    if kind == types.none:
        return context.get_dummy_value()
    if isinstance(kind, types.Array):
        address, *shape = (builder.load(builder.gep(words, [integer(next(place))])) for _ in range(1 + kind.ndim))
        item = context.get_abi_sizeof(context.get_data_type(kind.dtype))
        strides = [integer(item)]
        for size in shape[:0:-1]:
            strides.insert(0, builder.mul(strides[0], size))
        made = arrayobj.make_array(kind)(context, builder)
        data = builder.inttoptr(address, made.data.type)
        arrayobj.populate_array(made, data, shape, strides, integer(item), meminfo=None)
        return made._getvalue()
    word, to = builder.load(builder.gep(words, [integer(next(place))])), context.get_value_type(kind)
    if isinstance(kind, types.Float):
        bits = ir.IntType(kind.bitwidth)
        return builder.bitcast(word if kind.bitwidth == 64 else builder.trunc(word, bits), to)
    return word if to.width == 64 else builder.trunc(word, to)


@intrinsic
def _fork(typingctx, pool, threads, loop, begin, end, grain, block, kind):
    """See `spread`. Returns 1 if a run of tasks failed, else 0."""
    i64, operands = types.int64, tuple(kind.instance_type)

    def codegen(context, builder, sig, args):
        pool, threads, loop, begin, end, grain, block, _ = args
        data = context.make_array(sig.args[6])(context, builder, block).data
        words, place = builder.bitcast(data, ir.IntType(64).as_pointer()), itertools.count()
        given = [_read(context, builder, x, words, place) for x in operands]
        held = [begin, end, grain, loop, integer(0), *given]
        struct = ir.LiteralStructType([x.type for x in held])
        data = cgutils.alloca_once(builder, struct)
        for i, x in enumerate(held):
            builder.store(x, cgutils.gep_inbounds(builder, data, 0, i))
        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        work = _work(context, builder.module, struct, operands)
        start = ir.FunctionType(ir.VoidType(), [work.type, byte, i32, i32])
        pointer, flags = builder.bitcast(data, byte), ir.Constant(i32, 0)
        with builder.if_else(builder.icmp_signed("==", pool, integer(0))) as (alone, together):
            with alone:
                builder.call(work, [pointer])
            with together:
                callee = builder.inttoptr(pool, start.as_pointer())
                builder.call(callee, [work, pointer, builder.trunc(threads, i32), flags])
        return builder.load(cgutils.gep_inbounds(builder, data, 0, 4))

    return i64(*[i64] * 6, block, kind), codegen


@njit(**OPTIONS)
def spread(pool, threads, loop, begin, end, grain, block, kind):
    """Run a loop over tasks from `begin` to `end`, `grain` at a time.

    `pool` is the address of GOMP_parallel, or 0 to stay on this thread; `loop` is that of a compiled function's native
    code, which takes the first task, the last one + 1, and the operands: those of a tuple of type `kind`, whose words
    `block` has.
    """
    if _fork(pool, threads, loop, begin, end, grain, block, kind):
        raise MemoryError("graphattn: a compiled loop failed, most likely for want of memory")

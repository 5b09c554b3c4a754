"""Writes the loops of a user's own score as Triton: programs, items and tiles are those of `jit`.

A single number per edge and head is a tile [ROWS, HEADS], a row one of [ROWS, HEADS, width]. Every input has all heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from ....tracing import Trace
from ....tracing.expression import SIGNS, Node
from ..own import Loop
from .plan import power_of_two

NAMES = {name: f"tl.{name}" for name in ("exp", "log", "sqrt", "abs", "sin", "cos", "where")} | {"pow": "power"}

HEAD = '''"""Loops of a score, written by graphattn."""

import triton
import triton.language as tl

from graphattn.kernels.rows.gpu.jit.functions import log1p, maximum, minimum, power, sigmoid, sign, tanh
from graphattn.kernels.rows.gpu.jit.tiles import (
    SIZES, edge_at, exists, locate, read_pairs, read_tile, tile_mask, write_pairs, write_tile,
)


@triton.jit(do_not_specialize=[*SIZES, {strides}])
def {name}(
    items_ptr, total, blocks, index_ptr, perm_ptr, {tensors}
    slots, targets, sources, edges, {numbers}
    ROWS: tl.constexpr, HEAD_BLOCK: tl.constexpr, IS_EVEN: tl.constexpr, NUMBER: tl.constexpr,
):
    b, block, row, begin, end, slot, is_item, head, _, is_head, _, _ = locate(
        items_ptr, total, blocks, ROWS, {heads}, 1, HEAD_BLOCK, 1)
    of_item = is_item[:, None] & is_head[None, :]
{before}
    for step in tl.range(0, tl.max(end - begin, 0).to(tl.int32)):
        e = begin + step
        is_live = exists(e, end, ROWS)
        pairs = is_live[:, None] & is_head[None, :]
        other = tl.load(index_ptr + e, mask=is_live, other=0).to(tl.int64)
        edge = edge_at(perm_ptr, e, is_live)
{body}
{after}
'''


def source_of(trace: Trace, loop: Loop) -> str:
    """A module with one loop."""
    heads, inputs = trace.heads, trace.inputs
    roots = [trace.slopes[n] for n in loop.wanted] if loop.wanted else [trace.score]
    read = set(trace.expression.inputs(roots)) - {len(inputs)}
    before: list[str] = []
    for width in sorted({inputs[n].width for n in (*read, *loop.wanted)} - {1}):
        before += [f"d{width} = tl.arange(0, {power_of_two(width)})"]
        before += [f"mask{width} = tile_mask(is_item, is_head, d{width}, {width}, IS_EVEN)"]
    for n in loop.wanted:
        width = inputs[n].width
        shape = "[ROWS, HEAD_BLOCK]" if width == 1 else f"[ROWS, HEAD_BLOCK, {power_of_two(width)}]"
        before.append(f"acc{n} = tl.zeros({shape}, NUMBER)")
    # Rows that all edges of an item share are read once.
    shared = [n for n in sorted(read) if inputs[n].side in (loop.rows, "parameter")]
    before += [_read(trace, n, _row(trace, n, loop), "mask", "of_item") for n in shared]
    names = [f"in{n}" for n in range(len(inputs))]
    outputs = [*[f"out{n}" for n in loop.wanted], *[f"part{n}" for n in loop.wanted]] if loop.wanted else ["out"]
    return HEAD.format(
        name=loop.name,
        strides=", ".join(f'"stride{n}"' for n in range(len(inputs))),
        tensors="".join(f"{x}_ptr, " for x in (*names, "slope", *outputs)),
        numbers="".join(f"stride{n}, " for n in range(len(inputs))),
        heads=heads,
        before=_indented(before, 1),
        body=_indented(_body(trace, loop, [n for n in sorted(read) if n not in shared], roots), 2),
        after=_indented(_after(trace, loop), 1),
    )


def _indented(lines: Iterable[str], depth: int) -> str:
    return "\n".join("    " * depth + line for line in lines)


def _row(trace: Trace, n: int, loop: Loop) -> str:
    """The row of an input."""
    side = trace.inputs[n].side
    if side == "parameter":
        return "row * 0"
    if side == "edge":
        return f"b * stride{n} + edge"
    return f"b * {side}s + {'row' if side == loop.rows else 'other'}"


def _read(trace: Trace, n: int, row: str, mask: str, pairs: str) -> str:
    width, heads = trace.inputs[n].width, trace.heads
    if width == 1:
        return f"v{n} = read_pairs(in{n}_ptr, {row}, head, {pairs}, {heads}, NUMBER)"
    return f"v{n} = read_tile(in{n}_ptr, {row}, head, d{width}, {mask}{width}, {heads}, {width}, NUMBER)"


def _body(trace: Trace, loop: Loop, read: list[int], roots: list[int]) -> Iterator[str]:
    expression, inputs, heads = trace.expression, trace.inputs, trace.heads
    for width in sorted({inputs[n].width for n in (*read, *loop.wanted)} - {1}):
        yield f"live{width} = tile_mask(is_live, is_head, d{width}, {width}, IS_EVEN)"
    for n in read:
        yield _read(trace, n, _row(trace, n, loop), "live", "pairs")
    if len(inputs) in expression.inputs(roots):
        yield f"v{len(inputs)} = read_pairs(slope_ptr, b * edges + edge, head, pairs, {heads}, NUMBER)"
    for x in expression.needed(roots):
        yield f"x{x} = {_operation(expression.nodes, x)}"
    if not loop.wanted:
        yield f"score = tl.zeros([ROWS, HEAD_BLOCK], NUMBER) + x{trace.score}"
        yield f"write_pairs(out_ptr, score, b * edges + edge, head, pairs, {heads})"
    for n in loop.wanted:
        width, x = inputs[n].width, trace.slopes[n]
        if width == 1:
            yield f"acc{n} {'=' if inputs[n].side == 'edge' else '+='} tl.where(pairs, x{x}, 0.0)"
        else:
            number = f"x{x}" if expression.nodes[x].width == width else f"x{x}[:, :, None]"
            yield f"acc{n} {'=' if inputs[n].side == 'edge' else '+='} tl.where(live{width}, {number}, 0.0)"
        if inputs[n].side == "edge" and width == 1:
            yield f"write_pairs(out{n}_ptr, acc{n}, b * edges + edge, head, pairs, {heads})"
        elif inputs[n].side == "edge":
            yield f"write_tile(out{n}_ptr, acc{n}, b * edges + edge, head, d{width}, live{width}, {heads}, {width})"


def _operation(nodes: list[Node], x: int) -> str:
    op, args, width, number = nodes[x]
    if op == "input":
        return f"v{args[0]}"
    if op == "constant":
        text = repr(float(number)) if math.isfinite(number) else f'float("{number}")'
        return f"tl.full([1, 1], {text}, NUMBER)"
    given = [f"x{i}" if nodes[i].width == width or op == "sum" else f"x{i}[:, :, None]" for i in args]
    if op == "sum":
        wide = nodes[args[0]].width
        if wide == power_of_two(wide):
            return f"tl.sum({given[0]}, 2)"
        return f"tl.sum(tl.where((d{wide} < {wide})[None, None, :], {given[0]}, 0.0), 2)"
    if op in SIGNS:
        return f"{given[0]} {SIGNS[op]} {given[1]}"
    if op in ("and", "or"):
        return f"{given[0]} {'&' if op == 'and' else '|'} {given[1]}"
    if op in ("neg", "not"):
        return f"-{given[0]}" if op == "neg" else f"{given[0]} == 0"
    return f"{NAMES.get(op, op)}({', '.join(given)})"


def _after(trace: Trace, loop: Loop) -> Iterator[str]:
    heads = trace.heads
    for n in loop.wanted:
        side, _, width = trace.inputs[n]
        if side == "edge":
            continue
        if side == "parameter":
            yield f"all{n} = tl.sum(acc{n}, 0)"
            at = f"(b * blocks + block) * {heads * width} + "
            at += "head" if width == 1 else f"(head[:, None] * {width} + d{width}[None, :])"
            mask = "is_head" if width == 1 else f"is_head[:, None] & (d{width} < {width})[None, :]"
            yield f"tl.store(part{n}_ptr + {at}, all{n}, mask={mask})"
            continue
        whole, piece = (f"out{n}", f"b * {side}s + row", "slot < 0"), (f"part{n}", "b * slots + slot", "slot >= 0")
        for to, row, which in (whole, piece):
            yield f"if {to}_ptr is not None:"
            if width == 1:
                mask = f"of_item & ({which})[:, None]"
                yield f"    write_pairs({to}_ptr, acc{n}, {row}, head, {mask}, {heads})"
            else:
                mask = f"tile_mask(is_item & ({which}), is_head, d{width}, {width}, IS_EVEN)"
                yield f"    write_tile({to}_ptr, acc{n}, {row}, head, d{width}, {mask}, {heads}, {width})"

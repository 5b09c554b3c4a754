"""Writes the loops of a user's own score as Python that Numba compiles: one over targets forward, two backward.

Each loop goes over the tasks and edges of a plan as those of `jit` do. Per edge and head it computes the expression in
steps: numbers, then sums over rows, then numbers that follow from these, and so on; rows are computed again in each
step, 16 numbers at a time, because they stay in registers that way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from ....tracing import Expression, Input, Trace
from ....tracing.expression import SIGNS
from ..own import Loop

# Lanes of a step over a row.
SIZES = (16, 4, 1)
# Names of operations in `compiled.jit.lanes`, where they differ.
NAMES = {"neg": "negative", "abs": "absolute", "pow": "power", "and": "both", "or": "either", "not": "inverted"}
# As in `jit.edges`.
AHEAD_BYTES = 8192

HEAD = '''"""Loops of a score, written by graphattn.

{lines}
"""

import numpy as np
from numba import njit

from graphattn.compiled.jit.lanes import *
from graphattn.compiled.jit.llvm import INNER, prefetch, store_row
from graphattn.kernels.rows.cpu.jit.columns import clear
from graphattn.kernels.rows.cpu.jit.edges import edge_at, streams
'''

LOOP = '''

@njit(**INNER)
def {name}(begin, end, tasks, slots, by_edge, edges, sizes, strides, inputs, slopes, results, parts):
    """{about}"""
    ptr, index, perm = edges
    batches, targets, sources, edge_count = sizes
    {inputs}inputs
    {strides}strides
    {results}results
    {parts}parts
    count, last = tasks.shape[0], index.size - 1{scratch}
    for t in range(begin, end):
        b, task = (t % batches, t // batches) if by_edge else (t // count, t % count)
        first, stop, slot = tasks[task, 2], tasks[task, 3], tasks[task, 4]
        for row in range(tasks[task, 0], tasks[task, 1]):{before_row}
            for e in range(max(ptr[row], first), min(ptr[row + 1], stop)):
                other, edge, soon = np.int64(index[e]), edge_at(perm, e), min(e + {ahead}, last)
                i, j = {ends}
{before_edge}
                for h in range({heads}):
{body}{after_row}
'''


def source_of(trace: Trace, loops: Sequence[Loop]) -> str:
    """A module with these loops."""
    roots = [trace.score, *(trace.slopes[n] for loop in loops for n in loop.wanted)]
    names = [f"{kind.side}_{n}" for n, kind in enumerate(trace.inputs)] + ["slope"]
    lines = [*trace.expression.lines(roots, names), f"score = x{trace.score}"]
    lines += [f"slope by {names[n]} = x{trace.slopes[n]}" for loop in loops for n in loop.wanted]
    return HEAD.format(lines="\n".join(lines)) + "".join(_loop(trace, loop) for loop in loops)


def _loop(trace: Trace, loop: Loop) -> str:
    inputs, slope = trace.inputs, len(trace.inputs)
    roots = [trace.slopes[n] for n in loop.wanted] if loop.wanted else [trace.score]
    read = trace.expression.inputs(roots)
    place = {"target": "b * targets + i", "source": "b * sources + j", "edge": "b * stride{n} + edge", "parameter": "0"}
    before_edge, scratch, before_row, after_row = [], [], [], []
    numbers = 0
    for n in sorted({*read, *loop.wanted} - {slope}):
        side, heads, width = inputs[n]
        size = heads * width
        before_edge.append(f"of{n} = ({place[side].format(n=n)}) * {size}")
        if n in read and side in ("target", "source") and side != loop.rows:
            rows = "targets" if side == "target" else "sources"
            before_edge.append(f"prefetch(in{n}, (b * {rows} + np.int64(index[soon])) * {size}, {size})")
            numbers += size
        elif n in read and side == "edge":
            before_edge += [
                "if perm.size:",
                f"    prefetch(in{n}, (b * stride{n} + edge_at(perm, soon)) * {size}, {size})",
            ]
        if n not in loop.wanted:
            continue
        if side == "edge":
            before_edge.append(f"is_fresh{n} = b == 0 or stride{n} > 0")
            if heads == trace.heads:
                scratch.append(f"flows{n} = streams(out{n}, {width})")
            else:
                before_edge += [f"if is_fresh{n}:", f"    clear(out{n}, of{n}, {size})"]
        elif side != "parameter":
            scratch += [f"acc{n} = np.empty({size}, part{n}.dtype)", f"one{n} = np.ones(1, part{n}.dtype)[0]"]
            before_row.append(f"clear(acc{n}, 0, {size})")
            number = f"b * {side}s + row"
            after_row += [
                "if slot < 0:",
                f"    store_row(out{n}, ({number}) * {size}, one{n}, acc{n}, 0, {size})",
                "else:",
                f"    store_row(part{n}, (b * slots + slot) * {size}, one{n}, acc{n}, 0, {size})",
            ]
    before_edge.append(f"at = (b * edge_count + edge) * {trace.heads}")
    about = "Scores of all edges." if not loop.wanted else f"Gradients; rows are {loop.rows}s."
    outputs = loop.wanted or (0,)
    return LOOP.format(
        name=loop.name,
        about=about,
        inputs=_unpacked("in", range(len(inputs))),
        strides=_unpacked("stride", range(len(inputs))),
        results=_unpacked("out", outputs),
        parts=_unpacked("part", outputs),
        scratch=_following(scratch, 1),
        before_row=_following(before_row, 3),
        before_edge=_indented(before_edge, 4),
        ends="row, other" if loop.rows == "target" else "other, row",
        ahead=min(max(AHEAD_BYTES // (4 * max(numbers, 1)), 4), 32),
        heads=trace.heads,
        body=_indented(_body(trace, loop), 5),
        after_row=_following(after_row, 3),
    )


def _unpacked(name: str, numbers: Iterable[int]) -> str:
    names = [f"{name}{n}" for n in numbers]
    return "".join(f"{x}, " for x in names).rstrip() + " = " if names else "_ = "


def _indented(lines: Iterable[str], depth: int) -> str:
    return "\n".join("    " * depth + line for line in lines)


def _following(lines: Iterable[str], depth: int) -> str:
    """Lines that may be none, each after a line break."""
    return "".join("\n" + "    " * depth + line for line in lines)


def _body(trace: Trace, loop: Loop) -> Iterator[str]:
    """One head of one edge."""
    expression, inputs = trace.expression, (*trace.inputs, Input("edge", trace.heads, 1))
    nodes = expression.nodes
    roots = [trace.slopes[n] for n in loop.wanted] if loop.wanted else [trace.score]
    needed = expression.needed(roots)
    depth: dict[int, int] = {}
    for x in needed:
        args = () if nodes[x].op == "input" else nodes[x].args
        depth[x] = max((depth[arg] for arg in args), default=0) + (nodes[x].op == "sum")
    for n in sorted({*expression.inputs(roots), *loop.wanted} - {len(trace.inputs)}):
        _, heads, width = inputs[n]
        yield f"at{n} = of{n}" + (f" + h * {width}" if heads > 1 else "")
    like = "slopes"
    for level in range(max(depth.values(), default=0) + 1):
        for x in needed:
            if nodes[x].width == 1 and depth[x] == level and nodes[x].op != "sum":
                yield f"x{x} = {_number(expression, x, like, len(trace.inputs))}"
        sums = [x for x in needed if nodes[x].op == "sum" and depth[x] == level + 1]
        for width in sorted({nodes[nodes[x].args[0]].width for x in sums}):
            yield from _sums(expression, [x for x in sums if nodes[nodes[x].args[0]].width == width], width, like)
    if not loop.wanted:
        yield f"store(out0, at + h, x{trace.score})"
        return
    for width in sorted({inputs[n].width for n in loop.wanted}):
        yield from _slopes(trace, [n for n in loop.wanted if inputs[n].width == width], width)


def _number(expression: Expression, x: int, like: str, slope: int) -> str:
    """The expression of a single number."""
    op, args, _, number = expression.nodes[x]
    if op == "input":
        return f"load1({like}, at + h)" if args[0] == slope else f"load1(in{args[0]}, at{args[0]})"
    if op == "constant":
        return f"number1({like}, {_literal(number)})"
    return _operation(op, [f"x{i}" for i in args])


def _literal(number: float) -> str:
    sign, size = "-" if math.copysign(1.0, number) < 0 else "", repr(abs(number))
    return f"{sign}{size}" if math.isfinite(number) else f"{sign}np.{size}"


def _operation(op: str, args: list[str]) -> str:
    if op in SIGNS:
        return f"{args[0]} {SIGNS[op]} {args[1]}"
    return f"{NAMES.get(op, op)}({', '.join(args)})"


def _steps(width: int) -> Iterator[tuple[int, str]]:
    """Lanes and the line that goes over a part of a row."""
    start = 0
    for lanes in SIZES:
        stop = width // lanes * lanes
        if stop > start:
            yield lanes, f"for d in range({start}, {stop}, {lanes}):"
        start = max(start, stop)


def _rows(expression: Expression, roots: Iterable[int], width: int, lanes: int) -> Iterator[str]:
    """The rows that these follow from, in lanes."""
    for x in expression.needed(roots):
        op, args, wide, _ = expression.nodes[x]
        if wide != width or op == "sum" or wide == 1:
            continue
        if op == "input":
            yield f"    x{x} = load{lanes}(in{args[0]}, at{args[0]} + d)"
        else:
            yield f"    x{x} = {_operation(op, [f'x{i}' for i in args])}"


def _sums(expression: Expression, sums: list[int], width: int, like: str) -> Iterator[str]:
    of = {x: expression.nodes[x].args[0] for x in sums}
    steps = list(_steps(width))
    for x in sums:
        yield from (f"sum{x}_{lanes} = number{lanes}({like}, 0.0)" for lanes, _ in steps)
    for lanes, line in steps:
        yield line
        yield from _rows(expression, of.values(), width, lanes)
        yield from (f"    sum{x}_{lanes} = sum{x}_{lanes} + x{of[x]}" for x in sums)
    for x in sums:
        yield f"x{x} = " + " + ".join(f"total(sum{x}_{lanes})" for lanes, _ in steps)


def _slopes(trace: Trace, wanted: list[int], width: int) -> Iterator[str]:
    expression = trace.expression
    for lanes, line in _steps(width):
        yield line
        yield from _rows(expression, [trace.slopes[n] for n in wanted], width, lanes)
        for n in wanted:
            side, heads, _ = trace.inputs[n]
            x = trace.slopes[n]
            number = f"x{x}" if expression.nodes[x].width == width and width > 1 else f"wide{lanes}(x{x})"
            if side == "edge" and heads == trace.heads:
                # Large gradients bypass the caches, 16 numbers at a time.
                flows = [f"    if is_fresh{n} and flows{n}:", f"        stream16(out{n}, at{n} + d, {number})"]
                yield from flows if lanes == SIZES[0] else []
                yield f"    {'elif' if lanes == SIZES[0] else 'if'} is_fresh{n}:"
                yield f"        store(out{n}, at{n} + d, {number})"
                yield "    else:"
                yield f"        add_to(out{n}, at{n} + d, {number})"
            elif side == "edge":
                yield f"    add_to(out{n}, at{n} + d, {number})"
            elif side == "parameter":
                size = heads * trace.inputs[n].width
                yield f"    add_to(part{n}, t * {size} + at{n} + d, {number})"
            else:
                offset = f"h * {width} + d" if heads > 1 else "d"
                yield f"    add_to(acc{n}, {offset}, {number})"

"""Loops of a traced score on the GPU: runs what Triton compiles of the source that `emit` writes."""

from __future__ import annotations

import functools
import importlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..op import keep_plan
from ..own import Loop, Own
from .buffers import empty as new_memory
from .emit import source_of
from .launch import launch
from .plan import Block, ItemPlan, block_of, merge_block

NAME = "triton"


def edge_loop(loop: Loop, own: Own) -> list[Tensor]:
    """Scores [B, E, H], or gradients by the wanted inputs, see `Functions`."""
    with torch.cuda.device_of(own.inputs[0]):
        return _edge_loop(loop, own)


def _edge_loop(loop: Loop, own: Own) -> list[Tensor]:
    trace, like, batches, edges = own.trace, own.like, own.batches, own.pattern.num_edges
    plan = keep_plan(own.pattern, "rows" if loop.rows == "target" else "columns", NAME, ItemPlan)
    # A row that all heads share is read, and has gradients, for each of them.
    inputs = [x.expand(*x.shape[:2], trace.heads, x.size(3)).contiguous() for x in own.inputs]
    empty = functools.partial(new_memory, like, dtype=trace.dtype)
    lists = [(plan.long, False), (plan.short, True)]
    if not loop.wanted:
        scores = empty(batches, edges, trace.heads)
        for items, is_short in lists:
            _launch(loop, own, plan, items, is_short, inputs, [scores])
        return [scores]
    slots, blocks = plan.slots(), [-(-items.size(0) // _block(own, short).rows) for items, short in lists]
    outs: list[Tensor] = []
    parts: list[list[Tensor | None]] = []
    for n in loop.wanted:
        side, width = trace.inputs[n].side, trace.inputs[n].width
        if side == "parameter":
            parts.append(list(empty(batches * sum(blocks), trace.heads, width).split([batches * x for x in blocks])))
            outs.append(empty(0))
            continue
        outs.append(empty(batches, inputs[n].size(1), trace.heads, width))
        has_parts = slots > 0 and side != "edge"
        parts.append([empty(batches * slots, trace.heads, width) if has_parts else None, None])
    for at, (items, is_short) in enumerate(lists):
        _launch(loop, own, plan, items, is_short, inputs, [*outs, *(of_both[at] for of_both in parts)])
    found = []
    for n, out, (of_long, of_short) in zip(loop.wanted, outs, parts, strict=True):
        side, heads, _ = trace.inputs[n]
        if side == "parameter" and of_long is not None and of_short is not None:
            out = (of_long.sum(0, dtype=torch.float64) + of_short.sum(0, dtype=torch.float64))[None, None]
        elif of_long is not None:
            _merge(plan, batches, out, of_long)
        if side == "edge" and own.inputs[n].size(0) != batches:
            out = out.sum(0, keepdim=True)
        found.append(out if heads == trace.heads else out.sum(2, keepdim=True))
    return found


def _block(own: Own, is_short: bool) -> Block:
    """What a program takes: as much as of a pass backward, because expressions hold many tiles."""
    width = max(kind.width for kind in own.trace.inputs)
    return block_of(own.trace.heads, 1, (width, width), own.like.dtype.itemsize, is_short, True)


def _launch(
    loop: Loop, own: Own, plan: ItemPlan, items: Tensor, is_short: bool, inputs: list[Tensor], results: list[Any]
) -> None:
    rows, heads, warps = _block(own, is_short)
    trace, pattern = own.trace, own.pattern
    blocks = -(-items.size(0) // rows)
    programs = own.batches * blocks * -(-trace.heads // heads)
    if not programs:
        return
    kernel = trace.kept.setdefault((NAME, loop), None) or _compile(trace, loop)
    lists = (items, items.size(0), blocks, plan.index, plan.perm if plan.perm.numel() else None)
    sizes = (plan.slots(), pattern.num_targets, pattern.num_sources, pattern.num_edges)
    constants = {
        "ROWS": rows,
        "HEAD_BLOCK": heads,
        "IS_EVEN": trace.heads % heads == 0,
        "NUMBER": getattr(importlib.import_module("triton.language"), str(trace.dtype).removeprefix("torch.")),
    }
    arguments = (*lists, *inputs, own.slopes, *results, *sizes, *own.strides)
    launch(kernel, programs, arguments, constants, warps, trace.kept)


@functools.cache
def _folder() -> Path:
    """Where sources lie while the process runs: Triton reads them, and keeps compiled code itself."""
    return Path(tempfile.mkdtemp(prefix="graphattn-"))


def _compile(trace: Any, loop: Loop) -> Any:
    source = source_of(trace, loop)
    stem = f"score_{abs(hash(source)):x}"
    path = _folder() / f"{stem}.py"
    path.write_text(source)
    spec: Any = importlib.util.spec_from_file_location(stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    trace.kept[NAME, loop] = getattr(module, loop.name)
    return trace.kept[NAME, loop]


def _merge(plan: ItemPlan, batches: int, whole: Tensor, part: Tensor) -> None:
    """Add up the pieces of cut rows."""
    from .jit.backward import merge_sums

    size = whole.size(2) * whole.size(3)
    pieces, block = merge_block(size, 1)
    if batches and plan.cut.size(0):
        number = getattr(importlib.import_module("triton.language"), str(whole.dtype).removeprefix("torch."))
        constants = {"PIECES": pieces, "SIZE": size, "BLOCK": block, "NUMBER": number}
        programs = batches * plan.cut.size(0) * -(-size // block)
        arguments = (plan.cut, whole, part, plan.cut.size(0), plan.slots(), whole.size(1))
        launch(merge_sums, programs, arguments, constants, warps=8)

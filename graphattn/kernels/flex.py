"""Torch's own attention on a GPU.

FlexAttention compiles a kernel for the pattern's mask, and skips blocks without edges. Where all pairs are edges,
`scaled_dot_product_attention` needs no mask.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..call import Call
from ..costs import Costs
from ..normalizers import Softmax
from ..offset_bias import OffsetBias
from ..patterns import Full, Grid, Pattern, Window
from ..patterns.box import Box
from ..scores import DotProduct
from .base import Kernel, Result, in_parts, needs_grad, share

# Targets, and sources, of a block.
BLOCK = 128
# Sources where nothing is trained: fewer pairs outside of the pattern are computed. Backward takes all at a time.
FEWER_COLUMNS = 64


class Flex(Kernel):
    """See the module."""

    name = "flex"
    # Tests run it uncompiled on the CPU.
    device = "cuda"

    def why_not(self, call: Call) -> str | None:
        """It needs a GPU, dot products with softmax, and dtypes, widths and patterns that torch's kernel supports."""
        query, value, pattern = call.query, call.value, call.pattern
        if query.device.type != self.device:
            return f"tensors are on {query.device.type}"
        has_tokens = isinstance(pattern, Window) and bool(pattern.global_tokens)
        if not isinstance(pattern, Full | Window | Grid) or has_tokens:
            return f"only Full, Window and Grid without global tokens have a block mask, not {pattern}"
        if not isinstance(call.score, DotProduct) or not isinstance(call.normalizer, Softmax):
            return "it supports only the dot product with softmax"
        if isinstance(call.edge_bias, Tensor) or call.edge_key is not None or call.edge_value is not None:
            return "it supports no edge tensors except an OffsetBias"
        if call.dropout_p > 0 or call.return_weights:
            return "it supports no dropout and returns no weights"
        if query.dtype == torch.float64:
            return "it doesn't support float64"
        widths = (query.size(-1), value.size(-1))
        if any(width not in (16, 32, 64, 128, 256) for width in widths):
            return f"widths must be powers of two from 16 to 256, not {widths[0]} and {widths[1]}"
        return None if query.numel() and call.key.numel() else "there are no targets or no sources"

    def cost(self, call: Call, costs: Costs) -> float:
        """Count the FLOP of the blocks that aren't skipped, and the overhead of a call, with backward."""
        if self.why_not(call) is not None:
            return math.inf
        # Cached as a number: reading it from the device at each call would wait for the device.
        blocks = call.pattern.keep("flex block count", lambda: int(_blocks(call.pattern)[1].sum()))
        flop = 2 * BLOCK**2 * blocks * (call.query.size(-1) + call.value.size(-1))
        rate = costs.flex_half if call.query.dtype.itemsize == 2 else costs.flex_single
        return share(call) * (costs.flex_call + 3.5 * call.batch_shape.numel() * call.heads * flop / rate)

    def run(self, call: Call) -> Result:
        """Compute the call."""
        from torch.nn.attention.flex_attention import AuxRequest

        batch, pattern = call.batch_shape, call.pattern
        dims, device = len(batch), call.query.device
        is_cuda = device.type == "cuda"
        size = call.pattern.keep("flex size", lambda: _size_of_all(pattern))
        heads_first = lambda x: x.reshape(batch.numel(), *x.shape[dims:]).transpose(1, 2)
        assert isinstance(call.score, DotProduct)
        scale = call.score.factor(call.query.size(-1))
        if size is not None and _is_plain(call):
            parts = (x.reshape(-1, n, *x.shape[-2:]).transpose(1, 2) for x, n in zip(_data(call), size, strict=True))
            query, key, value = parts
            is_causal = isinstance(pattern, Full) and pattern.causal
            out = scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)
            return Result(out.transpose(1, 2).reshape(*call.query.shape[:-1], -1), None, None)
        query, key, value = map(heads_first, _data(call))
        columns = BLOCK if needs_grad(call) or not is_cuda else FEWER_COLUMNS
        kind, mask = pattern.keep(f"flex mask on {device}", lambda: _mask_of(pattern))
        what = (
            kind,
            query.dtype,
            query.size(1),
            key.size(1),
            query.size(3),
            value.size(3),
            columns,
            call.edge_bias is None,
        )
        out, aux = _flex_attention(device.type, what)(
            query,
            key,
            value,
            score_mod=_bias_of(pattern, call.edge_bias) if isinstance(call.edge_bias, OffsetBias) else None,
            block_mask=pattern.keep(f"flex {columns} on {device}", lambda: _block_mask(pattern, mask, columns)),
            scale=scale,
            enable_gqa=key.size(1) != query.size(1),
            return_aux=AuxRequest(lse=True),
            kernel_options={"BLOCK_N": columns} if is_cuda and _reads_more(query, columns) else None,
        )
        lse = in_parts(aux.lse.transpose(1, 2)).unflatten(0, batch or (1,)) if call.return_lse else None
        out = out.transpose(1, 2).unflatten(0, batch or (1,))
        return Result(out, None, lse) if dims else Result(out[0], None, None if lse is None else lse[0])


def _data(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    return call.query, call.key, call.value


def _size_of_all(pattern: Pattern) -> tuple[int, int, int] | None:
    """Targets, and sources twice, of each component, if all pairs in it are edges and it is as large as the others."""
    if not isinstance(pattern, Full):
        return None
    sizes = torch.cat([pattern.shape, pattern.source_shape], 1).unique(dim=0).tolist()
    return (sizes[0][0], sizes[0][1], sizes[0][1]) if len(sizes) == 1 else None


def _is_plain(call: Call) -> bool:
    """Whether torch has a kernel without masks and biases that computes the call, and stores no scores."""
    is_same = call.query.shape[-2:] == call.key.shape[-2:] == call.value.shape[-2:]
    return call.edge_bias is None and not call.return_lse and is_same


def _reads_more(query: Tensor, columns: int) -> bool:
    """Whether torch's own choice of sources at a time is more than the blocks have."""
    return columns < BLOCK and query.dtype.itemsize == 2 and query.size(-1) == 64


def _flex_attention(device: str, what: Any) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled it stores all scores; inside torch.compile it is compiled with the rest of the graph.
    return _compiled(what) if device == "cuda" and not torch.compiler.is_compiling() else flex_attention


@functools.cache
def _compiled(what: Any) -> Any:
    """A function of its own for each kind of call: after eight recompilations of one, torch no longer compiles it."""
    from torch.nn.attention.flex_attention import flex_attention

    def attend(*inputs: Any, **options: Any) -> Any:
        return flex_attention(*inputs, **options)

    attend.__code__ = attend.__code__.replace(co_name=f"flex_{abs(hash(what)):x}")
    compiled: Any = torch.compile(attend)
    return compiled


def _blocks(pattern: Pattern) -> tuple[Tensor, Tensor]:
    """First block of sources that each block of targets sees, and the number of consecutive blocks: [blocks] each."""
    return pattern.keep("flex blocks", lambda: _find_blocks(pattern))


def _find_blocks(pattern: Pattern) -> tuple[Tensor, Tensor]:
    assert isinstance(pattern, Box)
    component, first, count = pattern._spans()
    shape = pattern.source_shape[component]
    stride = torch.cat([shape.flip(1).cumprod(1).flip(1)[:, 1:], torch.ones_like(shape[:, :1])], 1)
    step = torch.tensor([along.step for along in pattern._offset_ranges()], device=pattern.device)
    low = pattern.source_ptr[component] + (first * stride).sum(1)
    high = low + ((count - 1) * step * stride).sum(1)
    if pattern._is_cyclic:
        low, high = pattern.source_ptr[component], pattern.source_ptr[component + 1] - 1
    is_empty = (count == 0).any(1)
    low, high = low.masked_fill(is_empty, pattern.num_sources), high.masked_fill(is_empty, -1)
    rows = -(-pattern.num_targets // BLOCK)
    padding = (0, rows * BLOCK - pattern.num_targets)
    low = torch.nn.functional.pad(low, padding, value=pattern.num_sources).view(rows, BLOCK).amin(1) // BLOCK
    high = torch.nn.functional.pad(high, padding, value=-1).view(rows, BLOCK).amax(1)
    return low, torch.where(high < 0, 0, high // BLOCK - low + 1)


def _block_mask(pattern: Pattern, mask: Callable[..., Tensor], columns: int) -> Any:
    """Which blocks of BLOCK targets and so many sources are computed, and which pairs count in them."""
    from torch.nn.attention.flex_attention import BlockMask

    low, number = _blocks(pattern)
    split, count = BLOCK // columns, -(-pattern.num_sources // columns)
    index = (split * low[:, None] + torch.arange(count, device=pattern.device)) % count
    # The last block of BLOCK sources may have fewer than all of its parts.
    number = torch.minimum(split * number, count - split * low).clamp(min=0)
    return BlockMask.from_kv_blocks(
        number.to(torch.int32)[None, None],
        index.to(torch.int32)[None, None],
        BLOCK_SIZE=(BLOCK, columns),
        mask_mod=mask,
        seq_lengths=(pattern.num_targets, pattern.num_sources),
    )


def _mask_of(pattern: Pattern) -> tuple[Any, Callable[..., Tensor]]:
    """The definition for one pair, as FlexAttention traces it, without branches; and what is constant in it."""
    assert isinstance(pattern, Box)
    if isinstance(pattern, Window | Grid) and pattern.shape.size(0) == 1 and _clips(pattern):
        return _mask_of_one(pattern)
    component, first, count = pattern._spans()
    steps = [along.step for along in pattern._offset_ranges()]
    is_cyclic, is_one = pattern._is_cyclic, pattern.shape.size(0) == 1
    rows = torch.arange(pattern.num_sources, device=pattern.device)
    whose = torch.searchsorted(pattern.source_ptr, rows, right=True) - 1
    coordinate, extent = pattern.positions()[1], pattern.shape[component]
    # Numbers of 32 bits, each axis next to each other: a mask reads them for every block.
    component, whose = component.to(torch.int32), whose.to(torch.int32)
    per_axis = lambda x: [column.contiguous() for column in x.to(torch.int32).unbind(1)]
    axes = list(zip(steps, *map(per_axis, (coordinate, first, count, extent)), strict=True))

    def sees(batch: Tensor, head: Tensor, target: Tensor, source: Tensor) -> Tensor:
        allowed = source >= 0 if is_one else component[target] == whose[source]
        for step, place, low, many, size in axes:
            distance = place[source] - low[target]
            if is_cyclic:
                # First and place differ by at most one turn around a torus.
                distance = (distance + size[target]) % size[target]
            allowed = allowed & (distance >= 0) & (distance < many[target] * step)
            if step > 1:
                allowed = allowed & (distance % step == 0)
        return allowed

    return ("lookup", is_cyclic, is_one, tuple(steps)), sees


def _clips(pattern: Window | Grid) -> bool:
    return isinstance(pattern, Window) or pattern.border == "clip"


def _mask_of_one(pattern: Window | Grid) -> tuple[Any, Callable[..., Tensor]]:
    """The definition by arithmetic alone, for one array whose windows are cut off at its border."""
    extents, ranges = pattern.shape[0].tolist(), pattern._offset_ranges()
    strides = [math.prod(extents[axis + 1 :]) for axis in range(len(extents))]
    # The first axis needs no remainder, so that sequences of any length have one mask.
    axes = [
        (stride, extent, x.start, x.stop, x.step) for stride, extent, x in zip(strides, extents, ranges, strict=True)
    ]
    axes[0] = (strides[0], 0, *axes[0][2:])

    def sees(batch: Tensor, head: Tensor, target: Tensor, source: Tensor) -> Tensor:
        allowed = source >= 0
        for stride, extent, start, stop, step in axes:
            a, b = (target, source) if stride == 1 else (target // stride, source // stride)
            distance = (b % extent) - (a % extent) if extent else b - a
            allowed = allowed & (distance >= start) & (distance < stop)
            if step > 1:
                allowed = allowed & ((distance - start) % step == 0)
        return allowed

    return tuple(axes), sees


def _bias_of(pattern: Pattern, bias: OffsetBias) -> Callable[..., Tensor]:
    """Add the table's number of the pair's offset."""
    assert isinstance(pattern, Box)
    # Gradients of pairs are summed in the table's dtype.
    table, is_cyclic = bias.table.float(), pattern._is_cyclic
    axes = [(along.start, along.step, len(along)) for along in pattern._offset_ranges()]
    place, coordinate = pattern.positions()
    extent = pattern.shape.repeat_interleave(pattern.ptr.diff(), 0)

    def add(score: Tensor, batch: Tensor, head: Tensor, target: Tensor, source: Tensor) -> Tensor:
        index = torch.zeros_like(target)
        for axis, (lowest, step, size) in enumerate(axes):
            offset = coordinate[source, axis] - place[target, axis] - lowest
            if is_cyclic:
                offset = (offset + extent[target, axis]) % extent[target, axis]
            # Pairs outside the pattern are masked afterwards, whatever is added.
            index = index * size + (offset // step).clamp(0, size - 1)
        return score + table[index, head]

    return add

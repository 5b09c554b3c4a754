"""FlexAttention on a GPU: torch compiles a kernel for the pattern's mask, and skips blocks without edges."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..call import Call
from ..normalizers import Softmax
from ..offset_bias import OffsetBias
from ..patterns import Full, Grid, Pattern, Window
from ..patterns.box import Box
from ..scores import DotProduct
from .base import Kernel, Result, in_parts, share

# Targets, and sources, of a block.
BLOCK = 128
# FLOP per second that the compiled kernel is assumed to reach, by bytes per number: a guess, as no GPU was measured.
RATE = {2: 2e14, 4: 2e13}


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

    def cost(self, call: Call) -> float:
        """Count the FLOP of the blocks that aren't skipped, and the overhead of a call, with backward."""
        if self.why_not(call) is not None:
            return math.inf
        # Cached as a number: reading it from the device at each call would wait for the device.
        blocks = call.pattern.keep("flex block count", lambda: int(_blocks(call.pattern)[1].sum()))
        flop = 2 * BLOCK**2 * blocks * (call.query.size(-1) + call.value.size(-1))
        rate = RATE[min(call.query.dtype.itemsize, 4)]
        return share(call) * (4e-4 + 3.5 * call.batch_shape.numel() * call.heads * flop / rate)

    def run(self, call: Call) -> Result:
        """Compute the call."""
        from torch.nn.attention.flex_attention import AuxRequest

        dims = len(call.batch_shape)
        heads_first = lambda x: x.reshape(x.shape[:dims].numel(), *x.shape[dims:]).transpose(1, 2)
        query, key, value = map(heads_first, (call.query, call.key, call.value))
        pattern = call.pattern
        assert isinstance(call.score, DotProduct)
        out, aux = _flex_attention(query.device.type)(
            query,
            key,
            value,
            score_mod=_bias_of(pattern, call.edge_bias) if isinstance(call.edge_bias, OffsetBias) else None,
            block_mask=pattern.keep(f"flex on {query.device}", lambda: _block_mask(pattern)),
            scale=call.score.factor(query.size(-1)),
            enable_gqa=key.size(1) != query.size(1),
            return_aux=AuxRequest(lse=True),
        )
        lse = in_parts(aux.lse.transpose(1, 2)).unflatten(0, call.batch_shape or (1,)) if call.return_lse else None
        out = out.transpose(1, 2).unflatten(0, call.batch_shape or (1,))
        return Result(out, None, lse) if dims else Result(out[0], None, None if lse is None else lse[0])


def _flex_attention(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled it stores all scores; inside torch.compile it is compiled with the rest of the graph.
    return _compiled() if device == "cuda" and not torch.compiler.is_compiling() else flex_attention


@functools.cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Any = torch.compile(flex_attention)
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


def _block_mask(pattern: Pattern) -> Any:
    """Which blocks are computed, and which pairs count in them."""
    from torch.nn.attention.flex_attention import BlockMask

    low, number = _blocks(pattern)
    columns = -(-pattern.num_sources // BLOCK)
    index = (low[:, None] + torch.arange(columns, device=pattern.device)) % columns
    return BlockMask.from_kv_blocks(
        number.to(torch.int32)[None, None],
        index.to(torch.int32)[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=_mask_of(pattern),
        seq_lengths=(pattern.num_targets, pattern.num_sources),
    )


def _mask_of(pattern: Pattern) -> Callable[..., Tensor]:
    """The definition for one pair, as FlexAttention traces it: lookups by node, without branches."""
    assert isinstance(pattern, Box)
    component, first, count = pattern._spans()
    rows = torch.arange(pattern.num_sources, device=pattern.device)
    source_component = torch.searchsorted(pattern.source_ptr, rows, right=True) - 1
    coordinate = pattern.positions()[1]
    extent = pattern.source_shape[component]
    steps = [along.step for along in pattern._offset_ranges()]
    is_cyclic = pattern._is_cyclic

    def sees(batch: Tensor, head: Tensor, target: Tensor, source: Tensor) -> Tensor:
        allowed = component[target] == source_component[source]
        for axis, step in enumerate(steps):
            distance = coordinate[source, axis] - first[target, axis]
            if is_cyclic:
                # First and coordinate differ by at most one turn around a torus.
                distance = (distance + extent[target, axis]) % extent[target, axis]
            allowed = allowed & (distance >= 0) & (distance < count[target, axis] * step)
            if step > 1:
                allowed = allowed & (distance % step == 0)
        return allowed

    return sees


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

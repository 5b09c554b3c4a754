"""Sparse scatter-softmax in plain torch: gather rows per edge, score, normalize, sum per target.

It serves every score, normalizer, device and dtype, and derivatives of every order and mode, at the cost of several
tensors [E, H, D]. Edges are visited in CSR order, so that the caller's order doesn't change the result.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..call import Call
from ..costs import Costs
from ..dropout import draw_seed, keep_edges_of_heads, keep_scale
from ..errors import message
from ..normalizers import Softmax
from ..offset_bias import OffsetBias
from ..patterns import Edges, Pattern
from ..precision import without_autocast
from ..scores import repeat_heads
from ..segments import Rows, gather, permute, segment_sum
from .base import Kernel, Result, share


class Layout(NamedTuple):
    """The edges in CSR order, grouped by target and by source, and the permutations from and to the caller's order."""

    targets: Rows
    sources: Rows
    occurrence: Tensor | None
    perm: Tensor | None
    inverse: Tensor | None
    # [E] bool, edges that count as absent.
    absent: Tensor | None = None

    def from_caller(self, x: Tensor, dim: int) -> Tensor:
        """Reorder an edge tensor from the caller's order into CSR order; dim counts from the end."""
        return x if self.perm is None or self.inverse is None else permute(x, self.perm, self.inverse, dim)

    def to_caller(self, x: Tensor, dim: int) -> Tensor:
        """Reorder an edge tensor from CSR order into the caller's."""
        return x if self.perm is None or self.inverse is None else permute(x, self.inverse, self.perm, dim)


class Scatter(Kernel):
    """See the module."""

    name = "scatter"
    is_plain = True

    def why_not(self, call: Call) -> str | None:
        """It can run every call."""
        return None

    def cost(self, call: Call, costs: Costs) -> float:
        """Count forty passes over [E, H, D] and [E, H, V], backward included, and the call."""
        width = call.query.size(-1) + call.value.size(-1)
        elements = math.prod(call.batch_shape) * call.pattern.num_edges * call.heads * width
        moved = 20 * elements * call.accumulate_dtype.itemsize
        return share(call) * (costs.scatter_call + moved / costs.scatter_bytes)

    def run(self, call: Call) -> Result:
        """Compute the call."""
        # Operators that autocast would run in half precision, such as a user's own score, accumulate in float32.
        with without_autocast(call.query.device.type):
            return self._run(call)

    def _run(self, call: Call) -> Result:
        is_exporting = torch.compiler.is_exporting()
        layout = _list(call) if is_exporting else call.pattern.keep("scatter", lambda: _lay_out(call.pattern))
        dtype = call.accumulate_dtype
        from_front = len(call.batch_shape)

        query_i = gather(call.query.to(dtype), layout.targets, -3)
        key_j = gather(call.key.to(dtype), layout.sources, -3)
        value_j = gather(call.value.to(dtype), layout.sources, -3)
        edge_key = call.edge_key
        if edge_key is not None:
            edge_key = layout.from_caller(edge_key, from_front - edge_key.dim())
            edge_key = edge_key.to(dtype) if edge_key.is_floating_point() else edge_key
        if call.edge_value is not None:
            value_j = value_j + layout.from_caller(call.edge_value, -3).to(dtype)

        score = call.score.to(dtype).on_targets(layout.targets).edgewise(query_i, key_j, edge_key)
        bias = call.edge_bias
        if bias is not None:
            bias = bias.of_edges(call.pattern, dtype) if isinstance(bias, OffsetBias) else bias
            score = score + layout.from_caller(bias, -2).to(dtype)
        if layout.absent is not None:
            score = score.masked_fill(layout.absent.unsqueeze(-1), -torch.inf)
        weight = call.normalizer.on_rows(score, layout.targets)
        kept = weight
        if call.dropout_p > 0:
            edges = (layout.targets.index, layout.sources.index, layout.occurrence)
            keep = keep_edges_of_heads(
                draw_seed(call.query.device), call.dropout_p, call.batch_shape, call.heads, *edges
            )
            kept = weight * keep * keep_scale(call.dropout_p)
        out = segment_sum(kept.unsqueeze(-1) * repeat_heads(value_j, call.heads), layout.targets, -3)

        lse = None
        if call.return_lse and isinstance(call.normalizer, Softmax):
            lse = call.normalizer.lse_on_rows(score, layout.targets)
        weights = layout.to_caller(weight, -2) if call.return_weights else None
        return Result(out.to(call.query.dtype), weights, lse)


def _list(call: Call) -> Layout:
    """The edges as they are given, for torch.export: nothing is sorted, because that would depend on the edges."""
    if call.dropout_p > 0:
        fix = "Use model.eval() before."
        raise NotImplementedError(message("torch.export", "dropout_p", "must be 0", call.dropout_p, fix))
    source, target = call.pattern.edge_index.to(torch.int64)
    sides = Rows.unsorted(target, call.pattern.num_targets), Rows.unsorted(source, call.pattern.num_sources)
    return Layout(*sides, None, None, None, call.pattern.absent if isinstance(call.pattern, Edges) else None)


def _lay_out(pattern: Pattern) -> Layout:
    ptr, source, perm = pattern.csr()
    by_source = pattern.csc()
    edge = torch.arange(source.numel(), device=ptr.device)
    target = torch.repeat_interleave(torch.arange(pattern.num_targets, device=ptr.device), ptr.diff())
    occurrence = pattern.occurrence()
    column_perm = edge if by_source.perm is None else by_source.perm.to(torch.int64)
    inverse = None
    if perm is not None:
        perm = perm.to(torch.int64)
        inverse = torch.empty_like(perm).index_copy_(0, perm, edge)
        column_perm = inverse[column_perm]
        occurrence = None if occurrence is None else occurrence[perm]
    sources = Rows(source.to(torch.int64), by_source.ptr, column_perm)
    return Layout(Rows(target, ptr, None), sources, occurrence, perm, inverse)

"""Windows, grids and full patterns as batches of dense tiles, on any device.

A window of radius 64 uses each key 129 times: matrix products can exploit that, a loop over edges can't. The wasted
pairs of a tile, those outside the pattern, cost much less than matrix products save.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...call import Call
from ...costs import Costs
from ...dropout import draw_seed
from ...offset_bias import OffsetBias
from ...scores import DotProduct
from ..base import Kernel, LastDerivative, Result, join_batch, needs_grad, share, split_batch
from .op import SLOPES, run
from .panels.cpu import are_vectors, in_vectors, is_for_panels
from .panels.plan import MOST_COLUMNS, panel_seconds, panel_sizes, write_panels
from .plan import tile_seconds, tile_shapes, why_not_cut, write_plan


class Tiles(Kernel):
    """See the module."""

    name = "tiles"

    def why_not(self, call: Call) -> str | None:
        """It doesn't support some patterns, scores, normalizers and edge tensors."""
        reason = why_not_cut(call.pattern)
        if reason is not None:
            return reason
        if not isinstance(call.score, DotProduct):
            return f"the score {call.score} is not a matrix product"
        if call.normalizer.name not in SLOPES:
            return f"it has no normalizer like {call.normalizer}"
        if call.edge_key is not None or call.edge_value is not None:
            return "edge_key and edge_value differ from pair to pair"
        return None

    def cost(self, call: Call, costs: Costs) -> float:
        """Add up the time of each panel, see `panel_seconds`, or of each tile in torch, see `tile_seconds`."""
        pattern = call.pattern
        if why_not_cut(pattern) is not None:
            return math.inf
        if is_for_panels(call):
            sizes = pattern.keep("panel sizes", lambda: panel_sizes(pattern))
            if sizes[2] <= MOST_COLUMNS:
                copied = not all(are_vectors(x) for x in (call.query, call.value))
                return share(call) * panel_seconds(call, costs, sizes, copied)
        shapes = pattern.keep("tile shapes", lambda: tile_shapes(pattern))
        widths = (call.query.size(-1), call.value.size(-1))
        seconds = sum(tiles * tile_seconds(costs, height, width, *widths) for tiles, height, width in shapes)
        pairs = sum(tiles * height * width for tiles, height, width in shapes)
        by_edge = call.return_weights or call.edge_bias is not None
        is_sorted = call.normalizer.name in ("sparsemax", "entmax15")
        per_pair = costs.tiles_dropout * (call.dropout_p > 0)
        per_pair += costs.tiles_by_edge * by_edge + costs.tiles_sorted * is_sorted
        seconds += pairs * per_pair
        return share(call) * (costs.tiles_call + 4 * call.batch_shape.numel() * call.heads * seconds)

    def run(self, call: Call) -> Result:
        """Compute the call."""
        pattern, value_width, dtype = call.pattern, call.value.size(-1), call.query.dtype
        query, key, value = call.query, call.key, call.value
        plan, numbers = pattern.keep("panels", lambda: write_panels(pattern)) if is_for_panels(call) else ((), ())
        if plan:
            query, key, value = (x if are_vectors(x) else in_vectors(x) for x in (query, key, value))
        else:
            plan, numbers = pattern.keep("tiles", lambda: write_plan(pattern))
        bias = None if isinstance(call.edge_bias, OffsetBias) else call.edge_bias
        table = call.edge_bias.table if isinstance(call.edge_bias, OffsetBias) else None
        assert isinstance(call.score, DotProduct)
        seed = draw_seed(call.query.device) if call.dropout_p > 0 else None
        mode = (list(numbers), call.normalizer.name, call.score.factor(call.query.size(-1)), call.dropout_p)
        inputs = (query, key, value, bias, table, seed, list(plan), *mode, call.return_weights, bool(call.return_lse))
        out, weights, lse = (_Attend.apply if needs_grad(call) else _compute)(*inputs)
        if out.size(-1) != value_width or out.dtype != dtype:
            out = out[..., :value_width].to(dtype)
        # Outside of autograd's function, whose views can't be written to: the backward pass doesn't need the output.
        batch, asked = call.batch_shape, ((weights, call.return_weights), (lse, call.return_lse))
        return Result(split_batch(out, batch), *(split_batch(x, batch) if needed else None for x, needed in asked))


def _compute(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Output, weights and lse, with one batch dimension; those not requested are empty."""
    query, key, value, bias, *rest = inputs
    joined = [None if x is None else join_batch(x, query.dim() - 3) for x in (query, key, value, bias)]
    results: tuple[Tensor, Tensor, Tensor] = run("tiles_forward", *joined, *rest)
    return results


class _Attend(torch.autograd.Function):
    """See `_compute`. Batch dimensions of inputs are joined inside: views would take time of their own, backward."""

    # In this form, which has the context as an argument, torch doesn't bind the others to a signature at each call.
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        *tensors, plan, numbers, normalizer, scale, dropout_p, weights, lse = inputs
        results = _compute(*inputs)
        ctx.mode, ctx.asked = (numbers, normalizer, scale, dropout_p), (weights, lse)
        ctx.shape = results[0].shape
        ctx.set_materialize_grads(False)
        # A graph of torch.compile must know all tensors that its backward pass reads.
        ctx.plan, saved = (None, plan) if torch.compiler.is_compiling() else (plan, [])
        ctx.save_for_backward(*tensors, *saved)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        given, plan = ctx.saved_tensors[:6], ctx.plan or list(ctx.saved_tensors[6:])
        needs = list(ctx.needs_input_grad[:5])
        grad_out, *others = grads
        grad_out = given[0].new_zeros(ctx.shape) if grad_out is None else grad_out
        others = [grad if asked else None for grad, asked in zip(others, ctx.asked, strict=True)]
        dims = given[0].dim() - 3
        *tensors, table, seed = given
        joined = [None if x is None else join_batch(x, dims) for x in tensors]
        inputs = (grad_out, *others, *joined, table, seed, plan, *ctx.mode, needs)
        # What is compiled has no second derivative anyway, and a plain backward pass asks for none.
        is_last = torch.compiler.is_compiling() or not torch.is_grad_enabled()
        slopes = run("tiles_backward", *inputs) if is_last else _Gradients.apply(*inputs)
        found = [x.reshape(y.shape) if need else None for x, y, need in zip(slopes, given[:5], needs, strict=True)]
        return *found, *[None] * 8


class _Gradients(LastDerivative):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return tuple(run("tiles_backward", *inputs))

"""The operators that all fused kernels over compressed rows register for, with their derivatives.

Each operator takes plain tensors. `rows` and `columns` are lists: the CSR or CSC's ptr, index and perm (empty where
the caller's order is the sorted one), then whatever the kernel has planned for it. Or, in graphs of torch.compile, an
edge_index, which the kernel looks up with `compared_edges`, and after it maybe a tensor with a row for each node whose
self-loops shall be renewed. Optional edge tensors have one
leading batch dimension, of the batch's size or 1; query, key and value have exactly one.

`sums` [B, T, 2, H] is what softmax keeps of a row: the shift of its scores, which is the largest, and the sum of
their exponentials; the other normalizers keep nothing. Their lse, one rounded number, would not do: where scores are
large it differs from the largest by less than its own rounding. `exact` is the output before dropout's scale and the
rounding to a half type, empty unless it `is_exact`: its product with the output's gradient is what the slopes of a row
have in common, and must cancel against each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...call import Call, accumulate_dtype
from ...csr import CSR
from ...dropout import draw_seed
from ...normalizers import Identity, Relu, Sigmoid, Softmax
from ...offset_bias import OffsetBias
from ...patterns import Edges, Pattern
from ...patterns.lookup import compared_edges
from ...scores import Additive, DotProduct
from ..base import LastDerivative, Result, needs_grad
from ..operators import library as library

# The codes that the operators take.
NORMALIZER_CODES = {Softmax: 0, Relu: 1, Sigmoid: 2, Identity: 3}
SCORE_CODES = {"dot_product": 0, "tanh": 1, "leaky_relu": 2}

# What a kernel makes of a CSR: the list that its operators take.
Plan = Callable[[CSR], list[Tensor]]

_SHARED = "Tensor query, Tensor key, Tensor value, Tensor? vector, Tensor? edge_bias, Tensor? edge_key, "
_SHARED += "Tensor? edge_value, Tensor? seed, "
_MODE = "int score, int normalizer, float scale, float slope, float dropout_p"

library.define(f"csr_forward({_SHARED}Tensor[] rows, bool is_exact, {_MODE}) -> (Tensor, Tensor, Tensor)")
library.define(f"csr_weights({_SHARED}Tensor sums, Tensor[] rows, {_MODE}) -> Tensor")
library.define(
    f"csr_backward(Tensor grad_out, Tensor? grad_lse, Tensor? grad_weights, {_SHARED}Tensor out, Tensor sums, "
    f"Tensor[] rows, Tensor[] columns, bool[] needs, {_MODE}) -> Tensor[]"
)


@library.fake("csr_forward")
def _fake_forward(query, key, value, *rest):  # type: ignore[no-untyped-def]
    is_exact, normalizer, dtype = rest[6], rest[8], accumulate_dtype(query.dtype)
    out = query.new_empty(*query.shape[:-1], value.size(-1))
    return (
        out,
        query.new_empty(sums_shape(query, normalizer), dtype=dtype),
        query.new_empty(out.shape if is_exact else 0, dtype=dtype),
    )


@library.fake("csr_weights")
def _fake_weights(query, key, value, vector, bias, edge_key, edge_value, seed, sums, rows, *_):  # type: ignore[no-untyped-def]
    return sums.new_empty(query.size(0), rows[0].size(1) if len(rows) == 1 else rows[1].size(0), query.size(2))


@library.fake("csr_backward")
def _fake_backward(  # type: ignore[no-untyped-def]
    grad_out, grad_lse, grad_weights, query, key, value, vector, edge_bias, edge_key, edge_value, *rest
):
    needs = rest[5]
    inputs = (query, key, value, vector, edge_bias, edge_key, edge_value)
    return [torch.empty_like(x) if need else query.new_empty(0) for x, need in zip(inputs, needs, strict=True)]


def sums_shape(query: Tensor, normalizer: int) -> tuple[int, ...]:
    """Shape of what a normalizer keeps of each row."""
    batches, targets, heads, _ = query.shape
    return (batches, targets, 2, heads) if normalizer == NORMALIZER_CODES[Softmax] else (0,)


class _Attend(torch.autograd.Function):
    """Output, weights and lse, split; what isn't asked for is empty. And what the backward pass needs beside."""

    # At each call torch binds the arguments to this signature: a dozen names would cost 30 microseconds.
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        *shared, rows, _, mode, is_exact, return_weights, return_lse = inputs
        out, sums, exact = torch.ops.graphattn.csr_forward(*shared, rows, is_exact, *mode)
        # Results must not be one tensor.
        weights = torch.ops.graphattn.csr_weights(*shared, sums, rows, *mode) if return_weights else sums.new_empty(0)
        lse = torch.stack([sums[:, :, 0], sums[:, :, 1].log()], -1) if return_lse else sums.new_empty(0)
        return out, weights, lse, sums, exact

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        *shared, rows, columns, mode, is_exact, return_weights, return_lse = inputs
        out, _, _, sums, exact = output
        ctx.mode, ctx.asked = mode, (return_weights, return_lse)
        ctx.splits = (len(rows), len(columns))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(sums, exact)
        ctx.save_for_backward(*shared, exact if is_exact else out, sums, *rows, *columns)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        shared, (out, sums), lists = saved[:8], saved[8:10], saved[10:]
        rows, columns = list(lists[: ctx.splits[0]]), list(lists[ctx.splits[0] :])
        needs = list(ctx.needs_input_grad[:7])
        grad_out, grad_weights, grad_lse, *_ = grads
        grad_out = shared[0].new_zeros(out.shape) if grad_out is None else grad_out
        grad_weights = grad_weights if ctx.asked[0] else None
        # Of the two parts of lse, the shift is a constant.
        grad_lse = grad_lse[..., 1] if ctx.asked[1] and grad_lse is not None else None
        # What is compiled has no second derivative anyway.
        function = _Gradients.forward if torch.compiler.is_compiling() else _Gradients.apply
        gradients = function(grad_out, grad_lse, grad_weights, *shared, out, sums, rows, columns, needs, ctx.mode)
        return *(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), *[None] * 7


class _Gradients(LastDerivative):
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        *tensors, rows, columns, needs, mode = inputs
        return tuple(torch.ops.graphattn.csr_backward(*tensors, rows, columns, needs, *mode))


def why_not_fused(call: Call) -> str | None:
    """Why no fused kernel can run the call, whatever the device."""
    if not isinstance(call.score, DotProduct | Additive):
        return f"it has no score like {call.score}"
    if type(call.normalizer) not in NORMALIZER_CODES:
        return f"it has no normalizer like {call.normalizer}"
    return None


def run_fused(call: Call, rows: list[Tensor], columns: list[Tensor], is_exact: bool) -> Result:
    """Run a call on whichever kernel is registered for its device.

    `is_exact` says whether the kernel's backward pass needs the output as it was before it was rounded.
    """
    batch, dims = call.batch_shape, len(call.batch_shape)
    flat = lambda x: x.reshape(x.shape[:dims].numel(), *x.shape[dims:])
    bias = call.edge_bias
    if isinstance(bias, OffsetBias):
        bias = bias.of_edges(call.pattern, call.accumulate_dtype).unsqueeze(0)
    elif bias is not None:
        bias = flat(_same_or_one(bias, batch))
    edge_key, edge_value = (x if x is None else flat(_same_or_one(x, batch)) for x in (call.edge_key, call.edge_value))
    score = call.score
    vector = score.vector.to(call.accumulate_dtype) if isinstance(score, Additive) else None
    kind = score.activation if isinstance(score, Additive) else "dot_product"
    scale = score.factor(call.query.size(-1)) if isinstance(score, DotProduct) else 1.0
    slope = score.negative_slope if isinstance(score, Additive) else 0.0
    seed = draw_seed(call.query.device) if call.dropout_p > 0 else None
    mode = (SCORE_CODES[kind], NORMALIZER_CODES[type(call.normalizer)], scale, slope, call.dropout_p)
    apply = _Attend.forward if torch.compiler.is_compiling() and not needs_grad(call) else _Attend.apply
    is_rounded = call.dropout_p > 0 or call.query.dtype != call.accumulate_dtype
    is_exact = is_exact and is_rounded and isinstance(call.normalizer, Softmax) and needs_grad(call)
    out, weights, lse, *_ = apply(
        flat(call.query),
        flat(call.key),
        flat(call.value),
        vector,
        bias,
        edge_key,
        edge_value,
        seed,
        rows,
        columns,
        mode,
        is_exact,
        call.return_weights,
        bool(call.return_lse),
    )
    return Result(
        out.view(*batch, *out.shape[1:]),
        weights.view(*batch, *weights.shape[1:]) if call.return_weights else None,
        lse.view(*batch, *lse.shape[1:]) if call.return_lse else None,
    )


def lists_for(call: Call, name: str, plan: Plan) -> tuple[list[Tensor], list[Tensor]]:
    """Rows and columns of a call as `run_fused` takes them, planned and kept by the pattern under a kernel's name."""
    pattern = call.pattern
    sides = ["rows", "columns"] if needs_grad(call) else ["rows"]
    is_planned = all(pattern.has_kept(f"{name} {side}") for side in sides)
    if torch.compiler.is_compiling() and not is_planned and pattern.has_kept("edge_index"):
        given = [pattern.edge_index]
        if isinstance(pattern, Edges) and pattern.traced_loops is not None:
            # A number as a shape, so that another one doesn't compile anew.
            given.append(pattern.edge_index.new_empty(pattern.traced_loops, 0))
        return given, given
    return _kept(pattern, "rows", name, plan), _kept(pattern, "columns", name, plan) if len(sides) > 1 else []


def read_list(given: list[Tensor], side: str, query: Tensor, key: Tensor, name: str, plan: Plan) -> list[Tensor]:
    """Return the planned list of a side, "rows" or "columns", where the operator was given an edge_index alone."""
    if len(given) > 2:
        return given
    edges = compared_edges("attention", given[0], key.size(1), query.size(1))
    pattern = edges.renew_self_loops(given[1].size(0)).pattern if len(given) == 2 else edges
    return _kept(pattern, side, name, plan)


def _kept(pattern: Pattern, side: str, name: str, plan: Plan) -> list[Tensor]:
    return pattern.keep(f"{name} {side}", lambda: plan(pattern.csr() if side == "rows" else pattern.csc()))


def list_of(csr: CSR) -> list[Tensor]:
    """The operators' form of a CSR: an empty perm stands for none."""
    return [csr.ptr, csr.index, csr.index.new_empty(0) if csr.perm is None else csr.perm]


def _same_or_one(x: Tensor, batch: torch.Size) -> Tensor:
    """Leading batch dimensions that are all 1, or expanded to the batch's where they are mixed."""
    leading = x.shape[: len(batch)]
    return x if leading == batch or leading.numel() == 1 else x.expand(*batch, *x.shape[len(batch) :])

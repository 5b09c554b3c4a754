"""The operators that all fused kernels over compressed rows register for, with their derivatives.

Each operator takes plain tensors. `rows` and `columns` are lists: the CSR or CSC's ptr, index and perm (empty where
the caller's order is the sorted one), then whatever the kernel has planned for it. Or, in graphs of torch.compile, an
edge_index, which the kernel looks up with `compared_edges`, and after it maybe a tensor with a row for each node whose
self-loops shall be renewed. Optional edge tensors have one
leading batch dimension, of the batch's size or 1; query, key and value have exactly one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..bias import OffsetBias
from ..call import Call, accumulate_dtype
from ..csr import CSR
from ..normalizers import Identity, Relu, Sigmoid, Softmax
from ..patterns import Edges, Pattern
from ..patterns.known import compared_edges
from ..random import draw_seed
from ..scores import Additive, DotProduct
from .base import LastDerivative, Result, needs_grad

# The codes that the operators take.
NORMALIZER_CODES = {Softmax: 0, Relu: 1, Sigmoid: 2, Identity: 3}
SCORE_CODES = {"dot_product": 0, "tanh": 1, "leaky_relu": 2}

# What a kernel makes of a CSR: the list that its operators take.
Plan = Callable[[CSR], list[Tensor]]

_SHARED = "Tensor query, Tensor key, Tensor value, Tensor? vector, Tensor? edge_bias, Tensor? edge_key, "
_SHARED += "Tensor? edge_value, Tensor? seed, "
_MODE = "int score, int normalizer, float scale, float slope, float dropout_p"

library = torch.library.Library("graphattn", "DEF")
library.define(f"csr_forward({_SHARED}Tensor[] rows, {_MODE}) -> (Tensor, Tensor)")
library.define(f"csr_weights({_SHARED}Tensor lse, Tensor[] rows, {_MODE}) -> Tensor")
library.define(
    f"csr_backward(Tensor grad_out, Tensor? grad_lse, Tensor? grad_weights, {_SHARED}Tensor out, Tensor lse, "
    f"Tensor[] rows, Tensor[] columns, bool[] needs, {_MODE}) -> Tensor[]"
)


@torch.library.register_fake("graphattn::csr_forward", lib=library)
def _fake_forward(query, key, value, *_):  # type: ignore[no-untyped-def]
    out = query.new_empty(*query.shape[:-1], value.size(-1))
    return out, query.new_empty(query.shape[:-1], dtype=accumulate_dtype(query.dtype))


@torch.library.register_fake("graphattn::csr_weights", lib=library)
def _fake_weights(query, key, value, vector, bias, edge_key, edge_value, seed, lse, rows, *_):  # type: ignore[no-untyped-def]
    return lse.new_empty(query.size(0), rows[0].size(1) if len(rows) == 1 else rows[1].size(0), query.size(2))


@torch.library.register_fake("graphattn::csr_backward", lib=library)
def _fake_backward(  # type: ignore[no-untyped-def]
    grad_out, grad_lse, grad_weights, query, key, value, vector, edge_bias, edge_key, edge_value, *rest
):
    needs = rest[5]
    inputs = (query, key, value, vector, edge_bias, edge_key, edge_value)
    return [torch.empty_like(x) if need else query.new_empty(0) for x, need in zip(inputs, needs, strict=True)]


class _Attend(torch.autograd.Function):
    """Output, lse and, if asked for, weights (else an empty tensor)."""

    # At each call torch binds the arguments to this signature: a dozen names would cost 30 microseconds.
    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        *shared, rows, _, mode, return_weights = inputs
        out, lse = torch.ops.graphattn.csr_forward(*shared, rows, *mode)
        if not return_weights:
            return out, lse, lse.new_empty(0)
        return out, lse, torch.ops.graphattn.csr_weights(*shared, lse, rows, *mode)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        *shared, rows, columns, mode, return_weights = inputs
        out, lse, _ = output
        ctx.mode, ctx.return_weights = mode, return_weights
        ctx.splits = (len(rows), len(columns))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*shared, out, lse, *rows, *columns)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        shared, (out, lse), lists = saved[:8], saved[8:10], saved[10:]
        rows, columns = list(lists[: ctx.splits[0]]), list(lists[ctx.splits[0] :])
        needs = list(ctx.needs_input_grad[:7])
        grad_out, grad_lse, grad_weights = grads
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        grad_weights = grad_weights if ctx.return_weights else None
        # What is compiled has no second derivative anyway.
        function = _Gradients.forward if torch.compiler.is_compiling() else _Gradients.apply
        gradients = function(grad_out, grad_lse, grad_weights, *shared, out, lse, rows, columns, needs, ctx.mode)
        return *(gradient if need else None for gradient, need in zip(gradients, needs, strict=True)), *[None] * 5


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


def run_fused(call: Call, rows: list[Tensor], columns: list[Tensor]) -> Result:
    """Run a call on whichever kernel is registered for its device."""
    batch, dims = call.batch_shape, len(call.batch_shape)
    flat = lambda x: x.reshape(x.shape[:dims].numel(), *x.shape[dims:])
    bias = call.edge_bias
    if isinstance(bias, OffsetBias):
        bias = bias.of_edges(call.pattern).unsqueeze(0)
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
    out, lse, weights = apply(
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
        call.return_weights,
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

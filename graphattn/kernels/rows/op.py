"""The operators that all fused kernels over compressed rows register for, with their derivatives.

`operands` has their arguments. `sums` [B, T, 2, H] is what softmax keeps of a row: the shift of its scores, which is
the largest, and the sum of their exponentials; the other normalizers keep nothing. Their lse, one rounded number, would
not do: where scores are large it differs from the largest by less than its own rounding. `exact` is the output before
dropout's scale and the rounding to a half type, empty unless it `is_exact`: its product with the output's gradient is
what the slopes of a row have in common, and must cancel against each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from ...call import Call, accumulate_dtype
from ...csr import CSR
from ...dropout import draw_seed
from ...normalizers import Identity, Relu, Sigmoid, Softmax
from ...offset_bias import OffsetBias
from ...patterns import Edges, Pattern
from ...patterns.lookup import compared_edges
from ...scores import Additive, DotProduct, Score
from ..base import LastDerivative, Result, needs_grad
from ..operators import library as library
from . import operands as codes
from .operands import (
    Attend,
    Backward,
    EdgeLists,
    Forward,
    Mode,
    Needs,
    Tensors,
    Weights,
    pack,
    schema,
    sums_shape,
    unpack,
)

# The codes that the operators take.
NORMALIZER_CODES = {
    Softmax: codes.SOFTMAX,
    Relu: codes.RELU,
    Sigmoid: codes.SIGMOID,
    Identity: codes.IDENTITY,
}
SCORE_CODES = {"dot_product": codes.DOT_PRODUCT, "tanh": codes.TANH, "leaky_relu": codes.LEAKY_RELU}


class EdgePlan(Protocol):
    """What a kernel makes of a CSR: a named tuple of tensors that begins with the CSR's own three."""

    @classmethod
    def of(cls, csr: CSR) -> Self:
        """Plan the edges of a CSR."""

    def __iter__(self) -> Iterator[Tensor]: ...


AnyPlan = TypeVar("AnyPlan", bound=EdgePlan)

library.define(f"csr_forward({schema(Forward)}) -> (Tensor, Tensor, Tensor)")
library.define(f"csr_weights({schema(Weights)}) -> Tensor")
library.define(f"csr_backward({schema(Backward)}) -> Tensor[]")


@library.fake("csr_forward")
def _fake_forward(*flat: Any) -> tuple[Tensor, Tensor, Tensor]:
    (query, _, value, *_), _, is_exact, mode = unpack(Forward, flat)
    out, dtype = query.new_empty(*query.shape[:-1], value.size(-1)), accumulate_dtype(query.dtype)
    sums = query.new_empty(sums_shape(query, mode.normalizer), dtype=dtype)
    return out, sums, query.new_empty(out.shape if is_exact else 0, dtype=dtype)


@library.fake("csr_weights")
def _fake_weights(*flat: Any) -> Tensor:
    (query, *_), sums, edges, _ = unpack(Weights, flat)
    return sums.new_empty(query.size(0), edges.num_edges, query.size(2))


@library.fake("csr_backward")
def _fake_backward(*flat: Any) -> list[Tensor]:
    operands = unpack(Backward, flat)
    return [
        torch.empty_like(getattr(operands.tensors, name)) if need else operands.tensors.query.new_empty(0)
        for name, need in operands.needs._asdict().items()
    ]


class _Attend(torch.autograd.Function):
    """Output, weights and lse in two parts, empty if not requested; then what the backward pass needs in addition."""

    # At each call torch binds the arguments to this signature: a dozen names would cost 30 microseconds.
    @staticmethod
    def forward(*flat: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        tensors, edges, is_exact, return_weights, return_lse, mode = unpack(Attend, flat)
        out, sums, exact = torch.ops.graphattn.csr_forward(*pack(Forward(tensors, edges, is_exact, mode)))
        of_weights = Weights(tensors, sums, edges, mode)
        # Results must not be one tensor.
        weights = torch.ops.graphattn.csr_weights(*pack(of_weights)) if return_weights else sums.new_empty(0)
        lse = torch.stack([sums[:, :, 0], sums[:, :, 1].log()], -1) if return_lse else sums.new_empty(0)
        return out, weights, lse, sums, exact

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        tensors, edges, is_exact, ctx.return_weights, ctx.return_lse, ctx.mode = unpack(Attend, inputs)
        out, _, _, sums, exact = output
        ctx.counts = (len(tensors), len(edges.rows), len(edges.columns))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(sums, exact)
        saved = (*tensors, exact if is_exact else out, sums, edges.edge_index, edges.loops)
        ctx.save_for_backward(*saved, *edges.rows, *edges.columns)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        of_tensors, of_rows, of_columns = ctx.counts
        tensors = Tensors(*islice(saved, of_tensors))
        out, sums, edge_index, loops = islice(saved, 4)
        edges = EdgeLists(edge_index, loops, list(islice(saved, of_rows)), list(islice(saved, of_columns)))
        needs = Needs(*ctx.needs_input_grad[: len(Needs._fields)])
        grad_out, grad_weights, grad_lse, *_ = grads
        grad_out = tensors.query.new_zeros(out.shape) if grad_out is None else grad_out
        grad_weights = grad_weights if ctx.return_weights else None
        # Of the two parts of lse, the shift is a constant.
        grad_lse = grad_lse[..., 1] if ctx.return_lse and grad_lse is not None else None
        # What is compiled has no second derivative anyway.
        function = _Gradients.forward if torch.compiler.is_compiling() else _Gradients.apply
        operands = Backward(grad_out, grad_lse, grad_weights, tensors, out, sums, edges, needs, ctx.mode)
        found = [x if need else None for x, need in zip(function(*pack(operands)), needs, strict=True)]
        return *found, *[None] * (len(ctx.needs_input_grad) - len(found))


class _Gradients(LastDerivative):
    @staticmethod
    def forward(*flat: Any) -> tuple[Tensor, ...]:
        return tuple(torch.ops.graphattn.csr_backward(*flat))


def why_not_fused(call: Call) -> str | None:
    """Why no fused kernel can run the call, whatever the device."""
    if not isinstance(call.score, DotProduct | Additive):
        return f"it has no score like {call.score}"
    if type(call.normalizer) not in NORMALIZER_CODES:
        return f"it has no normalizer like {call.normalizer}"
    return None


def run_fused(call: Call, edges: EdgeLists, is_exact: bool) -> Result:
    """Run a call on whichever kernel is registered for its device.

    `is_exact` says whether the kernel's backward pass needs the output as it was before it was rounded.
    """
    batch, dims = call.batch_shape, len(call.batch_shape)
    flat = lambda x: x.reshape(x.shape[:dims].numel(), *x.shape[dims:])
    of_edges = lambda x: None if x is None else flat(_same_or_one(x, batch))
    bias = call.edge_bias
    if isinstance(bias, OffsetBias):
        bias = bias.of_edges(call.pattern, call.accumulate_dtype).unsqueeze(0)
    else:
        bias = of_edges(bias)
    vector, mode = _read_score(call.score, call)
    seed = draw_seed(call.query.device) if call.dropout_p > 0 else None
    query, key, value = flat(call.query), flat(call.key), flat(call.value)
    tensors = Tensors(query, key, value, vector, bias, of_edges(call.edge_key), of_edges(call.edge_value), seed)
    is_rounded = call.dropout_p > 0 or call.query.dtype != call.accumulate_dtype
    is_trained = needs_grad(call)
    is_exact = is_exact and is_rounded and isinstance(call.normalizer, Softmax) and is_trained
    apply = _Attend.forward if torch.compiler.is_compiling() and not is_trained else _Attend.apply
    asked = Attend(tensors, edges, is_exact, call.return_weights, bool(call.return_lse), mode)
    out, weights, lse, *_ = apply(*pack(asked))
    return Result(
        out.view(*batch, *out.shape[1:]),
        weights.view(*batch, *weights.shape[1:]) if call.return_weights else None,
        lse.view(*batch, *lse.shape[1:]) if call.return_lse else None,
    )


def _read_score(score: Score, call: Call) -> tuple[Tensor | None, Mode]:
    """The vector of a score that is fused, in the accumulator's dtype, and the mode of its call."""
    code, vector, scale, slope = codes.DOT_PRODUCT, None, 1.0, 0.0
    if isinstance(score, DotProduct):
        scale = score.factor(call.query.size(-1))
    elif isinstance(score, Additive):
        code, slope = SCORE_CODES[score.activation], score.negative_slope
        vector = score.vector.to(call.accumulate_dtype)
    return vector, Mode(code, NORMALIZER_CODES[type(call.normalizer)], scale, slope, call.dropout_p)


def edges_for(call: Call, name: str, plan: type[EdgePlan]) -> EdgeLists:
    """Edges of a call as `run_fused` takes them, planned and kept by the pattern under a kernel's name."""
    pattern = call.pattern
    sides = ["rows", "columns"] if needs_grad(call) else ["rows"]
    is_planned = all(pattern.has_kept(f"{name} {side}") for side in sides)
    if torch.compiler.is_compiling() and not is_planned and pattern.has_kept("edge_index"):
        count = pattern.traced_loops if isinstance(pattern, Edges) else None
        loops = None if count is None else pattern.edge_index.new_empty(count, 0)
        return EdgeLists(pattern.edge_index, loops, [], [])
    planned = {side: list(_kept(pattern, side, name, plan)) for side in sides}
    return EdgeLists(None, None, planned["rows"], planned.get("columns", []))


def read_plan(edges: EdgeLists, side: str, tensors: Tensors, name: str, plan: type[AnyPlan]) -> AnyPlan:
    """Return the plan of a side, "rows" or "columns"; made here where the operator was given an edge_index."""
    if edges.edge_index is None:
        return plan(*getattr(edges, side))
    known = compared_edges("attention", edges.edge_index, tensors.key.size(1), tensors.query.size(1))
    pattern = known if edges.loops is None else known.renew_self_loops(edges.loops.size(0)).pattern
    return _kept(pattern, side, name, plan)


def _kept(pattern: Pattern, side: str, name: str, plan: type[AnyPlan]) -> AnyPlan:
    return pattern.keep(f"{name} {side}", lambda: plan.of(pattern.csr() if side == "rows" else pattern.csc()))


def tensors_of(csr: CSR) -> tuple[Tensor, Tensor, Tensor]:
    """The operators' form of a CSR: an empty perm stands for none."""
    return csr.ptr, csr.index, csr.index.new_empty(0) if csr.perm is None else csr.perm


def _same_or_one(x: Tensor, batch: torch.Size) -> Tensor:
    """Leading batch dimensions that are all 1, or expanded to the batch's where they are mixed."""
    leading = x.shape[: len(batch)]
    return x if leading == batch or leading.numel() == 1 else x.expand(*batch, *x.shape[len(batch) :])

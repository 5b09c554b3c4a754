"""The operators that all fused kernels over compressed rows register for, with their derivatives.

`operands` has their arguments. `sums` [B, T, 2, H] is what softmax keeps of a row: the shift of its scores, which is
the largest, and the sum of their exponentials; the other normalizers keep nothing. Their lse, one rounded number, would
not do: where scores are large it differs from the largest by less than its own rounding. `exact` is the output before
dropout's scale and the rounding to a half type, empty unless it `is_exact`: its product with the output's gradient is
what the slopes of a row have in common, and must cancel against each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from ...call import Call, with_batch
from ...csr import CSR
from ...dropout import draw_seed
from ...normalizers import Identity, Relu, Sigmoid, Softmax
from ...offset_bias import OffsetBias
from ...patterns import Edges, Pattern
from ...patterns.lookup import compared_edges
from ...precision import accumulate_dtype
from ...scores import Additive, DotProduct, Score
from ..base import LastDerivative, Result, join_batch, needs_grad, split_batch
from ..operators import is_unobserved
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
    flatten,
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
    def of(cls, csr: CSR, transposed: CSR | None = None) -> Self:
        """Plan the edges of a CSR; given with the pattern's rows, those of its columns."""

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


class Functions(NamedTuple):
    """What runs the operators on a device, by operands with names; None stands for an operator's empty results."""

    csr_forward: Callable[[Forward], tuple[Tensor, Tensor, Tensor | None]]
    csr_weights: Callable[[Weights], Tensor]
    csr_backward: Callable[[Backward], list[Tensor | None]]
    # Not an operator: of a loop and what it takes, both in `own`, the scores of edges, or gradients.
    edge_loop: Callable[[Any, Any], list[Tensor]]
    # Whether they take tensors without batch dimensions, too, where they are called directly.
    takes_one_graph: bool = False


OPERATORS = {Forward: "csr_forward", Weights: "csr_weights", Backward: "csr_backward"}
# By type of device.
FUNCTIONS: dict[str, Functions] = {}


def csr_forward(*flat: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator of this name, on the device of its tensors."""
    operands = unpack(Forward, flat)
    out, sums, exact = FUNCTIONS[operands.tensors.query.device.type].csr_forward(operands)
    return out, sums, sums.new_empty(0) if exact is None else exact


def csr_weights(*flat: Any) -> Tensor:
    """The operator of this name, on the device of its tensors."""
    operands = unpack(Weights, flat)
    return FUNCTIONS[operands.tensors.query.device.type].csr_weights(operands)


def csr_backward(*flat: Any) -> list[Tensor]:
    """The operator of this name, on the device of its tensors."""
    operands = unpack(Backward, flat)
    query = operands.tensors.query
    return [query.new_empty(0) if x is None else x for x in FUNCTIONS[query.device.type].csr_backward(operands)]


for _key in ("CPU", "CUDA"):
    library.impl("csr_forward", csr_forward, _key)
    library.impl("csr_weights", csr_weights, _key)
    library.impl("csr_backward", csr_backward, _key)


def _laid_out(tensors: Tensors) -> Tensors:
    """A call's tensors as `_run` takes them."""
    takes_one_graph = tensors.query.dim() == 3 and FUNCTIONS[tensors.query.device.type].takes_one_graph
    return tensors if takes_one_graph and is_unobserved(tensors) else tensors.with_one_batch()


def _run(operands: Forward | Weights | Backward) -> Any:
    """Run the operator with these operands; directly, where nothing could tell the difference."""
    name = OPERATORS[type(operands)]
    if operands.tensors.query.dim() == 3 or is_unobserved(operands.tensors):
        return getattr(FUNCTIONS[operands.tensors.query.device.type], name)(operands)
    return getattr(torch.ops.graphattn, name)(*pack(operands))


def _compute(asked: Attend) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None]:
    """Output, weights and lse in two parts, None if not requested; then what the backward pass needs in addition."""
    tensors, edges, is_exact, return_weights, return_lse, mode = asked
    batch = tensors.query.shape[:-3]
    tensors = _laid_out(tensors)
    out, sums, exact = _run(Forward(tensors, edges, is_exact, mode))
    out = out if tensors.query.dim() == 3 else split_batch(out, batch)
    weights = split_batch(_run(Weights(tensors, sums, edges, mode)), batch) if return_weights else None
    lse = torch.stack([sums[:, :, 0], sums[:, :, 1].log()], -1) if return_lse else None
    return out, weights, None if lse is None else split_batch(lse, batch), sums, exact


class _Attend(torch.autograd.Function):
    """Output, weights and lse of `_compute`.

    Batch dimensions are joined and split here: views outside would take time of their own in the backward pass.
    """

    # In this form, which has the context as an argument, torch doesn't bind the others to a signature at each call. The
    # newer form is for torch.func, under which no fused kernel runs.
    @staticmethod
    def forward(ctx: Any, *flat: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        count = len(Tensors._fields)
        asked = unpack(Attend, flat) if len(flat) > count + 1 else Attend(Tensors(*flat[:count]), *flat[count])
        tensors, edges, is_exact, ctx.return_weights, ctx.return_lse, ctx.mode = asked
        out, weights, lse, sums, exact = _compute(asked)
        ctx.set_materialize_grads(False)
        lists: list[Tensor] = []
        ctx.lists = (edges.rows, edges.columns)
        if torch.compiler.is_compiling():
            # A graph must know all tensors that its backward pass reads.
            ctx.lists, ctx.counts = None, (len(edges.rows), len(edges.columns))
            lists = [*edges.rows, *edges.columns]
        batched = join_batch(out, tensors.query.dim() - 3)
        saved = (*tensors, exact if is_exact else batched, sums, edges.edge_index, edges.loops)
        ctx.save_for_backward(*saved, *lists)
        return out, weights, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        given: Any = Tensors(*islice(saved, len(Tensors._fields)))
        tensors, dims = _laid_out(given), given.query.dim() - 3
        out, sums, edge_index, loops = islice(saved, 4)
        rows, columns = ctx.lists or (list(islice(saved, count)) for count in ctx.counts)
        edges = EdgeLists(edge_index, loops, rows, columns)
        needs = Needs(*ctx.needs_input_grad[: len(Needs._fields)])
        grad_out, grad_weights, grad_lse = (None if x is None else join_batch(x, dims) for x in grads)
        grad_out = tensors.query.new_zeros(out.shape) if grad_out is None else grad_out
        grad_weights = grad_weights if ctx.return_weights else None
        # Of the two parts of lse, the shift is a constant.
        grad_lse = grad_lse[..., 1] if ctx.return_lse and grad_lse is not None else None
        operands = Backward(grad_out, grad_lse, grad_weights, tensors, out, sums, edges, needs, ctx.mode)
        # What is compiled has no second derivative anyway, and a plain backward pass asks for none.
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            slopes = _run(operands)
        else:
            slopes = _Gradients.apply(*flatten(operands))
        found = [_as(x, y) if need else None for x, y, need in zip(slopes, given, needs, strict=False)]
        return *found, *[None] * (len(ctx.needs_input_grad) - len(found))


def _as(x: Tensor, y: Tensor) -> Tensor:
    """Return x in the shape of y."""
    return x if x.shape == y.shape else x.reshape(y.shape)


class _Gradients(LastDerivative):
    @staticmethod
    def forward(*flat: Any) -> tuple[Tensor, ...]:
        return tuple(_run(unpack(Backward, flat)))


# Why a loop that knows additive scores can't compute one.
VECTORS = "only a few loops know scores with a vector for each target: those on a CPU, of a normalizer that is built in"


def has_vectors_of_targets(call: Call) -> bool:
    """Whether the vector of a call's score is one for each target."""
    return isinstance(call.score, Additive) and call.score.vector.dim() == 3


def why_not_fused(call: Call) -> str | None:
    """Why no fused kernel can run the call, whatever the device."""
    score = call.score
    is_known = isinstance(score, DotProduct) or (isinstance(score, Additive) and score.activation in SCORE_CODES)
    if not is_known:
        return f"it has no score like {score}"
    if type(call.normalizer) not in NORMALIZER_CODES:
        return f"it has no normalizer like {call.normalizer}"
    return None


def run_fused(call: Call, edges: EdgeLists, is_exact: bool) -> Result:
    """Run a call on whichever kernel is registered for its device.

    `is_exact` says whether the kernel's backward pass needs the output as it was before it was rounded.
    """
    bias = call.edge_bias
    if isinstance(bias, OffsetBias):
        bias = with_batch(bias.of_edges(call.pattern, call.accumulate_dtype), call.query, 2)
    vector, mode = _read_score(call.score, call)
    seed = draw_seed(call.query.device) if call.dropout_p > 0 else None
    tensors = Tensors(call.query, call.key, call.value, vector, bias, call.edge_key, call.edge_value, seed)
    if torch.compiler.is_compiling():
        # A graph's function takes no tensor twice, as key and value may be one.
        tensors = Tensors._make(x if x is None else x.view_as(x) for x in tensors)
    is_rounded = call.dropout_p > 0 or call.query.dtype != call.accumulate_dtype
    is_trained = needs_grad(call)
    is_exact = is_exact and is_rounded and isinstance(call.normalizer, Softmax) and is_trained
    asked = Attend(tensors, edges, is_exact, call.return_weights, bool(call.return_lse), mode)
    if not is_trained:
        return Result(*_compute(asked)[:3])
    # Some versions of torch.compile know no way to take a named tuple apart; elsewhere each argument takes time.
    rest = flatten(asked)[len(tensors) :] if torch.compiler.is_compiling() else [asked[1:]]
    return Result(*_Attend.apply(*tensors, *rest))


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
    if not torch.compiler.is_compiling():
        plans: list[Any] = [keep_plan(pattern, side, name, plan) for side in sides]
        return EdgeLists(None, None, plans[0], plans[-1] if len(plans) > 1 else [])
    is_planned = all(pattern.has_kept(f"{name} {side}") for side in sides)
    if not is_planned and pattern.has_kept("edge_index"):
        count = pattern.traced_loops if isinstance(pattern, Edges) else None
        loops = None if count is None else pattern.edge_index.new_empty(count, 0)
        return EdgeLists(pattern.edge_index, loops, [], [])
    # What a graph is traced with has to be plain.
    plain = [list(keep_plan(pattern, side, name, plan)) for side in sides]
    return EdgeLists(None, None, plain[0], plain[-1] if len(plain) > 1 else [])


def read_plan(edges: EdgeLists, side: str, tensors: Tensors, name: str, plan: type[AnyPlan]) -> AnyPlan:
    """Return the plan of a side, "rows" or "columns"; made here where the operator was given an edge_index."""
    if edges.edge_index is None:
        lists = getattr(edges, side)
        return as_plan(lists, plan)
    known = compared_edges("attention", edges.edge_index, tensors.key.size(1), tensors.query.size(1))
    pattern = known if edges.loops is None else known.renew_self_loops(edges.loops.size(0)).pattern
    return keep_plan(pattern, side, name, plan)


def as_plan(lists: Sequence[Tensor], plan: type[AnyPlan]) -> AnyPlan:
    """Return the plan whose tensors an operator was given in a list."""
    return lists if isinstance(lists, plan) else plan(*lists)


def keep_plan(pattern: Pattern, side: str, name: str, plan: type[AnyPlan]) -> AnyPlan:
    """Return the plan of a side, made once."""
    build = lambda: plan.of(pattern.csr()) if side == "rows" else plan.of(pattern.csc(), pattern.csr())
    return pattern.keep(f"{name} {side}", build)


def tensors_of(csr: CSR) -> tuple[Tensor, Tensor, Tensor]:
    """The operators' form of a CSR: an empty perm stands for none."""
    return csr.ptr, csr.index, csr.index.new_empty(0) if csr.perm is None else csr.perm

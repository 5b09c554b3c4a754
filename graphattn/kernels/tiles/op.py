"""The operators behind `tiles`: every tile is a small dense attention, a few of them at a time, forward and backward.

query, key and value have one leading batch dimension, edge_bias one of the batch's size or 1. Scores of pairs outside
the pattern are -inf from the start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ...dropout import keep_edges, keep_scale
from ...normalizers import Normalizer, Softmax, as_normalizer
from ...precision import accumulate_dtype
from ...scores import repeat_heads
from ...segments import Rows, gather, segment_sum
from ..operators import is_unobserved, library
from .panels.cpu import backward as panels_backward
from .panels.cpu import forward as panels_forward
from .panels.cpu import has_panels
from .parts import Part, cut
from .plan import read_groups

# Number of scores that are computed at a time: on a CPU as many as fit into its cache.
SCORES_AT_A_TIME = {"cpu": 2**18}
MOST_SCORES = 2**26

_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor? edge_bias, Tensor? table, Tensor? seed, "
_MODE = "Tensor[] plan, SymInt[] numbers, str normalizer, float scale, float dropout_p"

library.define(f"tiles_forward({_INPUTS}{_MODE}, bool weights, bool lse) -> (Tensor, Tensor, Tensor)")
library.define(
    f"tiles_backward(Tensor grad_out, Tensor? grad_weights, Tensor? grad_lse, {_INPUTS}{_MODE}, bool[] needs) "
    "-> Tensor[]"
)


@dataclass
class _Call:
    """The operators' inputs, and the matrices [B * g * H, rows, columns] of a part's tiles."""

    query: Tensor
    key: Tensor
    value: Tensor
    edge_bias: Tensor | None
    table: Tensor | None
    seed: Tensor | None
    plan: list[Tensor]
    numbers: list[int]
    normalizer: Normalizer
    scale: float
    dropout_p: float

    @property
    def heads(self) -> int:
        return self.query.size(2)

    def parts(self, most: int | None = None) -> list[Part]:
        most = SCORES_AT_A_TIME.get(self.query.device.type, MOST_SCORES) if most is None else most
        width = self.key.size(2) * (self.key.size(3) + self.value.size(3))
        groups = read_groups(self.plan, self.numbers)
        return [part for group in groups for part in cut(group, self.query.size(0), self.heads, width, most)]

    def by_head(self, x: Tensor) -> Tensor:
        """[B * g, rows, H or H_kv, D] to [B * g * H, rows, D], in the precision of sums."""
        x = repeat_heads(x.to(accumulate_dtype(x.dtype)), self.heads).transpose(1, 2)
        return x.flatten(0, 1)

    def by_row(self, x: Tensor, heads: int) -> Tensor:
        """[B * g * H, rows, D] to [B * g, rows, heads, D]; query heads that share a head are summed."""
        x = x.unflatten(0, (x.size(0) // self.heads, heads, self.heads // heads))
        return (x.squeeze(2) if heads == self.heads else x.sum(2)).transpose(1, 2)

    def by_pair(self, x: Tensor, part: Part) -> Tensor:
        """[B * g * H, m, c] to [B, g, m, c, H]."""
        return x.view(self.query.size(0), part.end - part.begin, self.heads, *x.shape[1:]).movedim(2, -1)

    def from_pairs(self, x: Tensor, part: Part) -> Tensor:
        """[B or 1, g or 1, m, c, H] to [B * g * H, m, c]."""
        x = x.to(accumulate_dtype(self.query.dtype)).movedim(-1, 2)
        return x.expand(self.query.size(0), part.end - part.begin, *x.shape[2:]).flatten(0, 2)

    def scores(self, part: Part, query: Tensor, key: Tensor) -> Tensor:
        """Add biases, and set -inf where the target doesn't see the source."""
        mask = part.mask()
        added = None if mask is None else torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
        bias: Tensor | None = None
        if self.edge_bias is not None:
            bias = self.edge_bias[:, part.edges(self.plan[0])]
        elif self.table is not None:
            bias = gather(self.table, self.offset_rows(part), -2).view(1, *self.offsets(part).shape, self.heads)
        if bias is not None:
            added = bias if added is None else bias + added[None, ..., None]
            added = self.from_pairs(added, part)
        elif added is not None and added.size(0) > 1:
            added = self.from_pairs(added[None, ..., None].expand(-1, -1, -1, -1, self.heads), part)
        if self.query.dtype != query.dtype:
            # Products of half types are nearly exact before they are scaled.
            score = torch.bmm(query, key.mT).mul_(self.scale)
            return score if added is None else score.add_(added)
        if added is None:
            return torch.baddbmm(query.new_empty(()), query, key.mT, beta=0, alpha=self.scale)
        return torch.baddbmm(added, query, key.mT, alpha=self.scale)

    def offsets(self, part: Part) -> Tensor:
        return part.offsets(self.numbers)

    def offset_rows(self, part: Part) -> Rows:
        assert self.table is not None
        return Rows.from_index(self.offsets(part).flatten(), self.table.size(0))

    def weights(self, score: Tensor) -> Tensor:
        has_bias = self.edge_bias is not None or self.table is not None
        if self.normalizer.name == "softmax" and score.size(-1) and not has_bias:
            # Every target sees a source.
            return torch.softmax(score, -1)
        return self.normalizer.dense(score, torch.ones((), dtype=torch.bool, device=score.device))

    def factors(self, part: Part) -> Tensor | None:
        """The factors of dropout on weights; None without dropout."""
        if self.seed is None:
            return None
        device = self.query.device
        keep = keep_edges(
            self.seed,
            self.dropout_p,
            batch=torch.arange(self.query.size(0), device=device).view(-1, 1, 1, 1, 1),
            target=part.targets()[..., None, None],
            source=part.sources()[:, None, :, None],
            occurrence=0,
            head=torch.arange(self.heads, device=device),
        )
        return self.from_pairs(keep, part).mul_(keep_scale(self.dropout_p))


def _forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    *shared, return_weights, return_lse = inputs
    call = _read(*shared)
    if has_panels(call.plan):
        return panels_forward(call.query, call.key, call.value, call.plan, call.numbers, call.scale, return_lse)
    query, value = call.query, call.value
    sums = accumulate_dtype(query.dtype)
    out = query.new_empty(*query.shape[:3], value.size(3))
    weights = query.new_zeros(query.size(0), int(call.plan[0][-1]), call.heads, dtype=sums) if return_weights else None
    lse = query.new_empty(*query.shape[:3], 2, dtype=sums) if return_lse else None
    with torch.autocast(query.device.type, enabled=False):
        if weights is None and lse is None and _is_plain(call):
            for part in call.parts(MOST_SCORES):
                _attend(call, part, out)
        else:
            for part in call.parts():
                _attend_by_products(call, part, out, weights, lse)
    # An operator's results must not share memory.
    nothing = lambda: query.new_empty(0, dtype=sums)
    return out, nothing() if weights is None else weights, nothing() if lse is None else lse


def _is_plain(call: _Call) -> bool:
    """Whether torch's own attention computes the same, in one pass over the scores."""
    is_bare = call.edge_bias is None and call.table is None and call.seed is None
    return is_bare and call.normalizer.name == "softmax" and call.query.size(3) == call.value.size(3)


def _attend(call: _Call, part: Part, out: Tensor) -> None:
    if part.right == 0:
        part.put(out, out.new_zeros(out.size(0) * (part.end - part.begin), part.bottom - part.top, *out.shape[2:]))
        return
    rows = (part.rows_of(call.query), *(repeat_heads(part.columns_of(x), call.heads) for x in (call.key, call.value)))
    is_causal = part.group.is_causal and part.bottom - part.top == part.group.height
    mask = None if is_causal else part.mask()
    if mask is not None:
        batch = 1 if mask.size(0) == 1 else out.size(0)
        mask = mask.repeat(batch, 1, 1).unsqueeze(1)
    query, key, value = (x.transpose(1, 2) for x in rows)
    attended = scaled_dot_product_attention(query, key, value, mask, is_causal=is_causal, scale=call.scale)
    part.put(out, attended.transpose(1, 2))


def _attend_by_products(call: _Call, part: Part, out: Tensor, weights: Tensor | None, lse: Tensor | None) -> None:
    query = call.by_head(part.rows_of(call.query))
    key, value = (call.by_head(part.columns_of(x)) for x in (call.key, call.value))
    score = call.scores(part, query, key)
    weight = call.weights(score)
    if lse is not None:
        part.put(lse, call.by_row(Softmax().lse_dense(score, score.new_ones((), dtype=torch.bool)), call.heads))
    if weights is not None:
        pairs = part.pairs()
        weights[:, part.edges(call.plan[0])[pairs]] = call.by_pair(weight, part)[:, pairs]
    factors = call.factors(part)
    kept = weight if factors is None else factors.mul_(weight)
    part.put(out, call.by_row(torch.bmm(kept, value), call.heads).to(out.dtype))


def _backward(*inputs: Any) -> list[Tensor]:
    grad_out, grad_weights, grad_lse, *shared, needs = inputs
    call = _read(*shared)
    if has_panels(call.plan):
        data = (call.query, call.key, call.value)
        return panels_backward(grad_out, grad_lse, *data, call.plan, call.numbers, call.scale, needs)
    sums = accumulate_dtype(call.query.dtype)
    differentiable = (call.query, call.key, call.value, call.edge_bias, call.table)
    grads = [
        None if x is None or not need else torch.zeros(x.shape, dtype=accumulate_dtype(x.dtype), device=x.device)
        for x, need in zip(differentiable, needs, strict=True)
    ]
    given = grad_out.to(sums)
    with torch.autocast(call.query.device.type, enabled=False):
        for part in call.parts():
            _add_gradients(call, part, given, grad_weights, grad_lse, grads)
    return [
        grad_out.new_empty(0) if x is None or grad is None else grad.to(x.dtype)
        for x, grad in zip(differentiable, grads, strict=True)
    ]


def _add_gradients(
    call: _Call,
    part: Part,
    grad_out: Tensor,
    grad_weights: Tensor | None,
    grad_lse: Tensor | None,
    grads: list[Tensor | None],
) -> None:
    """Add the gradients from one part's tiles to those of each input."""
    query, given = call.by_head(part.rows_of(call.query)), call.by_head(part.rows_once(grad_out))
    key, value = (call.by_head(part.columns_of(x)) for x in (call.key, call.value))
    score = call.scores(part, query, key)
    weight = call.weights(score)
    factors = call.factors(part)
    grad_query, grad_key, grad_value, grad_bias, grad_table = grads
    if grad_value is not None:
        kept = weight if factors is None else weight * factors
        part.add(grad_value, call.by_row(torch.bmm(kept.mT, given), call.value.size(2)))
    slope = torch.bmm(given, value.mT)
    if factors is not None:
        slope.mul_(factors)
    if grad_weights is not None:
        of_edges = grad_weights[:, part.edges(call.plan[0])]
        slope += call.from_pairs(of_edges.masked_fill(~part.pairs()[..., None], 0), part)
    slope = SLOPES[call.normalizer.name](score, weight, slope)
    if grad_lse is not None:
        slope += weight * call.by_head(part.rows_once(grad_lse[..., 1:]))
    if grad_bias is not None:
        pairs = part.pairs()
        of_edges = call.by_pair(slope, part)[:, pairs]
        edges = part.edges(call.plan[0])[pairs]
        grad_bias[:, edges] = of_edges if grad_bias.size(0) == of_edges.size(0) else of_edges.sum(0, keepdim=True)
    if grad_table is not None:
        by_pair = call.by_pair(slope, part).sum(0)
        by_pair = by_pair if call.offsets(part).size(0) > 1 else by_pair.sum(0)
        grad_table += segment_sum(by_pair.reshape(-1, call.heads), call.offset_rows(part), -2)
    slope *= call.scale
    if grad_query is not None:
        part.put(grad_query, call.by_row(torch.bmm(slope, key), call.heads))
    if grad_key is not None:
        part.add(grad_key, call.by_row(torch.bmm(slope.mT, query), call.key.size(2)))


def _of_softmax(score: Tensor, weight: Tensor, slope: Tensor) -> Tensor:
    return slope.sub_((slope * weight).sum(-1, keepdim=True)).mul_(weight)


def _of_support(support: Tensor, slope: Tensor) -> Tensor:
    """The derivative of a projection onto the simplex, where `support` says how much each weight can change."""
    total = support.sum(-1, keepdim=True)
    mean = (slope * support).sum(-1, keepdim=True) / torch.where(total == 0, 1, total)
    return slope.sub_(mean).mul_(support)


# Gradient of the scores, from scores, weights, and the gradient of the weights, which may be overwritten.
SLOPES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "softmax": _of_softmax,
    "relu": lambda score, weight, slope: slope.mul_(score > 0),
    "sigmoid": lambda score, weight, slope: slope.mul_(weight * (1 - weight)),
    "identity": lambda score, weight, slope: slope.masked_fill_(score == -torch.inf, 0),
    "sparsemax": lambda score, weight, slope: _of_support((weight > 0).to(weight.dtype), slope),
    "entmax15": lambda score, weight, slope: _of_support(weight.sqrt(), slope),
}


def _read(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    edge_bias: Tensor | None,
    table: Tensor | None,
    seed: Tensor | None,
    plan: list[Tensor],
    numbers: list[int],
    normalizer: str,
    scale: float,
    dropout_p: float,
) -> _Call:
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    kind = as_normalizer("attention", normalizer)
    return _Call(query, key, value, edge_bias, table, seed, plan, numbers, kind, scale, dropout_p)


def run(name: str, *inputs: Any) -> Any:
    """Run an operator; directly, where nothing could tell the difference."""
    if is_unobserved(x for x in inputs if x is None or isinstance(x, Tensor)):
        return OPERATORS[name](*inputs)
    return getattr(torch.ops.graphattn, name)(*inputs)


OPERATORS: dict[str, Callable[..., Any]] = {"tiles_forward": _forward, "tiles_backward": _backward}
for _name, _function in OPERATORS.items():
    library.impl(_name, _function, "CompositeExplicitAutograd")


@library.fake("tiles_forward")
def _fake_forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, weights, lse = rest
    sums = accumulate_dtype(query.dtype)
    out = query.new_empty(*query.shape[:3], value.size(3))
    # Only the plan's first tensor has the number of edges.
    edges = torch.library.get_ctx().new_dynamic_size() if weights else 0
    return (
        out,
        query.new_empty((query.size(0), edges, query.size(2)) if weights else 0, dtype=sums),
        query.new_empty((*query.shape[:3], 2) if lse else 0, dtype=sums),
    )


@library.fake("tiles_backward")
def _fake_backward(grad_out: Tensor, grad_weights: Tensor, grad_lse: Tensor, *rest: Any) -> list[Tensor]:
    *inputs, needs = rest
    differentiable = inputs[:5]
    return [
        x.new_empty(x.shape) if need else grad_out.new_empty(0) for x, need in zip(differentiable, needs, strict=True)
    ]

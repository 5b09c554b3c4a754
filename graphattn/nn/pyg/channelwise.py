"""Layers whose channels are heads of one number, in compiled loops of their own: nothing is kept per edge."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...compiled import compiled_loop, empty, empty_like, load, run_tasks, why_not_compiled
from ...csr import CSR
from ...kernels.base import LastDerivative
from ...patterns import Pattern


def can_loop(x: Tensor, *tensors: Tensor) -> bool:
    """Whether the compiled loops take these."""
    is_exact = x.dtype in (torch.float32, torch.float64) and all(y.dtype == x.dtype for y in tensors)
    is_here = x.device.type == "cpu" and why_not_compiled() is None
    return is_exact and is_here and not torch.is_autocast_enabled(x.device.type)


def _run(module: str, name: str, rows: CSR, given: tuple[Tensor, ...], *results: Any) -> None:
    """Run a loop over compressed rows."""
    ptr, index, _ = rows
    _run_loop(module, name, ptr.numel() - 1, *given, ptr, index, given[0].size(1), *results)


def _run_loop(module: str, name: str, tasks: int, *arguments: Any) -> None:
    dtypes = tuple(x.dtype for x in arguments if isinstance(x, Tensor))
    run_tasks(compiled_loop(getattr(load(f"nn.pyg.jit.{module}"), name), dtypes, *arguments), tasks, *arguments)


def softmax_of_groups(x: Tensor, factor: Tensor, pattern: Pattern) -> Tensor:
    """Softmax of factor * x over the rows [N, C] of each group, times these rows: [groups, C]; see `jit.groups`.

    The pattern is that of `groups_of`, the factor [C]. In compiled loops, which keep nothing per row.
    """
    out: Tensor = _Softmax.apply(x.contiguous(), factor.contiguous(), None, pattern, False)
    return out


def gated_mean_of_groups(x: Tensor, vector: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
    """The same with one weight for all channels of a row, softmax of x . vector [C]: one number is kept per row.

    A bias, the same for all rows, cancels: its gradient is zero.
    """
    out: Tensor = _Softmax.apply(x.contiguous(), vector.contiguous(), bias, pattern, True)
    return out


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, vector: Tensor, bias: Tensor | None, pattern: Pattern, is_gated: bool) -> Tensor:
        groups, channels = pattern.num_targets, x.size(1)
        kept = [empty(x, len(x))] if is_gated else [empty(x, groups, channels) for _ in range(2)]
        results = (*kept, empty(x, groups, channels))
        _run("groups", "gated_forward_tasks" if is_gated else "forward_tasks", pattern.csr(), (x, vector), results)
        ctx.save_for_backward(x, vector, *results)
        ctx.pattern, ctx.is_gated, ctx.zero = pattern, is_gated, None if bias is None else torch.zeros_like(bias)
        return results[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given = (grad, ctx.pattern, ctx.is_gated, ctx.needs_input_grad[1])
        return (*_SoftmaxGradients.apply(*given, *ctx.saved_tensors), ctx.zero, None, None)


class _SoftmaxGradients(LastDerivative):
    @staticmethod
    def forward(
        grad: Tensor, pattern: Pattern, is_gated: bool, needs_vector: bool, x: Tensor, vector: Tensor, *results: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        needs_vector = needs_vector or is_gated
        of_x, of_vector = empty_like(x), empty(x, *grad.shape) if needs_vector else x.new_empty(0)
        name, more = "gated_backward_tasks" if is_gated else "backward_tasks", (grad.contiguous(), of_x, of_vector)
        _run("groups", name, pattern.csr(), (x, vector), results, *more)
        return of_x, of_vector.sum(0, dtype=torch.float64).to(x.dtype) if needs_vector else None


def sum_through_gates(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern) -> Tensor:
    """Sum over j -> i of sigmoid(query_i + key_j) * value_j, channel by channel: [T, C]; see `jit.gates`."""
    out: Tensor = _Gates.apply(query.contiguous(), key.contiguous(), value.contiguous(), pattern)
    return out


class _Gates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, pattern: Pattern) -> Tensor:
        out = empty_like(query)
        _run("gates", "forward_tasks", pattern.csr(), (query, key, value), out)
        ctx.save_for_backward(query, key, value)
        ctx.pattern = pattern
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_GateGradients.apply(grad, ctx.pattern, *ctx.saved_tensors), None)


class _GateGradients(LastDerivative):
    @staticmethod
    def forward(grad: Tensor, pattern: Pattern, *given: Tensor) -> tuple[Tensor, ...]:
        grad, (of_query, of_key, of_value) = grad.contiguous(), map(empty_like, given)
        _run("gates", "target_gradient_tasks", pattern.csr(), given, grad, of_query)
        _run("gates", "source_gradient_tasks", pattern.csc(), given, grad, of_key, of_value)
        return of_query, of_key, of_value


def share_in_loops(score: Tensor, value: Tensor, top: Tensor, pattern: Pattern) -> Tensor:
    """Softmax over j -> i of score_j times value_j, both [S, C]: [T, C], given each channel's largest score [C].

    The scores of a channel must be so near to each other that none of their exponentials vanishes; see `jit.shares`.
    """
    out: Tensor = _Share.apply(score.contiguous(), value.contiguous(), top, pattern)
    return out


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, score: Tensor, value: Tensor, top: Tensor, pattern: Pattern) -> Tensor:
        (sources, channels), targets = value.shape, pattern.num_targets
        rows = empty(value, sources, 2 * channels)
        total, out = (empty(value, targets, channels) for _ in range(2))
        _run_loop("shares", "weigh_tasks", sources, score, value, top, channels, rows)
        _run_loop("shares", "forward_tasks", targets, rows, *pattern.csr()[:2], channels, total, out)
        ctx.save_for_backward(score, value, top, total, out)
        ctx.pattern = pattern
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_ShareGradients.apply(grad, ctx.pattern, *ctx.saved_tensors), None, None)


class _ShareGradients(LastDerivative):
    @staticmethod
    def forward(
        grad: Tensor, pattern: Pattern, score: Tensor, value: Tensor, top: Tensor, total: Tensor, out: Tensor
    ) -> tuple[Tensor, Tensor]:
        (targets, channels), of_score, of_value = out.shape, empty_like(score), empty_like(value)
        rows = empty(value, targets, 2 * channels)
        _run_loop("shares", "slope_tasks", targets, grad.contiguous(), total, out, channels, rows)
        results = (score, value, top, of_score, of_value)
        _run_loop("shares", "backward_tasks", len(value), rows, *pattern.csc()[:2], channels, *results)
        return of_score, of_value

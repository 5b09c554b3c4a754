"""Panels on the CPU: runs the compiled functions of `jit`, for `tiles.op`. Numba is loaded on first use."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....call import Call
from ....compiled import compiled_loop, empty, load, run_tasks, why_not_compiled
from ....costs import CPU
from ....normalizers import Softmax
from ....precision import accumulate_dtype
from ...base import FORWARD_SHARE
from .plan import PANEL, PANEL_TENSORS

# Rows of query, key and value are padded to whole vectors of this many bytes; this is their greatest length.
VECTOR_BYTES = 64
MOST_WIDTH = 256
# The least time of a call of a compiled function: passing its arguments takes a tenth of that, one thread at a time.
CALL_SECONDS = 2e-4


def is_for_panels(call: Call) -> bool:
    """Whether panels can compute a call, given a plan: softmax of products on the CPU, without biases or dropout."""
    if call.query.device.type != "cpu" or not isinstance(call.normalizer, Softmax):
        return False
    if call.edge_bias is not None or call.dropout_p > 0 or call.return_weights:
        return False
    return max(call.query.size(-1), call.value.size(-1)) <= MOST_WIDTH and why_not_compiled() is None


def are_vectors(x: Tensor) -> bool:
    """Whether rows are whole vectors in the precision of sums, so that panels read them without a copy."""
    return x.dtype == accumulate_dtype(x.dtype) and x.size(-1) * x.dtype.itemsize % VECTOR_BYTES == 0


def in_vectors(x: Tensor) -> Tensor:
    """Return rows that are whole vectors: zeros after a row change no product."""
    x = x.to(accumulate_dtype(x.dtype))
    return torch.nn.functional.pad(x, (0, -x.size(-1) % (VECTOR_BYTES // x.dtype.itemsize)))


def has_panels(plan: list[Tensor]) -> bool:
    """Whether a plan consists of panels."""
    return len(plan) == PANEL_TENSORS


def forward(
    query: Tensor, key: Tensor, value: Tensor, plan: list[Tensor], numbers: list[int], scale: float, return_lse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`tiles_forward` for a plan of panels."""
    data = (query, key, value)
    out = empty(query, *query.shape[:3], value.size(3))
    lse = query.new_empty((*query.shape[:3], 2) if return_lse else 0)
    tasks = query.size(0) * query.size(2) * len(plan[0])
    results = (_flat(out), _flat(lse), return_lse)
    least = _least(_seconds(data, numbers))
    arguments = (*_operands(data, plan, numbers, scale), *results)
    loop = compiled_loop(_loops().forward_tasks, (query.dtype,), *arguments)
    run_tasks(loop, tasks, *arguments, least=least)
    return out, query.new_empty(0), lse


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: list[Tensor],
    numbers: list[int],
    scale: float,
    needs: list[bool],
) -> list[Tensor]:
    """`tiles_backward` for a plan of panels; tasks of one color add to different keys and values."""
    data = (query, key, value, grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous())
    grads = [empty(x, *x.shape) if need else x.new_empty(0, 0, 0, 0) for x, need in zip(data[:3], needs, strict=False)]
    if not len(plan[5]):
        grads = [grad.zero_() for grad in grads]
    panels, shape, parts, arrays, strides = _operands(data, plan, numbers, scale)
    strides += tuple(grad.stride()[:3] for grad in grads)
    # Of the two parts of lse, the shift is a constant.
    of_lse = _flat(grad_out.new_empty(0) if grad_lse is None else grad_lse[..., 1].contiguous())
    results = (of_lse, grad_lse is not None, tuple(_flat(grad) for grad in grads), tuple(needs[:3]))
    begin, least = 0, _least(_seconds(data, numbers) / FORWARD_SHARE * max(len(plan[0]), 1) / max(len(plan[5]), 1))
    for end in numbers[1:]:
        tasks = query.size(0) * key.size(2) * (end - begin)
        arguments = (panels, shape, parts, arrays, strides, plan[5][begin:end], plan[6], *results)
        loop = compiled_loop(_loops().backward_tasks, (query.dtype,), *arguments)
        run_tasks(loop, tasks, *arguments, least=least)
        begin = end
    return [
        grad if need else grad_out.new_empty(0) for grad, need in zip([*grads, *[grad_out] * 2], needs, strict=True)
    ]


def _seconds(data: tuple[Tensor, ...], numbers: list[int]) -> float:
    """The approximate time of the forward pass of one head of a panel on one core."""
    width = data[0].size(3) + data[2].size(3)
    per_score = CPU.panels_score + CPU.panels_product * width
    return 2 * FORWARD_SHARE * (CPU.panels_panel + PANEL * numbers[0] * per_score)


def _least(seconds: float) -> int:
    """The least number of tasks of this duration for one call of a compiled function."""
    return math.ceil(CALL_SECONDS / seconds)


def _loops() -> Any:
    """Return the module of compiled functions."""
    return load("kernels.tiles.panels.jit.loops")


def _operands(data: tuple[Tensor, ...], plan: list[Tensor], numbers: list[int], scale: float) -> tuple[Any, ...]:
    """The arguments of both passes: plan, shape, scale, data and their strides.

    The scale is split: its sign is applied to the query, so that the largest product is the largest score; its
    magnitude multiplies differences of products, because multiplying the query by it would add a rounding.
    """
    query, key, value, *_ = data
    shape = (query.size(1), query.size(2), key.size(2), query.size(3), value.size(3))
    number = np.float64 if query.dtype == torch.float64 else np.float32
    parts = (number(math.copysign(1.0, scale)), number(abs(scale))) if scale else (number(0), number(1))
    panels = (*plan[:5], numbers[0])
    return panels, shape, parts, tuple(_flat(x) for x in data), tuple(x.stride()[:3] for x in data)


def _flat(x: Tensor) -> Tensor:
    """All memory from the tensor's first number to its last one, without gaps."""
    if x.is_contiguous():
        return x
    size = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    return x.as_strided((size,), (1,))

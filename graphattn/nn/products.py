"""Products of the rows of nodes with vectors of a layer, in few passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Heads up to which one product with a matrix, most of whose numbers are zeros, takes less time than one per head; and
# numbers of all rows from which on it does.
MOST_HEADS, LEAST_NUMBERS = 16, 2**15
# The least length by which a row is divided.
SHORTEST = 1e-12


def products_with(rows: Tensor, *vectors: Tensor) -> tuple[Tensor, ...]:
    """Product of each head's row [N, H, C] with its part of each vector [H, C]: [N, H] for each vector.

    All of them as one product of matrices, which reads the rows once; to multiply and to add up each in turn writes
    [N, H, C] for each, and again for each gradient.
    """
    nodes, heads, channels = rows.shape
    dtypes = {rows.dtype, *(vector.dtype for vector in vectors)}
    if (
        heads > MOST_HEADS
        or rows.numel() < LEAST_NUMBERS
        or len(dtypes) > 1
        or torch.is_autocast_enabled(rows.device.type)
    ):
        return tuple((rows * vector).sum(-1) for vector in vectors)
    # Of the matrix [H * C, V * H], each head's part is not zero in its own columns alone.
    own = torch.eye(heads, dtype=rows.dtype, device=rows.device)
    matrix = torch.stack(vectors, 2).unsqueeze(-1) * own[:, None, None]
    found = rows.reshape(nodes, heads * channels) @ matrix.view(heads * channels, -1)
    return tuple(x.contiguous() for x in found.split(heads, 1))


def unit_rows(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, C] divided by their lengths, times a number [1] and as they are.

    What `torch.nn.functional.normalize` computes and a product, in half of the passes over memory with gradients.
    """
    scaled, unit, _ = _UnitRows.apply(x, scale)
    return scaled, unit


class _UnitRows(torch.autograd.Function):
    """Each saved tensor is an input or an output, so that there are derivatives of every order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(SHORTEST).reciprocal()
        unit = x * inverse
        ctx.save_for_backward(unit, inverse, scale)
        return unit * scale, unit, inverse

    @staticmethod
    def backward(ctx: Any, of_scaled: Tensor | None, of_unit: Tensor | None, of_inverse: Tensor | None) -> Any:
        unit, inverse, scale = ctx.saved_tensors
        of_scaled, of_unit = (torch.zeros_like(unit) if x is None else x for x in (of_scaled, of_unit))
        grad = torch.addcmul(of_unit, of_scaled, scale)
        along = (grad * unit).sum(-1, keepdim=True)
        along = along if of_inverse is None else along + of_inverse * inverse
        # Lengths below the shortest one are constants.
        along = along.masked_fill(inverse >= 1 / SHORTEST, 0)
        return torch.addcmul(grad, unit, along, value=-1) * inverse, (of_scaled * unit).sum().view_as(scale)

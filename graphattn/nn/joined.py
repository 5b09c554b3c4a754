"""Several projections of the same rows as one product of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch_geometric
from torch import Tensor
from torch.nn.modules import module as modules

from ..call import is_transformed
from .hooks import has_hooks

# Rows from which on one product takes less time than several, with the attention that reads its columns, and bytes of
# it up to which it does: larger blocks of memory are new from the system at each call. With gradients it never does, as
# those of the columns would be copied into one matrix. See benchmarks/projections.py.
LEAST_ROWS, MOST_BYTES = 2**14, 2**25
LINEAR = (torch.nn.Linear, torch_geometric.nn.Linear)


def project(x: Tensor, linears: Sequence[Any]) -> list[Tensor]:
    """Projections of the rows x [*, C], each [*, F]: where it takes less time, the columns of one product."""
    if not _can_join(x, linears):
        return [linear(x) for linear in linears]
    weight = torch.cat([linear.weight for linear in linears])
    bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
    rows = torch.nn.functional.linear(x, weight, bias)
    return list(rows.split_with_sizes([len(linear.weight) for linear in linears], -1))


def _can_join(x: Tensor, linears: Sequence[Any]) -> bool:
    """Whether it pays, and nothing could tell one product from several."""
    # A graph must hold for any number of rows.
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed():
        return False
    rows = x.shape[:-1].numel()
    if torch.is_grad_enabled() or rows < LEAST_ROWS or x.device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu") or modules._has_any_global_hook():
        return False
    if not all(_is_plain(linear, x) for linear in linears) or len({linear.bias is None for linear in linears}) > 1:
        return False
    width = sum(len(linear.weight) for linear in linears)
    return rows * width * x.element_size() <= MOST_BYTES


def _is_plain(linear: Any, x: Tensor) -> bool:
    """Whether a module is no more than a product with a matrix that fits."""
    if type(linear) not in LINEAR or has_hooks(linear):
        return False
    weight = linear.weight
    is_matrix = type(weight) is torch.nn.Parameter and weight.dim() == 2 and weight.size(1) == x.size(-1)
    return is_matrix and weight.dtype == x.dtype and weight.device == x.device

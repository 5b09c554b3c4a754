"""Fresh memory for what compiled code writes."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

import torch
from torch import Tensor

from ..precision import accumulate_dtype

# Linux's advice to back memory with huge pages; a kernel without them refuses it, which is harmless.
MADV_HUGEPAGE = 14
PAGE_BYTES = 4096
HUGE_BYTES = 2**22

_advise = ctypes.CDLL(None).madvise if sys.platform == "linux" else None
if _advise is not None:
    _advise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)


@cache
def nothing(dtype: torch.dtype) -> Tensor:
    """An empty tensor of the accumulator's dtype, always the same: to make one takes longer than to look it up."""
    return torch.empty(0, dtype=accumulate_dtype(dtype))


def scratch(like: Tensor, size: int) -> Tensor:
    """New tensor [size] of the accumulator's dtype for a compiled function alone."""
    return empty(like, size) if size else nothing(like.dtype)


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """New tensor of the accumulator's dtype, unless another is given; in huge pages if it is large.

    A page fault for each 4 KiB of fresh memory takes longer than writing to it.
    """
    return _in_huge_pages(like.new_empty(shape, dtype=dtype or accumulate_dtype(like.dtype)))


def empty_like(x: Tensor) -> Tensor:
    """New tensor of the same shape and dtype; torch makes it faster than one of a given shape."""
    return _in_huge_pages(torch.empty_like(x))


def _in_huge_pages(x: Tensor) -> Tensor:
    size = x.numel() * x.element_size()
    if size >= HUGE_BYTES and _advise is not None:
        begin = x.data_ptr() // PAGE_BYTES * PAGE_BYTES
        _advise(begin, x.data_ptr() + size - begin, MADV_HUGEPAGE)
    return x

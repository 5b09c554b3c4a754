"""The GPU's upper bound over random rows: a kernel that only gathers the rows of key and value, and sums them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from graphattn import Edges

# Rows per program: the fastest depends on the degree, so that all are timed, and the fastest is the bound.
ROWS = (1, 4, 16)
# Longer rows are cut: one program that sums a hub alone is no bound.
LONGEST = 128


@triton.jit
def gather_rows(ptr_ptr, index_ptr, key_ptr, value_ptr, out_ptr, total, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sums [total, WIDTH] over each row's edges; WIDTH is a power of two."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    is_row = row < total
    begin = tl.load(ptr_ptr + row, mask=is_row, other=0)
    end = tl.load(ptr_ptr + row + 1, mask=is_row, other=0)
    d = tl.arange(0, WIDTH)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for step in range(0, tl.max(end - begin, 0)):
        is_live = begin + step < end
        j = tl.load(index_ptr + begin + step, mask=is_live, other=0).to(tl.int64)
        at = j[:, None] * WIDTH + d[None, :]
        k = tl.load(key_ptr + at, mask=is_live[:, None], other=0.0)
        x = tl.load(value_ptr + at, mask=is_live[:, None], other=0.0)
        acc += k.to(tl.float32) + x.to(tl.float32)
    at = row[:, None] * WIDTH + d[None, :]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=is_row[:, None])


def gathers(key: Tensor, value: Tensor, pattern: Edges) -> dict[str, Callable[[], None]]:
    """The candidates: the same loop with different numbers of rows per program, rows in the order of ptr."""
    ptr, index, _ = pattern.csr()
    if int(ptr.diff().max()) > LONGEST:
        ptr = torch.cat([ptr, torch.arange(0, index.numel(), LONGEST, device=ptr.device)]).sort().values
    width, total = key.size(1) * key.size(2), ptr.numel() - 1
    out = torch.empty(total, width, dtype=key.dtype, device=key.device)
    tensors = (ptr, index, key.detach().contiguous(), value.detach().contiguous(), out, total)

    def gather(rows: int) -> Callable[[], None]:
        return lambda: gather_rows[(-(-total // rows),)](*tensors, ROWS=rows, WIDTH=width, num_warps=1)

    return {f"gather {rows}": gather(rows) for rows in ROWS}

"""New memory for what the kernels write; while they are checked, each piece lies between guards of NaN."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Numbers on either side: more than a program of any width writes beyond its own by one row too many.
GUARD = 4096
# The guards of all pieces, while there are some.
_guards: list[list[Tensor]] = []


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """A new tensor on a tensor's device, of its dtype unless another one is given."""
    dtype = like.dtype if dtype is None else dtype
    if not _guards:
        return like.new_empty(shape, dtype=dtype)
    return between_guards(shape, dtype, like.device)


def empty_like(x: Tensor) -> Tensor:
    """A new tensor without gaps, of a tensor's shape and dtype."""
    return empty(x, *x.shape)


@contextlib.contextmanager
def guards() -> Iterator[list[Tensor]]:
    """Let new memory lie between guards, which are listed: all must still be NaN afterwards."""
    _guards.append([])
    try:
        yield _guards[-1]
    finally:
        _guards.pop()


def between_guards(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory full of NaN between two guards, so that what is read before it is written is NaN, too."""
    count = torch.Size(shape).numel()
    room = torch.full((count + 2 * GUARD,), torch.nan, dtype=dtype, device=device)
    before, inside, after = room.split([GUARD, count, GUARD])
    _guards[-1] += [before, after]
    return inside.view(shape)

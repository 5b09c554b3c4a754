"""The exchange of rows between ranks, with their gradients, and errors that all ranks raise together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import message

T = TypeVar("T")


def exchange(rows: Tensor, send: Sequence[int], receive: Sequence[int], group: Any = None) -> Tensor:
    """Send runs of rows to the ranks, and return the runs that they send, in the order of ranks.

    Args:
        rows: [sent, ...], of any dtype; its gradient is sent back the same way.
        send: number of rows for each rank; they add up to `sent`.
        receive: number of rows from each rank.
        group: the process group; the default one if None.

    Returns:
        [received, ...].

    Raises:
        RuntimeError: a rank has stopped, or is slower than the group's timeout.
    """
    return _Exchange.apply(rows, list(send), list(receive), group)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(rows: Tensor, send: list[int], receive: list[int], group: Any) -> Tensor:
        rows = rows.contiguous()
        out = rows.new_empty(sum(receive), *rows.shape[1:])
        if torch.compiler.is_compiling():
            dist.all_to_all_single(out, rows, receive, send, group=group)
            # Code traced by torch.compile writes into `out`, and torch 2.11 then loses the gradient of `out` itself.
            return out.clone()
        else:
            collective("exchange", lambda: dist.all_to_all_single(out, rows, receive, send, group=group), group)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.send, ctx.receive, ctx.group = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        # Compiled code has no second derivative anyway.
        function = _Exchange.forward if torch.compiler.is_compiling() else _Exchange.apply
        return function(grad, ctx.receive, ctx.send, ctx.group), None, None, None


def collective(where: str, run: Callable[[], T], group: Any = None) -> T:
    """Run something that all ranks must run together; if it fails, the error names the rank and possible causes."""
    begin = time.perf_counter()
    try:
        return run()
    except RuntimeError as error:
        if not dist.is_initialized():
            raise
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        seconds = time.perf_counter() - begin
        rule = f"on rank {rank} of {size} must reach all other ranks, and failed after {seconds:.1f} s"
        got = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        fix = "Has a rank stopped, raised an error, skipped a forward or backward pass, or exceeded the timeout?"
        raise RuntimeError(message(where, "communication", rule, got, fix)) from error


def gather_objects(where: str, value: T, group: Any = None) -> list[T]:
    """Send every rank's value to every rank: small values, for checks."""
    found: list[Any] = [None] * dist.get_world_size(group)
    collective(where, lambda: dist.all_gather_object(found, value, group=group), group)
    return found


def raise_together(where: str, error: Exception | None, group: Any = None) -> None:
    """Raise on every rank if any has an error: that of the first such rank, with its number."""
    problems = gather_objects(where, None if error is None else (type(error), str(error)), group)
    for rank, problem in enumerate(problems):
        if problem is not None:
            kind, text = problem
            kind = kind if kind in (FileNotFoundError, ImportError, TypeError) else ValueError
            raise kind(f"On rank {rank}: {text}") from error

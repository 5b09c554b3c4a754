"""What a kernel says and returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ..call import Call
from ..costs import Costs
from ..offset_bias import OffsetBias

# A forward pass alone, as a part of forward and backward.
FORWARD_SHARE = 0.28


class Result(NamedTuple):
    """out [*B, T, H, V]; weights [*B, E, H] in the caller's order and lse [*B, T, H, 2] where the call asks for them.

    lse is in two parts, whose sum it is: a shift of the scores, which is a constant, and the log of the sum of the
    shifted scores' exponentials, which alone has a derivative.
    """

    out: Tensor
    weights: Tensor | None
    lse: Tensor | None


class Kernel(ABC):
    """One way to compute attention. `name` is what the user writes as `backend`."""

    name: str
    # Made of torch's own operators alone, which torch.func and derivatives of every mode and order go through.
    is_plain = False

    @abstractmethod
    def why_not(self, call: Call) -> str | None:
        """Why this kernel can't run the call, as the end of "cannot run this call: ..."; None if it can."""

    @abstractmethod
    def cost(self, call: Call, costs: Costs) -> float:
        """Seconds that the call should take, by a written model of shapes, dtypes and structure alone, see `share`."""

    def reads_traced_edges(self, device: torch.device) -> bool:
        """Whether its operator can read, on this device, the edges of a graph that torch.compile has traced."""
        return False

    @abstractmethod
    def run(self, call: Call) -> Result:
        """Compute the call."""


def join_batch(x: Tensor, dims: int) -> Tensor:
    """Return a tensor with one batch dimension in place of its first `dims`."""
    return x if dims == 1 else x.flatten(0, dims - 1) if dims else x.unsqueeze(0)


def split_batch(x: Tensor, batch: Sequence[int]) -> Tensor:
    """Return a tensor with these batch dimensions in place of its first one."""
    return x if len(batch) == 1 else x.unflatten(0, batch) if batch else x.squeeze(0)


def in_parts(lse: Tensor) -> Tensor:
    """Return an lse that comes as one rounded number in the two parts that `Result` has."""
    shift = torch.where(lse == -torch.inf, 0, lse).detach()
    return torch.stack([shift, lse - shift], -1)


def needs_grad(call: Call) -> bool:
    """Whether a gradient of this call can be asked for."""
    if not torch.is_grad_enabled():
        return False
    bias = call.edge_bias.table if isinstance(call.edge_bias, OffsetBias) else call.edge_bias
    given = (call.query, call.key, call.value, bias, call.edge_key, call.edge_value)
    own = (*call.score.tensors().values(), *call.normalizer.tensors().values())
    return any(x is not None and x.requires_grad for x in (*given, *own))


def share(call: Call) -> float:
    """What a call takes of the time with backward, which is what kernels estimate.

    The same for all kernels, so that a call is run by the same one with gradients and without.
    """
    return 1.0 if needs_grad(call) else FORWARD_SHARE


class LastDerivative(torch.autograd.Function):
    """A backward pass, which has no derivative of its own."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> NoReturn:
        """Raise instead of a silent zero."""
        what = "derivatives of second order"
        raise NotImplementedError(
            f"attention: fused kernels have no {what}. Use backend='scatter', or layer.backend = 'scatter'."
        )

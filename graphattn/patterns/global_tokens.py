"""Global tokens: positions that attend to their whole sequence, and that the whole sequence attends to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import check_int, message


class GlobalTokens(NamedTuple):
    """Which positions of every sequence are global, and whether they too attend only backward."""

    positions: tuple[int, ...]
    causal: bool

    def hold(self, position: Tensor) -> Tensor:
        """Whether a position is a global token."""
        return torch.isin(position, torch.tensor(self.positions, device=position.device))

    def allow(self, target: Tensor, source: Tensor) -> Tensor:
        """Whether positions of one sequence may attend because either is a global token."""
        allowed = self.hold(target) | self.hold(source)
        return allowed & (source <= target) if self.causal else allowed

    def present(self, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that sequences of these sizes have: their sequence and their position there, both [K]."""
        positions = torch.tensor(self.positions, device=sizes.device)
        component, place = (positions < sizes[:, None]).nonzero().unbind(1)
        return component, positions[place]


def parse_tokens(where: str, global_tokens: Sequence[int]) -> tuple[int, ...]:
    """Read the positions of global tokens, and sort them.

    The length of the sequence is not checked: in a batch with longer ones, it may lack some of them.
    """
    if not isinstance(global_tokens, Sequence) or isinstance(global_tokens, str):
        fix = "Use global_tokens=(0,)."
        raise TypeError(message(where, "global_tokens", "must be a tuple of positions", repr(global_tokens), fix))
    positions = tuple(check_int(where, "global_tokens", position, 0) for position in global_tokens)
    if len(set(positions)) < len(positions):
        raise ValueError(message(where, "global_tokens", "must be distinct", positions, f"Use {_distinct(positions)}."))
    if any(position >= 2**62 for position in positions):
        raise ValueError(message(where, "global_tokens", "must be less than 2^62", max(positions)))
    return tuple(sorted(positions))


def _distinct(positions: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(positions))

"""Types of layers for type checkers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from torch import Tensor

F = TypeVar("F")

Features = Tensor | tuple[Tensor, Tensor]
# The edges [2, E], and their weights.
Weights = tuple[Tensor, Tensor]

# The values of `return_attention_weights`, on which the type of the result depends.
No = Literal[False] | None
Yes = Literal[True]
Maybe = bool | None


def typed_as(function: F) -> Callable[[Any], F]:
    """Give a method the type of another one: `__call__`, which torch types as returning Any, gets that of `forward`."""
    return lambda _: function

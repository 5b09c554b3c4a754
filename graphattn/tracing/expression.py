"""A score as a small graph of operations on numbers: what loops are written from.

Every value belongs to one edge and one head. It is a single number, or a row of numbers as wide as an input; operations
act number by number, a single number standing for a whole row, and `sum` adds up a row.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Node(NamedTuple):
    """One value: an operation on earlier ones, the number of an input, or a constant."""

    op: str
    args: tuple[int, ...]
    width: int
    number: float = 0.0


# What the operations are, in torch.
MEANINGS: dict[str, Callable[..., Tensor]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "neg": torch.neg,
    "exp": torch.exp,
    "log": torch.log,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "pow": torch.pow,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "where": torch.where,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "sum": lambda x: x.sum(-1, keepdim=True),
}
SIGNS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
}


# What gives truths.
MASKS = frozenset(("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"))


def reached(roots: Iterable[T], before: Callable[[T], Iterable[T]]) -> set[T]:
    """All nodes of a graph that these follow from, themselves included; `before` says what one follows from."""
    found: set[T] = set()
    left = list(roots)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += before(node)
    return found


class Expression:
    """Nodes in an order in which each comes after its arguments; equal ones are one."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._known: dict[tuple[Any, ...], int] = {}

    def add(self, op: str, *args: int, width: int | None = None, number: float = 0.0) -> int:
        """Return the place of a node, which is added unless there is an equal one."""
        if width is None:
            width = 1 if op == "sum" else max((self.nodes[i].width for i in args), default=1)
        if op in ("add", "mul", "minimum", "maximum", "eq", "and", "or"):
            args = tuple(sorted(args))
        node = Node(op, args, width, number)
        # -0.0 equals 0.0, and NaN nothing.
        known = (*node[:3], str(number))
        if known not in self._known:
            self._known[known] = len(self.nodes)
            self.nodes.append(node)
        return self._known[known]

    def constant(self, number: float) -> int:
        """The place of a constant."""
        return self.add("constant", number=float(number))

    def is_mask(self, place: int) -> bool:
        """Whether a node is a truth, not a number."""
        op, args, *_ = self.nodes[place]
        return op in MASKS or (op == "where" and all(self.is_mask(x) for x in args[1:]))

    def needed(self, roots: Iterable[int]) -> list[int]:
        """The places of all nodes that these follow from, in order."""
        return sorted(reached(roots, self._args))

    def _args(self, place: int) -> tuple[int, ...]:
        node = self.nodes[place]
        return () if node.op == "input" else node.args

    def inputs(self, roots: Iterable[int]) -> list[int]:
        """The numbers of the inputs that these follow from."""
        return [self.nodes[i].args[0] for i in self.needed(roots) if self.nodes[i].op == "input"]

    def evaluate(self, inputs: Sequence[Tensor | None], roots: Sequence[int]) -> list[Tensor]:
        """Compute nodes in torch, from inputs [..., width]."""
        values: dict[int, Any] = {}
        for place in self.needed(roots):
            node = self.nodes[place]
            if node.op == "input":
                values[place] = inputs[node.args[0]]
            elif node.op == "constant":
                like = next(x for x in inputs if x is not None)
                values[place] = torch.tensor(node.number, dtype=like.dtype, device=like.device)
            else:
                values[place] = MEANINGS[node.op](*(values[i] for i in node.args))
        return [values[i] for i in roots]

    def lines(self, roots: Iterable[int], names: Sequence[str]) -> Iterator[str]:
        """Write the nodes as lines of Python; `names` are those of the inputs."""
        for place in self.needed(roots):
            node = self.nodes[place]
            given = [f"x{i}" for i in node.args]
            if node.op == "input":
                yield f"x{place} = {names[node.args[0]]}"
            elif node.op == "constant":
                yield f"x{place} = {node.number!r}"
            elif node.op in SIGNS:
                yield f"x{place} = {given[0]} {SIGNS[node.op]} {given[1]}"
            else:
                yield f"x{place} = {node.op}({', '.join(given)})"

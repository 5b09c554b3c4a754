"""A score as a small graph of operations on numbers: what loops are written from.

Every value belongs to one edge and one head. It is a single number, or a row of numbers as wide as an input; operations
act number by number, a single number standing for a whole row, and `sum` adds up a row.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .captures import Unsupported

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


# What gives truths, and the operators of aten that take them as they are.
MASKS = frozenset(("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"))
OF_MASKS = frozenset(("expand", "clone", "detach", "alias", "view", "reshape", "_unsafe_view", "lift_fresh_copy"))


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


class Lowering:
    """Reads a graph of aten's operators on tensors [E, H, width or 1] into an expression."""

    def __init__(self, expression: Expression) -> None:
        self.expression = expression

    def read(self, graph: torch.fx.Graph) -> list[int]:
        """Add the graph's nodes; return the places of its outputs.

        Raises:
            Unsupported: an operator has no form here.
        """
        places: dict[Any, int] = {}
        count = 0
        for node in graph.nodes:
            if node.op == "placeholder":
                places[node] = self.expression.add("input", count, width=node.meta["val"].shape[-1])
                count += 1
            elif node.op == "call_function":
                places[node] = self._lower(node, places)
            elif node.op == "output":
                return [places[x] for x in node.args[0]]
            else:
                raise Unsupported(f"{node.op} {node.target} in its derivative has no fused form")
        return []

    def _lower(self, node: Any, places: dict[Any, int]) -> int:
        make, constant = self.expression.add, self.expression.constant
        name = node.target.overloadpacket.__name__ if hasattr(node.target, "overloadpacket") else str(node.target)
        kwargs = node.kwargs

        def place(x: Any) -> int:
            found = places[x] if isinstance(x, torch.fx.Node) else constant(x)
            # In arithmetic a truth is a number.
            is_truth = self.expression.is_mask(found) and name not in OF_MASKS
            return make("where", found, constant(1.0), constant(0.0)) if is_truth else found

        def mask(x: Any) -> int:
            found = places[x] if isinstance(x, torch.fx.Node) else constant(x)
            return found if self.expression.is_mask(found) else make("ne", found, constant(0.0))

        args, more = list(node.args), list(node.args[1:])
        if name in ("full", "scalar_tensor", "full_like"):
            return constant(args[0] if name == "scalar_tensor" else args[1])
        if name in ("zeros_like", "new_zeros", "zeros", "empty_permuted", "empty_like"):
            # Nothing reads an empty one: `full_like` takes its shape.
            return constant(0.0)
        if name in ("ones_like", "new_ones", "ones"):
            return constant(1.0)
        x = place(args[0])
        if name in (
            "expand",
            "clone",
            "detach",
            "alias",
            "view",
            "reshape",
            "_unsafe_view",
            "contiguous",
            "lift_fresh_copy",
        ):
            return x
        if name in ("_to_copy", "to"):
            return mask(args[0]) if node.meta["val"].dtype == torch.bool else x
        if name in ("sum", "mean", "linalg_vector_norm"):
            return self._reduce(name, node, x)
        if name in ("exp", "log", "log1p", "sqrt", "abs", "sin", "cos", "tanh", "sigmoid", "neg"):
            return make(name, x)
        if name in ("sign", "sgn"):
            return make("sign", x)
        if name in ("minimum", "maximum", "lt", "le", "gt", "ge", "eq", "ne"):
            return make(name, x, place(more[0]))
        if name in ("add", "sub"):
            y, alpha = place(more[0]), kwargs.get("alpha", 1)
            return make(name, x, y if alpha == 1 else make("mul", y, constant(alpha)))
        if name == "mul":
            return make("mul", x, place(more[0]))
        if name == "div" and kwargs.get("rounding_mode") is None:
            return make("div", x, place(more[0]))
        if name == "reciprocal":
            return make("div", constant(1.0), x)
        if name == "rsqrt":
            return make("div", constant(1.0), make("sqrt", x))
        if name == "square":
            return make("mul", x, x)
        if name == "relu":
            return make("maximum", x, constant(0.0))
        if name == "leaky_relu":
            slope = more[0] if more else 0.01
            return make("where", make("gt", x, constant(0.0)), x, make("mul", x, constant(slope)))
        if name == "elu":
            alpha, scale, of_x = [*more, 1.0, 1.0, 1.0][:3]
            below = make("sub", make("exp", make("mul", x, constant(of_x))), constant(1.0))
            found = make("where", make("gt", x, constant(0.0)), x, make("mul", below, constant(alpha)))
            return found if scale == 1 else make("mul", found, constant(scale))
        if name == "pow":
            return self._power(x, more[0], places)
        if name in ("clamp", "clamp_min", "clamp_max", "hardtanh"):
            ends: list[Any] = [-1.0, 1.0] if name == "hardtanh" else [None, None]
            low, high = [*more, *ends[len(more) :]]
            low, high = (None, low) if name == "clamp_max" else (low, high)
            x = x if low is None else make("maximum", x, place(low))
            return x if high is None else make("minimum", x, place(high))
        if name == "where":
            return make("where", mask(args[0]), place(more[0]), place(more[1]))
        if name == "masked_fill":
            return make("where", mask(more[0]), place(more[1]), x)
        if name in ("logical_and", "bitwise_and", "logical_or", "bitwise_or"):
            return make(name.rpartition("_")[2], mask(args[0]), mask(more[0]))
        if name in ("logical_not", "bitwise_not"):
            return make("not", mask(args[0]))
        raise Unsupported(f"aten.{name} has no fused form")

    def _reduce(self, name: str, node: Any, x: int) -> int:
        make, constant = self.expression.add, self.expression.constant
        width = node.args[0].meta["val"].shape[-1]
        if name == "linalg_vector_norm":
            kind = node.args[1] if len(node.args) > 1 else 2
            if kind not in (1, 2):
                raise Unsupported(f"a norm of order {kind} has no fused form")
            x = make("mul", x, x) if kind == 2 else make("abs", x)
        elif list(node.args[1]) not in ([-1], [2]):
            raise Unsupported(f"aten.{name} over dimensions {list(node.args[1])} has no fused form")
        # A number that stands for a row.
        is_row = self.expression.nodes[x].width == width
        found = (x if width == 1 else make("sum", x)) if is_row else make("mul", x, constant(width))
        if name == "mean":
            return make("div", found, constant(width))
        return make("sqrt", found) if name == "linalg_vector_norm" and kind == 2 else found

    def _power(self, x: int, exponent: Any, places: dict[Any, int]) -> int:
        make, constant = self.expression.add, self.expression.constant
        if isinstance(exponent, torch.fx.Node):
            return make("pow", x, places[exponent])
        if exponent == 0:
            return constant(1.0)
        size, found = abs(exponent), x
        if size == 0.5:
            found = make("sqrt", x)
        elif size in (1, 2, 3, 4):
            for _ in range(math.ceil(size) - 1):
                found = make("mul", found, x)
        else:
            return make("pow", x, constant(exponent))
        return found if exponent > 0 else make("div", constant(1.0), found)

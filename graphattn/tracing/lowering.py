"""Reads a graph of aten's operators into an expression: one rule per operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .captures import Unsupported
from .expression import Expression

# What leaves each number as it is, on tensors [E, H, width or 1].
SAME = ("expand", "clone", "detach", "alias", "view", "reshape", "_unsafe_view", "contiguous", "lift_fresh_copy")
UNARY = ("exp", "log", "log1p", "sqrt", "abs", "sin", "cos", "tanh", "sigmoid", "neg", "sign")
BINARY = ("mul", "minimum", "maximum", "lt", "le", "gt", "ge", "eq", "ne")


def lower(expression: Expression, graph: torch.fx.Graph) -> list[int]:
    """Add the nodes of a graph on tensors [E, H, width or 1]; return the places of its outputs.

    Raises:
        Unsupported: an operator has no form here.
    """
    places: dict[Any, int] = {}
    count = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            places[node] = expression.add("input", count, width=node.meta["val"].shape[-1])
            count += 1
        elif node.op == "call_function":
            target = node.target
            name = target.overloadpacket.__name__ if hasattr(target, "overloadpacket") else str(target)
            if name not in RULES:
                raise Unsupported(f"aten.{name} has no fused form")
            places[node] = RULES[name](_Call(expression, node, name, places))
        elif node.op == "output":
            return [places[x] for x in node.args[0]]
        else:
            raise Unsupported(f"{node.op} {node.target} in its derivative has no fused form")
    return []


class _Call:
    """One call of an operator; arguments are counted from 0."""

    def __init__(self, expression: Expression, node: Any, name: str, places: dict[Any, int]) -> None:
        self.node, self.name, self._expression, self._places = node, name, expression, places

    def make(self, op: str, *args: int) -> int:
        """Add a node."""
        return self._expression.add(op, *args)

    def constant(self, number: float) -> int:
        """Add a constant."""
        return self._expression.constant(number)

    def given(self, at: int, default: Any = None) -> Any:
        """An argument as it is."""
        return self.node.args[at] if len(self.node.args) > at else default

    def option(self, name: str, default: Any) -> Any:
        """A named argument."""
        return self.node.kwargs.get(name, default)

    def value(self, at: int) -> int:
        """The place of an argument."""
        x = self.node.args[at]
        return self._places[x] if isinstance(x, torch.fx.Node) else self.constant(x)

    def number(self, at: int) -> int:
        """The place of an argument as a number: in arithmetic a truth is 1 or 0."""
        found = self.value(at)
        is_truth = self._expression.is_mask(found)
        return self.make("where", found, self.constant(1.0), self.constant(0.0)) if is_truth else found

    def mask(self, at: int) -> int:
        """The place of an argument as a truth."""
        found = self.value(at)
        return found if self._expression.is_mask(found) else self.make("ne", found, self.constant(0.0))

    def positive(self, x: int, otherwise: int) -> int:
        """X where it is above 0."""
        return self.make("where", self.make("gt", x, self.constant(0.0)), x, otherwise)

    def width(self, place: int) -> int:
        """How many numbers a value has."""
        return self._expression.nodes[place].width


def _cast(call: _Call) -> int:
    return call.mask(0) if call.node.meta["val"].dtype == torch.bool else call.number(0)


def _add(call: _Call) -> int:
    y, alpha = call.number(1), call.option("alpha", 1)
    return call.make(call.name, call.number(0), y if alpha == 1 else call.make("mul", y, call.constant(alpha)))


def _divide(call: _Call) -> int:
    if call.option("rounding_mode", None) is not None:
        raise Unsupported("aten.div with a rounding_mode has no fused form")
    return call.make("div", call.number(0), call.number(1))


def _leaky_relu(call: _Call) -> int:
    x = call.number(0)
    return call.positive(x, call.make("mul", x, call.constant(call.given(1, 0.01))))


def _elu(call: _Call) -> int:
    x, alpha, scale, of_x = call.number(0), *(call.given(at, 1.0) for at in (1, 2, 3))
    below = call.make("sub", call.make("exp", call.make("mul", x, call.constant(of_x))), call.constant(1.0))
    found = call.positive(x, call.make("mul", below, call.constant(alpha)))
    return found if scale == 1 else call.make("mul", found, call.constant(scale))


def _clamp(call: _Call) -> int:
    x = call.number(0)
    low, high = {"clamp_min": (1, None), "clamp_max": (None, 1)}.get(call.name, (1, 2))
    bounds = [-1.0, 1.0] if call.name == "hardtanh" else [None, None]
    for op, at, bound in (("maximum", low, bounds[0]), ("minimum", high, bounds[1])):
        if at is not None and call.given(at, bound) is not None:
            x = call.make(op, x, call.number(at) if call.given(at) is not None else call.constant(bound or 0.0))
    return x


def _power(call: _Call) -> int:
    x, exponent = call.number(0), call.given(1)
    if isinstance(exponent, torch.fx.Node):
        return call.make("pow", x, call.value(1))
    if exponent == 0:
        return call.constant(1.0)
    size, found = abs(exponent), x
    if size == 0.5:
        found = call.make("sqrt", x)
    elif size in (1, 2, 3, 4):
        for _ in range(int(size) - 1):
            found = call.make("mul", found, x)
    else:
        return call.make("pow", x, call.constant(exponent))
    return found if exponent > 0 else call.make("div", call.constant(1.0), found)


def _sum(call: _Call) -> int:
    dims = list(call.given(1))
    if dims not in ([-1], [2]):
        raise Unsupported(f"aten.{call.name} over dimensions {dims} has no fused form")
    return _add_up(call, call.number(0))


def _norm(call: _Call) -> int:
    x, kind = call.number(0), call.given(1, 2)
    if kind not in (1, 2):
        raise Unsupported(f"a norm of order {kind} has no fused form")
    found = _add_up(call, call.make("mul", x, x) if kind == 2 else call.make("abs", x))
    return call.make("sqrt", found) if kind == 2 else found


def _add_up(call: _Call, x: int) -> int:
    width = call.given(0).meta["val"].shape[-1]
    if call.width(x) != width:
        # A number that stands for a row.
        return call.make("mul", x, call.constant(width))
    return x if width == 1 else call.make("sum", x)


def _mean(call: _Call) -> int:
    return call.make("div", _sum(call), call.constant(call.given(0).meta["val"].shape[-1]))


Rule = Callable[[_Call], int]
_zero: Rule = lambda call: call.constant(0.0)
_one: Rule = lambda call: call.constant(1.0)
RULES: dict[str, Rule] = {
    **dict.fromkeys(SAME, lambda call: call.value(0)),
    **dict.fromkeys(UNARY, lambda call: call.make(call.name, call.number(0))),
    **dict.fromkeys(BINARY, lambda call: call.make(call.name, call.number(0), call.number(1))),
    **dict.fromkeys(("_to_copy", "to"), _cast),
    **dict.fromkeys(("add", "sub"), _add),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max", "hardtanh"), _clamp),
    # Nothing reads an empty one: `full_like` takes its shape.
    **dict.fromkeys(("zeros_like", "new_zeros", "zeros", "empty_permuted", "empty_like"), _zero),
    **dict.fromkeys(("ones_like", "new_ones", "ones"), _one),
    **dict.fromkeys(("full", "full_like"), lambda call: call.constant(call.given(1))),
    **dict.fromkeys(
        ("logical_and", "bitwise_and", "logical_or", "bitwise_or"),
        lambda call: call.make(call.name.rpartition("_")[2], call.mask(0), call.mask(1)),
    ),
    **dict.fromkeys(("logical_not", "bitwise_not"), lambda call: call.make("not", call.mask(0))),
    "scalar_tensor": lambda call: call.constant(call.given(0)),
    "sgn": lambda call: call.make("sign", call.number(0)),
    "div": _divide,
    "reciprocal": lambda call: call.make("div", call.constant(1.0), call.number(0)),
    "rsqrt": lambda call: call.make("div", call.constant(1.0), call.make("sqrt", call.number(0))),
    "square": lambda call: call.make("mul", call.number(0), call.number(0)),
    "relu": lambda call: call.make("maximum", call.number(0), call.constant(0.0)),
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "pow": _power,
    "where": lambda call: call.make("where", call.mask(0), call.number(1), call.number(2)),
    "masked_fill": lambda call: call.make("where", call.mask(1), call.number(2), call.number(0)),
    "sum": _sum,
    "mean": _mean,
    "linalg_vector_norm": _norm,
}

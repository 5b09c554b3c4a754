"""What additive scores apply to query + key, in vector code: one function for each, by the code of its score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from .....compiled.jit.llvm import constant, multiply, subtract, tanh_lanes
from ...operands import LEAKY_RELU, TANH


def _one(x: Any) -> Any:
    return constant(getattr(x.type, "element", x.type), getattr(x.type, "count", 1), 1.0)


def _tanh(builder: Any, x: Any, slope: Any) -> tuple[Any, Callable[[], Any]]:
    y = tanh_lanes(builder, x)
    return y, lambda: subtract(builder, _one(x), multiply(builder, y, y))


def _leaky_relu(builder: Any, x: Any, slope: Any) -> tuple[Any, Callable[[], Any]]:
    zero = ir.Constant(x.type, None)
    # The slope where x isn't positive, or is NaN.
    slant = builder.select(builder.fcmp_ordered(">", x, zero), _one(x), slope)
    return multiply(builder, x, slant), lambda: slant


# Each takes lanes of query + key and of the call's slope, and returns the value and a function that writes the
# derivative, which not every loop needs.
ACTIVATIONS = {TANH: _tanh, LEAKY_RELU: _leaky_relu}

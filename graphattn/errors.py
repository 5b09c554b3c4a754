"""The form of every error message of the library, and the checks that several rooms share.

<function>: <argument> <rule>, got <value>. <a fix that can be pasted>
"""

from __future__ import annotations

import difflib
import inspect
import math
import operator
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class EdgeRangeError(IndexError, ValueError):
    """An edge names a node that doesn't exist: a wrong value, and for users of PyG an IndexError."""


class EdgeDtypeError(TypeError, ValueError):
    """Edges aren't integers: a wrong dtype, and for users of PyG a ValueError."""


def message(where: str, argument: str, rule: str, got: object = None, fix: str = "") -> str:
    """Write one line of the form above; `got` and `fix` may be left out.

    Example:
        >>> message("Window", "radius", "must be at least 0", -1, "Use radius=0 for the node only.")
        'Window: radius must be at least 0, got -1. Use radius=0 for the node only.'
    """
    text = f"{where}: {argument} {rule}"
    if got is not None:
        text += f", got {got}"
    return f"{text}. {fix}" if fix else f"{text}."


_warned: set[str] = set()


def warn_once(cause: str, text: str) -> None:
    """Warn of a problem of this process, once for each cause."""
    if cause not in _warned:
        _warned.add(cause)
        warnings.warn(text, stacklevel=2)


def check_choice(where: str, argument: str, value: object, choices: Iterable[str]) -> None:
    """Raise a ValueError that names the nearest valid choice unless `value` is one of `choices`."""
    choices = list(choices)
    if value in choices:
        return
    near = _nearest(str(value), choices)
    fix = "" if near is None else f"Did you mean {near!r}?"
    raise ValueError(message(where, argument, f"must be one of {', '.join(map(repr, choices))}", repr(value), fix))


def check_keywords(where: str, options: Iterable[str], *functions: Callable[..., Any]) -> None:
    """Raise a TypeError that names the nearest argument unless each option is an argument of these functions."""
    names = [name for function in functions for name in inspect.signature(function).parameters]
    for option in options:
        if option not in names:
            near = _nearest(option, names)
            rule = f"must be an argument of {', '.join(function.__name__ for function in functions)}"
            raise TypeError(message(where, option, rule, fix="" if near is None else f"Did you mean {near}?"))


def _nearest(value: str, choices: Iterable[str]) -> str | None:
    lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(value.lower(), lower, n=1, cutoff=0.6)
    return lower[near[0]] if near else None


def check_int(where: str, argument: str, value: object, minimum: int) -> int:
    """Return `value` as an int, or raise TypeError or ValueError unless it is an integer of at least `minimum`."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point() and value.dtype != torch.bool:
        value = value.item()
    try:
        number = operator.index(None if isinstance(value, bool) else value)  # type: ignore[arg-type]
    except TypeError:
        got = f"{value!r} ({type(value).__name__})"
        raise TypeError(message(where, argument, "must be an integer", got)) from None
    if number < minimum:
        raise ValueError(message(where, argument, f"must be at least {minimum}", number))
    return number


def check_probability(where: str, argument: str, value: float) -> None:
    """Raise unless `value` is a number with 0 <= value <= 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(message(where, argument, "must be a number", f"{value!r} ({type(value).__name__})"))
    if not 0.0 <= value <= 1.0:
        raise ValueError(message(where, argument, "must lie in [0, 1]", repr(value)))


def check_finite(where: str, argument: str, value: float) -> None:
    """Raise unless `value` is a number other than NaN and the infinities."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(message(where, argument, "must be a number", f"{value!r} ({type(value).__name__})"))
    # While torch.compile is tracing, a number may be a symbol.
    if not torch.compiler.is_compiling() and not math.isfinite(value):
        raise ValueError(message(where, argument, "must be finite, or every score becomes NaN", value))


def check_float_tensor(where: str, argument: str, value: object) -> None:
    """Raise TypeError unless `value` is a tensor of a floating-point dtype."""
    if not isinstance(value, Tensor):
        raise TypeError(message(where, argument, "must be a tensor", type(value).__name__))
    if not value.is_floating_point():
        fix = f"Use {argument}.float()." if not value.is_complex() else ""
        raise TypeError(message(where, argument, "must have a floating-point dtype", value.dtype, fix))
    if value.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        rule = "must be float16, bfloat16, float32 or float64"
        raise TypeError(message(where, argument, rule, value.dtype, f"Use {argument}.to(torch.bfloat16)."))
    if value.layout != torch.strided:
        raise TypeError(message(where, argument, "must be a dense tensor", value.layout, f"Use {argument}.to_dense()."))


def check_no_batch(where: str, edge_attr: object, num_nodes: int) -> None:
    """Raise TypeError if PyG's `batch`, one integer per node, was passed as features of edges."""
    if not isinstance(edge_attr, Tensor) or edge_attr.shape != (num_nodes,):
        return
    if not (edge_attr.is_floating_point() or edge_attr.is_complex() or edge_attr.dtype == torch.bool):
        got = f"{edge_attr.dtype} of shape {shape_of(edge_attr)}, one integer per node like batch"
        fix = "Leave batch out, because edges never join two graphs. Full.from_batch(batch) is full inside each graph."
        raise TypeError(message(where, "edge_attr", "must hold features of edges", got, fix))


def check_like(where: str, argument: str, x: Tensor, query: Tensor, *, or_float32: bool = False) -> None:
    """Raise unless `x` has the dtype and device of `query`; with a half type, float32 may be allowed too."""
    is_wider = or_float32 and x.dtype == torch.float32 and query.dtype in (torch.float16, torch.bfloat16)
    if x.dtype != query.dtype and not is_wider:
        fix = f"Use {argument}.to({query.dtype})."
        raise TypeError(message(where, argument, f"must have query's dtype, {query.dtype}", x.dtype, fix))
    check_device(where, argument, x.device, query)


def check_device(where: str, argument: str, device: torch.device, query: Tensor, name: str = "query") -> None:
    """Raise ValueError unless `device` is that of `query`; `name` is the caller's name for it."""
    if device != query.device:
        fix = f"Use {argument}.to('{query.device}')."
        raise ValueError(message(where, argument, f"must be on {name}'s device, {query.device}", device, fix))


def check_takes(where: str, argument: str, function: Callable[..., Any], names: Sequence[str], fix: str = "") -> None:
    """Raise TypeError unless a callable can be called with as many arguments as there are names."""
    if torch.compiler.is_compiling():
        return
    # The signature of a module's __call__ accepts anything.
    own = getattr(function, "forward", function)
    try:
        signature = inspect.signature(own)
    except ValueError:  # Functions written in C may have no signature.
        return
    try:
        signature.bind(*names)
    except TypeError:
        rule = f"must take {len(names)} arguments, ({', '.join(names)})"
        got = f"{getattr(own, '__name__', type(own).__name__)}{signature}"
        raise TypeError(message(where, argument, rule, got, fix)) from None


def check_kind(where: str, argument: str, value: object, kind: type[Any], fix: str = "") -> None:
    """Raise TypeError unless `value` is of a class."""
    if not isinstance(value, kind):
        raise TypeError(message(where, argument, f"must be a {kind.__name__}", type(value).__name__, fix))


def shape_of(tensor: Tensor) -> str:
    """Write a shape the way the documentation does: `[5, 2, 8]`."""
    return str(list(tensor.shape))

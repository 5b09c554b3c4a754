"""What a function reads besides its arguments, so that a trace of it is used again only while that is the same."""

from __future__ import annotations

import functools
import math
from enum import Enum
from types import BuiltinFunctionType, CodeType, FunctionType, MethodDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Compared by their values.
SIMPLE = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.layout, Enum, np.generic)
# Whose functions don't change.
FIXED = ("torch", "math", "numpy", "builtins", "operator", "functools", "typing", "collections", "einops", "graphattn")
# What every module has: hooks, and its parts, which are visited by name.
OF_MODULE = frozenset(vars(torch.nn.Module()))
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
MOST_ITEMS = 1000


class Unsupported(Exception):
    """Why a score can't be fused, as the end of "cannot run this call: ..."."""


class Captures:
    """All that a function reads of closures, defaults, globals and attributes.

    Attributes:
        marks: what two calls must have in common for one trace to hold for both: code, numbers and names by value,
            tensors by shape and dtype.
        tensors: the captured tensors, by where they are.
    """

    def __init__(self, function: Any) -> None:
        self.marks: list[Any] = []
        self.tensors: dict[str, Tensor] = {}
        self._seen: set[int] = set()
        self._visit(function, getattr(function, "__name__", type(function).__name__))

    @property
    def key(self) -> tuple[Any, ...]:
        """The marks, to look up a trace by."""
        return tuple(self.marks)

    def _visit(self, x: Any, path: str) -> None:
        if isinstance(x, SIMPLE):
            # In dictionaries 1 equals True and 1.0, and NaN nothing.
            self.marks += (type(x), "nan" if isinstance(x, float) and math.isnan(x) else x)
            return
        if isinstance(x, Tensor):
            self.tensors[path] = x
            self.marks += (x.shape, x.dtype, x.device, x.requires_grad)
            return
        if id(x) in self._seen:
            return
        self._seen.add(id(x))
        if len(self._seen) > MOST_ITEMS:
            raise Unsupported(f"it captures more than {MOST_ITEMS} objects")
        if _is_fixed(x):
            self.marks.append(x)
        elif isinstance(x, torch.nn.Module):
            self._visit_module(x, path)
        elif hasattr(x, "edgewise") and not isinstance(x, type):
            self._visit_attributes(x, path)
        elif isinstance(x, FunctionType):
            self._visit_function(x, path)
        elif isinstance(x, MethodType):
            self._visit(x.__func__, path)
            self._visit(x.__self__, f"{path}.__self__")
        elif isinstance(x, functools.partial):
            for name in ("func", "args", "keywords"):
                self._visit(getattr(x, name), f"{path}.{name}")
        elif isinstance(x, tuple | list):
            self.marks += (type(x), len(x))
            for i, part in enumerate(x):
                self._visit(part, f"{path}[{i}]")
        elif isinstance(x, dict):
            self.marks += (dict, *x)
            for name, part in x.items():
                self._visit(part, f"{path}[{name!r}]")
        else:
            fix = "pass numbers, tensors or a torch.nn.Module instead"
            raise Unsupported(f"it captures {path}, a {type(x).__name__}, whose changes can't be noticed: {fix}")

    def _visit_function(self, function: FunctionType, path: str) -> None:
        code = function.__code__
        self.marks.append(code)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                self._visit(cell.cell_contents, name)
            except ValueError:
                raise Unsupported(f"it captures {name}, which has no value yet") from None
        self._visit(function.__defaults__, f"{path}.__defaults__")
        self._visit(function.__kwdefaults__, f"{path}.__kwdefaults__")
        self._visit(vars(function), f"{path}.__dict__")
        names = _names(code)
        for name in names:
            if name in function.__globals__:
                self._visit_global(function.__globals__[name], name, names)

    def _visit_global(self, x: Any, path: str, names: tuple[str, ...]) -> None:
        """A global, or of a module or class what the code could read of it: attributes with names that it has."""
        if not isinstance(x, ModuleType | type) or _is_fixed(x):
            self._visit(x, path)
            return
        if isinstance(x, type) and issubclass(x, torch.autograd.Function):
            raise Unsupported(f"it has derivatives of its own, {path}")
        if id(x) in self._seen:
            return
        self._seen.add(id(x))
        for name in names:
            if hasattr(x, name):
                self._visit_global(getattr(x, name), f"{path}.{name}", names)

    def _visit_module(self, module: torch.nn.Module, path: str) -> None:
        self.marks.append(module.training)
        if any(getattr(module, hooks) for hooks in HOOKS):
            raise Unsupported(f"{path} has hooks")
        for parts in (module._parameters, module._buffers, module._modules):
            for name, part in parts.items():
                self.marks.append(name)
                self._visit(part, f"{path}.{name}")
        self._visit_attributes(module, path)

    def _visit_attributes(self, x: Any, path: str) -> None:
        """Those of a module, or of a score, and what its class's functions read."""
        kind = type(x)
        self.marks.append(kind)
        for name, part in vars(x).items():
            if name not in OF_MODULE or not isinstance(x, torch.nn.Module):
                self.marks.append(name)
                self._visit(part, f"{path}.{name}")
        for base in kind.__mro__:
            if base.__module__.partition(".")[0] in FIXED:
                continue
            for name, part in vars(base).items():
                part = getattr(part, "fget", getattr(part, "__func__", part))
                if isinstance(part, FunctionType | int | float) and name != "__init__":
                    self._visit(part, f"{kind.__name__}.{name}")


def _names(code: CodeType) -> tuple[str, ...]:
    """The names of globals and attributes in a function and in those that it defines."""
    inner = (name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part))
    return (*code.co_names, *inner)


def _is_fixed(x: Any) -> bool:
    """Whether it is a function, class or module of torch, Python or the like."""
    if isinstance(x, BuiltinFunctionType | MethodDescriptorType | torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return True
    name: Any = x.__name__ if isinstance(x, ModuleType) else getattr(x, "__module__", None)
    # A function made by another one has what that one gave it.
    is_made = isinstance(x, FunctionType) and x.__closure__ is not None
    is_named = isinstance(x, ModuleType | type | FunctionType) and isinstance(name, str) and not is_made
    return is_named and name.partition(".")[0] in FIXED

"""What a function reads besides its arguments, so that a trace of it is used again only while that is the same."""

from __future__ import annotations

import builtins
import functools
import math
from collections.abc import Callable
from enum import Enum
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Compared by their values.
SIMPLE = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.layout, Enum, np.generic)
# Whose functions don't change.
FIXED = frozenset("torch math numpy builtins operator _operator functools typing collections einops graphattn".split())
# Functions of Python, and methods of tensors, by which a function reads what can't be listed.
HIDDEN = frozenset("getattr vars eval exec globals locals open input __import__ compile".split())
NUMBERS = frozenset("tolist numpy __array__".split())
# What every module has: hooks, and its parts, which are visited by name.
OF_MODULE = frozenset(vars(torch.nn.Module()))
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
MOST_ITEMS = 1000


class Unsupported(Exception):
    """Why a score can't be fused, as the end of "cannot run this call: ..."."""


class Captures:
    """All that a function reads of closures, defaults, globals and attributes.

    Attributes:
        marks: what two calls must have in common for one trace to hold for both: code, numbers and names by value,
            tensors by shape and dtype, and which of them are the same.
        tensors: the captured tensors, by where they are.
    """

    def __init__(self, function: Any) -> None:
        self.marks: list[Any] = []
        self.tensors: dict[str, Tensor] = {}
        self._seen: dict[int, Any] = {}
        self._cells: list[CellType] = []
        self._globals: list[tuple[dict[str, Any], str]] = []
        self._visit(function, getattr(function, "__name__", type(function).__name__))

    @property
    def key(self) -> tuple[Any, ...]:
        """The marks, to look up a trace by."""
        return tuple(self.marks)

    def keep(self) -> Callable[[], None]:
        """Remember all that is captured; the result restores it, and raises if the function had changed it.

        A trace runs the function, which must leave nothing behind.
        """
        holders = [x for x in self._seen.values() if isinstance(x, list | dict) or hasattr(x, "__dict__")]
        holders = [x for x in holders if not isinstance(x, type | ModuleType)]
        held = [(x, _state(x)) for x in holders]
        cells = [(cell, cell.cell_contents) for cell in self._cells]
        names = [(of, name, of[name]) for of, name in self._globals]
        with torch.no_grad():
            numbers = [(path, x, x._version, x.detach().clone()) for path, x in self.tensors.items() if _counts(x)]

        def restore() -> None:
            changed = [path for path, x, version, _ in numbers if x._version != version]
            for _, x, version, before in numbers:
                if x._version != version:
                    with torch.no_grad():
                        x.copy_(before)
            for x, state in held:
                if not _is_same(_state(x), state):
                    _set_state(x, state)
                    changed.append(type(x).__name__)
            for cell, before in cells:
                if cell.cell_contents is not before:
                    cell.cell_contents = before
                    changed.append("a variable")
            for of, name, before in names:
                if of.get(name) is not before:
                    of[name] = before
                    changed.append(name)
            if changed:
                raise Unsupported(f"it changes what it reads: {changed[0]}")

        return restore

    def _visit(self, x: Any, path: str) -> None:
        if isinstance(x, SIMPLE):
            # In dictionaries 1 equals True and 1.0, and NaN nothing.
            self.marks += (type(x), "nan" if isinstance(x, float) and math.isnan(x) else x)
            return
        if isinstance(x, Tensor):
            self._visit_tensor(x, path)
            return
        if id(x) in self._seen:
            # The same object again, not another one that is equal.
            self.marks.append(list(self._seen).index(id(x)))
            return
        self._seen[id(x)] = x
        if len(self._seen) > MOST_ITEMS:
            raise Unsupported(f"it captures more than {MOST_ITEMS} objects")
        if _is_fixed(x):
            self.marks.append(x)
        elif isinstance(x, torch.nn.Module):
            self._visit_module(x, path)
        elif hasattr(x, "edgewise") and hasattr(x, "__dict__") and not isinstance(x, type):
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

    def _visit_tensor(self, x: Tensor, path: str) -> None:
        first = next((i for i, other in enumerate(self.tensors.values()) if other is x), None)
        self.marks += (x.shape, x.dtype, x.device, x.requires_grad, first)
        if first is None:
            # Two closures may have a variable of the same name.
            while path in self.tensors:
                path += "'"
            self.tensors[path] = x
        if x.__dict__ and type(x) in (Tensor, torch.nn.Parameter):
            self._visit(x.__dict__, f"{path}.__dict__")

    def _visit_function(self, function: FunctionType, path: str) -> None:
        code = function.__code__
        self.marks.append(code)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self._cells.append(cell)
            try:
                self._visit(cell.cell_contents, name)
            except ValueError:
                raise Unsupported(f"it captures {name}, which has no value yet") from None
        for name in ("__defaults__", "__kwdefaults__", "__dict__"):
            if getattr(function, name):
                self._visit(getattr(function, name), f"{path}.{name}")
        names = _names(code)
        for name in names:
            if name in function.__globals__:
                self._globals.append((function.__globals__, name))
                self._visit_global(function.__globals__[name], name, names)
            elif name in NUMBERS or (name in HIDDEN and hasattr(builtins, name)):
                raise Unsupported(f"it calls {name}, so that what it reads can't be known")

    def _visit_global(self, x: Any, path: str, names: tuple[str, ...]) -> None:
        """A global, or of a module or class what the code could read of it: attributes with names that it has."""
        if not isinstance(x, ModuleType | type) or _is_fixed(x):
            self._visit(x, path)
            return
        if isinstance(x, type) and issubclass(x, torch.autograd.Function):
            raise Unsupported(f"it has derivatives of its own, {path}")
        if id(x) in self._seen:
            return
        self._seen[id(x)] = x
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
            functions = {name: _function_of(part) for name, part in vars(base).items() if name != "__init__"}
            read = {name for part in functions.values() if part is not None for name in _names(part.__code__)}
            for name, part in vars(base).items():
                if functions.get(name) is not None:
                    self._visit(functions[name], f"{kind.__name__}.{name}")
                elif name in read and not name.startswith("__"):
                    self.marks.append(name)
                    self._visit(part, f"{kind.__name__}.{name}")


def _function_of(part: Any) -> FunctionType | None:
    """The function of a method or a property."""
    function = getattr(part, "fget", getattr(part, "__func__", part))
    return function if isinstance(function, FunctionType) else None


def _names(code: CodeType) -> tuple[str, ...]:
    """The names of globals and attributes in a function and in those that it defines."""
    inner = (name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part))
    return (*code.co_names, *inner)


def _is_fixed(x: Any) -> bool:
    """Whether it is a function, class or module of torch, Python or the like."""
    if isinstance(x, MethodDescriptorType | torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return True
    if isinstance(x, BuiltinFunctionType):
        # Bound to an object, such as a generator of random numbers, or of a module.
        x = x.__self__ if isinstance(x.__self__, ModuleType) else x if x.__self__ is None else type(x.__self__)
        if isinstance(x, BuiltinFunctionType):
            return (x.__module__ or "").partition(".")[0] in FIXED
    name: Any = x.__name__ if isinstance(x, ModuleType) else getattr(x, "__module__", None)
    # A function made by another one has what that one gave it.
    is_made = isinstance(x, FunctionType) and x.__closure__ is not None
    is_named = isinstance(x, ModuleType | type | FunctionType) and isinstance(name, str) and not is_made
    return is_named and name.partition(".")[0] in FIXED


def _counts(x: Tensor) -> bool:
    """Whether torch counts what is written to a tensor."""
    return not x.is_inference()


def _state(x: Any) -> Any:
    """What an object holds, itself: not what that holds."""
    if isinstance(x, list):
        return list(x)
    if isinstance(x, dict):
        return dict(x)
    parts = {name: dict(part) for name, part in vars(x).items() if isinstance(part, dict) and name in OF_MODULE}
    return {**vars(x), **parts}


def _set_state(x: Any, state: Any) -> None:
    if isinstance(x, list):
        x[:] = state
        return
    holder = x if isinstance(x, dict) else vars(x)
    for name in [name for name in holder if name not in state]:
        del holder[name]
    for name, part in state.items():
        if not isinstance(x, dict) and name in OF_MODULE and isinstance(part, dict):
            _set_state(holder[name], part)
        else:
            holder[name] = part


def _is_same(x: Any, y: Any) -> bool:
    """Whether two states hold the same objects."""
    if type(x) is not type(y) or len(x) != len(y):
        return False
    if isinstance(x, list):
        return all(a is b for a, b in zip(x, y, strict=True))
    same = lambda a, b: a is b or (isinstance(a, dict) and isinstance(b, dict) and _is_same(a, b))
    return x.keys() == y.keys() and all(same(part, y[name]) for name, part in x.items())

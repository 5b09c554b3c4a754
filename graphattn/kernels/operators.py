"""Operators of torch.library, which outlive the modules that define them.

Torch doesn't allow defining one twice, and compiled graphs refer to existing ones. So a package that is imported again,
after it was removed from sys.modules, reuses its operators, and these look up its functions by name.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

Function = Callable[..., Any]
_PLAIN = {Tensor, Parameter, type(None)}


class _Library:
    """A torch.library.Library that defines each operator once per process."""

    def __init__(self) -> None:
        self._library = torch.library.Library("graphattn", "FRAGMENT")
        self._defined: set[str] = set()

    def define(self, schema: str) -> None:
        name = schema.partition("(")[0]
        if not hasattr(torch.ops.graphattn, name):
            self._library.define(schema)
            self._defined.add(name)

    def fake(self, name: str) -> Callable[[Function], Function]:
        """Decorate the function that torch.compile traces in place of an operator."""

        def register(function: Function) -> Function:
            if name in self._defined:
                torch.library.register_fake(f"graphattn::{name}", _latest(function), lib=self._library)
            return function

        return register

    def impl(self, name: str, function: Function, key: str) -> None:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"graphattn::{name}", key):
            self._library.impl(name, _latest(function), key)


def is_unobserved(tensors: Iterable[Tensor | None]) -> bool:
    """Whether nothing watches or replaces an operator of these tensors, which may then run without torch's dispatcher.

    Neither torch.compile, a mode, a subclass nor the profiler.
    """
    return (
        _PLAIN.issuperset(map(type, tensors))
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
        and not torch._C._autograd._profiler_enabled()
    )


def _latest(function: Function) -> Function:
    """Call the function that the module now has under this name."""
    module, name = function.__module__, function.__name__

    def call(*inputs: Any) -> Any:
        return getattr(sys.modules.get(module) or importlib.import_module(module), name)(*inputs)

    return call


library = _Library()

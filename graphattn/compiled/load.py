"""Modules of functions that Numba compiles, loaded on first use.

Problems with Numba are detected here, once: without compiled functions, calls run in plain torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import message, warn_once

PACKAGE = __package__.rpartition(".")[0]

_modules: dict[str, Any] = {}
_entries: dict[tuple[Any, ...], Callable[..., Any]] = {}
# The answer of `why_not_compiled`, once it is known.
_reason: list[str | None] = []


def load(module: str) -> Any:
    """Return one of the modules; the first call loads Numba.

    If NUMBA_DISABLE_JIT is set, its functions run as Python, and those made of LLVM instructions can't run.

    Raises:
        ImportError: Numba isn't installed, or can't be loaded.
    """
    if module not in _modules:
        reason = why_not_compiled()
        if module not in _modules:
            raise ImportError(message("graphattn", "compiled code", "must be available", reason))
    return _modules[module]


def entry(function: Any, key: tuple[Any, ...], *arguments: Any) -> Callable[..., Any]:
    """Return a function's compiled code for the types of these arguments, for which `key` stands.

    A compiled function itself finds these types at each call: of named tuples, that takes longer than a small loop.
    """
    known = (function, key)
    if known not in _entries:
        _entries[known] = function.compile(tuple(map(function.typeof_pyval, arguments)))
    return _entries[known]


# While torch.compile is tracing, the result is a constant.
@torch.compiler.assume_constant_result
def why_not_compiled() -> str | None:
    """Why this process can't run compiled functions, as the end of "cannot run this call: ..."; None if it can."""
    if not _reason:
        _reason.append(_load_all())
    return _reason[0]


def compiled_modules() -> list[str]:
    """Names below the package of what Numba compiles, in folders named "jit", and of what defines its operands."""
    names = _names_below(str(Path(__file__).parents[1]), "")
    return [name for name in names if (".jit." in name and ".gpu." not in name) or name.endswith(".operands")]


def _names_below(folder: str, prefix: str) -> list[str]:
    """Names of all modules in a folder and its subfolders, without importing them."""
    names = []
    for found in pkgutil.iter_modules([folder]):
        names.append(prefix + found.name)
        if found.ispkg:
            names += _names_below(os.path.join(folder, found.name), f"{prefix}{found.name}.")
    return names


def _load_all() -> str | None:
    if importlib.util.find_spec("numba") is None:
        return "Numba is not installed (pip install numba)"
    reason: str | None = None
    fix = "Use pip install --force-reinstall numba."
    try:
        import numba

        from .cache import keep_on_disk

        modules = {name: importlib.import_module(f"{PACKAGE}.{name}") for name in compiled_modules()}
        config: Any = numba.config
        if config.DISABLE_JIT:
            reason, fix = "NUMBA_DISABLE_JIT is set", "Unset it."
        else:
            keep_on_disk(modules)
        _modules.update(modules)
    # A library that is missing, too old or too new: an import can raise anything.
    except Exception as error:
        reason = f"Numba can't be loaded ({type(error).__name__}: {error})"
    if reason is not None:
        rule = "can't run, and calls take longer"
        warn_once("no compiled code", message("graphattn", "compiled code", rule, reason, fix))
    return reason

"""Modules of functions that Numba compiles, loaded on first use.

Problems with Numba are detected here, once: without compiled functions, calls run in plain torch.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import math
import os
import pkgutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import torch

from ..errors import message, warn_once
from .block import packer, type_of

T = TypeVar("T")
PACKAGE = __package__.rpartition(".")[0]
# What it takes to compile a loop. With so much time spent in it before, both together are at most twice the optimum.
SECONDS_TO_COMPILE = 3.0
# Of what Numba says, in a warning.
MOST_LETTERS = 200


class NotCompiled(RuntimeError):
    """Numba failed to compile something. The same call runs without: from now on `why_not_compiled` has a reason.

    Attributes:
        times: that this happened in this process.
    """

    times = 0

    def __init__(self, error: Exception) -> None:
        NotCompiled.times += 1
        reason = f"Numba can't compile ({_line_of(error)})"
        fix = "Use pip install --force-reinstall numba llvmlite, or set NUMBA_DISABLE_JIT=1."
        super().__init__(_warn(reason, fix))
        _reason[:] = [reason]


class Loop:
    """Compiled code of a loop over tasks, for one choice of types.

    With a shape, a named tuple among the arguments, the loop is compiled again with the shape's `fixed` numbers as
    constants, which unrolls what goes over them: when it has run for as long as that takes, or at once if an earlier
    process did. The results are the same to the last bit.
    """

    def __init__(self, function: Any, operands: tuple[Any, ...], shape: Any = None) -> None:
        types: Any = importlib.import_module("numba.types")
        kind = type_of(operands)
        self._function, self._types = function, (types.int64, types.int64, *kind)
        spread, known = load("compiled.jit.pool").spread, (*[types.int64] * 6, type_of(b""), types.TypeRef(kind))
        _compile_for(spread, known)
        # Called directly: to find the types of its arguments again would take longer than a small loop.
        self._spread, self._pack = spread.overloads[known].entry_point, packer(operands, kind)
        self.seconds_left, self._fixed = math.inf, self._types
        if shape is not None:
            fixed = tuple(_with_constants(kind, shape) for kind in self._types)
            if fixed != self._types:
                self.seconds_left, self._fixed = SECONDS_TO_COMPILE, fixed
        # Numba's stand-in for a cache, where there is no folder to write to, has no such method.
        has = getattr(function._cache, "has", lambda *_: False)
        is_known = self._fixed is not self._types and has(self._fixed, function.targetctx)
        if is_known or not _settles.get():
            self._compile(self._fixed if is_known else self._types)
            return
        try:
            self._compile(self._fixed)
        except NotCompiled:
            self._compile(self._types)

    def _compile(self, types: tuple[Any, ...]) -> None:
        _compile_for(self._function, types)
        code = self._function.overloads[types]
        self._address = code.library.get_pointer_to_function(code.fndesc.llvm_func_name)
        self.seconds_left = math.inf if types is self._fixed else self.seconds_left

    def __call__(self, begin: int, end: int, *operands: Any) -> None:
        """Run tasks from `begin` to `end` on this thread."""
        self.spread(0, 1, begin, end, end - begin, operands)

    def spread(self, pool: int, threads: int, begin: int, end: int, grain: int, operands: tuple[Any, ...]) -> None:
        """Run tasks from `begin` to `end` on threads of a pool, see `jit.pool.spread`."""
        block = self._pack(operands)
        start = time.perf_counter()
        self._spread(pool, threads, self._address, begin, end, grain, block, None)
        self.seconds_left -= time.perf_counter() - start
        if self.seconds_left < 0:
            self.settle()

    def settle(self) -> None:
        """Compile the loop for its shape now, unless it is."""
        if self.seconds_left < math.inf:
            # What is there has the same results.
            self.seconds_left = math.inf
            with contextlib.suppress(NotCompiled):
                self._compile(self._fixed)


def _compile_for(function: Any, types: tuple[Any, ...]) -> None:
    with _trouble():
        function.compile(types)


@contextlib.contextmanager
def _trouble() -> Iterator[None]:
    """Raise NotCompiled for what the compiler raises, which isn't Numba's own errors alone.

    It makes millions of objects, and to look through them for garbage takes a tenth of its time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    except Exception as error:
        # Not for warnings that are errors, or for what a signal's handler raises on the way, such as a timeout: for
        # what was raised in the compiler, or where a folder "jit" calls it.
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        module = frame.f_globals.get("__name__", "")
        if module.startswith(("numba.", "llvmlite.")) or ".jit." in module:
            raise NotCompiled(error) from error
        raise
    finally:
        if collects:
            gc.enable()


def _with_constants(kind: Any, shape: Any) -> Any:
    """Numba's type `kind`, with the fixed numbers of a shape in place of the types of these numbers."""
    types: Any = importlib.import_module("numba.types")
    if not isinstance(kind, types.BaseNamedTuple):
        return kind
    if kind.instance_class is type(shape):
        fixed = {name: types.literal(number) for name, number in shape.fixed.items()}
        parts = [fixed.get(name, part) for name, part in zip(kind.fields, kind.types, strict=True)]
    else:
        parts = [_with_constants(part, shape) for part in kind.types]
    return kind if parts == list(kind.types) else types.NamedTuple(parts, kind.instance_class)


_modules: dict[str, Any] = {}
_loops: dict[tuple[Any, ...], Loop] = {}
# Whether `settle` does some work now.
_settles: ContextVar[bool] = ContextVar("settles", default=False)
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


def load_source(stem: str, source: str) -> Any:
    """Return a module of functions that Numba compiles, written on the way; see `cache.load_source`."""
    load("compiled.jit.lanes")
    return importlib.import_module(".cache", __package__).load_source(stem, source)


def compiled_loop(function: Any, key: tuple[Any, ...], *operands: Any, shape: Any = None) -> Loop | Callable[..., None]:
    """Return a loop's compiled code for the types of these operands, for which `key` stands, and for their shape.

    Operands are tensors, arrays, numbers and None, in tuples of any depth, see `block`. Where nothing is compiled, this
    is the function.
    """
    if isinstance(function, FunctionType):
        return function
    numbers = () if shape is None else tuple(shape.fixed.values())
    known = (function, key, numbers)
    if known not in _loops:
        _loops[known] = Loop(function, operands, shape)
    return _loops[known]


def settle(work: Callable[[], T]) -> T:
    """Do some work, with the loops that it runs compiled for their shapes, as if they had run for some seconds."""
    before = {known: loop.seconds_left for known, loop in _loops.items()}
    token = _settles.set(True)
    try:
        result = work()
    finally:
        _settles.reset(token)
    for known, loop in list(_loops.items()):
        if before.get(known) != loop.seconds_left:
            loop.settle()
    return result


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


def _guard(modules: Iterable[Any]) -> None:
    """Let functions that Python can't call, see INNER in `jit.llvm`, raise there: as they are, they end the process.

    The others raise NotCompiled where they can't be compiled.
    """
    from numba.core.registry import CPUDispatcher
    from numba.extending import is_jitted

    class Inner(CPUDispatcher):
        def __call__(self, *arguments: Any, **named: Any) -> None:
            raise TypeError(f"{self.py_func.__name__} is for compiled code alone: make it with OPTIONS to call it here")

    class Outer(CPUDispatcher):
        def _compile_for_args(self, *arguments: Any, **named: Any) -> Any:
            with _trouble():
                return super()._compile_for_args(*arguments, **named)  # type: ignore[misc]

    for module in modules:
        for function in vars(module).values():
            if is_jitted(function):
                function.__class__ = Inner if function.targetoptions.get("no_cpython_wrapper") else Outer


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
            _guard(modules.values())
        _modules.update(modules)
    # A library that is missing, too old or too new: an import can raise anything.
    except Exception as error:
        reason = f"Numba can't be loaded ({_line_of(error)})"
    if reason is not None:
        _warn(reason, fix)
    return reason


def _line_of(error: Exception) -> str:
    """An error as one line: Numba's messages have many."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:MOST_LETTERS]}"


def _warn(reason: str, fix: str) -> str:
    text = message("graphattn", "compiled code", "can't run, and calls take longer", reason, fix)
    warn_once("no compiled code", text)
    return text

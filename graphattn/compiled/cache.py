"""A cache of compiled functions on disk. If anything is wrong with a file or its folder, the function is compiled
again.

Numba's own cache raises instead, needs a source file for the function, and checks only that file for changes. Here a
file holds one function for one choice of types, with a checksum, and is written atomically.
"""

from __future__ import annotations

import hashlib
import importlib.util
import linecache
import pickle
import sys
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.extending import is_jitted

from ..errors import message, warn_once
from . import folders

SET = "set NUMBA_CACHE_DIR to a writable folder."


def keep_on_disk(modules: Mapping[str, ModuleType]) -> None:
    """Cache the compiled code of the functions of these modules for later processes."""
    try:
        folder = cache_folder([*(module.__name__ for module in modules.values()), __name__])
        folders.in_use[:] = [folder]
    # Unreadable sources or unwritable folders.
    except Exception as error:
        _warn("write", "can't be cached, so that every process compiles it again", error, f"To cache it, {SET}")
        return
    for module in modules.values():
        functions: dict[str, Any] = vars(module)
        for name, function in functions.items():
            if is_jitted(function) and function.__module__ == module.__name__:
                function._cache = _Cache(folder, f"{module.__name__}.{name}")  # type: ignore[attr-defined]


def cache_folder(modules: Iterable[str]) -> Path:
    """The user's folder, else one next to the sources, else the user's cache; named by a hash of sources and versions.

    Raises:
        OSError: none of these can be written.
    """
    digest = hashlib.sha256(f"{numba.__version__} {sys.version}".encode())
    for module in modules:
        spec: Any = importlib.util.find_spec(module)
        # Read by the loader, because modules may be in an archive, or without source.
        digest.update(spec.loader.get_data(spec.origin))
    for parent in folders.parents():
        try:
            folder = parent / f"numba-{digest.hexdigest()[:16]}"
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        return folder
    raise OSError(f"no folder can be written: {', '.join(map(str, folders.parents()))}")


def load_source(stem: str, source: str) -> ModuleType:
    """Return a module with this source, whose compiled code is kept as that of other modules, by a hash of the source.

    The source is written next to the compiled code, to be read.
    """
    name = f"{stem}_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    module, path = ModuleType(f"graphattn.{name}"), f"<{name}>"
    # Where there is no folder, a warning has been given.
    folder = folders.in_use[0] if folders.in_use else None
    if folder is not None:
        written = folder / f"{name}.py"
        try:
            if not written.exists():
                _write(written, source.encode())
            path = str(written)
        except OSError as error:
            _warn_unwritable(folder, error)
            folder = None
    # Numba keeps the name of a function's module with its code, and looks it up.
    sys.modules[module.__name__] = module
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    exec(compile(source, path, "exec"), vars(module))
    for of_module, function in vars(module).items():
        if folder is not None and is_jitted(function) and function.__module__ == module.__name__:
            function._cache = _Cache(folder, f"{name}.{of_module}")  # type: ignore[attr-defined]
    return module


class _Cache(NullCache):
    """Numba's interface to load and save a function's compiled code, for each choice of types."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name

    def has(self, sig: Any, target_context: Any) -> bool:
        """Whether code for these types was saved, by this process or an earlier one."""
        target_context.refresh()
        return self._path(sig, target_context.codegen()).exists()

    def load_overload(self, sig: Any, target_context: Any) -> CompileResult | None:
        """Return the code for these types, or None."""
        target_context.refresh()
        path = self._path(sig, target_context.codegen())
        try:
            checksum, data = (held := path.read_bytes())[:32], held[32:]
            if hashlib.sha256(data).digest() != checksum:
                raise ValueError("checksums differ")
            types, reduced = pickle.loads(data)
            return CompileResult._rebuild(target_context, *reduced) if types == sig else None
        except FileNotFoundError:
            return None
        except Exception as error:
            fix = f"If this happens again, delete {self._folder}."
            _warn("read", f"in {path} can't be read, and is compiled again", error, fix)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save the code for these types, unless it contains addresses of this process."""
        if data.library.has_dynamic_globals or data.lifted:
            return
        try:
            held = dumps((sig, data._reduce()))
            _write(self._path(sig, data.library.codegen), hashlib.sha256(held).digest() + held)
        except Exception as error:
            _warn_unwritable(self._folder, error)

    def _path(self, sig: Any, codegen: Any) -> Path:
        key = hashlib.sha256(f"{sig!r} {codegen.magic_tuple()!r}".encode()).hexdigest()
        return self._folder / f"{self._name}-{key[:16]}.nbc"


def _write(path: Path, held: bytes) -> None:
    """Write a whole file or none, whatever other processes do, also to its folder."""
    unfinished = path.with_suffix(f".{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(held)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def _warn_unwritable(folder: Path, error: Exception) -> None:
    rule = f"can't be cached in {folder}, so that every process compiles it again"
    _warn("write", rule, error, f"Free space there, or {SET}")


def _warn(cause: str, rule: str, error: Exception, fix: str) -> None:
    got = f"{type(error).__name__}: {error}"
    warn_once(f"{cause} compiled code", message("graphattn", "compiled code", rule, got, fix))

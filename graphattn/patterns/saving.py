"""A saved pattern: the integers that define it, without derived data.

So a file needs no trust: with `weights_only=True`, the default, `torch.load` may call only `make_pattern`, which calls
the pattern's constructor. Compressed rows, which kernels read unchecked, are computed again.
"""

from __future__ import annotations

import copyreg
import inspect
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor

from ..errors import message
from .base import Pattern
from .edges import Edges
from .grid import Grid
from .sequence import Full, Window

# What the constructor of each class is called with, by the class's name.
Options = dict[str, Any]
OPTIONS: dict[type[Any], Callable[[Any], Options]] = {
    Edges: lambda x: dict(edge_index=x.edge_index, num_sources=x.num_sources, num_targets=x.num_targets),
    Full: lambda x: dict(sizes=x.shape[:, 0], source_sizes=x.source_shape[:, 0], causal=x.causal),
    Window: lambda x: dict(
        sizes=x.shape[:, 0], radius=x.radius, dilation=x.dilation, causal=x.causal, global_tokens=x.global_tokens
    ),
    Grid: lambda x: dict(shape=x.shape, radius=x.radius, dilation=x.dilation, causal=x.causal, border=x.border),
}
CLASSES = {cls.__name__: cls for cls in OPTIONS}


def make_pattern(*saved: Any) -> Pattern:
    """Make a pattern from a class's name and the options of its constructor, as a file has them.

    Raises:
        ValueError: they aren't those of any pattern.
    """
    try:
        name, options = saved
        cls = CLASSES[name]
        inspect.signature(cls).bind(**options)
        return cls(**{option: _read(option, value) for option, value in options.items()})
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        fix = "Save it again with torch.save and its default options."
        raise ValueError(message("torch.load", "a saved pattern", "must be a valid pattern", got, fix)) from error


def _write(pattern: Pattern) -> tuple[Callable[..., Pattern], tuple[str, Options]]:
    options = OPTIONS[type(pattern)](pattern)
    written = {name: (x, int(x.sum())) if isinstance(x, Tensor) else x for name, x in options.items()}
    return make_pattern, (type(pattern).__name__, written)


def _read(option: str, value: Any) -> Any:
    """A copy of an option that nothing else in the file can change."""
    if isinstance(value, tuple) and len(value) == 2 and type(value[0]) is Tensor:
        x, total = value
        # By torch's functions, because a file can give tensors methods. Strides of 0 could make a small file allocate
        # much.
        if x.dtype != torch.int64 or x.layout != torch.strided or x.is_meta or not Tensor.is_contiguous(x):
            raise TypeError(f"{option} must be a contiguous tensor of int64, got {x.dtype}, {x.layout} on {x.device}")
        # Later parts of the file may write to its tensors.
        x = torch.clone(x)
        if int(x.sum()) != total:
            # The format of torch before 1.6 loads tensor data after constructing objects.
            raise ValueError(f"the numbers of {option} must add up to {total}")
        return x
    for item in value if isinstance(value, tuple) else (value,):
        if type(item) not in (int, bool, str):
            raise TypeError(f"{option} must be made of numbers, got {type(item).__name__}")
    return value


def _hand_over(pattern: Pattern) -> tuple[Callable[..., Pattern], tuple[type[Pattern]], dict[str, Any]]:
    """Between processes of one program, as in a DataLoader, derived data is sent along."""
    return copyreg.__newobj__, (type(pattern),), vars(pattern)  # type: ignore[attr-defined]


for _cls in OPTIONS:
    copyreg.pickle(_cls, _write)
    ForkingPickler.register(_cls, _hand_over)
torch.serialization.add_safe_globals([make_pattern])

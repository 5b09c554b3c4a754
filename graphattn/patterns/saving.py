"""What files hold of a pattern: how to make it, in integers, and nothing that was derived from it.

So `torch.load` needs no trust in a file: with `weights_only=True`, its default, it may call `make_pattern` alone, which
makes a pattern by its constructor. Compressed rows, which kernels read without looking, are computed anew.
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
        fix = "Save it anew, with torch.save as it is by default."
        raise ValueError(message("torch.load", "a saved pattern", "must be one that can be made", got, fix)) from error


def _write(pattern: Pattern) -> tuple[Callable[..., Pattern], tuple[str, Options]]:
    options = OPTIONS[type(pattern)](pattern)
    written = {name: (x, int(x.sum())) if isinstance(x, Tensor) else x for name, x in options.items()}
    return make_pattern, (type(pattern).__name__, written)


def _read(option: str, value: Any) -> Any:
    """An option that nothing else in the file can change any more."""
    if isinstance(value, tuple) and len(value) == 2 and type(value[0]) is Tensor:
        x, total = value
        # By torch's functions: a file can give tensors methods. Strides of 0 would make much of little.
        if x.dtype != torch.int64 or x.layout != torch.strided or x.is_meta or not Tensor.is_contiguous(x):
            raise TypeError(f"{option} must be a contiguous tensor of int64, got {x.dtype}, {x.layout} on {x.device}")
        # What comes later in the file may write to its tensors.
        x = torch.clone(x)
        if int(x.sum()) != total:
            # Torch's format from before 1.6 brings numbers only after objects have been made of them.
            raise ValueError(f"the numbers of {option} must add up to {total}")
        return x
    for item in value if isinstance(value, tuple) else (value,):
        if type(item) not in (int, bool, str):
            raise TypeError(f"{option} must be made of numbers, got {type(item).__name__}")
    return value


def _hand_over(pattern: Pattern) -> tuple[Callable[..., Pattern], tuple[type[Pattern]], dict[str, Any]]:
    """Between processes of one program, as in a DataLoader, all that was derived goes along."""
    return copyreg.__newobj__, (type(pattern),), vars(pattern)  # type: ignore[attr-defined]


for _cls in OPTIONS:
    copyreg.pickle(_cls, _write)
    ForkingPickler.register(_cls, _hand_over)
torch.serialization.add_safe_globals([make_pattern])

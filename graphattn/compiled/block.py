"""The operands of a loop as one block of words.

Python hands compiled code its arguments one by one, and to take arrays and named tuples apart takes longer than a loop
over a small graph. Here a call's tensors, arrays and numbers, in tuples of any depth, become a block of 64-bit words,
from which `jit.pool` builds them again in compiled code: of an array its address and its sizes, of a number its bits,
of None nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Any

import torch

# Half types travel as the integers that stand for their bits.
NAMES = {torch.bfloat16: "int16", torch.float16: "uint16"}


def type_of(x: Any) -> Any:
    """Numba's type of an operand. A tensor of floating-point numbers is a flat array of them, whatever its shape.

    Raises:
        ValueError: a tensor or an array has gaps.
    """
    types: Any = importlib.import_module("numba.types")
    if isinstance(x, tuple):
        parts = [type_of(part) for part in x]
        return types.NamedTuple(parts, type(x)) if hasattr(x, "_fields") else types.Tuple(parts)
    is_tensor = isinstance(x, torch.Tensor)
    kind = None if is_tensor else importlib.import_module("numba").typeof(x)
    # A flat array of rows may have gaps between them: its loop knows how far they lie apart.
    inner = x[(0,) * (x.dim() - 2)] if is_tensor and x.dim() > 2 and x.numel() else x
    if not (inner.is_contiguous() if is_tensor else getattr(kind, "layout", "C") == "C"):
        raise ValueError(f"a loop takes tensors and arrays without gaps, got {tuple(x.shape)}")
    if not is_tensor:
        return kind
    number = getattr(types, NAMES.get(x.dtype) or str(x.dtype).removeprefix("torch."))
    return types.Array(number, 1 if x.is_floating_point() else x.dim(), "C")


def packer(operands: tuple[Any, ...], kind: Any) -> Callable[[tuple[Any, ...]], bytes]:
    """Return what writes the block of operands like these, which are of this type.

    It is an expression without a branch: to look at what each operand is takes longer than to write it. The operands
    must live for as long as compiled code reads the block.
    """
    words = list(_words("operands", operands, kind))
    written = ", ".join(word for _, word in words)
    block = Struct("".join(code for code, _ in words))
    function: Callable[[tuple[Any, ...]], bytes] = eval(f"lambda operands: pack({written})", {"pack": block.pack})
    return function


def _words(name: str, x: Any, kind: Any) -> Iterator[tuple[str, str]]:
    """Each word of an operand: its code in a Struct, and the expression of it, by the operand's own one."""
    types: Any = importlib.import_module("numba.types")
    if isinstance(x, tuple):
        for i, (part, of_part) in enumerate(zip(x, kind, strict=True)):
            yield from _words(f"{name}[{i}]", part, of_part)
    elif isinstance(x, torch.Tensor):
        sizes = ("numel()",) if kind.ndim == 1 else (f"size({i})" for i in range(kind.ndim))
        yield from (("q", f"{name}.{word}") for word in ("data_ptr()", *sizes))
    elif isinstance(kind, types.Array):
        yield "q", f"{name}.__array_interface__['data'][0]"
        yield from (("q", f"{name}.shape[{i}]") for i in range(kind.ndim))
    elif isinstance(kind, types.Float):
        yield "d" if kind.bitwidth == 64 else "f4x", name
    elif isinstance(kind, types.Boolean):
        yield "?7x", name
    elif kind != types.none:
        yield "q" if kind.signed else "Q", name

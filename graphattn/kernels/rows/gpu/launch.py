"""Launches: what Triton compiled for a call is remembered by what it was compiled for.

Triton looks at each argument of each launch, at its type and at what it specializes on. That takes longer than a small
call's work, so the same is said here by one key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

# Compiled kernels, each with the values it takes after the arguments. Kernels live as long as their module.
_COMPILED: dict[Any, Any] = {}
LARGEST_INT32 = 2**31 - 1


def launch(
    kernel: Any,
    programs: int,
    arguments: Sequence[Any],
    constants: dict[str, Any],
    warps: int,
    compiled: dict[Any, Any] = _COMPILED,
) -> None:
    """Run programs of a kernel on the current device.

    Args:
        kernel: a function of Triton's that specializes on no number among its arguments.
        programs: how many.
        arguments: tensors, None and numbers, in the kernel's order; the first one is a tensor.
        constants: what is compiled in, by name.
        warps: of a program.
        compiled: where to remember; lives no longer than the kernel.
    """
    # Of a tensor Triton looks at its dtype and alignment, of an integer at whether it fits into 32 bits.
    kinds = [
        (x.dtype, x.data_ptr() % 16) if isinstance(x, Tensor) else x > LARGEST_INT32 if isinstance(x, int) else type(x)
        for x in arguments
    ]
    key = (id(kernel), arguments[0].device, warps, *constants.values(), *kinds)
    known = compiled.get(key)
    if known is not None:
        loaded, values = known
        loaded[(programs, 1, 1)](*arguments, *values)
        return
    loaded = kernel[(programs,)](*arguments, **constants, num_warps=warps)
    # An interpreter compiles nothing.
    if loaded is not None:
        compiled[key] = loaded, tuple(constants[name] for name in kernel.arg_names[len(arguments) :])

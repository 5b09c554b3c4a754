"""What numbers of a dtype are added up in, and contexts in which torch keeps to the dtypes that it is given."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float32 for half types, else the type itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Run operators on this type of device without torch.autocast.

    Where it is off anyway, an exported program has no part for it, which not all that read such programs know. Other
    graphs must: whether it is on isn't known while torch.compile traces them.
    """
    is_compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    is_needed = is_compiling or torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if is_needed else nullcontext()

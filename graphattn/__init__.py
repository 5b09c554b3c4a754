"""Sparse self-attention on the edges of any graph, for PyTorch Geometric.

`calibrate` and the modules `calibration`, `compare`, `datasets`, `distributed`, `plot`, `sampling`, `testing` and
`transforms` load on first use.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from . import nn as nn
from .dense import dense_attention as dense_attention
from .errors import message as _message
from .functional import attention as attention
from .functional import explain_backend as explain_backend
from .functional import explain_score as explain_score
from .functional import merge as merge
from .nn import accelerate as accelerate
from .nn import restore as restore
from .normalizers import Elementwise as Elementwise
from .normalizers import Normalized as Normalized
from .offset_bias import OffsetBias as OffsetBias
from .patterns import Edges as Edges
from .patterns import Full as Full
from .patterns import Grid as Grid
from .patterns import Pattern as Pattern
from .patterns import Relations as Relations
from .patterns import Window as Window
from .patterns import random_edges as random_edges
from .patterns import random_regular as random_regular
from .scores import Additive as Additive
from .scores import DotProduct as DotProduct

if TYPE_CHECKING:
    from . import calibration as calibration
    from . import compare as compare
    from . import datasets as datasets
    from . import distributed as distributed
    from . import plot as plot
    from . import sampling as sampling
    from . import testing as testing
    from . import transforms as transforms
    from .calibration import calibrate as calibrate

__version__ = "0.1.0"
__all__ = [
    "Additive",
    "DotProduct",
    "Edges",
    "Elementwise",
    "Full",
    "Grid",
    "Normalized",
    "OffsetBias",
    "Pattern",
    "Relations",
    "Window",
    "accelerate",
    "attention",
    "calibrate",
    "dense_attention",
    "explain_backend",
    "explain_score",
    "merge",
    "nn",
    "random_edges",
    "random_regular",
    "restore",
]

_MODULES = ("calibration", "compare", "datasets", "distributed", "plot", "sampling", "testing", "transforms")

# A module with `__getattr__` has every attribute for a type checker.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Load a module on first use, or say where a name is."""
        if name in _MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name == "calibrate":
            return importlib.import_module(f"{__name__}.calibration").calibrate
        for module in ("nn", "patterns", *_MODULES) if not name.startswith("_") else ():
            found = getattr(importlib.import_module(f"{__name__}.{module}"), name, None)
            if str(getattr(found, "__module__", None)).startswith(f"{__name__}.{module}"):
                fix = f"Use graphattn.{module}.{name}."
                raise AttributeError(_message("graphattn", "attribute", "must exist", repr(name), fix))
        text = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(text, name=name, obj=sys.modules[__name__])

    def __dir__() -> set[str]:
        return {*globals(), *__all__, *_MODULES}

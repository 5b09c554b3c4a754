"""Sparse self-attention on the edges of any graph, for PyTorch Geometric."""

from . import nn as nn
from .bias import OffsetBias as OffsetBias
from .dense import dense_attention as dense_attention
from .functional import attention as attention
from .functional import explain_backend as explain_backend
from .functional import merge as merge
from .nn import accelerate as accelerate
from .nn import restore as restore
from .patterns import Edges as Edges
from .patterns import Full as Full
from .patterns import Grid as Grid
from .patterns import Pattern as Pattern
from .patterns import Window as Window
from .patterns import random_edges as random_edges
from .patterns import random_regular as random_regular
from .scores import Additive as Additive
from .scores import DotProduct as DotProduct

__version__ = "0.1.0"
__all__ = [
    "Additive",
    "DotProduct",
    "Edges",
    "Full",
    "Grid",
    "OffsetBias",
    "Pattern",
    "Window",
    "accelerate",
    "attention",
    "dense_attention",
    "explain_backend",
    "merge",
    "nn",
    "random_edges",
    "random_regular",
    "restore",
]

"""Sparse against dense attention: errors, time and memory over a range of sizes."""

from .result import Comparison as Comparison
from .run import compare as compare
from .run import dense_memory as dense_memory

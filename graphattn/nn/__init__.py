"""Layers."""

from .attention import GraphAttention as GraphAttention
from .dense import DenseGraphAttention as DenseGraphAttention
from .encodings import Encoding as Encoding

__all__ = ["DenseGraphAttention", "Encoding", "GraphAttention"]

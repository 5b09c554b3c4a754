"""Layers."""

from .accelerate import AccelerateReport as AccelerateReport
from .accelerate import accelerate as accelerate
from .accelerate import restore as restore
from .attention import GraphAttention as GraphAttention
from .convolution import conv_as_attention as conv_as_attention
from .dense import DenseGraphAttention as DenseGraphAttention
from .encodings import Encoding as Encoding
from .pyg import GATConv as GATConv
from .pyg import GATv2Conv as GATv2Conv
from .pyg import TransformerConv as TransformerConv

__all__ = [
    "AccelerateReport",
    "DenseGraphAttention",
    "Encoding",
    "GATConv",
    "GATv2Conv",
    "GraphAttention",
    "TransformerConv",
    "accelerate",
    "conv_as_attention",
    "restore",
]

"""Layers."""

from .attention import GraphAttention as GraphAttention
from .convolution import conv_as_attention as conv_as_attention
from .dense import DenseGraphAttention as DenseGraphAttention
from .encodings import ALiBi as ALiBi
from .encodings import Encoding as Encoding
from .encodings import LaplacianPosition as LaplacianPosition
from .encodings import LearnedPosition as LearnedPosition
from .encodings import RandomWalkPosition as RandomWalkPosition
from .encodings import RelativeBias as RelativeBias
from .encodings import Rotary as Rotary
from .encodings import Sinusoidal as Sinusoidal
from .pyg.accelerate import AccelerateReport as AccelerateReport
from .pyg.accelerate import accelerate as accelerate
from .pyg.accelerate import restore as restore
from .pyg.layers import GATConv as GATConv
from .pyg.layers import GATv2Conv as GATv2Conv
from .pyg.layers import TransformerConv as TransformerConv
from .readout import AttentionReadout as AttentionReadout
from .seq2seq import Seq2Seq as Seq2Seq
from .transformer import GraphTransformer as GraphTransformer
from .transformer import TransformerBlock as TransformerBlock

__all__ = [
    "ALiBi",
    "AccelerateReport",
    "AttentionReadout",
    "DenseGraphAttention",
    "Encoding",
    "GATConv",
    "GATv2Conv",
    "GraphAttention",
    "GraphTransformer",
    "LaplacianPosition",
    "LearnedPosition",
    "RandomWalkPosition",
    "RelativeBias",
    "Rotary",
    "Seq2Seq",
    "Sinusoidal",
    "TransformerBlock",
    "TransformerConv",
    "accelerate",
    "conv_as_attention",
    "restore",
]

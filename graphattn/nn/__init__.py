"""Layers."""

from .attention import GraphAttention as GraphAttention
from .block import TransformerBlock as TransformerBlock
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
from .feature_maps import RandomFeatures as RandomFeatures
from .hetero import DenseHeteroGraphAttention as DenseHeteroGraphAttention
from .hetero import HeteroGraphAttention as HeteroGraphAttention
from .pyg.accelerate import AccelerateReport as AccelerateReport
from .pyg.accelerate import accelerate as accelerate
from .pyg.accelerate import restore as restore
from .pyg.batches import AttentionalAggregation as AttentionalAggregation
from .pyg.batches import GPSConv as GPSConv
from .pyg.batches import GraphMultisetTransformer as GraphMultisetTransformer
from .pyg.batches import Set2Set as Set2Set
from .pyg.batches import SetTransformerAggregation as SetTransformerAggregation
from .pyg.batches import SoftmaxAggregation as SoftmaxAggregation
from .pyg.convs import AGNNConv as AGNNConv
from .pyg.convs import FAConv as FAConv
from .pyg.convs import GATEConv as GATEConv
from .pyg.convs import GENConv as GENConv
from .pyg.convs import GeneralConv as GeneralConv
from .pyg.convs import PointTransformerConv as PointTransformerConv
from .pyg.convs import ResGatedGraphConv as ResGatedGraphConv
from .pyg.convs import SuperGATConv as SuperGATConv
from .pyg.hetero import HANConv as HANConv
from .pyg.hetero import HEATConv as HEATConv
from .pyg.hetero import HGTConv as HGTConv
from .pyg.hetero import RGATConv as RGATConv
from .pyg.layers import GATConv as GATConv
from .pyg.layers import GATv2Conv as GATv2Conv
from .pyg.layers import TransformerConv as TransformerConv
from .pyg.linear_attention import PerformerAttention as PerformerAttention
from .pyg.linear_attention import PolynormerAttention as PolynormerAttention
from .pyg.linear_attention import SGFormerAttention as SGFormerAttention
from .pyg.weighted import GMMConv as GMMConv
from .pyg.weighted import HypergraphConv as HypergraphConv
from .readout import AttentionReadout as AttentionReadout
from .seq2seq import Seq2Seq as Seq2Seq
from .transformer import GraphTransformer as GraphTransformer

__all__ = [
    "AGNNConv",
    "ALiBi",
    "AccelerateReport",
    "AttentionReadout",
    "AttentionalAggregation",
    "DenseGraphAttention",
    "DenseHeteroGraphAttention",
    "Encoding",
    "FAConv",
    "GATConv",
    "GATEConv",
    "GATv2Conv",
    "GENConv",
    "GMMConv",
    "GPSConv",
    "GeneralConv",
    "GraphAttention",
    "GraphMultisetTransformer",
    "GraphTransformer",
    "HANConv",
    "HEATConv",
    "HGTConv",
    "HeteroGraphAttention",
    "HypergraphConv",
    "LaplacianPosition",
    "LearnedPosition",
    "PerformerAttention",
    "PointTransformerConv",
    "PolynormerAttention",
    "RGATConv",
    "RandomFeatures",
    "RandomWalkPosition",
    "RelativeBias",
    "ResGatedGraphConv",
    "Rotary",
    "SGFormerAttention",
    "Seq2Seq",
    "Set2Set",
    "SetTransformerAggregation",
    "Sinusoidal",
    "SoftmaxAggregation",
    "SuperGATConv",
    "TransformerBlock",
    "TransformerConv",
    "accelerate",
    "conv_as_attention",
    "restore",
]

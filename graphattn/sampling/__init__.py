"""Sampled neighborhoods and clusters of a large graph."""

from .hetero import HeteroNeighborSampler as HeteroNeighborSampler
from .loader import ClusterData as ClusterData
from .loader import NeighborLoader as NeighborLoader
from .loader import NeighborSampler as NeighborSampler

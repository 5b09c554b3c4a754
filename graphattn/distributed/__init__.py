"""Full-graph attention over several processes: each owns a block of nodes, and rows on the boundary travel."""

from __future__ import annotations

from .parts import Part as Part
from .parts import block_parts as block_parts
from .parts import split_graph as split_graph
from .pattern import DistributedPattern as DistributedPattern
from .pattern import sum_gradients as sum_gradients

__all__ = ["DistributedPattern", "Part", "block_parts", "split_graph", "sum_gradients"]

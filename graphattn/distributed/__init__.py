"""Full-graph attention over several processes: each owns a block of nodes, and boundary rows are exchanged."""

from __future__ import annotations

from .files import load_part as load_part
from .files import read_part as read_part
from .files import save_parts as save_parts
from .parts import Part as Part
from .parts import block_parts as block_parts
from .parts import split_graph as split_graph
from .pattern import DistributedPattern as DistributedPattern
from .pattern import sum_gradients as sum_gradients
from .read import read_graph as read_graph

__all__ = [
    "DistributedPattern",
    "Part",
    "block_parts",
    "load_part",
    "read_graph",
    "read_part",
    "save_parts",
    "split_graph",
    "sum_gradients",
]

"""Who attends to whom."""

from . import saving as saving
from .annotations import EdgesLike as EdgesLike
from .annotations import PatternLike as PatternLike
from .base import Pattern as Pattern
from .edges import Edges as Edges
from .grid import Grid as Grid
from .partition import metis_parts as metis_parts
from .random_edges import random_edges as random_edges
from .random_edges import random_regular as random_regular
from .receptive_field import receptive_field as receptive_field
from .relations import Relations as Relations
from .reorder import NodeOrder as NodeOrder
from .sequence import Full as Full
from .sequence import Window as Window

PATTERNS = (Edges, Full, Window, Grid)

"""Positional encodings: the positions of nodes, which a pattern doesn't use."""

from .base import Encoding as Encoding
from .graph import LaplacianPosition as LaplacianPosition
from .graph import RandomWalkPosition as RandomWalkPosition
from .position import LearnedPosition as LearnedPosition
from .position import Sinusoidal as Sinusoidal
from .relative import ALiBi as ALiBi
from .relative import RelativeBias as RelativeBias
from .rotary import Rotary as Rotary

ENCODINGS = (Sinusoidal, LearnedPosition, Rotary, ALiBi, RelativeBias, LaplacianPosition, RandomWalkPosition)

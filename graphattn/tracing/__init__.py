"""A user's own score: traced once, taken apart, and written as an expression that loops are made of."""

from .captures import Captures as Captures
from .captures import Unsupported as Unsupported
from .expression import Expression as Expression
from .lookup import traced as traced
from .trace import SIDES as SIDES
from .trace import Input as Input
from .trace import Trace as Trace

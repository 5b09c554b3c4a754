"""Pictures of attention: Matplotlib axes in, axes out; and a page to explore it. Importing this loads no Matplotlib."""

from .arcs import draw_arcs as draw_arcs
from .arrows import draw_graph_weights as draw_graph_weights
from .arrows import layout as layout
from .explore import explore as explore
from .fields import draw_receptive_field as draw_receptive_field
from .graphs import draw_graph as draw_graph
from .graphs import draw_neighborhood as draw_neighborhood
from .graphs import mark_node as mark_node
from .heads import draw_heads as draw_heads
from .matrices import draw_pattern as draw_pattern
from .matrices import draw_weights as draw_weights
from .pixels import draw_pixel_weights as draw_pixel_weights
from .style import COLORS as COLORS

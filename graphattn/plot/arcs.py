"""A sentence as a line of words, with attention as arcs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..patterns import EdgesLike, Pattern
from ..patterns.box import Box
from .style import (
    MARK,
    frame,
    points_per_unit,
    read_names,
    read_node,
    read_square,
    read_weight,
    shade,
    shares,
    strongest_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Height of the words; the frame around one is 1.5 high.
EM = 1.1


def draw_arcs(
    axes: Axes,
    pattern: Pattern | EdgesLike,
    weight: Tensor | None = None,
    *,
    names: Sequence[str] | None = None,
    target: int | None = None,
    strongest: float | None = None,
) -> Axes:
    """Draw a short sequence as words on a line, with an arc from each source to the target that attends to it.

    Arcs above the line come from earlier words, arcs below it from later ones. The frame around a word is its edge to
    itself; a word without such an edge has no frame. Arcs and frames are as thick and as dark as their weights, and
    dotted where a weight is negative.

    Args:
        axes: Matplotlib axes to draw into.
        pattern: a `Pattern`, or what `Edges` takes, of as many sources as targets; a gap separates its sequences.
        weight: [E] finite, in the order of the edges: `weights[:, head]`; all equal if omitted.
        names: the words; the numbers of the nodes if omitted.
        target: draw only the edges into this node, whose word is marked; all if omitted.
        strongest: the weight drawn thickest; the largest of the drawn ones if omitted.

    Returns:
        `axes`.

    Raises:
        TypeError: weight is not a tensor.
        ValueError: sources and targets aren't the same nodes; names, weight or target don't fit the pattern; strongest
            isn't above 0.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from graphattn import Window
        >>> axes = draw_arcs(Figure().subplots(), Window(4, radius=1, causal=True), names="I saw a saw".split())
        >>> [text.get_text() for text in axes.texts], len(axes.patches)
        (['I', 'saw', 'a', 'saw'], 7)
    """
    pattern = read_square("draw_arcs", pattern)
    words = read_names("draw_arcs", "names", names, pattern.num_targets)
    words = [str(node) for node in range(pattern.num_targets)] if words is None else words
    weight = torch.ones(pattern.num_edges) if weight is None else weight
    weight = read_weight("draw_arcs", pattern, weight)
    edge_index = pattern.edge_index
    if target is not None:
        into = edge_index[1] == read_node("draw_arcs", "target", target, pattern.num_targets)
        edge_index, weight = edge_index[:, into], weight[into]
    share = shares(weight, strongest_of("draw_arcs", strongest))

    place, half = _places(pattern, words)
    reach = float((place[edge_index[0]] - place[edge_index[1]]).abs().max()) if edge_index.numel() else 0.0
    # The height of a quadratic curve is half that of its control point.
    height = max(0.21 * reach, 0.4) + 1.1
    is_below = bool((edge_index[0] > edge_index[1]).any())
    right = float(place[-1] + half[-1]) if words else 1.0
    frame(axes, -0.6, right + 0.6, -height if is_below else -1.0, height)
    size = min(EM * points_per_unit(axes), 18.0)
    thickest = min(0.32 * points_per_unit(axes), 5.0)
    for edge in share.argsort(stable=True).tolist():
        style: dict[str, Any] = {
            "color": shade(0.3 + 0.7 * float(share[edge])),
            "linewidth": thickest * (0.15 + 0.85 * float(share[edge])),
            "linestyle": ":" if weight[edge] < 0 else "-",
            "zorder": 1 + float(share[edge]),
        }
        source, into_node = edge_index[:, edge].tolist()
        if source == into_node:
            axes.add_patch(_frame(float(place[source]), float(half[source]), style))
            continue
        # Above the line from left to right, below it from right to left. Outgoing and incoming arcs touch different
        # points of a word's frame.
        way = 1 if source < into_node else -1
        begin = (float(place[source] + 0.3 * way * half[source]), 0.8 * way)
        end = (float(place[into_node] - 0.3 * way * half[into_node]), 0.8 * way)
        axes.add_patch(_arc(begin, end, style))
    for node, word in enumerate(words):
        looks: dict[str, Any] = {"color": MARK, "weight": "bold"} if node == target else {"color": "black"}
        middle: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 4, "parse_math": False}
        axes.text(float(place[node]), 0, word, fontsize=size, **middle, **looks)
    return axes


def _places(pattern: Pattern, words: list[str]) -> tuple[Tensor, Tensor]:
    """Center and half the width of every word's frame, in units of the axes; sequences of a batch are further apart."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    # Words are EM units high, and bold if they are the target.
    bold = FontProperties(size=EM, weight="bold")
    widths = [text_to_path.get_text_width_height_descent(word, bold, False)[0] for word in words]
    half = torch.tensor([width / 2 + 0.35 for width in widths], dtype=torch.float64)
    begin = torch.cat([half.new_zeros(1), (2 * half + 0.7).cumsum(0)[:-1]]) if words else half
    if isinstance(pattern, Box):
        begin = begin + 1.5 * (torch.searchsorted(pattern.ptr, torch.arange(len(words)), right=True) - 1)
    return begin + half, half


def _arc(begin: tuple[float, float], end: tuple[float, float], style: dict[str, Any]) -> Any:
    from matplotlib.patches import FancyArrowPatch

    looks: dict[str, Any] = {
        "arrowstyle": "-|>,head_length=0.8,head_width=0.4",
        "mutation_scale": 3 + 2 * style["linewidth"],
    }
    looks |= {"joinstyle": "miter", "capstyle": "butt", "shrinkA": 0, "shrinkB": 0}
    return FancyArrowPatch(begin, end, connectionstyle="arc3,rad=-0.42", **looks, **style)


def _frame(place: float, half: float, style: dict[str, Any]) -> Any:
    from matplotlib.patches import FancyBboxPatch

    color = style.pop("color")
    box = "round,pad=0,rounding_size=0.2"
    return FancyBboxPatch(
        (place - half, -0.75), 2 * half, 1.5, boxstyle=box, facecolor="none", edgecolor=color, **style
    )

"""Graphs as nodes and edges, and whom a node attends to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import message, shape_of
from ..patterns import EdgesLike, Pattern
from .style import color_of, read_label, read_pattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_graph(
    axes: Axes,
    pattern: Pattern | EdgesLike,
    position: Tensor,
    label: Tensor,
    *,
    wrong: Tensor | None = None,
    names: Sequence[str] | None = None,
    most_edges: int = 20_000,
) -> Axes:
    """Draw nodes, colored and named by label, and the edges between them.

    Args:
        axes: Matplotlib axes to draw into.
        pattern: a `Pattern`, or what `Edges` takes, of N nodes.
        position: [N, 2] coordinates.
        label: [N] integers; the color of each node, in turn from `COLORS`.
        wrong: [N] boolean, nodes to ring in black.
        names: a text for each label from 0 on, written where its nodes are most dense; the numbers if omitted.
        most_edges: a larger graph shows an even selection of this many edges.

    Returns:
        `axes`.

    Raises:
        TypeError: label has a floating-point dtype.
        ValueError: position, label or wrong has another number of rows than the pattern has nodes, or a label has no
            name.
    """
    from matplotlib import patheffects
    from matplotlib.collections import LineCollection

    fix = "" if isinstance(pattern, Pattern) else "Use Edges(edge_index, num_nodes) where some nodes have no edge."
    pattern = read_pattern(pattern)
    number = pattern.num_targets
    for argument, x, shape in (("position", position, [number, 2]), ("wrong", wrong, [number])):
        if x is not None and list(x.shape) != shape:
            raise ValueError(message("draw_graph", argument, f"must have shape {shape}", shape_of(x), fix))
    colors = [color_of(number) for number in read_label("draw_graph", label, number, names, "names", fix)]
    position, label = position.detach().cpu(), label.cpu()
    edge_index = pattern.edge_index
    edge_index = edge_index[:, edge_index[0] < edge_index[1]]
    edge_index = edge_index[:, :: math.ceil(edge_index.size(1) / most_edges) or 1]
    axes.add_collection(
        LineCollection(list(position[edge_index.t()].numpy()), colors="#777777", linewidths=0.3, alpha=0.25)
    )
    axes.scatter(position[:, 0].numpy(), position[:, 1].numpy(), s=13, c=colors, linewidths=0, zorder=2)
    if wrong is not None and bool(wrong.any()):
        ringed = position[wrong.cpu()].numpy()
        axes.scatter(ringed[:, 0], ringed[:, 1], s=26, facecolors="none", edgecolors="black", linewidths=0.9, zorder=3)
    outline = [patheffects.withStroke(linewidth=3.5, foreground="white")]
    for number in label.unique().tolist():
        x, y = _densest(position[label == number]).tolist()
        name = str(number) if names is None else names[number]
        axes.text(x, y, name, fontsize=17, weight="bold", ha="center", va="center", zorder=4, path_effects=outline)
    axes.set_axis_off()
    return axes


def mark_node(axes: Axes, position: Tensor, text: str, away_from: Tensor) -> Axes:
    """Point at one node of a drawn graph with a short text next to it.

    Args:
        axes: Matplotlib axes to draw into.
        position: [2] coordinates of the node.
        text: what to write.
        away_from: [2] a point; the text is on the opposite side of the node.

    Returns:
        `axes`.
    """
    direction = torch.nn.functional.normalize(position - away_from, dim=0)
    axes.annotate(
        text,
        (float(position[0]), float(position[1])),
        xytext=(36 * float(direction[0]), 36 * float(direction[1])),
        textcoords="offset points",
        fontsize=13,
        weight="bold",
        ha="center",
        va="center",
        zorder=6,
        bbox={"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": "black"},
        arrowprops={"arrowstyle": "-", "color": "black", "linewidth": 1.2},
    )
    return axes


def draw_neighborhood(
    axes: Axes,
    target: int,
    source: Tensor,
    weight: Tensor,
    captions: Sequence[str],
    *,
    label: Tensor,
    images: Any = None,
    most: int = 8,
) -> Axes:
    """Draw whom one node attends to: the node in the center, its sources around it, edges as thick as their weights.

    Args:
        axes: Matplotlib axes to draw into.
        target: the node.
        source: [n] the sources of its edges.
        weight: [n] their weights, at least 0.
        captions: a short text for every node of the graph, written below it.
        label: [N] integers, the color of every node's frame, in turn from `COLORS`.
        images: what `imshow` takes, for every node of the graph; discs if omitted.
        most: draw only this many sources, those of the largest weights; a line gives the sum of the others.

    Returns:
        `axes`.
    """
    order = weight.argsort(descending=True, stable=True).tolist()
    own = sum(float(weight[edge]) for edge in order if int(source[edge]) == target)
    around = [edge for edge in order if int(source[edge]) != target]
    shown, hidden = around[:most], around[most:]
    strongest = max([float(weight[edge]) for edge in shown], default=1.0) or 1.0

    def draw_node(node: int, x: float, y: float, half: float) -> None:
        color = color_of(int(label[node]))
        _draw_node(axes, None if images is None else images[node], captions[node], (x, y), half, color)

    for place, edge in enumerate(shown):
        angle = math.pi / 2 - 2 * math.pi * place / len(shown)
        # Panels are wider than high, so an ellipse leaves room for the pictures.
        x, y = 1.8 * math.cos(angle), 1.15 * math.sin(angle)
        share = float(weight[edge])
        axes.plot([0, x], [0, y], color="#4477AA", linewidth=0.5 + 7 * share / strongest, alpha=0.85, zorder=1)
        box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.9}
        axes.text(0.5 * x, 0.5 * y, f"{share:.0%}", fontsize=9, ha="center", va="center", zorder=3, bbox=box)
        draw_node(int(source[edge]), x, y, 0.19)
    draw_node(target, 0, 0, 0.24)
    notes = [f"itself {own:.0%}"] if own else []
    notes += [f"{len(hidden)} more {float(weight[hidden].sum()):.0%}"] if hidden else []
    axes.text(2.1, -1.5, ", ".join(notes), fontsize=9, ha="right", va="center", color="#444444")
    axes.set(xlim=(-2.2, 2.2), ylim=(-1.6, 1.4), aspect="equal")
    axes.set_axis_off()
    return axes


def _draw_node(axes: Axes, image: Any, caption: str, center: tuple[float, float], half: float, color: str) -> None:
    from matplotlib.patches import Circle, Rectangle

    x, y = center
    if image is None:
        axes.add_patch(Circle(center, half, facecolor=color, edgecolor="black", zorder=4))
    else:
        image = image.cpu().numpy() if isinstance(image, Tensor) else image
        axes.imshow(image, cmap="gray_r", extent=(x - half, x + half, y - half, y + half), zorder=4)
        corner = (x - half, y - half)
        axes.add_patch(Rectangle(corner, 2 * half, 2 * half, fill=False, edgecolor=color, linewidth=2, zorder=5))
    box = {"boxstyle": "round,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    axes.text(x, y - half - 0.05, caption, fontsize=8, ha="center", va="top", zorder=5, bbox=box)


def _densest(points: Tensor) -> Tensor:
    """The point with the least distance to all others: unlike the mean, it is one of them."""
    return points[torch.cdist(points, points).sum(1).argmin()]

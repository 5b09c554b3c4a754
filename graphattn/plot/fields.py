"""The receptive field of a node after one layer, two layers, and so on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import message
from ..patterns import EdgesLike, Full, Grid, Pattern, Window, receptive_field
from .arrows import add_arrows, add_faint, draw_nodes, node_radius, read_position, set_up
from .style import MARK, points_per_unit, read_names, read_pattern, shade, text_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_receptive_field(
    axes: Axes,
    pattern: Pattern | EdgesLike,
    node: int,
    layers: int,
    *,
    position: Tensor | str = "kamada_kawai",
    names: Sequence[str] | None = None,
) -> Axes:
    """Draw the receptive field of a node after 1, 2, ... layers, as `receptive_field` computes it.

    A sequence becomes one row of dots per layer, with the edges that lead to the node; an array of pixels is drawn as
    cells with the layer at which they are first seen; any other graph as nodes with that layer, with arrows along the
    edges that lead to the node within these layers, and other edges as thin lines. Nearer is darker.

    Args:
        axes: Matplotlib axes to draw into.
        pattern: a `Pattern`, or what `Edges` takes, of as many sources as targets; `Grid` of one array of two axes.
        node: whose receptive field it is; its mark is red.
        layers: number of layers, at least 1.
        position: [N, 2] coordinates of a graph's nodes, or the name of a `layout`.
        names: a text per node of a sequence, below the dots; the numbers if omitted.

    Returns:
        `axes`.

    Raises:
        TypeError, ValueError: as of `receptive_field`; position or names don't fit the pattern.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from graphattn import Window
        >>> axes = draw_receptive_field(Figure().subplots(), Window(9, radius=1), node=4, layers=2)
        >>> [text.get_text() for text in axes.get_yticklabels()]
        ['input', 'layer 1', 'layer 2']
    """
    pattern = read_pattern(pattern)
    reached = receptive_field(pattern, node, layers)
    if layers < 1:
        raise ValueError(message("draw_receptive_field", "layers", "must be at least 1", layers))
    texts = read_names("draw_receptive_field", "names", names, pattern.num_targets)
    if isinstance(pattern, Full | Window):
        return _draw_rows(axes, pattern, node, layers, texts)
    if isinstance(pattern, Grid) and tuple(pattern.shape.shape) == (1, 2):
        return _draw_cells(axes, reached.view(*pattern.shape[0].tolist()), layers)
    place = read_position("draw_receptive_field", pattern, position)
    radius = node_radius(place)
    set_up(axes, place, radius)
    source, target = pattern.edge_index
    # A source reaches the node within these layers only through targets that are nearer than the number of layers.
    is_used = (reached[target] >= 0) & (reached[target] < layers) & (source != target)
    add_faint(axes, place, pattern.edge_index[:, ~is_used])
    used = pattern.edge_index[:, is_used]
    share = torch.full((used.size(1),), 0.4, dtype=place.dtype)
    add_arrows(axes, place, used, torch.zeros(used.size(1), dtype=torch.bool), share, radius)
    marks = [str(layer) if layer >= 0 else "" for layer in reached.tolist()]
    draw_nodes(axes, place, radius, [_fill(layer, layers) for layer in reached.tolist()], marks)
    return axes


def _share(layer: int, layers: int) -> float:
    """The shade of a layer: the first is nearly black, the last still darker than nodes that are never reached."""
    return 0.95 - 0.75 * (layer - 1) / max(layers - 1, 1)


def _fill(layer: int, layers: int) -> Any:
    return "white" if layer < 0 else MARK if layer == 0 else shade(_share(layer, layers))


def _draw_rows(axes: Axes, pattern: Full | Window, node: int, layers: int, texts: list[str] | None) -> Axes:
    """The input is at the bottom; an edge leads from a source's dot to that of a target one layer above."""
    from matplotlib.collections import LineCollection

    number = pattern.num_targets
    # Sequences of a batch are separated by one position.
    component = torch.searchsorted(pattern.ptr, torch.arange(number), right=True) - 1
    across = (torch.arange(number) + component).double()
    axes.set(xlim=(-0.7, float(across[-1]) + 0.7), ylim=(-0.3, layers + 0.3))
    room = min(points_per_unit(axes), 40.0)
    source, target = pattern.edge_index
    for row in range(layers + 1):
        reached = receptive_field(pattern, node, layers - row)
        needed = reached >= 0
        # In the rows below its own dot, the node is as dark as its nearest sources.
        near = reached if row == layers else reached.where(reached != 0, 1)
        colors = [_fill(layer, layers) for layer in near.tolist()]
        edges = ["#333333" if here else "#bbbbbb" for here in needed.tolist()]
        places = torch.full((number,), float(row))
        size = (0.55 * room) ** 2
        axes.scatter(across.numpy(), places.numpy(), s=size, c=colors, edgecolors=edges, linewidths=0.8, zorder=3)
        if row:
            drawn = needed[target]
            ends = torch.stack([across[source], places[source] - 1, across[target], places[target]], 1)
            segments = list(ends[drawn].view(-1, 2, 2).double().numpy())
            axes.add_collection(LineCollection(segments, colors="#7566b8", linewidths=min(1.2, room / 12), zorder=2))
    axes.set_yticks(range(layers + 1), ["input", *(f"layer {layer}" for layer in range(1, layers + 1))])
    step = max(1, number // 12) if texts is None else 1
    shown = range(0, number, step)
    size_of_text = min(10.0, max(5.0, 0.6 * room))
    axes.set_xticks(
        across[::step].tolist(),
        [str(place) if texts is None else texts[place] for place in shown],
        fontsize=size_of_text,
        parse_math=False,
    )
    if texts is not None and max(map(len, texts)) * 0.62 * size_of_text > points_per_unit(axes):
        axes.tick_params(axis="x", rotation=90)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def _draw_cells(axes: Axes, reached: Tensor, layers: int) -> Axes:
    from matplotlib.colors import to_rgb

    image = torch.tensor([[to_rgb(_fill(layer, layers)) for layer in row] for row in reached.tolist()])
    axes.imshow(image.numpy(), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    size = min(0.5 * points_per_unit(axes), 10.0)
    for row, column in (reached >= 0).nonzero().tolist() if size >= 3.5 else []:
        layer = int(reached[row, column])
        color = "white" if layer == 0 else text_color(_share(layer, layers))
        axes.text(column, row, str(layer), ha="center", va="center", fontsize=size, color=color)
    return axes

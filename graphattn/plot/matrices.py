"""Patterns and weights as matrices: targets down, sources across."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import message
from ..patterns import EdgesLike, Pattern
from ..patterns.box import Box
from .style import (
    COLORS,
    MARK,
    colormap,
    points_per_unit,
    read_names,
    read_node,
    read_pattern,
    read_weight,
    shares,
    strongest_of,
    text_color,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Up to this many nodes a pair is a dot; up to the next number, a cell; beyond that, cells hold several pairs.
MOST_DOTS, MOST_CELLS = 100, 400
# Up to this many rows and columns, cells show their numbers.
MOST_NUMBERS = 16


def draw_pattern(
    axes: Axes, pattern: Pattern | EdgesLike, *, names: Sequence[str] | None = None, target: int | None = None
) -> Axes:
    """Draw who may attend to whom: a row per target, a column per source, a dot where there is an edge.

    Frames surround the components of a ragged batch. A pattern of more than 400 nodes becomes an image; the shade of a
    cell is the fraction of its pairs that are edges.

    Args:
        axes: Matplotlib axes to draw into.
        pattern: a `Pattern`, or what `Edges` takes.
        names: a text per node, next to rows and columns; requires as many sources as targets.
        target: a target whose row is marked; none if omitted.

    Returns:
        `axes`.

    Raises:
        ValueError: there are more or fewer names than nodes, or no such target.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from graphattn import Window
        >>> axes = draw_pattern(Figure().subplots(), Window([3, 2], radius=1), names="I saw a saw .".split())
        >>> [text.get_text() for text in axes.get_yticklabels()], len(axes.collections[0].get_offsets())
        (['I', 'saw', 'a', 'saw', '.'], 11)
    """
    pattern = read_pattern(pattern)
    labels = _both_names("draw_pattern", pattern, names, None, None)
    _set_up(axes, pattern, labels)
    source, into = pattern.edge_index
    if target is not None:
        row = read_node("draw_pattern", "target", target, pattern.num_targets)
        axes.axhspan(row - 0.5, row + 0.5, facecolor=MARK, alpha=0.18, linewidth=0, zorder=0.5)
    if max(pattern.num_sources, pattern.num_targets) <= MOST_DOTS:
        _add_dots(axes, pattern.edge_index, 0.66, [MARK if row == target else COLORS[0] for row in into.tolist()])
    elif source.numel():
        _draw_density(axes, pattern)
    _draw_components(axes, pattern)
    return axes


def _add_dots(axes: Axes, place: Tensor, size: float, colors: Sequence[str]) -> None:
    """A dot of this width, in cells, at each (column, row) of `place` [2, n]."""
    from matplotlib.collections import EllipseCollection

    width, angle = torch.full((place.size(1),), size).numpy(), torch.zeros(place.size(1)).numpy()
    where: dict[str, Any] = {"units": "xy", "offsets": place.t().numpy(), "offset_transform": axes.transData}
    axes.add_collection(EllipseCollection(width, width, angle, facecolors=colors, **where), autolim=False)


def draw_weights(
    axes: Axes,
    pattern: Pattern | EdgesLike,
    weight: Tensor,
    *,
    names: Sequence[str] | None = None,
    source_names: Sequence[str] | None = None,
    target_names: Sequence[str] | None = None,
    strongest: float | None = None,
) -> Axes:
    """Draw one head's weights: a row per target, a column per source; larger is darker.

    Cells without an edge are hatched; those of weight 0 are not. Up to 16 nodes per side, each cell shows its number.
    Parallel edges are added. Negative numbers, such as scores, are red, and darker further from 0; without room for
    numbers they have a dot, up to 100 nodes per side.

    Args:
        axes: Matplotlib axes to draw into.
        pattern: a `Pattern`, or what `Edges` takes; sources may differ from targets (cross-attention).
        weight: [E] finite, in the order of the edges: `weights[:, head]`.
        names: a text per node if sources and targets are the same.
        source_names: a text per source, below the columns.
        target_names: a text per target, next to the rows.
        strongest: the weight drawn darkest; the largest one if omitted.

    Returns:
        `axes`.

    Raises:
        TypeError: weight is not a tensor.
        ValueError: weight has another shape or isn't finite, names of another number, or strongest isn't above 0.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from graphattn import Full
        >>> weight = torch.tensor([0.25, 0.75, 1.0, 0.0])
        >>> axes = draw_weights(Figure().subplots(), Full(2), weight, names=["a", "saw"])
        >>> [text.get_text() for text in axes.texts]
        ['.25', '.75', '1', '0']
    """
    pattern = read_pattern(pattern)
    weight = read_weight("draw_weights", pattern, weight)
    labels = _both_names("draw_weights", pattern, names, source_names, target_names)
    _set_up(axes, pattern, labels)
    axes.patch.set(facecolor="white", hatch="/////", edgecolor="#bbbbbb", linewidth=0)
    source, target = pattern.edge_index
    shape = (pattern.num_targets, pattern.num_sources)
    matrix = torch.zeros(shape, dtype=torch.float64).index_put_((target, source), weight, accumulate=True)
    is_edge = torch.zeros(shape, dtype=torch.bool)
    is_edge[target, source] = True
    share = shares(matrix, strongest_of("draw_weights", strongest))
    if matrix.numel():
        image = torch.from_numpy(colormap()(share.numpy()))
        # Red and blue are swapped: negative numbers are red, and about as dark.
        image[..., :3] = torch.where((matrix < 0)[..., None], image[..., [2, 1, 0]], image[..., :3])
        image[..., 3] = is_edge.double()
        axes.imshow(image.numpy(), aspect="equal", interpolation="nearest")
    _draw_components(axes, pattern)
    size = min(0.3 * points_per_unit(axes), 10.0)
    if max(shape) <= MOST_NUMBERS and size >= 4:
        _write_numbers(axes, matrix, is_edge, share, size)
    elif max(shape) <= MOST_DOTS:
        row, column = (matrix < 0).nonzero(as_tuple=True)
        _add_dots(axes, torch.stack([column, row]), 0.4, [text_color(part) for part in share[row, column].tolist()])
    return axes


def _both_names(
    where: str, pattern: Pattern, names: Any, source_names: Any, target_names: Any
) -> tuple[list[str] | None, list[str] | None]:
    if names is not None:
        if pattern.num_sources != pattern.num_targets:
            fix = "Use source_names and target_names." if where == "draw_weights" else ""
            got = f"{pattern.num_sources} sources and {pattern.num_targets} targets"
            raise ValueError(message(where, "names", "must name nodes that are both", got, fix))
        if source_names is not None or target_names is not None:
            raise ValueError(message(where, "names", "excludes source_names and target_names"))
        source_names = target_names = names
        return (read_names(where, "names", names, pattern.num_sources),) * 2
    return (
        read_names(where, "source_names", source_names, pattern.num_sources),
        read_names(where, "target_names", target_names, pattern.num_targets),
    )


def _set_up(axes: Axes, pattern: Pattern, labels: tuple[list[str] | None, list[str] | None]) -> None:
    """Limits, aspect, and the names or numbers next to rows and columns, as many as fit."""
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    axes.set(xlim=(-0.5, max(pattern.num_sources, 1) - 0.5), ylim=(max(pattern.num_targets, 1) - 0.5, -0.5))
    axes.set_aspect("equal")
    axes.set_xlabel("source", fontsize=9)
    axes.set_ylabel("target", fontsize=9)
    axes.tick_params(length=0)
    # Names take about a third of the present space of the cells.
    cell = 0.7 * points_per_unit(axes)
    size = min(max(0.75 * cell, 5.0), 10.0)
    for axis, names in ((axes.xaxis, labels[0]), (axes.yaxis, labels[1])):
        if names is None:
            # The axes may have the names of an earlier drawing.
            axis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True))
            axis.set_major_formatter(ScalarFormatter())
            axis.set_tick_params(labelsize=8, labelrotation=0)
            continue
        step = max(math.ceil(1.2 * size / cell), 1)
        shown = range(0, len(names), step)
        is_wide = axis is axes.xaxis and max((len(names[place]) for place in shown), default=0) * 0.62 * size > (
            step * cell
        )
        turned: dict[str, Any] = {"rotation": 90} if is_wide else {}
        axis.set_ticks(list(shown), [names[place] for place in shown], fontsize=size, parse_math=False, **turned)


def _draw_density(axes: Axes, pattern: Pattern) -> None:
    source, target = pattern.edge_index
    rows, columns = min(pattern.num_targets, MOST_CELLS), min(pattern.num_sources, MOST_CELLS)
    row, column = target * rows // pattern.num_targets, source * columns // pattern.num_sources
    edges = torch.bincount(row * columns + column, minlength=rows * columns).view(rows, columns).double()
    # Cells may hold unequal numbers of pairs.
    height, width = (
        torch.bincount(torch.arange(nodes) * cells // nodes, minlength=cells).double()
        for nodes, cells in ((pattern.num_targets, rows), (pattern.num_sources, columns))
    )
    density = (edges / (height[:, None] * width)).clamp(max=1)
    # A cell with a single edge among many pairs must be visible.
    density = torch.where(edges > 0, density.clamp(min=0.25), torch.nan)
    extent = (-0.5, pattern.num_sources - 0.5, pattern.num_targets - 0.5, -0.5)
    axes.imshow(density.numpy(), cmap=colormap(), vmin=0, vmax=1.25, extent=extent, interpolation="nearest")


def _draw_components(axes: Axes, pattern: Pattern) -> None:
    """A frame around the block of each component, if there are several."""
    if not isinstance(pattern, Box) or pattern.ptr.numel() <= 2:
        return
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    begins = zip(pattern.source_ptr.tolist(), pattern.ptr.tolist(), strict=True)
    corners = list(begins)
    frames = [
        Rectangle((left - 0.5, top - 0.5), right - left, bottom - top)
        for (left, top), (right, bottom) in itertools.pairwise(corners)
    ]
    width = min(1.2, 60 / len(frames))
    axes.add_collection(
        PatchCollection(frames, facecolor="none", edgecolor="#555555", linewidth=width, clip_on=False), autolim=False
    )


def _write_numbers(axes: Axes, matrix: Tensor, is_edge: Tensor, share: Tensor, size: float) -> None:
    for row, column in is_edge.nonzero().tolist():
        text = write_weight(float(matrix[row, column]))
        color = text_color(float(share[row, column]))
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color)


def write_weight(value: float) -> str:
    """Two decimals without a leading zero, `.25` or `-.50`; integers without decimals."""
    if value == int(value):
        return str(int(value))
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.2f}".replace("0.", ".", 1 if abs(value) < 0.995 else 0)

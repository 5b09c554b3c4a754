"""Whom one pixel attends to, drawn over the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import message, shape_of
from ..patterns import EdgesLike, Grid, Pattern
from .style import COLORS, MARK, read_node, read_pattern, read_weight, shares, strongest_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_pixel_weights(
    axes: Axes,
    pattern: Pattern | EdgesLike,
    weight: Tensor,
    *,
    pixel: tuple[int, int],
    image: Tensor | None = None,
    strongest: float | None = None,
) -> Axes:
    """Draw whom one pixel attends to: a square on each source, with the weight as its area, over the faded image.

    A source of weight 0 has a dot, a pixel without an edge has no mark; squares of negative weights are hollow. The
    target pixel has a frame.

    Args:
        axes: Matplotlib axes to draw into.
        pattern: a `Grid` of one array of two axes; or any pattern of H * W nodes, with an image.
        weight: [E] finite, in the order of the edges: `weights[:, head]`.
        pixel: row and column of the target pixel, counted from 0.
        image: [H, W], larger is darker, or [H, W, 3] of colors in [0, 1] or [0, 255]; blank where left out.
        strongest: the weight that fills its pixel; the largest of the drawn ones if omitted.

    Returns:
        `axes`.

    Raises:
        TypeError: weight is not a tensor, or pixel not a pair.
        ValueError: pattern, image, weight or pixel don't fit each other; strongest isn't above 0.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from graphattn import Grid
        >>> grid = Grid((8, 8), radius=1)
        >>> weight = torch.full((grid.num_edges,), 1 / 9)
        >>> axes = draw_pixel_weights(Figure().subplots(), grid, weight, pixel=(3, 4), image=torch.rand(8, 8))
        >>> len(axes.collections[0].get_paths())
        9
    """
    pattern = read_pattern(pattern)
    image = None if image is None else torch.as_tensor(image)
    rows, columns = pixel_shape("draw_pixel_weights", pattern, image)
    weight = read_weight("draw_pixel_weights", pattern, weight)
    try:
        row, column = pixel
    except (TypeError, ValueError) as error:
        fix = f"Use pixel=divmod(node, {columns}) for the number of a node."
        rule = "must be a row and a column"
        raise type(error)(message("draw_pixel_weights", "pixel", rule, repr(pixel), fix)) from None
    row = read_node("draw_pixel_weights", "pixel[0]", row, rows, "rows")
    column = read_node("draw_pixel_weights", "pixel[1]", column, columns, "columns")
    into = pattern.edge_index[1] == row * columns + column
    source, weight = pattern.edge_index[0, into], weight[into]
    share = shares(weight, strongest_of("draw_pixel_weights", strongest))
    _show_faded(axes, image, rows, columns)
    _draw_squares(axes, torch.stack([source % columns, source // columns], 1), share, weight < 0)
    from matplotlib.patches import Rectangle

    for color, width in (("white", 4.0), (MARK, 2.2)):
        frame = Rectangle(
            (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=color, linewidth=width, zorder=4, clip_on=False
        )
        axes.add_patch(frame)
    return axes


def pixel_shape(where: str, pattern: Pattern, image: Tensor | None) -> tuple[int, int]:
    """Rows and columns of the picture: those of the image if given, else those of the grid."""
    if image is not None:
        if image.dim() not in (2, 3) or (image.dim() == 3 and image.size(2) != 3):
            raise ValueError(message(where, "image", "must be [H, W] or [H, W, 3]", shape_of(image)))
        rows, columns = image.shape[:2]
    elif isinstance(pattern, Grid) and tuple(pattern.shape.shape) == (1, 2):
        rows, columns = pattern.shape[0].tolist()
    else:
        fix = "Give an image, which says how many rows and columns there are."
        raise ValueError(message(where, "pattern", "must be a Grid of one array of two axes", pattern, fix))
    if (pattern.num_sources, pattern.num_targets) != (rows * columns,) * 2:
        rule = f"must have a node for each of the {rows} x {columns} pixels"
        raise ValueError(message(where, "pattern", rule, pattern))
    return rows, columns


def read_colors(image: Tensor) -> Tensor:
    """Colors [H, W, 3] in [0, 1], from colors in [0, 1] or bytes; a float tensor holds bytes if any value exceeds 2."""
    has_bytes = not image.is_floating_point() or bool((image > 2).any())
    return (image.double() / (255 if has_bytes else 1)).clamp(0, 1)


def _show_faded(axes: Axes, image: Tensor | None, rows: int, columns: int) -> None:
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), aspect="equal", xticks=[], yticks=[])
    if image is None:
        return
    image = image.detach().cpu()
    if image.dim() == 3:
        axes.imshow((0.5 + 0.5 * read_colors(image)).numpy(), interpolation="nearest")
    else:
        low, high = (float(end) for end in image.aminmax())
        # The darkest shade of the image is a light gray, so that dark shades are left for the weights.
        axes.imshow(
            image.numpy(), cmap="gray_r", vmin=low, vmax=low + 2.6 * ((high - low) or 1), interpolation="nearest"
        )


def _draw_squares(axes: Axes, place: Tensor, share: Tensor, is_negative: Tensor) -> None:
    from matplotlib.collections import PolyCollection

    half = (0.5 * 0.92 * share.sqrt()).clamp(min=0.05)
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    squares = place[:, None].double() + half[:, None, None] * corners
    faces = ["none" if negative else COLORS[0] for negative in is_negative.tolist()]
    edges = [COLORS[0] if negative else "white" for negative in is_negative.tolist()]
    axes.add_collection(
        PolyCollection(list(squares.numpy()), facecolors=faces, edgecolors=edges, linewidths=0.6, zorder=3)
    )

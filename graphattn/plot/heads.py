"""The same picture once per head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import check_int, message, shape_of
from ..patterns import EdgesLike, Pattern
from .matrices import write_weight
from .pixels import pixel_shape
from .style import read_pattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_heads(
    figure: Any,
    draw: Callable[..., Axes],
    pattern: Pattern | EdgesLike,
    weights: Tensor,
    *,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
    **options: Any,
) -> list[Axes]:
    """Draw a panel for each head: `draw(axes, pattern, weights[:, head], **options)`.

    Each panel has its own scale. Its title gives the end of the scale, the largest weight in size among the drawn
    edges, unless the options set the `strongest` weight.

    Args:
        figure: a Matplotlib figure or subfigure; best with layout="constrained".
        draw: `draw_weights`, `draw_arcs`, `draw_graph_weights`, `draw_pixel_weights`, or the like.
        pattern: a `Pattern`, or what `Edges` takes.
        weights: [E, H], in the order of the edges.
        columns: panels per row; about as many as rows if omitted.
        titles: a text per head; "head 0, up to .79" and so on if omitted.
        **options: passed to `draw`.

    Returns:
        The axes of the H panels.

    Raises:
        TypeError: figure is not a Matplotlib figure, or columns is not an integer.
        ValueError: weights aren't [E, H], there are more or fewer titles than heads, or columns is below 1.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from graphattn import Full
        >>> from graphattn.plot import draw_weights
        >>> panels = draw_heads(Figure(), draw_weights, Full(2), torch.full((4, 3), 0.5), names=["a", "saw"])
        >>> [axes.get_title() for axes in panels]
        ['head 0, up to .50', 'head 1, up to .50', 'head 2, up to .50']
    """
    if not hasattr(figure, "subplots"):
        fix = "Use plt.figure(): the panels are made here."
        raise TypeError(message("draw_heads", "figure", "must be a Matplotlib figure", type(figure).__name__, fix))
    pattern = read_pattern(pattern)
    if not isinstance(weights, Tensor) or weights.dim() != 2 or weights.size(0) != pattern.num_edges:
        got = shape_of(weights) if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(message("draw_heads", "weights", f"must be [{pattern.num_edges}, H], a row per edge", got))
    heads = weights.size(1)
    if titles is not None and len(titles) != heads:
        raise ValueError(message("draw_heads", "titles", f"must be {heads} texts, one per head", len(titles)))
    columns = math.ceil(math.sqrt(heads)) if columns is None else check_int("draw_heads", "columns", columns, 1)
    panels = list(figure.subplots(math.ceil(heads / columns), columns, squeeze=False).flat) if heads else []
    for axes in panels[heads:]:
        axes.remove()
    for head, axes in enumerate(panels[:heads]):
        draw(axes, pattern, weights[:, head], **options)
        title = f"head {head}{_end_of_scale(pattern, weights[:, head], options)}" if titles is None else titles[head]
        axes.set_title(title, fontsize=10)
    return panels[:heads]


def _end_of_scale(pattern: Pattern, weight: Tensor, options: dict[str, Any]) -> str:
    """The weight of the darkest edge of a panel; empty if all panels have one scale."""
    target = options.get("target")
    if "pixel" in options:
        row, column = options["pixel"]
        target = row * pixel_shape("draw_heads", pattern, options.get("image"))[1] + column
    drawn = weight if target is None else weight[pattern.edge_index[1] == target]
    if options.get("strongest") is not None or not drawn.numel():
        return ""
    return f", up to {write_weight(float(drawn[drawn.abs().argmax()]))}"

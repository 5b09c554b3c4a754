"""The same picture once per head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import check_int, message, shape_of
from .style import read_pattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_heads(
    figure: Any,
    draw: Callable[..., Axes],
    pattern: Any,
    weights: Tensor,
    *,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
    **options: Any,
) -> list[Axes]:
    """Draw a panel for each head: `draw(axes, pattern, weights[:, head], **options)`.

    Each panel has its own scale, unless the options say what the `strongest` weight is.

    Args:
        figure: a Matplotlib figure or subfigure; layout="constrained" becomes it.
        draw: `draw_weights`, `draw_arcs`, `draw_graph_weights`, `draw_pixel_weights`, or the like.
        pattern: a `Pattern`, or what `Edges` takes.
        weights: [E, H], in the order of the edges.
        columns: panels beside each other; about as many as rows where left out.
        titles: a text per head; "head 0" and so on where left out.
        **options: handed to `draw`.

    Returns:
        The axes of the H panels.

    Raises:
        TypeError: figure is none, or columns is not an integer.
        ValueError: weights aren't [E, H], there are more or fewer titles than heads, or columns is below 1.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from graphattn import Full
        >>> from graphattn.plot import draw_weights
        >>> panels = draw_heads(Figure(), draw_weights, Full(2), torch.full((4, 3), 0.5), names=["a", "saw"])
        >>> [axes.get_title() for axes in panels]
        ['head 0', 'head 1', 'head 2']
    """
    if not hasattr(figure, "subplots"):
        fix = "Use plt.figure(): the panels are made here."
        raise TypeError(message("draw_heads", "figure", "must be a Matplotlib figure", type(figure).__name__, fix))
    pattern = read_pattern(pattern)
    if not isinstance(weights, Tensor) or weights.dim() != 2 or weights.size(0) != pattern.num_edges:
        got = shape_of(weights) if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(message("draw_heads", "weights", f"must be [{pattern.num_edges}, H], a row per edge", got))
    heads = weights.size(1)
    titles = [f"head {head}" for head in range(heads)] if titles is None else titles
    if len(titles) != heads:
        raise ValueError(message("draw_heads", "titles", f"must be {heads} texts, one per head", len(titles)))
    columns = math.ceil(math.sqrt(heads)) if columns is None else check_int("draw_heads", "columns", columns, 1)
    panels = list(figure.subplots(math.ceil(heads / columns), columns, squeeze=False).flat) if heads else []
    for axes in panels[heads:]:
        axes.remove()
    for head, (axes, title) in enumerate(zip(panels, titles, strict=False)):
        draw(axes, pattern, weights[:, head], **options).set_title(title, fontsize=10)
    return panels[:heads]

"""One head's weights on a graph, as arrows from sources to targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import check_choice, message, shape_of
from ..patterns import EdgesLike, Pattern
from .style import (
    MARK,
    color_of,
    frame,
    points_per_unit,
    read_label,
    read_names,
    read_node,
    read_square,
    read_weight,
    shade,
    shares,
    strongest_of,
    text_color,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAYOUTS = ("spring", "kamada_kawai", "spectral", "circular")


def layout(pattern: Pattern | EdgesLike, name: str = "spring", seed: int = 0) -> Tensor:
    """Compute a position for every node by one of networkx's layouts.

    Args:
        pattern: a `Pattern`, or what `Edges` takes, of as many sources as targets; directions don't matter.
        name: "spring", "kamada_kawai" (the clearest up to some hundred nodes), "spectral" or "circular".
        seed: of the spring layout's start.

    Returns:
        [N, 2] float64 that fill the unit square along the longer side, and are centered along the other.

    Raises:
        ValueError: no layout has this name, or sources and targets aren't the same nodes.

    Example:
        >>> layout(torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]), "circular")
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000],
                [0.0000, 0.5000],
                [0.5000, 0.0000]], dtype=torch.float64)

    References:
        Fruchterman and Reingold, 1991 (spring); Kamada and Kawai, 1989.
    """
    import networkx

    check_choice("layout", "name", name, LAYOUTS)
    pattern = read_square("layout", pattern)
    graph = networkx.Graph()
    graph.add_nodes_from(range(pattern.num_targets))
    graph.add_edges_from(pair for pair in pattern.edge_index.t().tolist() if pair[0] != pair[1])
    options = {"seed": seed} if name == "spring" else {}
    place = getattr(networkx, f"{name}_layout")(graph, **options)
    listed = [list(map(float, place[node])) for node in range(pattern.num_targets)]
    return _spread(fit_square(torch.tensor(listed, dtype=torch.float64).view(-1, 2)))


def fit_square(position: Tensor) -> Tensor:
    """Move and scale positions [N, 2] to fill the unit square along the longer side, undistorted."""
    if not len(position):
        return position
    low, high = position.aminmax(dim=0)
    extent = float((high - low).max()) or 1.0
    return ((position - (low + high) / 2) / extent + 0.5).round(decimals=9) + 0.0


def _spread(place: Tensor) -> Tensor:
    """Push nodes apart that are closer to each other than a fraction of their mean distance."""
    apart = 0.45 / max(len(place), 1) ** 0.5
    for _ in range(100 if 0 < len(place) <= 3000 else 0):
        between = place[:, None] - place
        distance = between.norm(dim=2).fill_diagonal_(torch.inf)
        push = (apart - distance).clamp(min=0) / 2
        if float(push.max()) < 0.02 * apart:
            break
        place = place + (between / distance.clamp(min=1e-9)[..., None] * push[..., None]).sum(1)
    return fit_square(place)


def draw_graph_weights(
    axes: Axes,
    pattern: Pattern | EdgesLike,
    weight: Tensor,
    *,
    target: int | None = None,
    position: Tensor | str = "kamada_kawai",
    names: Sequence[str] | None = None,
    label: Tensor | None = None,
    label_names: Sequence[str] | None = None,
    strongest: float | None = None,
) -> Axes:
    """Draw attention on a graph: arrows from sources to the targets that attend to them, thicker and darker for larger
    weights.

    The ring of a node is its edge to itself. Arrows of both directions are drawn side by side. Hollow arrows are
    negative weights. Uniform weights all have the full thickness. Edges that aren't drawn, and weights of 0, are thin
    lines.

    Args:
        axes: Matplotlib axes to draw into.
        pattern: a `Pattern`, or what `Edges` takes, of as many sources as targets.
        weight: [E] finite, in the order of the edges: `weights[:, head]`.
        target: draw only the edges into this node, which is marked; all if omitted.
        position: [N, 2] coordinates, or the name of a `layout`.
        names: a text per node, inside the nodes if none has more than three letters, else on the outer side, above or
            below.
        label: [N] integers; the color of each node, in turn from `COLORS`. The target's rim is marked then.
        label_names: a text for each label from 0 on, in a legend below the graph.
        strongest: the weight drawn thickest; the largest of the drawn ones if omitted.

    Returns:
        `axes`.

    Raises:
        TypeError: weight is not a tensor, or label not a tensor of integers.
        ValueError: sources and targets aren't the same nodes; weight, position, names, label or target don't fit the
            pattern; a label has no name; strongest isn't above 0.

    Example:
        >>> from matplotlib.figure import Figure
        >>> star = torch.tensor([[1, 2, 3], [0, 0, 0]])
        >>> axes = draw_graph_weights(Figure().subplots(), star, torch.tensor([0.5, 0.3, 0.2]), position="circular")
        >>> lines, arrows, rings, nodes = axes.collections
        >>> len(arrows.get_paths()), len(nodes.get_offsets())
        (3, 4)
    """
    pattern = read_square("draw_graph_weights", pattern)
    weight = read_weight("draw_graph_weights", pattern, weight)
    texts = read_names("draw_graph_weights", "names", names, pattern.num_targets)
    place = read_position("draw_graph_weights", pattern, position)
    labels = None if label is None else read_label("draw_graph_weights", label, pattern.num_targets, label_names)
    edge_index = pattern.edge_index
    if target is not None:
        into = edge_index[1] == read_node("draw_graph_weights", "target", target, pattern.num_targets)
        others, edge_index, weight = edge_index[:, ~into], edge_index[:, into], weight[into]
    else:
        others = edge_index[:, weight == 0]
    add_faint(axes, place, others)
    share = shares(weight, strongest_of("draw_graph_weights", strongest))
    order = share.argsort(stable=True)
    edge_index, weight, share = edge_index[:, order], weight[order], share[order]

    radius = node_radius(place)
    set_up(axes, place, radius, 2.2 if texts is None or _fit_inside(texts) else 3.4)
    is_loop = edge_index[0] == edge_index[1]
    is_arrow = ~is_loop & (share > 0)
    add_arrows(axes, place, edge_index[:, is_arrow], weight[is_arrow] < 0, share[is_arrow], radius)
    _add_rings(axes, place[edge_index[1, is_loop]], share[is_loop], radius)
    fills = ["white"] * pattern.num_targets if labels is None else [color_of(x) for x in labels]
    if target is not None and labels is None:
        fills[target] = MARK
    draw_nodes(axes, place, radius, fills, texts, marked=None if labels is None else target)
    if labels is not None and label_names is not None:
        _add_legend(axes, sorted(set(labels)), label_names)
    return axes


def _add_legend(axes: Axes, labels: Sequence[int], names: Sequence[str]) -> None:
    """Discs in the colors of the labels, and their names, below the axes."""
    from matplotlib.lines import Line2D

    disc: dict[str, Any] = {"marker": "o", "linestyle": "", "markeredgecolor": "#333333", "markeredgewidth": 0.8}
    handles = [Line2D([], [], markerfacecolor=color_of(x), label=str(names[x]), **disc) for x in labels]
    columns = min(len(labels), 4)
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=columns, frameon=False, fontsize=9)


def add_arrows(axes: Axes, place: Tensor, edge_index: Tensor, hollow: Tensor, share: Tensor, radius: float) -> None:
    """Arrows in the shades of their weights; hollow ones have a rim of that shade, others a white one."""
    from matplotlib.collections import PolyCollection

    colors = _shades(share)
    # White rims separate arrows that cross.
    faces = ["white" if is_hollow else color for is_hollow, color in zip(hollow.tolist(), colors, strict=True)]
    rims = [color if is_hollow else "white" for is_hollow, color in zip(hollow.tolist(), colors, strict=True)]
    polygons = _arrows(place, edge_index, share, radius)
    arrows = PolyCollection(polygons, facecolors=faces, edgecolors=rims, linewidths=0.4, zorder=2)
    axes.add_collection(arrows, autolim=False)


def _add_rings(axes: Axes, place: Tensor, share: Tensor, radius: float) -> None:
    """Rings around nodes at these positions, whose inner parts are hidden below the nodes."""
    from matplotlib.collections import EllipseCollection

    size = (2 * radius * (1.08 + 0.3 * share)).numpy()
    where: dict[str, Any] = {"units": "xy", "offsets": place.numpy(), "offset_transform": axes.transData}
    rings = EllipseCollection(size, size, 0 * size, facecolors=_shades(share), zorder=2.5, **where)
    axes.add_collection(rings, autolim=False)


def _shades(share: Tensor) -> list[tuple[float, float, float]]:
    return [shade(0.25 + 0.75 * part) for part in share.tolist()]


def set_up(axes: Axes, place: Tensor, radius: float, margin: float = 2.2) -> None:
    """Limits around all nodes, with a margin of this many radii, undistorted, without a frame."""
    low, high = (place.min(0).values, place.max(0).values) if len(place) else (torch.zeros(2), torch.ones(2))
    (left, bottom), (right, top) = (low - margin * radius).tolist(), (high + margin * radius).tolist()
    frame(axes, left, right, bottom, top)


def node_radius(place: Tensor) -> float:
    """A radius at which few nodes overlap, for positions in the unit square."""
    if len(place) < 2:
        return 0.04
    apart = torch.cdist(place, place).fill_diagonal_(torch.inf).min(1).values
    return min(max(0.36 * float(apart.quantile(0.02)), 0.006), 0.03)


def _fit_inside(texts: Sequence[str]) -> bool:
    return max(map(len, texts), default=0) <= 3


def draw_nodes(
    axes: Axes,
    place: Tensor,
    radius: float,
    fills: Sequence[Any],
    texts: Sequence[str] | None,
    *,
    marked: int | None = None,
) -> None:
    """Discs, the rim of one of them marked.

    Texts are inside the discs if none has more than three letters, else above or below, away from the center.
    """
    from matplotlib import patheffects
    from matplotlib.collections import EllipseCollection
    from matplotlib.colors import to_rgb

    size = torch.full((len(place),), 2 * radius).numpy()
    discs = EllipseCollection(
        size,
        size,
        torch.zeros(len(place)).numpy(),
        units="xy",
        offsets=place.numpy(),
        offset_transform=axes.transData,
        facecolors=list(fills),
        edgecolors=[MARK if node == marked else "#333333" for node in range(len(place))],
        linewidths=[2.5 if node == marked else 0.8 for node in range(len(place))],
        zorder=3,
    )
    axes.add_collection(discs, autolim=False)
    if texts is None:
        return
    points = radius * points_per_unit(axes)
    inside = _fit_inside(texts)
    size_of_text = min(max(1.2 * points, 4.0), 11.0) if inside else 8.0
    outline = [] if inside else [patheffects.withStroke(linewidth=2.5, foreground="white")]
    middle = sum(axes.get_ylim()) / 2
    for (x, y), text, fill in zip(place.tolist(), texts, fills, strict=True):
        side = 1 if y > middle + 0.5 * radius else -1
        red, green, blue = to_rgb(fill)
        color = text_color(1 - (0.3 * red + 0.59 * green + 0.11 * blue)) if inside else "black"
        axes.text(
            x,
            y if inside else y + 1.5 * side * radius,
            text,
            fontsize=size_of_text,
            ha="center",
            va="center_baseline" if inside else "bottom" if side > 0 else "top",
            color=color,
            path_effects=outline,
            zorder=4,
            parse_math=False,
        )


def read_position(where: str, pattern: Pattern, position: Tensor | str) -> Tensor:
    """[N, 2] float64 in the unit square, from coordinates or the name of a layout."""
    if isinstance(position, str):
        check_choice(where, "position", position, LAYOUTS)
        return layout(pattern, position)
    place = torch.as_tensor(position).detach().to("cpu", torch.float64)
    if place.shape != (pattern.num_targets, 2):
        rule = f"must have shape [{pattern.num_targets}, 2] or be the name of a layout"
        raise ValueError(message(where, "position", rule, shape_of(place)))
    if not bool(place.isfinite().all()):
        raise ValueError(message(where, "position", "must be finite"))
    return fit_square(place)


def add_faint(axes: Axes, place: Tensor, edge_index: Tensor) -> None:
    """Thin lines between all pairs with an edge in either direction."""
    from matplotlib.collections import LineCollection

    pairs = torch.stack([edge_index.amin(0), edge_index.amax(0)]).unique(dim=1)
    segments = list(place[pairs[:, pairs[0] != pairs[1]].t()].numpy())
    axes.add_collection(LineCollection(segments, colors="#bbbbbb", linewidths=0.5, zorder=1), autolim=False)


def _arrows(place: Tensor, edge_index: Tensor, share: Tensor, radius: float) -> Any:
    """Arrows as polygons of seven corners, [E, 7, 2], from the rim of the source to that of the target."""
    source, target = edge_index
    along = place[target] - place[source]
    distance = along.norm(dim=1, keepdim=True).clamp(min=1e-9)
    along = along / distance
    across = torch.stack([-along[:, 1], along[:, 0]], 1)
    # More arrows are thinner.
    thickest = min(max(2.5 / max(len(share), 1) ** 0.5, 0.08), 0.3)
    half = (radius * (0.04 + thickest * share))[:, None]
    edges = edge_index.t().tolist()
    drawn = {(j, i) for j, i in edges}
    is_mutual = torch.tensor([(i, j) in drawn for j, i in edges])
    # Arrows in both directions between two nodes each keep to the right.
    aside = -0.45 * radius * is_mutual.to(place.dtype).view(-1, 1) * across
    begin = place[source] + aside + radius * along
    end = place[target] + aside + 1.02 * radius * along * -1
    head_half = (1.6 * half + 0.12 * radius).clamp(max=0.7 * radius)
    head = torch.minimum(2.2 * head_half, 0.6 * (distance - 2 * radius).clamp(min=0.1 * radius))
    neck = end - head * along
    corners = [
        begin + half * across,
        neck + half * across,
        neck + head_half * across,
        end,
        neck - head_half * across,
        neck - half * across,
        begin - half * across,
    ]
    return torch.stack(corners, 1).numpy()

"""What the pictures share: colors, shades of a weight, and the checks of their arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import check_int, message, shape_of
from ..patterns import Edges, EdgesLike, Pattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Paul Tol's "muted" scheme, which color-blind readers can distinguish; names next to the nodes repeat the information.
COLORS = (
    "#332288",
    "#88CCEE",
    "#117733",
    "#DDCC77",
    "#CC6677",
    "#44AA99",
    "#882255",
    "#999933",
    "#AA4499",
    "#666666",
)

# From no weight to the largest: each shade is darker than the last, so that a gray print shows the same.
SHADES = ("#efedf8", "#b9b1de", "#7566b8", "#332288", "#160c45")
# The target node; it contrasts with all shades of weights.
MARK = "#d1495b"


def shade(share: float) -> tuple[float, float, float]:
    """Color of a weight, given as a fraction of the largest, 0 to 1."""
    place = min(max(share, 0.0), 1.0) * (len(SHADES) - 1)
    below = min(int(place), len(SHADES) - 2)
    low, high = (
        [int(SHADES[index][start : start + 2], 16) / 255 for start in (1, 3, 5)] for index in (below, below + 1)
    )
    red, green, blue = (a + (place - below) * (b - a) for a, b in zip(low, high, strict=True))
    return red, green, blue


def text_color(share: float) -> str:
    """Black or white, whichever is readable on the shade."""
    return "white" if share > 0.4 else "black"


def colormap() -> Any:
    """The shades as a Matplotlib colormap; what is NaN stays transparent."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("weights", SHADES).with_extremes(bad=(0, 0, 0, 0))


def read_pattern(pattern: Pattern | EdgesLike) -> Pattern:
    """A pattern unchanged, or the edges of anything that `Edges` takes; on the CPU."""
    return (pattern if isinstance(pattern, Pattern) else Edges(pattern)).to("cpu")


def read_square(where: str, pattern: Pattern | EdgesLike) -> Pattern:
    """The pattern of a drawing; raises unless sources and targets are the same nodes."""
    pattern = read_pattern(pattern)
    if pattern.num_sources != pattern.num_targets:
        got = f"{pattern.num_sources} sources and {pattern.num_targets} targets"
        raise ValueError(message(where, "pattern", "must have as many sources as targets", got))
    return pattern


def read_weight(where: str, pattern: Pattern, weight: Any) -> Tensor:
    """One head's weights in the order of the pattern's edges, [E] float64 on the CPU; raises if they don't fit."""
    if not isinstance(weight, Tensor):
        raise TypeError(message(where, "weight", "must be a tensor", type(weight).__name__))
    if weight.shape != (pattern.num_edges,):
        fix = "Use weight[:, head] for one head." if weight.dim() == 2 else ""
        rule = f"must have shape [{pattern.num_edges}], one number per edge"
        raise ValueError(message(where, "weight", rule, shape_of(weight), fix))
    weight = weight.detach().to("cpu", torch.float64)
    if not bool(weight.isfinite().all()):
        raise ValueError(message(where, "weight", "must be finite", float(weight[~weight.isfinite()][0])))
    return weight


def read_names(where: str, argument: str, names: Sequence[str] | None, number: int) -> list[str] | None:
    """A text per node, or None."""
    if names is None:
        return None
    if isinstance(names, str) or len(names) != number:
        got = repr(names) if isinstance(names, str) else len(names)
        raise ValueError(message(where, argument, f"must be {number} texts, one per node", got))
    return [str(name) for name in names]


def read_label(
    where: str, label: Any, number: int, names: Sequence[str] | None, names_are: str = "label_names", fix: str = ""
) -> list[int]:
    """The class of each node, an integer, checked against the texts that name classes from 0 on."""
    if not isinstance(label, Tensor):
        raise TypeError(message(where, "label", "must be a tensor", type(label).__name__))
    if label.is_floating_point():
        raise TypeError(message(where, "label", "must be integers", label.dtype, "Use label.long()."))
    if label.shape != (number,):
        raise ValueError(message(where, "label", f"must have shape [{number}]", shape_of(label), fix))
    labels: list[int] = label.tolist()
    unnamed = [] if names is None else [x for x in labels if not 0 <= x < len(names)]
    if names is not None and unnamed:
        rule = f"must lie in [0, {len(names)}) because there are {len(names)} {names_are}"
        raise ValueError(message(where, "label", rule, unnamed[0]))
    return labels


def color_of(label: int) -> str:
    """The color of a class, in turn from `COLORS`."""
    return COLORS[label % len(COLORS)]


def read_node(where: str, argument: str, node: Any, number: int, of: str = "nodes") -> int:
    """Check and return the index of a node, or of a row of nodes."""
    node = check_int(where, argument, node, 0)
    if node >= number:
        raise ValueError(message(where, argument, f"must be less than the number of {of}, {number}", node))
    return node


def shares(weight: Tensor, strongest: float | None) -> Tensor:
    """Each weight's size as a fraction of the largest, 0 to 1: [E]. Uniform weights are all 1."""
    largest = float(weight.abs().max()) if strongest is None and weight.numel() else strongest
    return (weight.abs() / largest).clamp(max=1.0) if largest else torch.zeros_like(weight)


def strongest_of(where: str, strongest: float | None) -> float | None:
    """Check the weight that is drawn darkest."""
    if strongest is not None and not (math.isfinite(strongest) and strongest > 0):
        raise ValueError(message(where, "strongest", "must be finite and more than 0", strongest))
    return strongest


def frame(axes: Axes, left: float, right: float, bottom: float, top: float) -> None:
    """Undistorted, without a box; extra width of the panel becomes margin, so that titles stay aligned."""
    axes.update_datalim([(left, bottom), (right, top)])
    axes.set_xlim(left, right, auto=True)
    axes.set_ylim(bottom, top, auto=True)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_axis_off()


def points_per_unit(axes: Axes) -> float:
    """The approximate length of one unit of the axes in points, which says what text fits into a cell."""
    box = axes.get_window_extent()
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    pixels = min(box.width / abs(right - left), box.height / abs(top - bottom))
    return pixels * 72 / axes.figure.dpi

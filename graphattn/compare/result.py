"""The result of a comparison of sparse with dense attention, as a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..errors import message
from ..memory import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Names of the sides of a row in tables and messages.
NAMES = {"sparse": "sparse", "masked": "SDPA", "dense": "dense oracle"}
# Okabe and Ito's colors, which color-blind readers can tell apart; markers and dashes do the same in gray.
LINES: dict[str, dict[str, Any]] = {
    "sparse": {"color": "#0072B2", "marker": "o", "linestyle": "-", "label": "sparse: attention()"},
    "masked": {"color": "#009E73", "marker": "^", "linestyle": ":", "label": "SDPA with the mask"},
    "dense": {"color": "#D55E00", "marker": "s", "linestyle": "--", "label": "dense oracle, for verification"},
}


class Cost(NamedTuple):
    """The cost of one forward and backward: seconds, and bytes at the peak, None if they can't be measured."""

    seconds: float
    memory: int | None


@dataclass(frozen=True)
class Row:
    """One size of a comparison.

    Attributes:
        size: the argument of `make_pattern`.
        targets: T of its pattern, N in table and picture.
        edges: E.
        sparse: cost of `attention` in float32.
        dense: cost of the oracle, `dense_attention`, in float32; None if it was skipped. masked: cost of
            `scaled_dot_product_attention` with the pattern as its mask; None if it was skipped or computes something
            else.
        estimates: bytes that "dense" should take in float64, and "masked" in float32 if it computes the same.
        errors: by dtype of the sparse side, the largest error of "out" and of the gradient of "query", "key" and
            "value" (and "score.vector", for an `Additive` score); empty where the oracle was skipped.
    """

    size: int
    targets: int
    edges: int
    sparse: Cost
    dense: Cost | None
    masked: Cost | None
    estimates: dict[str, int]
    errors: dict[torch.dtype, dict[str, float]]


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of `compare`. Printing it shows the table; `plot` draws the picture.

    Attributes:
        name: of the pattern.
        setting: the rest of the call, in words.
        rows: one per size, smallest first.
        memory_limit: bytes above which dense sides were skipped.
    """

    name: str
    setting: str
    rows: tuple[Row, ...]
    memory_limit: int

    @property
    def sides(self) -> tuple[str, ...]:
        """The compared sides: "sparse", "dense", and "masked" in between if SDPA computes the same."""
        has_masked = any("masked" in row.estimates for row in self.rows)
        return ("sparse", "masked", "dense") if has_masked else ("sparse", "dense")

    def skipped(self, side: str) -> tuple[Row, ...]:
        """The rows at which a dense side was too large."""
        return tuple(row for row in self.rows if side in row.estimates and getattr(row, side) is None)

    def largest_error(self, dtype: torch.dtype = torch.float32) -> float | None:
        """Largest error of the output and all gradients over all sizes; None if the oracle never ran."""
        errors = [error for row in self.rows for error in row.errors.get(dtype, {}).values()]
        # torch's max propagates a NaN, Python's may not.
        return float(torch.tensor(errors, dtype=torch.float64).max()) if errors else None

    def plot(self, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
        """Draw time and peak memory over N, both logarithmic.

        Args:
            axes: two matplotlib axes; those of a new figure with a title if omitted.

        Returns:
            The two axes: `axes[0].figure.savefig("compare.png")` saves the picture.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return _plot(self, axes)

    def __repr__(self) -> str:
        return _write_table(self)


def _write_table(comparison: Comparison) -> str:
    lines = [f"{comparison.name}: {comparison.setting}", "", *_align(_cost_cells(comparison)), ""]
    if "masked" in comparison.sides:
        lines.append("SDPA: scaled_dot_product_attention() with the pattern as its mask")
    lines.append("dense oracle, for verification: dense_attention()")
    lines += [f"skipped: {stop}" for stop in _explain_stops(comparison)]
    compared = [row for row in comparison.rows if row.errors]
    if compared:
        rule = "Largest error of the output and of each gradient, relative to the oracle's largest magnitude in float64"
        lines += ["", rule, *_align(_error_cells(compared))]
    return "\n".join(lines)


def _cost_cells(comparison: Comparison) -> list[list[str]]:
    sides = comparison.sides
    names = [NAMES[side] for side in sides] + [f"{NAMES[sides[1]]}/"]
    cells = [["", "", *names, *names], ["N", "E", *["time"] * len(sides), "sparse", *["memory"] * len(sides), "sparse"]]
    for row in comparison.rows:
        line = [f"{row.targets:,}", f"{row.edges:,}"]
        for column, write in enumerate((_write_seconds, _write_memory)):
            line += [
                "skipped" if row in comparison.skipped(side) else write(_cost(row, side, column)) for side in sides
            ]
            ratio = _ratio(row, sides[1], column)
            line.append("-" if ratio is None else f"{ratio:.3g}")
        cells.append(line)
    return cells


def _cost(row: Row, side: str, column: int) -> float | None:
    """Seconds (column 0) or bytes (column 1) of a side."""
    cost = getattr(row, side)
    return None if cost is None else cost[column]


def _ratio(row: Row, side: str, column: int) -> float | None:
    ours, theirs = _cost(row, "sparse", column), _cost(row, side, column)
    return theirs / ours if ours and theirs else None


def _error_cells(rows: Sequence[Row]) -> list[list[str]]:
    names = list(rows[0].errors[torch.float64])
    cells = [["", *["float64"] * len(names), *["float32"] * len(names)], ["N", *names, *names]]
    for row in rows:
        found = [error for dtype in (torch.float64, torch.float32) for error in row.errors[dtype].values()]
        cells.append([f"{row.targets:,}", *(f"{error:.1e}" for error in found)])
    return cells


def _align(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _write_seconds(seconds: float | None) -> str:
    if seconds is None:
        return "not measured"
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def _write_memory(count: float | None) -> str:
    return "not measured" if count is None else format_bytes(count)


def _explain_stops(comparison: Comparison) -> list[str]:
    """A sentence for each dense side that was skipped."""
    sentences = []
    for side in comparison.sides[1:]:
        for first in comparison.skipped(side)[:1]:
            need, limit = (format_bytes(x) for x in (first.estimates[side], comparison.memory_limit))
            stop = f"{NAMES[side]} stops before N = {first.targets:,}, where it needs about {need}"
            sentences.append(f"{stop}{' in float64' if side == 'dense' else ''}. The limit is {limit}.")
    return sentences


def _plot(comparison: Comparison, axes: Sequence[Axes] | None) -> Sequence[Axes]:
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator
    except ImportError as error:
        fix = "Use pip install 'graphattn[plot]'"
        raise ImportError(message("plot", "matplotlib", "must be installed", fix=fix)) from error
    if axes is None:
        figure = Figure(figsize=(11, 5.2), dpi=150, layout="constrained")
        axes = figure.subplots(1, 2)
        worst = comparison.largest_error()
        accuracy = "errors not compared" if worst is None else f"largest error {worst:.1e}"
        # The blank lines leave room for the second, lighter line of the title.
        figure.suptitle(f"Sparse and dense attention, forward + backward: {comparison.name}\n\n", weight="bold")
        figure.text(0.5, 0.935, f"{comparison.setting}; {accuracy}", ha="center", va="top", color="0.3")
    panels = (
        ("Time", LogLocator(subs=(1, 3)), EngFormatter(unit="s")),
        ("Peak memory", LogLocator(base=4), FuncFormatter(lambda count, _: format_bytes(count))),
    )
    for column, (axis, (title, locator, formatter)) in enumerate(zip(axes, panels, strict=True)):
        axis.set(xlabel="N", xscale="log", yscale="log")
        axis.set_title(title + _ratio_of_last(comparison, column), loc="left")
        _label_sizes(axis, sorted({row.targets for row in comparison.rows if row.targets > 0}))
        _draw_lines(comparison, column, axis)
        axis.yaxis.set_major_locator(locator)
        axis.yaxis.set_major_formatter(formatter)
        axis.minorticks_off()
        axis.grid(color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="upper left", frameon=False)
    return axes


def _ratio_of_last(comparison: Comparison, column: int) -> str:
    """The cost of the first dense side compared with sparse at the largest size that has both, in words."""
    side = comparison.sides[1]
    for row in reversed(comparison.rows):
        ratio = _ratio(row, side, column)
        if ratio is not None:
            return f": {NAMES[side]} / sparse = {ratio:.3g} at N = {row.targets:,}"
    return ""


def _label_sizes(axis: Axes, sizes: list[int]) -> None:
    """Put a tick at each size unless its label would overlap the one before."""
    ticks: list[int] = []
    for size in sizes:
        if not ticks or size >= ticks[-1] * (sizes[-1] / sizes[0]) ** 0.1:
            ticks.append(size)
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    if sizes:
        axis.set_xlim(sizes[0] / 1.2, sizes[-1] * 1.2)


def _draw_lines(comparison: Comparison, column: int, axis: Axes) -> None:
    drawn: list[float] = []
    for side in comparison.sides:
        measured = {row.targets: cost for row in comparison.rows if (cost := _cost(row, side, column))}
        sizes, costs = list(measured), list(measured.values())
        axis.plot(sizes, costs, **LINES[side])
        drawn += costs
        if comparison.skipped(side):
            axis.plot(sizes[-1:], costs[-1:], marker="X", markersize=11, color=LINES[side]["color"])
    # The lines rise, so that the legend fits above them on the left and a note below them on the right.
    if drawn:
        axis.set_ylim(min(drawn) / 5, max(drawn) * 5)
    else:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center")
    stops = _explain_stops(comparison)
    if stops:
        note = "\n".join(stops).replace(", where", ",\nwhere")
        axis.text(0.98, 0.02, note, transform=axis.transAxes, ha="right", va="bottom", color="0.3", fontsize=9)

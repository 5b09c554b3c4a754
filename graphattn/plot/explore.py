"""A page that shows attention interactively: one HTML file without a server or a network."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import check_choice, message, shape_of
from ..patterns import EdgesLike, Full, Grid, Pattern, Window
from ..patterns.box import Box
from .arrows import read_position
from .pixels import pixel_shape, read_colors
from .style import SHADES, color_of, read_label, read_names, read_pattern

LAYOUTS = ("words", "pixels", "nodes")
# On a dark page more weight is lighter.
DARK_SHADES = ("#2a2638", "#4a4190", "#8f83d6", "#c9c2f2", "#ffffff")
TEMPLATE = Path(__file__).with_name("explore.html")


def explore(
    path: str | Path,
    pattern: Pattern | EdgesLike,
    weights: Tensor | Sequence[Tensor],
    *,
    names: Sequence[str] | tuple[Sequence[str], Sequence[str]] | None = None,
    position: Tensor | str = "spring",
    image: Tensor | None = None,
    label: Tensor | None = None,
    label_names: Sequence[str] | None = None,
    layout: str | None = None,
    layer_names: Sequence[str] | None = None,
    title: str = "Whom does it attend to?",
) -> Path:
    """Write one HTML page: click a word, a pixel or a node, choose layer and head, and see whom it attends to.

    The page needs no server and no network. It lists the strongest sources with their weights and what all weights
    add up to. Keys: arrows move, digits choose a head, m is the mean of the heads, h and l go to the next head and
    layer (with shift to the previous one). Its address stores the selection. Negative weights are striped, dashed or
    hollow. It is fast up to a thousand nodes, and follows the dark mode of the reader's system.

    Args:
        path: where to write it.
        pattern: a `Pattern`, or what `Edges` takes. If sources aren't the targets, both are lines of words.
        weights: [E, H] finite, or a list of them, one per layer, in the order of the edges, as
            `return_attention_weights` gives them; [E] is one head. Heads may differ from layer to layer.
        names: a text per node, or a pair of lists, for sources and targets; the numbers if omitted.
        position: [N, 2] coordinates of a graph's nodes, y upward, or the name of a `layout`.
        image: [H, W], drawn dark where large, or [H, W, 3] of colors in [0, 1] or [0, 255], below the
            pixels.
        label: [N] integers, if sources are the targets; the class of each node, drawn in its color, in turn from
            `COLORS`. The page then says how much weight goes to each class.
        label_names: a text for each label from 0 on; the numbers if omitted.
        layout: "words" in lines, "pixels" in an array or "nodes" with edges between them. If omitted, sequences
            (`Full`, `Window`) are words, a `Grid` or an image is pixels, and everything else is nodes.
        layer_names: a text per layer; "layer 0" and so on if omitted.
        title: of the page.

    Returns:
        The path written to.

    Raises:
        TypeError: weights are neither a tensor nor a list of tensors, or label is not a tensor of integers.
        ValueError: weights aren't [E, H] or aren't finite; names, image, position, label or layer_names don't fit the
            pattern; a label has no name; the layout is unknown, or can't show this pattern.

    Numerics:
        Weights are stored with 16 bits, as steps of 1/65,535 of the range of their layer and head: for weights in [0,
        1] the error is at most 7.7e-6.

    Example:
        >>> from tempfile import mkdtemp
        >>> from graphattn import Full
        >>> weights = torch.full((16, 2), 0.25)
        >>> page = explore(Path(mkdtemp()) / "page.html", Full(4), weights, names="I saw a saw".split())
        >>> "saw" in page.read_text(), "src=" in page.read_text()
        (True, False)

    References:
        Vig, "A Multiscale Visualization of Attention in the Transformer Model", 2019, for similar views of sentences.
    """
    pattern = read_pattern(pattern)
    image = None if image is None else torch.as_tensor(image)
    layers = _read_layers(pattern, weights)
    is_square = pattern.num_sources == pattern.num_targets and not _is_pair(names)
    kind = _choose_layout(pattern, image, layout, is_square)
    if layer_names is not None and len(layer_names) != len(layers):
        rule = f"must be {len(layers)} texts, one per layer"
        raise ValueError(message("explore", "layer_names", rule, len(layer_names)))
    ptr, index, perm = pattern.csr()
    data: dict[str, Any] = {
        "title": title,
        "pattern": repr(pattern),
        "kind": kind,
        "square": is_square,
        "sources": pattern.num_sources,
        "targets": pattern.num_targets,
        "layers": [f"layer {place}" for place in range(len(layers))] if layer_names is None else list(layer_names),
        "ptr": _encode(ptr, torch.int32),
        "index": _encode(index, torch.int32),
        "weights": [_encode_weights(layer if perm is None else layer[perm.long()]) for layer in layers],
        "shades": [SHADES, DARK_SHADES],
        **_name_nodes(pattern, names, is_square),
        **_classify(pattern, label, label_names, is_square),
        **_place(kind, pattern, position, image),
    }
    # Nothing inside a script element may look like markup.
    embedded = json.dumps(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    parts = {"TITLE": html.escape(title), "DATA": embedded}
    path = Path(path)
    page = re.sub(r"\{\{(TITLE|DATA)\}\}", lambda found: parts[found[1]], TEMPLATE.read_text(encoding="utf-8"))
    path.write_text(page, encoding="utf-8")
    return path


def _read_layers(pattern: Pattern, weights: Any) -> list[Tensor]:
    """[E, H] float64 per layer, checked."""
    layers = [weights] if isinstance(weights, Tensor) else list(weights) if isinstance(weights, list | tuple) else []
    if not layers or not all(isinstance(layer, Tensor) for layer in layers):
        got = type(weights).__name__ if not layers else sorted({type(layer).__name__ for layer in layers})
        fix = "Of the pairs that a stack returns, use [weights for _, weights in pairs]." if "tuple" in got else ""
        rule = "must be a tensor [E, H] or a list of them, one per layer"
        raise TypeError(message("explore", "weights", rule, got, fix))
    read = []
    for place, layer in enumerate(layers):
        layer = layer[:, None] if layer.dim() == 1 else layer
        if layer.dim() != 2 or layer.size(0) != pattern.num_edges or layer.size(1) == 0:
            rule = f"must have shape [{pattern.num_edges}, H], a row per edge"
            raise ValueError(message("explore", f"weights of layer {place}", rule, shape_of(layer)))
        layer = layer.detach().to("cpu", torch.float64)
        if not bool(layer.isfinite().all()):
            bad = float(layer[~layer.isfinite()][0])
            raise ValueError(message("explore", f"weights of layer {place}", "must be finite", bad))
        read.append(layer)
    return read


def _is_pair(names: Any) -> bool:
    return isinstance(names, tuple) and len(names) == 2 and not any(isinstance(side, str) for side in names)


def _choose_layout(pattern: Pattern, image: Tensor | None, layout: str | None, is_square: bool) -> str:
    if layout is not None:
        check_choice("explore", "layout", layout, LAYOUTS)
        if layout != "words" and not is_square:
            got = f"{pattern.num_sources} sources and {pattern.num_targets} targets"
            rule = f"must be 'words' unless sources and targets are the same, {got}"
            raise ValueError(message("explore", "layout", rule, repr(layout)))
        return layout
    if not is_square or (isinstance(pattern, Full | Window) and image is None):
        return "words"
    return "pixels" if image is not None or isinstance(pattern, Grid) else "nodes"


def _encode(values: Tensor, dtype: torch.dtype) -> str:
    """Little-endian bytes in base64."""
    array = values.to(dtype).contiguous().numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode("ascii")


def _encode_weights(layer: Tensor) -> dict[str, Any]:
    """Per head: the smallest weight, the step, and the number of steps from the smallest to each weight."""
    low, high = (layer.amin(0), layer.amax(0)) if len(layer) else (layer.new_zeros(layer.size(1)),) * 2
    step = (high - low) / 65535
    steps = ((layer - low) / torch.where(step > 0, step, 1)).round()
    # Heads are stored one after the other. Not every torch has an unsigned type; the bits are the same in the signed
    # one.
    bits = torch.where(steps > 32767, steps - 65536, steps)
    return {"low": low.tolist(), "step": step.tolist(), "steps": _encode(bits.t(), torch.int16)}


def _name_nodes(pattern: Pattern, names: Any, is_square: bool) -> dict[str, Any]:
    if _is_pair(names):
        sources, targets = names
    elif is_square or names is None:
        sources = targets = names
    else:
        fix = "Use names=(source_names, target_names)."
        got = f"{pattern.num_sources} sources and {pattern.num_targets} targets"
        raise ValueError(message("explore", "names", "must be a pair where sources aren't the targets", got, fix))
    argument = "names" if is_square else "names of sources"
    named = {"sourceNames": read_names("explore", argument, sources, pattern.num_sources)}
    if not is_square:
        named["targetNames"] = read_names("explore", "names of targets", targets, pattern.num_targets)
    return named


def _classify(pattern: Pattern, label: Any, names: Sequence[str] | None, is_square: bool) -> dict[str, Any]:
    """The classes, with the name and color of each, and the class of each node."""
    if label is None:
        return {}
    if not is_square:
        got = f"{pattern.num_sources} sources and {pattern.num_targets} targets"
        raise ValueError(message("explore", "label", "needs the same nodes as sources and targets", got))
    labels = read_label("explore", label, pattern.num_targets, names)
    there = sorted(set(labels))
    classes = [{"name": f"class {x}" if names is None else str(names[x]), "color": color_of(x)} for x in there]
    place = {x: position for position, x in enumerate(there)}
    return {"classes": classes, "classOf": [place[x] for x in labels]}


def _place(kind: str, pattern: Pattern, position: Tensor | str, image: Tensor | None) -> dict[str, Any]:
    """Position and look of the nodes: coordinates x, y (downward), colors, and starts of lines."""
    if kind == "words":
        if not isinstance(pattern, Box):
            return {"breaks": [[], []]}
        return {"breaks": [pattern.source_ptr[1:-1].tolist(), pattern.ptr[1:-1].tolist()]}
    if kind == "nodes":
        place = read_position("explore", pattern, position)
        return {"position": [[round(x, 4), round(1 - y, 4)] for x, y in place.tolist()]}
    if image is None and isinstance(pattern, Grid):
        return {"position": _unfold(pattern).tolist()}
    rows, columns = pixel_shape("explore", pattern, image)
    row, column = torch.arange(rows * columns) // columns, torch.arange(rows * columns) % columns
    placed: dict[str, Any] = {"position": torch.stack([column, row], 1).tolist()}
    if image is not None:
        image = image.detach().cpu()
        if image.dim() == 2:
            image = image.double()
            low, high = (float(end) for end in image.aminmax())
            image = (1 - (image - low) / ((high - low) or 1))[..., None].expand(-1, -1, 3)
        placed["colors"] = _encode((read_colors(image) * 255).round().reshape(-1, 3), torch.uint8)
    return placed


def _unfold(grid: Grid) -> Tensor:
    """[N, 2] positions of the pixels of arrays of any number of axes: planes and arrays are side by side."""
    coordinates, _ = grid.positions()
    component = torch.searchsorted(grid.ptr, torch.arange(grid.num_targets), right=True) - 1
    extents = torch.nn.functional.pad(grid.shape, (3 - grid.shape.size(1), 0), value=1)
    coordinates = torch.nn.functional.pad(coordinates, (3 - coordinates.size(1), 0))
    # A plane takes its columns and one for the gap; an array its planes and another gap.
    plane = extents[:, 2] + 1
    width = extents[:, 0] * plane + 1
    begin = width.cumsum(0) - width
    x = begin[component] + coordinates[:, 0] * plane[component] + coordinates[:, 2]
    return torch.stack([x, coordinates[:, 1]], 1)

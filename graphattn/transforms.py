"""PyG transforms that turn images and sequences into graphs that carry a pattern."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from .errors import check_int, message, shape_of
from .patterns import Full, Grid, Pattern, Window


class ImageToGraph(BaseTransform):
    """Turn every pixel or patch of an image into a node that attends to those around it.

    The image becomes three attributes: x, one row per node in row-major order; `pattern`, a `Grid`; and pos, where
    each node is. A DataLoader returns a list of patterns, which `graphattn.nn` joins:
    `layer(batch.x, batch.pattern)`.

    Args:
        radius: reach along both axes, or one per axis, in nodes; None for a `Full` pattern of all nodes.
        dilation, causal, border: as in `Grid`; only with a radius.
        patch: p, the side of the square of pixels that becomes one node; 1 for single pixels.
        attr: the attribute that holds the image, [H, W] or [C, H, W]; it is removed.

    Returns:
        Data with x [H / p * W / p, C * p * p], the pixels of a patch channel by channel and row by row; uint8 becomes
        float32 in [0, 1], other dtypes stay. pattern: on the image's device. pos [H / p * W / p, 2] float: row and
        column of the node's center, in pixels.

    Raises:
        ValueError: the Data has no such attribute, it isn't an image, or its sides aren't multiples of the patch; an
            option doesn't fit the pattern.
        TypeError: the attribute isn't a tensor, or an option not an integer.

    Example:
        >>> data = ImageToGraph(radius=1)(Data(image=torch.arange(12.0).view(1, 3, 4), y=torch.tensor([7])))
        >>> data
        Data(y=[1], x=[12, 1], pattern=Grid((3, 4), radius=1), pos=[12, 2])
        >>> data = ImageToGraph(radius=None, patch=2)(Data(image=torch.arange(16).view(4, 4)))
        >>> data.x[1], data.pos[1], data.pattern
        (tensor([2, 3, 6, 7]), tensor([0.5000, 2.5000]), Full(4))

    References:
        Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, for patches.
    """

    def __init__(
        self,
        radius: int | Sequence[int] | None = 1,
        *,
        dilation: int | Sequence[int] = 1,
        causal: bool | Sequence[bool] = False,
        border: str = "clip",
        patch: int = 1,
        attr: str = "image",
    ) -> None:
        self.radius = radius
        self.options: dict[str, Any] = {"dilation": dilation, "causal": causal, "border": border}
        self.patch = check_int("ImageToGraph", "patch", patch, 1)
        self.attr = attr
        if radius is None:
            _check_defaults("ImageToGraph", self.options, {"dilation": 1, "causal": False, "border": "clip"})
        # A pattern without nodes has the same checks of options as any other.
        self._pattern((0, 0))

    def forward(self, data: Data) -> Data:
        """Turn the image of `data` into nodes; called by the transform, on a shallow copy."""
        image = _tensor("ImageToGraph", data, self.attr, "Use ImageToGraph(attr=...) for an image of another name.")
        if image.dim() not in (2, 3):
            rule = "must have shape [H, W] or [C, H, W]"
            raise ValueError(message("ImageToGraph", self.attr, rule, shape_of(image)))
        image = image.unsqueeze(0) if image.dim() == 2 else image
        patch, (channels, height, width) = self.patch, image.shape
        if height % patch or width % patch:
            rule = f"must have sides that are multiples of patch={patch}"
            raise ValueError(message("ImageToGraph", self.attr, rule, shape_of(image)))
        if image.dtype == torch.uint8:
            image = image.float() / 255
        shape = (height // patch, width // patch)
        parts = image.reshape(channels, shape[0], patch, shape[1], patch).permute(1, 3, 0, 2, 4)
        center = [(torch.arange(extent, device=image.device) * patch + (patch - 1) / 2).float() for extent in shape]
        del data[self.attr]
        data.x = parts.reshape(shape[0] * shape[1], channels * patch * patch)
        data.pattern = self._pattern(shape).to(image.device)
        data.pos = torch.cartesian_prod(*center)
        return data

    def _pattern(self, shape: tuple[int, int]) -> Pattern:
        return Full(shape[0] * shape[1]) if self.radius is None else Grid(shape, self.radius, **self.options)

    def __repr__(self) -> str:
        return _write(self, {"radius": self.radius, **self.options, "patch": self.patch, "attr": self.attr})


class SequenceToGraph(BaseTransform):
    """Let every element of a sequence attend to all others, or to those around it.

    Adds `pattern`. A DataLoader returns patterns as a list, which layers join: `layer(batch.x, batch.pattern)`.

    Args:
        radius: reach to either side for a `Window`; None for `Full`.
        causal: attend only to the element itself and those before it.
        dilation, global_tokens: as in `Window`; only with a radius.

    Returns:
        Data with a pattern of as many nodes as its x [n, ...] has rows, on the device of x.

    Raises:
        ValueError: the Data has no x, or x no rows to count; an option doesn't fit the pattern.
        TypeError: x isn't a tensor, or an option not an integer.

    Example:
        >>> SequenceToGraph(causal=True)(Data(x=torch.zeros(5, 8)))
        Data(x=[5, 8], pattern=Full(5, causal=True))
        >>> SequenceToGraph(radius=2)(Data(x=torch.tensor([4, 1, 4])))
        Data(x=[3], pattern=Window(3, radius=2))
    """

    def __init__(
        self,
        radius: int | None = None,
        *,
        causal: bool = False,
        dilation: int = 1,
        global_tokens: Sequence[int] = (),
    ) -> None:
        self.radius = radius
        self.causal = causal
        self.options: dict[str, Any] = {"dilation": dilation, "global_tokens": tuple(global_tokens)}
        if radius is None:
            _check_defaults("SequenceToGraph", self.options, {"dilation": 1, "global_tokens": ()})
        self._pattern(0)

    def forward(self, data: Data) -> Data:
        """Add the pattern; called by the transform, on a shallow copy."""
        x = _tensor("SequenceToGraph", data, "x", "Use Data(x=...) with a row per element.")
        if x.dim() == 0:
            raise ValueError(message("SequenceToGraph", "x", "must have shape [n, ...]", shape_of(x)))
        data.pattern = self._pattern(x.size(0)).to(x.device)
        return data

    def _pattern(self, size: int) -> Pattern:
        if self.radius is None:
            return Full(size, causal=self.causal)
        return Window(size, self.radius, causal=self.causal, **self.options)

    def __repr__(self) -> str:
        return _write(self, {"radius": self.radius, "causal": self.causal, **self.options})


def _write(transform: BaseTransform, options: dict[str, Any]) -> str:
    """Name every option: PyG compares this text to decide whether processed files are from the same transform."""
    return f"{type(transform).__name__}({', '.join(f'{name}={value!r}' for name, value in options.items())})"


def _tensor(where: str, data: Data, name: str, fix: str) -> Tensor:
    """Return an attribute, which must exist and be a tensor."""
    value = data.get(name)
    if value is None:
        raise ValueError(message(where, "data", f"must have {name!r}", f"{data}", fix))
    if not isinstance(value, Tensor):
        raise TypeError(message(where, name, "must be a tensor", type(value).__name__))
    return value


def _check_defaults(where: str, options: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Raise ValueError for an option that the full pattern doesn't have."""
    for name, default in defaults.items():
        if options[name] != default:
            rule = f"must be {default!r} with radius=None, because all attend to all"
            raise ValueError(message(where, name, rule, repr(options[name]), "Use a radius."))

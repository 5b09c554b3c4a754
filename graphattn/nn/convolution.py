"""A convolution as self-attention on a grid of pixels: one head for each offset of its kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch.nn import Conv1d, Conv2d, Conv3d, Parameter
from torch.nn.parameter import is_lazy

from ..errors import check_float_tensor, message, shape_of
from ..offset_bias import OffsetBias
from ..patterns import Grid, Pattern
from .attention import GraphAttention
from .encodings import Encoding
from .typed import Maybe, No, Weights, Yes, typed_as


def conv_as_attention(conv: Conv1d | Conv2d | Conv3d) -> ConvAttention:
    """Turn a convolution into self-attention that computes the same: a CNN is attention restricted to fixed offsets.

        out_i = b + sum over offsets o of W_o x_(i + o)                          the convolution, kernel slice W_o
        out_i = b + sum over heads h of W_out,h sum over j -> i of weight_ij,h W_value,h x_j              attention
        weight_ij,h = 1 if j = i + o_h else 0,   W_out,h W_value,h = W_(o_h)

    There is one head per offset of the kernel. Queries and keys are zero, so that scores depend only on the relative
    position: a table that is 0 at the head's own offset and -inf at all others makes its weights one-hot. A target
    whose offset lies outside the image has no edge left in that head and gets zeros, which is zero padding. Of W_out
    and W_value, the larger holds the kernel and the smaller the identity; heads are min(C_in, C_out) wide.

    Args:
        conv: with stride 1, groups 1, odd kernel sizes and zero padding; any dilation, any amount of padding, bias or
            not. Its parameters are copied. The grid has the image's own pixels as nodes if padding keeps the size
            ("same"); wider padding adds zeros around the image first, narrower padding drops targets at the border.

    Returns:
        A module that takes the same `[*B, C_in, *shape]` as `conv`, with its dtype, device and mode. It can be trained
        and stays a convolution: whatever queries and keys become, the table leaves one source per head.

    Raises:
        TypeError: `conv` is not a Conv1d, Conv2d or Conv3d of a floating-point dtype.
        ValueError: it is lazy, or has a stride, groups, an even kernel, negative padding, or padding other than zeros.

    Numerics:
        Equal to the convolution up to the order of summation. It is a demonstration, not a fast convolution: each head
        computes weights of all K offsets of the kernel, so that it takes K times the work.

    Example:
        >>> conv = torch.nn.Conv1d(1, 1, kernel_size=3, padding=1, bias=False)
        >>> conv.weight.data = torch.tensor([[[1.0, 10.0, 100.0]]])
        >>> attention, x = conv_as_attention(conv), torch.tensor([[1.0, 2.0, 3.0]])
        >>> conv(x).tolist(), attention(x).tolist()
        ([[210.0, 321.0, 32.0]], [[210.0, 321.0, 32.0]])
        >>> _, (edge_index, weights) = attention(x, return_attention_weights=True)
        >>> edge_index[:, :5].tolist()
        [[0, 1, 0, 1, 2], [0, 0, 1, 1, 1]]
        >>> weights[:5].tolist()  # pixel 0 has nothing to its left; the heads look left, at the pixel itself, and right
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    References:
        Cordonnier et al., "On the Relationship between Self-Attention and Convolutional Layers", 2020, theorem 1, where
        scores fall with the square of the distance to a head's offset and weights are one-hot in the limit. Here they
        are so exactly, and a head may be narrower than C_out.
    """
    _check_convolution(conv)
    slices = conv.weight.detach().flatten(2).permute(2, 0, 1)
    heads, out_channels, in_channels = slices.shape
    width = min(in_channels, out_channels)
    encoding = _OneOffsetPerHead(heads)
    layer = GraphAttention(in_channels, out_channels, heads, head_channels=width, bias=False, encoding=encoding)
    layer.to(conv.weight)
    identity = torch.eye(width).expand(heads, -1, -1)
    value, out = (identity, slices) if in_channels <= out_channels else (slices, identity)
    with torch.no_grad():
        layer.lin_query.weight.zero_()
        layer.lin_key.weight.zero_()
        layer.lin_value.weight.copy_(value.flatten(0, 1))
        layer.lin_out.weight.copy_(out.transpose(0, 1).flatten(1))
    if conv.bias is not None:
        layer.lin_out.bias = Parameter(conv.bias.detach().clone())
    radius = tuple(size // 2 for size in conv.kernel_size)
    padding: Sequence[int] = [0] * len(radius) if conv.padding == "valid" else conv.padding  # type: ignore[assignment]
    if conv.padding == "same":
        padding = [reach * step for reach, step in zip(radius, conv.dilation, strict=True)]
    return ConvAttention(layer, radius, tuple(conv.dilation), tuple(padding)).train(conv.training)


class ConvAttention(torch.nn.Module):
    """A convolution computed by self-attention, as `conv_as_attention` makes it.

    Attributes:
        layer: the `GraphAttention`; its head h attends to the h-th offset of the kernel, in row-major order.
        radius: reach of the kernel to either side along each axis, in steps of the dilation.
        dilation: pixels per step along each axis.
        padding: zeros that the convolution puts on either side of each axis.
    """

    def __init__(
        self, layer: GraphAttention, radius: tuple[int, ...], dilation: tuple[int, ...], padding: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.layer = layer
        self.radius = radius
        self.dilation = dilation
        self.padding = padding
        self._patterns: dict[Any, Grid] = {}

    def pattern(self, shape: Sequence[int]) -> Grid:
        """Return the pattern of an image of this shape, including the zeros that `forward` puts around it."""
        sizes = [extent + 2 * zeros for extent, zeros in zip(shape, self._margins(), strict=True)]
        return Grid(sizes, self.radius, dilation=self.dilation)

    @overload
    def forward(self, x: Tensor, return_attention_weights: No = ...) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, return_attention_weights: Yes = ...) -> tuple[Tensor, Weights]: ...
    @overload
    def forward(self, x: Tensor, return_attention_weights: Maybe = ...) -> Tensor | tuple[Tensor, Weights]: ...
    def forward(self, x: Tensor, return_attention_weights: Maybe = None) -> Tensor | tuple[Tensor, Weights]:
        """Compute the convolution by attention.

        Args:
            x: [*B, C_in, *shape], with any number of batch dimensions.
            return_attention_weights: also return the weights.

        Returns:
            [*B, C_out, *shape of the convolution's output]; or that and a pair of the edges [2, E] of
            `pattern(shape)` and their weights [*B, E, H], each of them 0 or 1.

        Raises:
            TypeError, ValueError: `x` doesn't fit; the message gives the value and a fix.
        """
        self._check_input(x)
        axes = len(self.radius)
        shape = x.shape[-axes:]
        key = (tuple(shape), x.device)
        if key not in self._patterns:
            # One image size at a time, because the edges of a large image take memory.
            self._patterns = {key: self.pattern(shape).to(x.device)}
        pattern = self._patterns[key]
        x = torch.nn.functional.pad(x, [zeros for margin in reversed(self._margins()) for zeros in (margin, margin)])
        result = self.layer(x.flatten(-axes).transpose(-1, -2), pattern, None, return_attention_weights)
        out, observed = result if isinstance(result, tuple) else (result, None)
        out = out.transpose(-1, -2).unflatten(-1, x.shape[-axes:])
        for axis, (extent, reach, padding) in enumerate(zip(shape, self._reach(), self.padding, strict=True), -axes):
            out = out.narrow(axis, max(reach - padding, 0), extent + 2 * (padding - reach))
        return out if observed is None else (out, observed)

    if TYPE_CHECKING:

        @typed_as(forward)
        def __call__(self) -> None:
            """See `forward`."""

    def _reach(self) -> list[int]:
        """Reach of the kernel along each axis, in pixels."""
        return [radius * step for radius, step in zip(self.radius, self.dilation, strict=True)]

    def _margins(self) -> list[int]:
        """Zeros put on either side of each axis of an image."""
        return [max(padding - reach, 0) for reach, padding in zip(self._reach(), self.padding, strict=True)]

    def _check_input(self, x: Tensor) -> None:
        check_float_tensor("ConvAttention", "x", x)
        axes, channels = len(self.radius), self.layer.lin_value.in_channels
        if x.dim() <= axes or x.size(-1 - axes) != channels:
            rule = f"must have shape [*B, {channels}, {', '.join('DHW'[3 - axes :])}]"
            raise ValueError(message("ConvAttention", "x", rule, shape_of(x)))
        least = [max(1 + 2 * (reach - padding), 0) for reach, padding in zip(self._reach(), self.padding, strict=True)]
        if any(extent < enough for extent, enough in zip(x.shape[-axes:], least, strict=True)):
            rule = f"must be at least {' x '.join(map(str, least))} pixels large, so that the kernel fits in"
            raise ValueError(message("ConvAttention", "x", rule, shape_of(x)))

    def extra_repr(self) -> str:
        """Describe the grid."""
        return f"radius={self.radius}, dilation={self.dilation}, padding={self.padding}"


class _OneOffsetPerHead(Encoding):
    """Lets head h attend only to the h-th offset of the pattern."""

    table: Tensor

    def __init__(self, offsets: int) -> None:
        super().__init__()
        table = torch.full((offsets, offsets), -torch.inf).fill_diagonal_(0.0)
        self.register_buffer("table", table, persistent=False)

    def bias(self, pattern: Pattern) -> OffsetBias:
        return OffsetBias(self.table)


def _check_convolution(conv: Any) -> None:
    """Raise TypeError or ValueError unless attention on a grid can compute this convolution."""
    where = "conv_as_attention"
    if not isinstance(conv, Conv1d | Conv2d | Conv3d):
        raise TypeError(message(where, "conv", "must be a Conv1d, Conv2d or Conv3d", type(conv).__name__))
    if is_lazy(conv.weight):
        raise ValueError(
            message(where, "conv", "must have its parameters", type(conv).__name__, "Call it once before.")
        )
    check_float_tensor(where, "conv.weight", conv.weight)
    for argument, rule, got, is_right in (
        ("conv.stride", "must be 1", conv.stride, set(conv.stride) == {1}),
        ("conv.groups", "must be 1", conv.groups, conv.groups == 1),
        ("conv.kernel_size", "must be odd", conv.kernel_size, all(size % 2 for size in conv.kernel_size)),
        ("conv.padding_mode", "must be 'zeros'", repr(conv.padding_mode), conv.padding_mode == "zeros"),
        ("conv.padding", "must be at least 0", conv.padding, isinstance(conv.padding, str) or min(conv.padding) >= 0),
    ):
        if not is_right:
            raise ValueError(message(where, argument, rule, got))

"""A learned bias per relative offset, for patterns whose nodes have coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import check_float_tensor, check_like, message, shape_of
from .patterns import Edges, Pattern
from .segments import Rows, gather


class OffsetBias:
    """Adds `table[r]` to the score of every edge whose source lies at the r-th offset from its target.

    Offsets are numbered in row-major order from the lowest to the highest that the pattern can have, see
    `Pattern.offset_index`: for a window of radius 2, rows 0 to 4 stand for the offsets -2 to 2. With a dilation they
    count in steps of it. A grid with border="shift" has offsets up to 2 * radius steps either way, because a window at
    the border may be shifted by its radius. A window with global tokens has one more row, the last, for all edges that
    exist only because of a token.

    Args:
        table: [R, H] float, R = `pattern.num_offsets`.

    Raises:
        TypeError: `table` is not a floating-point tensor.
        ValueError: `table` is not a matrix.

    Example:
        >>> import torch
        >>> from graphattn import Window
        >>> window = Window(3, radius=1)
        >>> OffsetBias(torch.tensor([[-1.0], [0.0], [1.0]])).of_edges(window).flatten()
        tensor([ 0.,  1., -1.,  0.,  1., -1.,  0.])

    References:
        Raffel et al., 2020 (T5) and Liu et al., 2021 (Swin): relative position bias.
    """

    def __init__(self, table: Tensor) -> None:
        check_float_tensor("OffsetBias", "table", table)
        if table.dim() != 2:
            raise ValueError(message("OffsetBias", "table", "must have shape [R, H]", shape_of(table)))
        self.table = table

    def of_edges(self, pattern: Pattern, dtype: torch.dtype | None = None) -> Tensor:
        """The bias of each edge, [E, H] in the caller's order, in a dtype, that of the table if omitted.

        Its gradient is summed in that dtype and in a fixed order: kernels request float32 for a half-type table.
        """
        rows = pattern.keep("offset rows", lambda: Rows.from_index(pattern.offset_index(), pattern.num_offsets))
        return gather(self.table if dtype is None else self.table.to(dtype), rows, -2)

    def check(self, where: str, query: Tensor, pattern: Pattern) -> None:
        """Raise ValueError or TypeError unless the table has a row per offset and a column per head, like `query`."""
        if isinstance(pattern, Edges):
            rule = "as a table needs a pattern with coordinates: Full, Window or Grid"
            raise ValueError(message(where, "edge_bias", rule, pattern))
        shape = [pattern.num_offsets, query.size(-2)]
        if list(self.table.shape) != shape:
            rule = f"must have shape [R, H] = {shape} for {pattern}"
            raise ValueError(message(where, "edge_bias.table", rule, shape_of(self.table)))
        check_like(where, "edge_bias.table", self.table, query, or_float32=True)

    def __repr__(self) -> str:
        return f"OffsetBias({shape_of(self.table)})"

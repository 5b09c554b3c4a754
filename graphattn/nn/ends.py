"""The two ends of each edge of a pattern."""

from __future__ import annotations

import torch

from ..patterns import Pattern
from ..segments import Rows


def ends_of(pattern: Pattern) -> tuple[Rows, Rows]:
    """Return the edges in the caller's order, grouped by target and by source."""

    def build() -> tuple[Rows, Rows]:
        (source, target), by_target, by_source = pattern.edge_index, pattern.csr(), pattern.csc()
        of_target, of_source = (None if x.perm is None else x.perm.to(torch.int64) for x in (by_target, by_source))
        return Rows(target, by_target.ptr, of_target), Rows(source, by_source.ptr, of_source)

    found: tuple[Rows, Rows] = pattern.keep("ends of edges", build)
    return found

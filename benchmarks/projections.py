"""One product for query, key and value against three, with the attention that reads them; and columns against copies.

    python benchmarks/projections.py

Writes results/projections.json and results/projections.md. Layers take one product where it takes less time, see
`graphattn.nn.joined`: without gradients, for many rows. Whoever has one matrix of query, key and value, as models with
`qkv.chunk(3, -1)` do, hands its columns to `attention`, which reads them in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from gather import machine_and_gather
from harness import Line, in_ms, race, ratio, write
from systems import random_edges
from torch import Tensor
from torch.nn.functional import linear

from graphattn import Edges, attention


class Size(NamedTuple):
    """A graph, and heads of some width."""

    nodes: int
    edges: int
    heads: int
    width: int

    def __str__(self) -> str:
        return f"{self.nodes:,} nodes, {self.edges:,} edges, H{self.heads} D{self.width}"


SIZES = (
    Size(30, 60, 4, 16),
    Size(2_708, 13_264, 8, 8),
    Size(6_371, 12_742, 4, 16),
    Size(20_000, 200_000, 4, 16),
    Size(20_000, 400_000, 4, 32),
    Size(40_000, 400_000, 4, 16),
    Size(100_000, 1_000_000, 8, 8),
)
PROJECTED, GIVEN = "projections and attention, one product", "query, key and value in one matrix, in place"


def systems(size: Size, is_trained: bool) -> dict[str, Callable[[], object]]:
    """Each way, forward, and backward if trained."""
    pattern = Edges(random_edges(size.nodes, size.edges), size.nodes)
    channels, shape = size.heads * size.width, (size.heads, size.width)
    x = torch.randn(size.nodes, channels, requires_grad=is_trained)
    weights = [torch.randn(channels, channels, requires_grad=is_trained) for _ in range(3)]
    biases = [torch.randn(channels, requires_grad=is_trained) for _ in range(3)]
    joined = torch.randn(size.nodes, 3 * channels, requires_grad=is_trained)
    grad = torch.randn(size.nodes, *shape)

    def attend(parts: Sequence[Tensor]) -> Tensor:
        return attention(*(part.unflatten(-1, shape) for part in parts), pattern, backend="numba")

    ways = {
        "three": lambda: attend([linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]),
        "one": lambda: attend(linear(x, torch.cat(weights), torch.cat(biases)).chunk(3, -1)),
        "copies": lambda: attend([part.contiguous() for part in joined.chunk(3, -1)]),
        "in place": lambda: attend(joined.chunk(3, -1)),
    }
    if not is_trained:
        return dict(ways)
    return {name: lambda way=way: way().backward(grad) for name, way in ways.items()}


def main() -> None:
    """Measure all sizes."""
    about, lines = machine_and_gather(), []
    torch.manual_seed(0)
    for size in SIZES:
        for is_trained, what in ((False, "forward"), (True, "forward + backward")):
            with torch.set_grad_enabled(is_trained):
                taken = race(systems(size, is_trained), 8)
            for work, slow, fast in ((PROJECTED, "three", "one"), (GIVEN, "copies", "in place")):
                detail = f"{slow} {in_ms(taken[slow])}, {fast} {in_ms(taken[fast])}"
                lines.append(Line(f"{size}: {work}, {what}", slow, "x", 1, None, ratio(taken, slow, fast), detail))
    print(write("projections", "Query, key and value as one matrix", about, lines, {}))


if __name__ == "__main__":
    main()

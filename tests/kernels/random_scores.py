"""Random scores: trees of operations on rows and numbers, for the tests of traced functions."""

from __future__ import annotations

import random

import torch

UNARY = [
    torch.neg,
    torch.tanh,
    torch.sigmoid,
    torch.abs,
    torch.relu,
    torch.sin,
    torch.cos,
    torch.square,
    lambda x: torch.exp(-x.abs()),
    lambda x: (x.abs() + 1).log(),
    lambda x: torch.log1p(x * x),
    lambda x: (x * x + 0.5).sqrt(),
    lambda x: (x.abs() + 0.5).rsqrt(),
    lambda x: 1 / (x.abs() + 1),
    lambda x: x.clamp(-0.5, 0.5),
    lambda x: x.clamp(min=0.1),
    lambda x: (x.abs() + 0.1) ** 1.5,
    lambda x: x**3 * 0.1,
    lambda x: torch.nn.functional.leaky_relu(x, 0.2),
    lambda x: torch.nn.functional.elu(x),
    lambda x: torch.nn.functional.silu(x),
    lambda x: torch.nn.functional.softplus(x),
    lambda x: x.masked_fill(x > 1, 0.25),
]
BINARY = [
    torch.add,
    torch.sub,
    torch.mul,
    torch.maximum,
    torch.minimum,
    lambda x, y: x / (y.abs() + 1),
    lambda x, y: torch.where(x > y, x, 2 * y),
    lambda x, y: torch.where((x < 0) & ~(y >= 0.3), x, y),
    lambda x, y: (x.abs() + 0.5) ** y.clamp(-1, 1),
]
REDUCTIONS = [
    lambda x: x.sum(-1),
    lambda x: x.mean(-1),
    lambda x: x.norm(dim=-1),
    lambda x: x.sum(dim=-1, keepdim=True).squeeze(-1),
]


def _one_of(choices, draw):
    return choices[int(next(draw) * len(choices))]


class RandomScore(torch.nn.Module):
    """A tree of operations that a seed draws; it trains a vector per head, one for all, and a number per head."""

    def __init__(self, seed: int, heads: int, width: int, depth: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        self.of_heads, self.shared, self.factor, self.number = draw(heads, width), draw(width), draw(heads), draw()
        # What it draws is kept: a score that draws anew at each call could not be traced.
        draw = random.Random(seed)
        self.draws, self.depth = [draw.random() for _ in range(300)], depth

    def forward(self, query_i, key_j, edge_key):
        """Score edges: the same draws make the same tree."""
        draw = iter(self.draws)
        # Both ends, whatever else there is.
        parts = [(query_i * key_j).sum(-1) * 0.3] if next(draw) < 0.5 else []
        return sum([self._number(draw, self.depth, query_i, key_j, edge_key), *parts])

    def _row(self, draw, depth, *rows):
        kind = next(draw)
        if depth == 0 or kind < 0.15:
            leaves = [
                rows[0],
                rows[1],
                rows[0],
                rows[1],
                self.of_heads,
                self.shared,
                *([rows[2]] if rows[2] is not None else []),
            ]
            return _one_of(leaves, draw)
        if kind < 0.45:
            return _one_of(UNARY, draw)(self._row(draw, depth - 1, *rows))
        if kind < 0.6:
            return self._row(draw, depth - 1, *rows) * self._number(draw, depth - 1, *rows).unsqueeze(-1)
        x, y = (self._row(draw, depth - 1, *rows) for _ in range(2))
        return _one_of(BINARY, draw)(x, y)

    def _number(self, draw, depth, *rows):
        kind = next(draw)
        if depth == 0 or kind < 0.4:
            row = self._row(draw, max(depth - 1, 0), *rows) + 0 * _one_of(rows[:2], draw)
            return _one_of(REDUCTIONS, draw)(row)
        if kind < 0.6:
            return _one_of(UNARY, draw)(self._number(draw, depth - 1, *rows))
        if kind < 0.75:
            return (self.factor if next(draw) < 0.5 else self.number) * self._number(draw, depth - 1, *rows)
        x, y = (self._number(draw, depth - 1, *rows) for _ in range(2))
        return _one_of(BINARY, draw)(x, y)

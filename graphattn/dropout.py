"""The dropout hash: whether an edge is kept is a pure function of its identity, not of the order of computation.

Every kernel repeats this function, so all of them, forward and backward, drop the same edges. It works on 32-bit
words, which vector units multiply natively: each word of an edge's identity is absorbed in turn by xor and Wellons'
two-round mixer "lowbias32". A kernel may keep the state after (seed, batch, target) for a whole row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
GOLDEN = 0x9E3779B9
MULTIPLIERS = (0x7FEB352D, 0x846CA68B)


def draw_seed(device: torch.device) -> Tensor:
    """Draw the seed of one call from torch's default generator: int64, shape [1]."""
    return torch.randint(0, 2**63 - 1, (1,), dtype=torch.int64, device=device)


def edge_hash(
    seed: Tensor,
    *,
    batch: Tensor | int,
    target: Tensor,
    source: Tensor,
    occurrence: Tensor | int,
    head: Tensor | int,
) -> Tensor:
    """Hash an edge's identity to 32 uniform bits.

    Args:
        seed: one-element int64 tensor, see `draw_seed`.
        batch: index of the batch element, 0 without batch dimensions.
        target: index of the target node.
        source: index of the source node.
        occurrence: 0 for the first edge of a (target, source) pair, 1 for its first parallel edge, and so on.
        head: index of the query head.

    All but `seed` are non-negative integers or int64 tensors that broadcast together.

    Returns:
        int64 tensor of the broadcast shape, values in [0, 2^32).

    Example:
        >>> zero = torch.zeros(1, dtype=torch.int64)
        >>> edge_hash(zero, batch=0, target=zero, source=zero, occurrence=0, head=0)
        tensor([1282570995])

    References:
        C. Wellons, "Prospecting for hash functions", 2018: the mixer and its multipliers.
    """
    state = _mix((seed & WORD) ^ GOLDEN)
    state = _mix(state ^ ((seed >> 32) & WORD))
    for word in (batch, target, (_fold(source) + occurrence * GOLDEN) & WORD, head):
        state = _mix(state ^ _fold(word))
    return state


def keep_edges(
    seed: Tensor,
    dropout_p: float,
    *,
    batch: Tensor | int,
    target: Tensor,
    source: Tensor,
    occurrence: Tensor | int,
    head: Tensor | int,
) -> Tensor:
    """True where dropout keeps the edge: with probability 1 - `dropout_p`. Arguments as in `edge_hash`."""
    bits = edge_hash(seed, batch=batch, target=target, source=source, occurrence=occurrence, head=head)
    return bits >= threshold(dropout_p)


def keep_edges_of_heads(
    seed: Tensor,
    dropout_p: float,
    batch_shape: torch.Size,
    heads: int,
    target: Tensor,
    source: Tensor,
    occurrence: Tensor | None,
) -> Tensor:
    """`keep_edges` for E edges under every batch element and head: [*B, E, H]; the index tensors are [E]."""
    return keep_edges(
        seed,
        dropout_p,
        batch=torch.arange(math.prod(batch_shape), device=seed.device).view(*batch_shape, 1, 1),
        target=target[:, None],
        source=source[:, None],
        occurrence=0 if occurrence is None else occurrence[:, None],
        head=torch.arange(heads, device=seed.device),
    )


def threshold(dropout_p: float) -> int:
    """Smallest hash that is kept; 2^32, above every hash, for `dropout_p` = 1."""
    return round(dropout_p * 2**32)


def keep_scale(dropout_p: float) -> float:
    """Factor on kept weights that keeps the expectation, 1 / (1 - p); 0 for p = 1, which keeps nothing."""
    return 1.0 / (1.0 - dropout_p) if dropout_p < 1.0 else 0.0


def _fold(word: Tensor | int) -> Tensor | int:
    """Fold the upper half of indices of 2^32 and more into the lower; smaller ones don't change."""
    return (word ^ ((word >> 32) * GOLDEN)) & WORD


def _mix(word: Tensor) -> Tensor:
    word = word ^ (word >> 16)
    word = _multiply(word, MULTIPLIERS[0])
    word = word ^ (word >> 15)
    word = _multiply(word, MULTIPLIERS[1])
    return word ^ (word >> 16)


def _multiply(word: Tensor, factor: int) -> Tensor:
    """32-bit product by 16-bit halves of the factor: no partial product overflows int64."""
    high = (word * (factor >> 16)) & 0xFFFF
    return (word * (factor & 0xFFFF) + (high << 16)) & WORD

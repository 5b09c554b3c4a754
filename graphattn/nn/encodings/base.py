"""The interface of positional encodings, and what encodings of coordinates share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import check_finite, check_float_tensor, check_int, message, shape_of
from ...offset_bias import OffsetBias
from ...patterns import Pattern
from ...patterns.box import Box


class Encoding(torch.nn.Module):
    """Base of encodings: each overrides one or more of the three places where position can enter.

    The pattern is an argument because only it has the components of a ragged batch and the nodes' coordinates. Data
    derived from a pattern should be cached by `pattern.keep`, so that it is derived once.

    Example:
        >>> from graphattn import Window
        >>> from graphattn.nn import GraphAttention
        >>> class Recency(Encoding):
        ...     def bias(self, pattern):
        ...         return -pattern.offsets().abs().float().expand(-1, 2)  # [E, 2], for two heads
        >>> layer = GraphAttention(8, 8, heads=2, encoding=Recency())
        >>> layer(torch.randn(5, 8), Window(5, radius=1)).shape
        torch.Size([5, 8])
    """

    def input(self, x: Tensor, pattern: Pattern) -> Tensor:
        """Change the features [*B, N, C] before projection, where sources and targets are the same nodes."""
        return x

    def rotate(self, query: Tensor, key: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
        """Change query [*B, T, H, D] and key [*B, S, H_kv, D] before scoring."""
        return query, key

    def bias(self, pattern: Pattern) -> Tensor | OffsetBias | None:
        """Return what is added to the scores: [E, H] in the caller's order, a table per offset, or None."""
        return None

    def check(self, where: str, channels: int, heads: int, width: int) -> None:
        """Raise ValueError unless the encoding fits a layer; the layer's constructor calls this.

        Args:
            where: name of the layer, for the message.
            channels: C, features per node before projection; -1 if not known yet.
            heads: H.
            width: D, features per head.
        """

    def reset_parameters(self) -> None:
        """Initialize all parameters again; the layer's `reset_parameters` calls this."""


def check_fit(where: str, encoding: Encoding, argument: str, needed: int) -> None:
    """Raise ValueError unless the first argument of an encoding is what its layer needs; -1 is any."""
    own = getattr(encoding, argument)
    if needed in (own, -1):
        return
    name, written = type(encoding).__name__, encoding.extra_repr()
    fix = f"Use {name}({written.replace(str(own), str(needed), 1)})."
    raise ValueError(
        message(where, "encoding", f"must have the layer's {argument}, {needed}", f"{name}({written})", fix)
    )


def check_coordinates(where: str, pattern: Pattern, dims: int, fix: str) -> Box:
    """Return the pattern, or raise ValueError unless its nodes have `dims` coordinates; `fix` may use {found}."""
    if not isinstance(pattern, Box):
        rule = "must have coordinates, as Full, Window and Grid have"
        raise ValueError(message(where, "pattern", rule, pattern, "Use LaplacianPosition or RandomWalkPosition."))
    found = pattern.shape.size(1)
    if found != dims:
        rule = f"must have as many dimensions as the encoding, {dims}"
        raise ValueError(message(where, "pattern", rule, f"{found} in {pattern}", fix.format(found=found)))
    return pattern


def check_features(where: str, x: Tensor, channels: int, pattern: Pattern) -> None:
    """Raise unless `x` has a row of `channels` features for each node, and sources and targets are the same nodes."""
    check_float_tensor(where, "x", x)
    if pattern.num_sources != pattern.num_targets:
        got = f"{pattern.num_sources} sources and {pattern.num_targets} targets"
        fix = "Encode each side separately, before the layer."
        raise ValueError(message(where, "pattern", "must have the same nodes as sources and targets", got, fix))
    if x.dim() < 2 or x.shape[-2:] != (pattern.num_targets, channels):
        fix = "" if x.dim() < 2 or x.size(-1) == channels else f"Use channels={x.size(-1)}."
        raise ValueError(
            message(where, "x", f"must have shape [*B, {pattern.num_targets}, {channels}]", shape_of(x), fix)
        )


def own_positions(where: str, pattern: Box) -> Tensor:
    """Coordinates [N, n] of nodes that are both sources and targets; raises ValueError if the two differ."""
    target, source = pattern.positions()
    if not torch.equal(target, source):
        fix = "Encode each side separately, before the layer."
        raise ValueError(message(where, "pattern", "must have its sources at its targets' positions", pattern, fix))
    return target


def angles(position: Tensor, width: int, base: float) -> Tensor:
    """Coordinates [N, n] times frequencies, [N, width / 2] float64: an equal share of them per axis, axis by axis.

    The frequencies of an axis are base^(-2m / w) for m = 0, 1, ..., where w = width / n.
    """
    pairs = width // 2 // position.size(1)
    frequency = base ** (-torch.arange(pairs, dtype=torch.float64, device=position.device) / pairs)
    return (position.unsqueeze(-1) * frequency).flatten(1)


def check_frequencies(where: str, argument: str, width: int, dims: int, base: float) -> tuple[int, int, float]:
    """Check the arguments of `angles`: every axis gets whole pairs."""
    width, dims = check_int(where, argument, width, 1), check_int(where, "dims", dims, 1)
    check_finite(where, "base", base)
    if base <= 0:
        raise ValueError(message(where, "base", "must be positive", base, "Use base=10000."))
    if width % (2 * dims):
        near = -(-width // (2 * dims)) * 2 * dims
        rule = f"must be a multiple of 2 * dims = {2 * dims}, a pair per axis and frequency"
        raise ValueError(message(where, argument, rule, width, f"Use {argument}={near}."))
    return width, dims, float(base)


def check_extents(where: str, argument: str, extents: int | Sequence[int], minimum: int) -> tuple[int, ...]:
    """Read one integer, or one per dimension."""
    listed = list(extents) if isinstance(extents, Sequence) and not isinstance(extents, str) else [extents]
    if not listed:
        raise ValueError(message(where, argument, "must name at least one dimension", extents))
    return tuple(check_int(where, argument, extent, minimum) for extent in listed)

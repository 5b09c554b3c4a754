"""How strongly a target attends to a source, before normalizing.

Each score has two forms, written separately and tested against each other: one number per edge, and the matrix of all
pairs that the oracle and the dense layers use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import (
    check_choice,
    check_device,
    check_finite,
    check_float_tensor,
    check_like,
    check_takes,
    message,
    shape_of,
)
from .segments import Rows, gather
from .tracing import Captures


class ScoreFunction(Protocol):
    """A user's own score: a function or a module `(query_i, key_j, edge_key) -> [*B, E, H]`, whatever its names are.

    Query and key are [*B, E, H, D], edge by edge; `edge_key` is [*B or nothing, E, ...] as the call got it, or None.
    """

    def __call__(self, query_i: Tensor, key_j: Tensor, edge_key: Tensor | None, /) -> Tensor:
        """Score each edge."""


class Score(ABC):
    """A score of (query, key) pairs. H query heads share H_kv key heads evenly.

    A score of one's own needs no class: any callable `(query_i, key_j, edge_key) -> [*B, E, H]` is one.

    Example:
        >>> from graphattn import attention
        >>> x = torch.tensor([[1.0], [2.0], [4.0]]).unsqueeze(1)
        >>> edge_index = torch.tensor([[0, 2], [1, 1]])
        >>> distance = lambda query_i, key_j, edge_key: -(query_i - key_j).abs().sum(-1)
        >>> attention(x, x, x, edge_index, score=distance, normalizer="identity", return_weights=True)[1].squeeze(1)
        tensor([-1., -2.])
    """

    @abstractmethod
    def edgewise(self, query_i: Tensor, key_j: Tensor, edge_key: Tensor | None) -> Tensor:
        """Score each edge.

        Args:
            query_i: [*B, E, H, D] query of each edge's target.
            key_j: [*B, E, H_kv, D] key of each edge's source.
            edge_key: [*B, E, H_kv, D], added to the key, or None.

        Returns:
            [*B, E, H].
        """

    @abstractmethod
    def dense(self, query: Tensor, key: Tensor, edge_key: Tensor | None) -> Tensor:
        """Score all pairs.

        Args:
            query: [*B, T, H, D].
            key: [*B, S, H_kv, D].
            edge_key: [*B, T or 1, S, H_kv, D], added to the key of each pair, or None.

        Returns:
            [*B, H, T, S].
        """

    def check(self, where: str, query: Tensor, key: Tensor) -> None:
        """Raise ValueError or TypeError where these shapes or dtypes can't be scored."""
        if query.size(-1) != key.size(-1):
            rule = f"must be as wide as query, {query.size(-1)}"
            raise ValueError(message(where, "key", rule, f"{key.size(-1)} in shape {shape_of(key)}"))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that the score owns, by name: kernels ask them for derivatives, too."""
        return {}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Score:
        """Return the score with other tensors in place of `tensors()`, by the same names."""
        return self

    def on_targets(self, targets: Rows) -> Score:
        """Return the score with tensors of edges in place of those of targets, if it has any: for `edgewise`."""
        return self

    def to(self, dtype: torch.dtype) -> Score:
        """Return the score with its own tensors, if any, in another dtype."""
        return self.with_tensors({name: x.to(dtype) for name, x in self.tensors().items()})


class DotProduct(Score):
    """Scaled dot product: `scale * <query_i, key_j>`.

    Args:
        scale: factor; 1 / sqrt(D) where left out.

    Raises:
        TypeError: `scale` is not a number.
        ValueError: `scale` is infinite or NaN.

    Example:
        >>> query, key = torch.tensor([[[1.0, 2.0, 0.0, 1.0]]]), torch.tensor([[[2.0, 1.0, 3.0, 0.0]]])
        >>> DotProduct().edgewise(query, key, None)  # 4 / sqrt(4), one edge and one head
        tensor([[2.]])
        >>> DotProduct(scale=1.0).dense(query, key, None)
        tensor([[[4.]]])

    References:
        Vaswani et al., "Attention Is All You Need", 2017, equation 1.
    """

    def __init__(self, scale: float | None = None) -> None:
        if scale is not None:
            check_finite("DotProduct", "scale", scale)
        self.scale = scale

    def factor(self, width: int) -> float:
        """The factor for keys of this width."""
        return width**-0.5 if self.scale is None else float(self.scale)

    def edgewise(self, query_i: Tensor, key_j: Tensor, edge_key: Tensor | None) -> Tensor:
        """Score each edge, see `Score.edgewise`."""
        key_j = key_j if edge_key is None else key_j + edge_key
        return (query_i * repeat_heads(key_j, query_i.size(-2))).sum(-1) * self.factor(query_i.size(-1))

    def dense(self, query: Tensor, key: Tensor, edge_key: Tensor | None) -> Tensor:
        """Score all pairs, see `Score.dense`."""
        heads = query.size(-2)
        score = torch.einsum("...thd,...shd->...hts", query, repeat_heads(key, heads))
        if edge_key is not None:
            of_pairs = torch.einsum("...thd,...tshd->...hts", query, _per_target(repeat_heads(edge_key, heads), query))
            score = score + of_pairs
        return score * self.factor(query.size(-1))

    def __repr__(self) -> str:
        return "DotProduct()" if self.scale is None else f"DotProduct(scale={self.scale})"


class Additive(Score):
    """Additive attention: `<vector, activation(query_i + key_j)>`, per head.

    With tanh this is Bahdanau's score, with leaky_relu that of GATv2; of width D = 1, leaky_relu gives GAT, whose
    halves `<a, W x_i>` and `<a, W x_j>` are the query and the key.

    Args:
        vector: [H, D] float; or [T, H, D], one for each target.
        activation: "tanh" or "leaky_relu".
        negative_slope: slope of leaky_relu below zero.

    Raises:
        TypeError: `vector` is not a floating-point tensor.
        ValueError: `vector` has another number of dimensions, or `activation` is another name.

    Example:
        >>> query, key = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[2.0, -7.0]]])
        >>> Additive(torch.tensor([[1.0, 10.0]]), "leaky_relu").edgewise(query, key, None)  # 3 + 10 * 0.2 * -5
        tensor([[-7.]])

    References:
        Bahdanau et al., 2015; Velickovic et al., "Graph Attention Networks", 2018; Brody et al., "How Attentive are
        Graph Attention Networks?", 2022.
    """

    def __init__(self, vector: Tensor, activation: str = "tanh", negative_slope: float = 0.2) -> None:
        check_float_tensor("Additive", "vector", vector)
        check_choice("Additive", "activation", activation, ("tanh", "leaky_relu"))
        check_finite("Additive", "negative_slope", negative_slope)
        if vector.dim() not in (2, 3):
            raise ValueError(message("Additive", "vector", "must have shape [H, D] or [T, H, D]", shape_of(vector)))
        self.vector = vector
        self.activation = activation
        self.negative_slope = negative_slope

    def check(self, where: str, query: Tensor, key: Tensor) -> None:
        """Raise ValueError or TypeError where these shapes or dtypes can't be scored."""
        super().check(where, query, key)
        expected = query.shape[-self.vector.dim() :]
        if self.vector.shape != expected:
            names = "[H, D]" if self.vector.dim() == 2 else "[T, H, D]"
            rule = f"must have shape {names} = {list(expected)} like query"
            raise ValueError(message(where, "score.vector", rule, shape_of(self.vector)))
        check_like(where, "score.vector", self.vector, query, or_float32=True)

    def tensors(self) -> dict[str, Tensor]:
        """The vector, see `Score.tensors`."""
        return {"vector": self.vector}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Additive:
        """Return the score with another vector, see `Score.with_tensors`."""
        return Additive(tensors["vector"], self.activation, self.negative_slope)

    def on_targets(self, targets: Rows) -> Additive:
        """Return the score with the vector of each edge's target, see `Score.on_targets`."""
        return self if self.vector.dim() == 2 else self.with_tensors({"vector": gather(self.vector, targets, -3)})

    def edgewise(self, query_i: Tensor, key_j: Tensor, edge_key: Tensor | None) -> Tensor:
        """Score each edge, see `Score.edgewise`."""
        key_j = key_j if edge_key is None else key_j + edge_key
        return (self._activate(query_i + repeat_heads(key_j, query_i.size(-2))) * self.vector).sum(-1)

    def dense(self, query: Tensor, key: Tensor, edge_key: Tensor | None) -> Tensor:
        """Score all pairs, see `Score.dense`."""
        pairs = repeat_heads(key, query.size(-2)).unsqueeze(-4)
        if edge_key is not None:
            pairs = pairs + repeat_heads(edge_key, query.size(-2))
        hidden = self._activate(query.unsqueeze(-3) + pairs)
        of_targets = self.vector.expand(query.shape[-3:])
        return torch.einsum("...tshd,thd->...hts", hidden, of_targets)

    def _activate(self, x: Tensor) -> Tensor:
        return x.tanh() if self.activation == "tanh" else torch.nn.functional.leaky_relu(x, self.negative_slope)

    def __repr__(self) -> str:
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"Additive({list(self.vector.shape)}, {self.activation!r}{slope})"


class FunctionScore(Score):
    """A user's own score: any callable `(query_i, key_j, edge_key) -> [*B, E, H]`, pairwise.

    The callable sees every head's key, [*B, E, H, D], and `edge_key` as the user gave it, [*B or nothing, E, ...].
    """

    def __init__(self, function: ScoreFunction, captured: Captures | None = None) -> None:
        self.function = function
        # Where the score is for one call: what the function reads besides its arguments.
        self.captured = captured

    def tensors(self) -> dict[str, Tensor]:
        """The parameters of a module, see `Score.tensors`."""
        return dict(self.function.named_parameters()) if isinstance(self.function, torch.nn.Module) else {}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> FunctionScore:
        """Return the score with these in place of the parameters, see `Score.with_tensors`."""
        module = self.function
        if not isinstance(module, torch.nn.Module):
            return self
        return FunctionScore(lambda *rows: torch.func.functional_call(module, dict(tensors), rows))

    def to(self, dtype: torch.dtype) -> FunctionScore:
        """Return the score as it is: which dtypes a function computes in is its own choice."""
        return self

    def check(self, where: str, query: Tensor, key: Tensor) -> None:
        """A function may combine a query and a key of different widths."""

    def edgewise(self, query_i: Tensor, key_j: Tensor, edge_key: Tensor | None) -> Tensor:
        """Score each edge, see `Score.edgewise`."""
        score = self.function(query_i, repeat_heads(key_j, query_i.size(-2)), edge_key)
        if not isinstance(score, Tensor):
            raise TypeError(message("attention", "score", "must return a tensor [*B, E, H]", type(score).__name__))
        if score.shape != query_i.shape[:-1]:
            rule = f"must return [*B, E, H] = {list(query_i.shape[:-1])}"
            fix = "One number per edge and head: reduce the last dimension of [*B, E, H, D] alone, as sum(-1) does."
            raise ValueError(message("attention", "score", rule, shape_of(score), fix))
        check_float_tensor("attention", "score", score)
        check_device("attention", "score", score.device, query_i)
        return score

    def dense(self, query: Tensor, key: Tensor, edge_key: Tensor | None) -> Tensor:
        """Score all pairs, as one long list of edges."""
        targets, sources = query.size(-3), key.size(-3)
        query_i = query.repeat_interleave(sources, -3)
        key_j = key.repeat(*[1] * (key.dim() - 3), targets, 1, 1)
        if edge_key is not None:
            pair_dim = query.dim() - 3
            edge_key = edge_key.expand(*edge_key.shape[:pair_dim], targets, *edge_key.shape[pair_dim + 1 :])
            edge_key = edge_key.flatten(pair_dim, pair_dim + 1)
        score = self.edgewise(query_i, key_j, edge_key)
        return score.unflatten(-2, (targets, sources)).movedim(-1, -3)

    def __repr__(self) -> str:
        return f"FunctionScore({getattr(self.function, '__name__', type(self.function).__name__)})"


SCORES = (DotProduct, Additive, FunctionScore)


def as_score(where: str, score: Any) -> Score:
    """Return a Score as it is and any other callable as a `FunctionScore`.

    Raises:
        TypeError: `score` is neither, or doesn't take three arguments.
    """
    if isinstance(score, Score):
        return score
    if callable(score) and not isinstance(score, type):
        check_takes(where, "score", score, ("query_i", "key_j", "edge_key"), "Without edge_key=, the last one is None.")
        return FunctionScore(score)
    rule = "must be DotProduct(), Additive(vector) or a callable (query_i, key_j, edge_key) -> [*B, E, H]"
    fix = "Names are for layers; use Additive(vector, 'leaky_relu') for \"gatv2\"." if isinstance(score, str) else ""
    raise TypeError(message(where, "score", rule, repr(score), fix))


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Give each of `heads` query heads its key or value head: [..., H_kv, D] to [..., H, D]."""
    return x if x.size(-2) == heads else x.repeat_interleave(heads // x.size(-2), -2)


def _per_target(edge_key: Tensor, query: Tensor) -> Tensor:
    return edge_key.expand(*edge_key.shape[:-4], query.size(-3), *edge_key.shape[-3:])

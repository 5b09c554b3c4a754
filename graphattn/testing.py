"""Tools to test a pattern, score, normalizer or kernel: a collection of graphs, an error budget, one assertion."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .dense import dense_attention
from .errors import check_kind
from .functional import attention
from .offset_bias import OffsetBias
from .patterns import Edges, Full, Grid, Pattern, Window
from .scores import Score, ScoreFunction, as_score


def graph_zoo() -> dict[str, Edges]:
    """Graphs with corner cases that break kernels, by name.

    Example:
        >>> graph_zoo()["star in"]
        Edges(num_nodes=6, num_edges=5)
    """
    spokes = torch.arange(1, 6)
    center = torch.zeros_like(spokes)
    chain = torch.arange(6)
    hub = torch.arange(1, 1001)
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.stack([torch.randint(0, 7, (30,), generator=generator) for _ in range(2)])
    triangle = torch.tensor([[0, 1, 2], [1, 2, 0]])
    return {
        "empty graph": Edges(torch.empty(2, 0, dtype=torch.int64), 0),
        "one node": Edges(torch.empty(2, 0, dtype=torch.int64), 1),
        "one self-loop": Edges(torch.tensor([[0], [0]]), 1),
        "no edges": Edges(torch.empty(2, 0, dtype=torch.int64), 4),
        "one edge": Edges(torch.tensor([[2], [1]]), 4),
        "star in": Edges(torch.stack([spokes, center]), 6),
        "star out": Edges(torch.stack([center, spokes]), 6),
        "chain": Edges(torch.stack([chain[:-1], chain[1:]]), 6),
        "complete": Edges(Full(5).edge_index, 5),
        "bipartite": Edges(torch.tensor([[0, 3, 3, 6, 1], [0, 0, 1, 1, 3]]), num_sources=7, num_targets=4),
        "parallel edges": Edges(torch.tensor([[0, 1, 0, 2, 0, 1], [1, 2, 1, 2, 1, 2]]), 3),
        "unsorted edges": Edges(shuffled, 7),
        "hub": Edges(torch.stack([hub, torch.zeros_like(hub)]), 1001),
        "two disjoint graphs": Edges(torch.cat([triangle, triangle + 3], 1), 6),
    }


def pattern_zoo() -> dict[str, Pattern]:
    """The graph zoo and the structured patterns: single, ragged, bipartite, with empty components, and every option.

    Example:
        >>> len(pattern_zoo()) > len(graph_zoo())
        True
    """
    return {
        **graph_zoo(),
        "full": Full(5),
        "full causal": Full([4, 3], causal=True),
        "full bipartite": Full([3, 0, 2], [1, 2, 4]),
        "window": Window(8, radius=2),
        "window ragged": Window([5, 0, 1, 4], radius=1),
        "window causal": Window([6, 2], radius=3, causal=True),
        "grid 1-D": Grid((6,), radius=1),
        "grid 2-D": Grid((3, 4), radius=1),
        "grid 3-D": Grid((2, 3, 2), radius=(1, 0, 1)),
        "grid ragged": Grid([(2, 3), (1, 4)], radius=1),
        "window dilated": Window([7, 0, 2], radius=2, dilation=2),
        "window global": Window([6, 0, 2], radius=1, dilation=2, global_tokens=(4, 0)),
        "window of short items": Window([2, 1], radius=1, dilation=2, global_tokens=(0, 5)),
        "window global causal": Window([6, 3], radius=1, causal=True, global_tokens=(1, 4)),
        "grid shift dilated": Grid((7, 1), radius=(1, 0), dilation=(2, 1), border="shift"),
        "grid smaller than a step": Grid((2, 2), radius=1, dilation=3),
        "grid wrap": Grid([(5,), (0,), (6,)], radius=1, dilation=2, border="wrap"),
        "grid causal": Grid((2, 5), radius=(1, 2), dilation=(1, 2), causal=(False, True)),
        "union": Window([4, 3], radius=1, global_tokens=(0,)) | graph_zoo()["unsorted edges"],
    }


def random_call(
    pattern: Pattern,
    *,
    batch: tuple[int, ...] = (),
    heads: int = 2,
    kv_heads: int | None = None,
    width: int = 4,
    value_width: int | None = None,
    edge_tensors: bool = False,
    offset_table: bool = False,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Draw tensors for a call of `attention` on a pattern: query, key, value and, if requested, all edge tensors.

    Args:
        pattern: gives the numbers of sources, targets and edges.
        batch: leading dimensions.
        heads: H.
        kv_heads: heads of key and value; H if omitted.
        width: D.
        value_width: V; D if omitted.
        edge_tensors: also draw edge_bias, edge_key and edge_value, without batch dimensions.
        offset_table: draw the table of an `OffsetBias` in place of edge_bias.
        dtype: of all tensors.
        device: of all tensors.
        seed: the same seed draws the same numbers for every dtype.

    Returns:
        Keyword arguments of `attention`, and "edge_bias.table" if requested; every tensor requires a gradient.

    Example:
        >>> pattern = Window(5, radius=1)
        >>> call = random_call(pattern, heads=2, width=4)
        >>> sorted(call), attention(**call, pattern=pattern).shape
        (['key', 'query', 'value'], torch.Size([5, 2, 4]))
    """
    check_kind("random_call", "pattern", pattern, Pattern, "Use Edges(edge_index, num_nodes).")
    kv_heads = heads if kv_heads is None else kv_heads
    value_width = width if value_width is None else value_width
    shapes = {
        "query": (*batch, pattern.num_targets, heads, width),
        "key": (*batch, pattern.num_sources, kv_heads, width),
        "value": (*batch, pattern.num_sources, kv_heads, value_width),
    }
    if edge_tensors:
        shapes["edge_bias"] = (pattern.num_edges, heads)
        shapes["edge_key"] = (pattern.num_edges, kv_heads, width)
        shapes["edge_value"] = (pattern.num_edges, kv_heads, value_width)
    if offset_table:
        shapes.pop("edge_bias", None)
        shapes["edge_bias.table"] = (pattern.num_offsets, heads)
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return {name: x.to(device, dtype).requires_grad_() for name, x in drawn.items()}


def error_budget(exact: Tensor, rounded: Tensor) -> float:
    """The largest allowed error of a kernel: eight times that of the oracle at the same precision, plus rounding.

    Args:
        exact: the oracle's result in float64.
        rounded: the oracle's result in the precision that is tested.

    For float64 itself, where both are the same, the budget is 2^10 units of rounding.
    """
    scale = max(1.0, _largest(exact))
    epsilon = torch.finfo(rounded.dtype).eps
    units = 1024 if rounded.dtype == torch.float64 else 16
    return 8 * _largest(_finite(rounded).double() - _finite(exact)) + units * epsilon * scale


def assert_matches_dense(
    tensors: dict[str, Tensor],
    pattern: Pattern,
    *,
    score: Score | ScoreFunction | None = None,
    backend: str = "auto",
    seed: int = 0,
    **options: Any,
) -> None:
    """Assert that `attention` equals the oracle in output, weights, lse and the gradient of every tensor.

    Args:
        tensors: query, key, value and edge tensors, as `random_call` draws them.
        pattern: the pattern.
        score: a `Score` or a callable; gradients of its own tensors, such as parameters of a module, are compared too.
        backend: the kernel under test.
        seed: of dropout and of the random output gradients.
        options: further arguments of `attention`. Weights and lse are compared unless `return_weights` or `return_lse`
            is False, which may select a faster path of the kernel.

    Raises:
        AssertionError: names the tensor, the largest difference and the budget.

    Example:
        >>> window = Window(6, radius=1)
        >>> assert_matches_dense(random_call(window), window, normalizer="relu")
    """
    options.setdefault("return_weights", True)
    options.setdefault("return_lse", options.get("normalizer", "softmax") == "softmax")
    low = {name: x.dtype for name, x in tensors.items()}
    sparse = _run(attention, tensors, low, pattern, score, seed, {**options, "backend": backend})
    rounded = _run(dense_attention, tensors, low, pattern, score, seed, options)
    exact = _run(dense_attention, tensors, dict.fromkeys(low, torch.float64), pattern, score, seed, options)
    for name, truth in exact.items():
        ours, theirs = sparse[name], rounded[name]
        if ours.shape != truth.shape or ours.dtype != theirs.dtype:
            got = f"{ours.dtype} {list(ours.shape)}"
            raise AssertionError(
                f"{backend} on {pattern}: {name} is {got}, the oracle's {theirs.dtype} {list(truth.shape)}"
            )
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            if not torch.equal(kind(ours), kind(truth)):
                where = f"in {int(kind(ours).sum())} places, the oracle in {int(kind(truth).sum())}"
                raise AssertionError(f"{backend} on {pattern}: {name} {kind.__name__} {where}")
        budget = error_budget(truth, theirs)
        error = _largest(_finite(ours).double() - _finite(truth))
        if error > budget:
            raise AssertionError(f"{backend} on {pattern}: {name} is off by {error:.3g}, the budget is {budget:.3g}")


def _run(
    function: Any,
    tensors: dict[str, Tensor],
    dtypes: dict[str, torch.dtype],
    pattern: Pattern,
    score: Score | ScoreFunction | None,
    seed: int,
    options: dict[str, Any],
) -> dict[str, Tensor]:
    leaves = {name: x.detach().to(dtypes[name]).requires_grad_() for name, x in tensors.items()}
    if score is not None:
        score = as_score("assert_matches_dense", score)
        is_exact = dtypes["query"] == torch.float64
        own = {name: x.detach().to(torch.float64 if is_exact else x.dtype) for name, x in score.tensors().items()}
        leaves |= {f"score.{name}": x.requires_grad_() for name, x in own.items()}
        options = {**options, "score": score.with_tensors(own)}
    if "edge_bias.table" in leaves:
        options = {**options, "edge_bias": OffsetBias(leaves["edge_bias.table"])}
    arguments = {name: x for name, x in leaves.items() if "." not in name}
    torch.manual_seed(seed)
    results = function(pattern=pattern, **arguments, **options)
    asked = ["out", *(name for name in ("weights", "lse") if options[f"return_{name}"])]
    named = dict(zip(asked, results if len(asked) > 1 else [results], strict=True))
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64, device=pattern.device)
    for result in named.values():
        direction = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.device)
        total = total + (_finite(result).double() * direction).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        named[f"gradient of {name}"] = torch.zeros_like(leaf) if gradient is None else gradient
    return {name: x.detach() for name, x in named.items()}


def _finite(x: Tensor) -> Tensor:
    """Zero in place of NaN and the infinities: lse is -inf for a target without edges."""
    return torch.where(x.isfinite(), x, 0)


def _largest(x: Tensor) -> float:
    return float(_finite(x).abs().max()) if x.numel() else 0.0

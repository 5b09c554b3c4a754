"""Sparse against dense for one kind of pattern over a range of sizes: errors, time, memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from tqdm import tqdm

from ..dense import dense_attention
from ..errors import check_int, message
from ..functional import attention
from ..memory import peak_memory
from ..normalizers import Entmax, Identity, Normalizer, Relu, Sigmoid, Softmax, UserNormalizer, as_normalizer
from ..patterns import Edges, Pattern, Relations
from ..patterns.box import Box
from ..scores import Additive, DotProduct, Score, ScoreFunction, as_score
from .result import Comparison, Cost, Row

# One forward and backward in the dtype of its inputs: the output and the gradients, by name.
Side = Callable[[torch.dtype], dict[str, Tensor]]


def compare(
    make_pattern: Callable[[int], Pattern | Relations],
    sizes: int | Iterable[int],
    *,
    heads: int = 4,
    width: int = 32,
    score: Score | ScoreFunction = DotProduct(),
    normalizer: str | Normalizer | UserNormalizer = "softmax",
    backend: str = "auto",
    memory_limit: int = 2**31,
    repeats: int = 3,
    seed: int = 0,
    name: str | None = None,
    progress: bool = False,
) -> Comparison:
    """Compare `attention` with dense attention in accuracy, time and memory, forward and backward.

        error = max |sparse - dense| / max |dense|

    Errors are relative to `dense_attention`, the oracle, in float64: those of the output, and of the gradients of
    query, key, value and of the vector of an `Additive` score. The sparse side runs in float64 and in float32 on the
    same numbers. If the largest magnitude of the dense result is below 1e-6, which is only rounding, the error is
    absolute.

    The oracle is written for verification, not for speed. The competitor is torch's `scaled_dot_product_attention` with
    the pattern as its mask, which is timed too if it computes the same: softmax of `DotProduct`, without parallel
    edges.

    Args:
        make_pattern: returns the pattern of a size, on the device to compare on; or `Relations`, across which targets
            attend.
        sizes: passed to `make_pattern`, smallest first.
        heads: H.
        width: D and V.
        score: as `attention` takes it.
        normalizer: as `attention` takes it.
        backend: as `attention` takes it: the sparse side.
        memory_limit: bytes; the oracle stops at the first size whose float64 run should need more, see `dense_memory`,
            and so does SDPA, which needs less. The sparse side continues.
        repeats: number of timed runs of each side, in turns, after a warm-up; the result is the median.
        seed: of query, key, value and the gradient of the output, which are standard normal.
        name: name of the pattern in table and picture; that of the largest pattern if omitted.
        progress: show a progress bar on stderr.

    Returns:
        A `Comparison`: print it, or call its `plot()`.

    Raises:
        TypeError: `make_pattern` doesn't return a pattern, or a number is not an integer.
        ValueError: a number is out of range.
        NotImplementedError: the named backend can't run the call.

    Numerics:
        Time and memory are those of float32, and of torch's own allocations. Cached data of a pattern (its CSR) is
        built before; the dense sides build their mask in each run. SDPA gets no mask for the full pattern.

    Example:
        >>> from graphattn import Window
        >>> comparison = compare(lambda size: Window(size, radius=2), [8, 16], heads=2, width=4)
        >>> comparison.rows[1].edges, comparison.largest_error() < 1e-5
        (74, True)
    """
    if not callable(make_pattern):
        fix = "Use lambda size: Window(size, radius=2), for example."
        raise TypeError(message("compare", "make_pattern", "must return the pattern of a size", make_pattern, fix))
    listed = [sizes] if isinstance(sizes, int) else list(sizes)
    listed = sorted({check_int("compare", "sizes", size, 1) for size in listed})
    if not listed:
        raise ValueError(message("compare", "sizes", "must name at least one size"))
    for argument, number, minimum in (("heads", heads, 1), ("width", width, 1), ("repeats", repeats, 1)):
        check_int("compare", argument, number, minimum)
    check_int("compare", "memory_limit", memory_limit, 0)
    score, normalizer = as_score("compare", score), as_normalizer("compare", normalizer)

    rows: list[Row] = []
    with tqdm(listed, desc="compare", unit="size", disable=not progress, leave=False) as bar:
        for size in bar:
            made = make_pattern(size)
            pattern = made.across if isinstance(made, Relations) else made
            if not isinstance(pattern, Pattern):
                raise TypeError(message("compare", "make_pattern", "must return a Pattern", type(pattern).__name__))
            tensors = _draw(pattern, heads, width, score, seed)
            make = partial(_make_side, pattern=pattern, tensors=tensors, score=score)
            sides = {"sparse": make(attention, normalizer=normalizer, backend=backend)}
            dense = {"dense": make(dense_attention, normalizer=normalizer), "masked": make(_masked_attention)}
            estimates = {"dense": dense_memory(pattern, heads, width, score=score, normalizer=normalizer)}
            if _is_sdpa(pattern, score, normalizer):
                estimates["masked"] = _masked_memory(pattern)
            for side, estimate in estimates.items():
                if estimate <= memory_limit and all(getattr(row, side) is not None for row in rows):
                    sides[side] = dense[side]
            errors = _find_errors(sides["sparse"], sides["dense"]) if "dense" in sides else {}
            costs = dict(zip(sides, _find_costs(list(sides.values()), repeats, pattern.device), strict=True))
            counts = (size, pattern.num_targets, pattern.num_edges)
            cost = (costs["sparse"], costs.get("dense"), costs.get("masked"))
            rows.append(Row(*counts, *cost, estimates, errors))
    counted = f"{heads} {'head' if heads == 1 else 'heads'} of width {width}"
    setting = f"{counted}, {normalizer.name} of {score}, float32 on {pattern.device.type}"
    return Comparison(repr(pattern) if name is None else name, setting, tuple(rows), memory_limit)


def dense_memory(
    pattern: Pattern,
    heads: int,
    width: int,
    *,
    score: Score | ScoreFunction = DotProduct(),
    normalizer: str | Normalizer | UserNormalizer = "softmax",
    dtype: torch.dtype = torch.float64,
) -> int:
    """Estimate the bytes at the peak of one forward and backward of `dense_attention`.

        itemsize * H * (matrices * T * S + 3/2 * (T + S) * D) + T * S

    With softmax the oracle holds 6 matrices [H, T, S] at once, with sparsemax and entmax15 8 of float64, with the other
    normalizers 3; with an `Additive` score 3 arrays [H, T, S, D], with a callable about 5. The last term is the mask.
    With parallel edges it has a column for each edge: E in place of S. Making a mask from n-dimensional coordinates
    takes 17 n bytes per pair, which may exceed everything else if there is one head.

    Args:
        pattern: gives T, S and E.
        heads: H.
        width: D and V.
        score: as `attention` takes it.
        normalizer: as `attention` takes it.
        dtype: of query, key and value.

    Returns:
        An estimate within a factor of two of what `peak_memory` measures, unless a callable score or the user's own
        normalizer allocates more.

    Example:
        >>> from graphattn import Full
        >>> dense_memory(Full(1000), heads=1, width=4, dtype=torch.float32)
        25048000
    """
    score, normalizer = as_score("dense_memory", score), as_normalizer("dense_memory", normalizer)
    has_parallel = isinstance(pattern, Edges) and pattern.occurrence() is not None
    rows, columns = pattern.num_targets, pattern.num_edges if has_parallel else pattern.num_sources
    matrices = 3 if isinstance(normalizer, Relu | Sigmoid | Identity) else 6
    if isinstance(normalizer, Entmax):
        matrices = 8 * torch.float64.itemsize // dtype.itemsize
    if not isinstance(score, DotProduct):
        matrices = max(matrices, (3 if isinstance(score, Additive) else 5) * width)
    numbers = heads * (matrices * rows * columns + 3 * (rows + columns) * width // 2)
    axes = pattern.shape.size(1) if isinstance(pattern, Box) else 0
    return max(numbers * dtype.itemsize + rows * columns, 17 * axes * rows * columns)


def _masked_attention(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, *, score: DotProduct) -> Tensor:
    """The output of `attention` under softmax, by torch's `scaled_dot_product_attention` with the pattern as a mask."""
    query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
    mask = None if _is_full(pattern) else pattern.mask()
    out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=score.factor(query.size(-1)))
    return out.squeeze(0).transpose(0, 1)


def _is_full(pattern: Pattern) -> bool:
    return pattern.num_edges == pattern.num_targets * pattern.num_sources


def _is_sdpa(pattern: Pattern, score: Score, normalizer: Normalizer) -> bool:
    """Whether `_masked_attention` computes the same: a mask can't represent parallel edges."""
    has_parallel = isinstance(pattern, Edges) and pattern.occurrence() is not None
    return isinstance(score, DotProduct) and isinstance(normalizer, Softmax) and not has_parallel


def _masked_memory(pattern: Pattern) -> int:
    """Estimate the peak bytes of `_masked_attention`: the mask, again in float32, and the arrays that it is made of."""
    axes = pattern.shape.size(1) if isinstance(pattern, Box) else 0
    return 0 if _is_full(pattern) else max(11, 17 * axes) * pattern.num_targets * pattern.num_sources


def _draw(pattern: Pattern, heads: int, width: int, score: Score, seed: int) -> dict[str, Tensor]:
    """Query, key, value, the gradient of the output and the score's own tensors, in float32."""
    generator = torch.Generator().manual_seed(seed)
    rows = {"query": pattern.num_targets, "key": pattern.num_sources, "value": pattern.num_sources}
    rows["grad_out"] = pattern.num_targets
    tensors = {name: torch.randn(count, heads, width, generator=generator) for name, count in rows.items()}
    tensors |= {f"score.{name}": x.detach().float() for name, x in score.tensors().items()}
    return {name: x.to(pattern.device) for name, x in tensors.items()}


def _make_side(
    function: Callable[..., Any], *, pattern: Pattern, tensors: dict[str, Tensor], score: Score, **options: Any
) -> Side:
    def run(dtype: torch.dtype) -> dict[str, Tensor]:
        leaves = {name: x.detach().to(dtype).requires_grad_() for name, x in tensors.items() if name != "grad_out"}
        own = score.with_tensors({name: leaves[f"score.{name}"] for name in score.tensors()})
        out = function(leaves["query"], leaves["key"], leaves["value"], pattern, score=own, **options)
        grad_out = tensors["grad_out"].to(dtype)
        gradients = torch.autograd.grad(out, list(leaves.values()), grad_out, materialize_grads=True)
        return {"out": out.detach(), **dict(zip(leaves, gradients, strict=True))}

    return run


def _find_errors(sparse: Side, dense: Side) -> dict[torch.dtype, dict[str, float]]:
    exact = dense(torch.float64)
    errors = {}
    for dtype in (torch.float64, torch.float32):
        found = sparse(dtype)
        errors[dtype] = {name: _error(found[name].double(), truth) for name, truth in exact.items()}
    return errors


def _error(found: Tensor, truth: Tensor) -> float:
    if truth.numel() == 0:
        return 0.0
    scale = float(truth.abs().max())
    return float((found - truth).abs().max()) / (1.0 if scale < 1e-6 else scale)


def _find_costs(sides: Sequence[Side], repeats: int, device: torch.device) -> list[Cost]:
    # The first run builds the pattern's cached data; those that measure memory then warm up both sides for the timing.
    sides[0](torch.float32)
    memory = [peak_memory(partial(side, torch.float32), device) for side in sides]
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, taken in zip(sides, seconds, strict=True):
            _wait(device)
            start = time.perf_counter()
            side(torch.float32)
            _wait(device)
            taken.append(time.perf_counter() - start)
    return [Cost(statistics.median(taken), peak) for taken, peak in zip(seconds, memory, strict=True)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

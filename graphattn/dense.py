"""The oracle: attention as matrices, from the pattern's mask.

It shares no code with the kernels, and the tests compare every kernel with it. Its memory grows with T x S (with T x E
for edge tensors or parallel edges), so it is for verification, not for training.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, Unpack, overload

import torch
from torch import Tensor

from .call import AnyOptions, OutAlone, WithBoth, WithLse, WithWeights, prepare
from .dropout import draw_seed, keep_edges, keep_scale
from .normalizers import Normalizer, Softmax, UserNormalizer
from .offset_bias import OffsetBias
from .patterns import PatternLike
from .scores import DotProduct, Score, ScoreFunction, repeat_heads
from .segments import Rows


class DenseResult(NamedTuple):
    """out [*B, T, H, V], weights [*B, H, T, S] before dropout, and lse [*B, H, T, 2], see `Softmax.lse_dense`."""

    out: Tensor
    weights: Tensor
    lse: Tensor | None


@overload
def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: PatternLike,
    *,
    seed: Tensor | None = ...,
    **options: Unpack[OutAlone],
) -> Tensor: ...
@overload
def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: PatternLike,
    *,
    seed: Tensor | None = ...,
    **options: Unpack[WithWeights],
) -> tuple[Tensor, Tensor]: ...
@overload
def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: PatternLike,
    *,
    seed: Tensor | None = ...,
    **options: Unpack[WithLse],
) -> tuple[Tensor, Tensor]: ...
@overload
def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: PatternLike,
    *,
    seed: Tensor | None = ...,
    **options: Unpack[WithBoth],
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: PatternLike,
    *,
    seed: Tensor | None = ...,
    **options: Unpack[AnyOptions],
) -> Tensor | tuple[Tensor, ...]: ...
def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: PatternLike,
    *,
    score: Score | ScoreFunction = DotProduct(),
    normalizer: str | Normalizer | UserNormalizer = "softmax",
    edge_bias: Tensor | OffsetBias | None = None,
    edge_key: Tensor | None = None,
    edge_value: Tensor | None = None,
    dropout_p: float = 0.0,
    return_weights: bool = False,
    return_lse: bool | Literal["split"] = False,
    seed: Tensor | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """What `attention` must return, computed densely. Arguments, results and errors are those of `attention`.

    Edge tensors and parallel edges use the incidence form: each edge becomes a separate source, which only the edge's
    target may attend to.

    Args:
        seed: of the dropout hash, one int64; drawn as `attention` draws it if omitted, so that after the same
            `torch.manual_seed` both drop the same edges.

    Example:
        >>> from graphattn import Full
        >>> x = torch.eye(2).unsqueeze(1)
        >>> dense_attention(x, x, x, Full(2), score=DotProduct(scale=0.0)).squeeze(1)
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """
    call = prepare(
        "dense_attention",
        query,
        key,
        value,
        pattern,
        score=score,
        normalizer=normalizer,
        edge_bias=edge_bias,
        edge_key=edge_key,
        edge_value=edge_value,
        dropout_p=dropout_p,
        return_weights=return_weights,
        return_lse=return_lse,
    )
    query, key, value = call.query, call.key, call.value
    pattern, edge_key, edge_value = call.pattern, call.edge_key, call.edge_value
    dims = query.dim() - 3
    edge_bias = call.edge_bias
    if isinstance(edge_bias, OffsetBias):
        # The bias is rounded once, not for each edge; so is the gradient of the table.
        edge_bias = edge_bias.table.to(call.accumulate_dtype)[pattern.offset_index()]
    if edge_bias is not None and edge_bias.dim() == 2:
        edge_bias = edge_bias.view(*[1] * dims, *edge_bias.shape)
    source, target = pattern.edge_index
    targets = torch.arange(pattern.num_targets, device=query.device)
    occurrence: Tensor | int = 0

    mask = pattern.mask()
    columns = torch.arange(pattern.num_sources, device=query.device)
    has_edge_tensors = not (edge_bias is None and edge_key is None and edge_value is None)
    if has_edge_tensors or pattern.num_edges != int(mask.sum()):
        mask = target == targets[:, None]
        columns = source
        key, value = key.index_select(-3, source), value.index_select(-3, source)
        counted = pattern.occurrence()
        occurrence = 0 if counted is None else counted
    if edge_value is not None:
        value = value + edge_value
    keep = None
    if dropout_p > 0:
        batch = torch.arange(math.prod(query.shape[:dims]), device=query.device).view(*query.shape[:dims], 1, 1, 1)
        keep = keep_edges(
            draw_seed(query.device) if seed is None else seed,
            dropout_p,
            batch=batch,
            target=targets[:, None],
            source=columns,
            occurrence=occurrence,
            head=torch.arange(query.size(-2), device=query.device)[:, None, None],
        )
    is_simple = _is_finite(query, key, value) or not pattern.num_targets
    attend = attend_matrix if is_simple else _attend_row_by_row
    result = attend(
        query,
        key,
        value,
        mask,
        call.score,
        call.normalizer,
        pair_bias=None if edge_bias is None else edge_bias.unsqueeze(-3),
        pair_key=None if edge_key is None else edge_key.unsqueeze(dims),
        keep=keep,
        dropout_p=dropout_p,
    )
    results = [result.out]
    if return_weights:
        column = torch.arange(len(source), device=query.device) if columns is source else source
        results.append(result.weights[..., target, column].movedim(-2, -1))
    if return_lse and result.lse is not None:
        lse = result.lse.movedim(-3, -2)
        results.append(lse if return_lse == "split" else lse.sum(-1))
    return results[0] if len(results) == 1 else tuple(results)


def attend_matrix(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    score: Score,
    normalizer: Normalizer,
    *,
    pair_bias: Tensor | None = None,
    pair_key: Tensor | None = None,
    pair_value: Tensor | None = None,
    keep: Tensor | None = None,
    dropout_p: float = 0.0,
) -> DenseResult:
    """O = V weights(K^T Q), all outputs in parallel.

    Args:
        query: [*B, T, H, D].
        key: [*B, S, H_kv, D].
        value: [*B, S, H_kv, V].
        mask: boolean, broadcasts to [*B, H, T, S]; True where the target may attend.
        score: scores all pairs.
        normalizer: normalizes the rows.
        pair_bias: [*B, T or 1, S, H], added to the scores.
        pair_key: [*B, T or 1, S, H_kv, D], added to the key of each pair.
        pair_value: [*B, T, S, H_kv, V], added to the value of each pair.
        keep: [*B, H, T, S] boolean, the pairs that dropout keeps.
        dropout_p: probability that made `keep`.
    """
    dtype = query.dtype
    if dtype in (torch.float16, torch.bfloat16):
        query, key, value = query.float(), key.float(), value.float()
        pair_bias, pair_key, pair_value = (x if x is None else x.float() for x in (pair_bias, pair_key, pair_value))
        score = score.to(torch.float32)
    # Autocast would run the matrix products in half precision, and the reference must be exact.
    with torch.autocast(query.device.type, enabled=False):
        scores = score.dense(query, key, pair_key)
        if pair_bias is not None:
            scores = scores + pair_bias.movedim(-1, -3)
        weights = normalizer.dense(scores, mask)
        kept = weights if keep is None else weights * keep * keep_scale(dropout_p)
        heads = query.size(-2)
        out = torch.einsum("...hts,...shv->...thv", kept, repeat_heads(value, heads))
        if pair_value is not None:
            out = out + torch.einsum("...hts,...tshv->...thv", kept, repeat_heads(pair_value, heads))
        lse = normalizer.lse_dense(scores, mask) if isinstance(normalizer, Softmax) else None
    return DenseResult(out.to(dtype), weights, lse)


def _attend_row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    score: Score,
    normalizer: Normalizer,
    *,
    pair_bias: Tensor | None = None,
    pair_key: Tensor | None = None,
    keep: Tensor | None = None,
    dropout_p: float = 0.0,
) -> DenseResult:
    """`attend_matrix` for inputs that aren't finite: each target is computed with its own sources only.

    In a matrix product a NaN times the zero of a non-edge is NaN, and would spread to rows without an edge from it.
    """
    outs, weights, lses = [], [], []
    for row in range(query.size(-3)):
        columns = mask[row].nonzero().flatten()
        pick = lambda x, dim, columns=columns: None if x is None else x.index_select(dim, columns)
        result = attend_matrix(
            query[..., row : row + 1, :, :],
            key.index_select(-3, columns),
            value.index_select(-3, columns),
            torch.ones(1, len(columns), dtype=torch.bool, device=mask.device),
            score.on_targets(Rows.from_index(torch.tensor([row], device=mask.device), query.size(-3))),
            normalizer,
            pair_bias=pick(pair_bias, -2),
            pair_key=pick(pair_key, query.dim() - 2),
            keep=pick(None if keep is None else keep[..., row : row + 1, :], -1),
            dropout_p=dropout_p,
        )
        outs.append(result.out)
        spread = result.weights.new_zeros(*result.weights.shape[:-1], mask.size(1))
        weights.append(spread.index_copy(-1, columns, result.weights))
        lses.append(result.lse)
    lse = torch.cat([x for x in lses if x is not None], -2) if isinstance(normalizer, Softmax) and lses else None
    return DenseResult(torch.cat(outs, -3), torch.cat(weights, -2), lse)


def _is_finite(*tensors: Tensor) -> bool:
    return all(bool(x.isfinite().all()) for x in tensors)

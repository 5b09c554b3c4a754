"""Bad input gets one clear line: the argument, the value, the fix."""

from __future__ import annotations

import pytest
import torch
from torch_geometric import EdgeIndex

from graphattn import (
    Additive,
    DotProduct,
    Edges,
    Full,
    Grid,
    OffsetBias,
    Window,
    attention,
    dense_attention,
    explain_backend,
)
from graphattn.compare import compare
from graphattn.costs import Costs
from graphattn.kernels import KERNELS, Call, Kernel, Result
from graphattn.nn import (
    AttentionReadout,
    DenseGraphAttention,
    Encoding,
    GraphAttention,
    GraphTransformer,
    Seq2Seq,
    TransformerBlock,
)
from graphattn.patterns import receptive_field
from graphattn.testing import graph_zoo

X = torch.randn(5, 2, 4)
EDGES = torch.tensor([[0, 1, 4], [1, 2, 0]])
BACKENDS = ", ".join(repr(kernel.name) for kernel in KERNELS)


class Relu6:
    """A normalizer of the user's own, which may keep a part of the heads alone."""

    def __init__(self, heads=slice(None)):
        self.heads = heads

    def edgewise(self, score, target, num_targets):
        return score.clamp(0, 6)[..., self.heads]

    def dense(self, score, mask):
        return torch.where(mask, score.clamp(0, 6), 0)


class OfTwoForms:
    def edgewise(self, score):
        return score

    def dense(self, score, mask):
        return score


def call(query=X, key=X, value=X, pattern=EDGES, **options):
    return attention(query, key, value, pattern, **options)


BAD_CALLS = {
    "index out of range": (
        lambda: call(pattern=torch.tensor([[0, 1, 9], [1, 2, 0]])),
        ValueError,
        "attention: edge_index[0] must lie in [0, 5) because key has 5 rows, got 9 at edge 2.",
    ),
    "negative index": (
        lambda: call(pattern=torch.tensor([[0, 1], [1, -2]])),
        ValueError,
        "attention: edge_index[1] must lie in [0, 5) because query has 5 rows, got -2 at edge 1.",
    ),
    "rows swapped": (
        lambda: call(query=torch.randn(7, 2, 4), pattern=torch.tensor([[6, 0], [1, 2]])),
        ValueError,
        "attention: edge_index[0] must lie in [0, 5) because key has 5 rows, got 6 at edge 0. Were the rows swapped?",
    ),
    "float edges": (
        lambda: call(pattern=EDGES.float()),
        TypeError,
        "attention: edge_index must have an integer dtype, got torch.float32. Use edge_index.long().",
    ),
    "bool edges": (
        lambda: call(pattern=torch.ones(5, 5, dtype=torch.bool)),
        TypeError,
        "attention: edge_index must have an integer dtype, got torch.bool. Use Edges.from_mask(mask).",
    ),
    "transposed edges": (
        lambda: call(pattern=EDGES.t()),
        ValueError,
        "attention: edge_index must have shape [2, E], got [3, 2]. Use edge_index.t().",
    ),
    "not a container": (
        lambda: call(pattern="edges"),
        TypeError,
        "attention: edge_index must be a [2, E] tensor, EdgeIndex, sparse adjacency, scipy.sparse matrix, "
        "networkx graph or pattern, got str.",
    ),
    "wrongly declared sort order": (
        lambda: call(pattern=EdgeIndex(EDGES, sort_order="col")),
        ValueError,
        "attention: edge_index declares sort_order='col' and must be sorted by it, got edge 2 out of order. "
        "Drop sort_order, or use edge_index.sort_by(...).",
    ),
    "container of another size": (
        lambda: call(pattern=EdgeIndex(EDGES, sparse_size=(6, 5))),
        ValueError,
        "attention: edge_index must have as many sources as key has rows, 5, got a container with 6.",
    ),
    "pattern of another size": (
        lambda: call(pattern=Window(4, radius=1)),
        ValueError,
        "attention: pattern must have as many sources as key has rows, 5, got 4 in Window(4, radius=1).",
    ),
    "pattern with other targets": (
        lambda: call(pattern=Full(3, 5)),
        ValueError,
        "attention: pattern must have as many targets as query has rows, 5, got 3 in Full(3, source_sizes=5).",
    ),
    "integer query": (
        lambda: call(query=torch.ones(5, 2, 4, dtype=torch.int64)),
        TypeError,
        "attention: query must have a floating-point dtype, got torch.int64. Use query.float().",
    ),
    "no tensor": (lambda: call(key=[1.0]), TypeError, "attention: key must be a tensor, got list."),
    "too few dimensions": (
        lambda: call(query=torch.randn(5, 4)),
        ValueError,
        "attention: query must have shape [*B, rows, heads, width], got [5, 4].",
    ),
    "another dtype": (
        lambda: call(key=X.double()),
        TypeError,
        "attention: key must have query's dtype, torch.float32, got torch.float64. Use key.to(torch.float32).",
    ),
    "another device": (
        lambda: call(value=X.to("meta")),
        ValueError,
        "attention: value must be on query's device, cpu, got meta. Use value.to('cpu').",
    ),
    "pattern on another device": (
        lambda: call(pattern=Edges(EDGES, 5).to("meta")),
        ValueError,
        "attention: pattern must be on query's device, cpu, got meta. Use pattern.to('cpu').",
    ),
    "another batch": (
        lambda: call(key=X.expand(3, 5, 2, 4)),
        ValueError,
        "attention: key must have query's batch dimensions, [], got [3] in shape [3, 5, 2, 4].",
    ),
    "another width": (
        lambda: call(key=torch.randn(5, 2, 3)),
        ValueError,
        "attention: key must be as wide as query, 4, got 3 in shape [5, 2, 3].",
    ),
    "values of other rows": (
        lambda: call(value=torch.randn(6, 2, 4)),
        ValueError,
        "attention: value must have as many rows as key, 5, got 6.",
    ),
    "values of other heads": (
        lambda: call(value=torch.randn(5, 1, 4)),
        ValueError,
        "attention: value must have as many heads as key, 2, got 1.",
    ),
    "layout of SDPA": (
        lambda: call(*[torch.randn(2, 4, 10, 8)] * 3, Full(10)),
        ValueError,
        "attention: pattern must have as many sources as key has rows, 4, got 10 in Full(10). "
        "Rows come before heads: from SDPA's layout, use transpose(1, 2).",
    ),
    "layout of SDPA with edges": (
        lambda: call(*[torch.randn(2, 4, 10, 8)] * 3, 9 - EDGES),
        ValueError,
        "attention: edge_index[0] must lie in [0, 4) because key has 4 rows, got 9 at edge 0. "
        "Rows come before heads: from SDPA's layout, use transpose(1, 2).",
    ),
    "layout of SDPA with an adjacency": (
        lambda: call(*[torch.randn(2, 4, 10, 8)] * 3, torch.eye(10).to_sparse()),
        ValueError,
        "attention: edge_index must have as many sources as key has rows, 4, got a container with 10. "
        "Rows come before heads: from SDPA's layout, use transpose(1, 2).",
    ),
    "layout of SDPA with another memory": (
        lambda: call(torch.randn(2, 4, 10, 8), *[torch.randn(2, 4, 12, 8)] * 2, Full(10, 12)),
        ValueError,
        "attention: key's number of heads must divide the 10 heads of query, got 12. "
        "Rows come before heads: from SDPA's layout, use transpose(1, 2).",
    ),
    "heads that don't divide": (
        lambda: call(query=torch.randn(5, 3, 4)),
        ValueError,
        "attention: key's number of heads must divide the 3 heads of query, got 2.",
    ),
    "scale that makes NaN": (
        lambda: DotProduct(float("nan")),
        ValueError,
        "DotProduct: scale must be finite, or every score becomes NaN, got nan.",
    ),
    "scale that is no number": (
        lambda: DotProduct("1"),
        TypeError,
        "DotProduct: scale must be a number, got '1' (str).",
    ),
    "vector of another shape": (
        lambda: call(score=Additive(torch.ones(2, 3))),
        ValueError,
        "attention: score.vector must have shape [H, D] = [2, 4] like query, got [2, 3].",
    ),
    "vectors for other targets": (
        lambda: call(score=Additive(torch.ones(4, 2, 4))),
        ValueError,
        "attention: score.vector must have shape [T, H, D] = [5, 2, 4] like query, got [4, 2, 4].",
    ),
    "vector that is no matrix": (
        lambda: Additive(torch.ones(4)),
        ValueError,
        "Additive: vector must have shape [H, D] or [T, H, D], got [4].",
    ),
    "unknown activation": (
        lambda: Additive(torch.ones(2, 4), "leakyrelu"),
        ValueError,
        "Additive: activation must be one of 'tanh', 'leaky_relu', got 'leakyrelu'. Did you mean 'leaky_relu'?",
    ),
    "score that is no callable": (
        lambda: call(score="dot"),
        TypeError,
        "attention: score must be DotProduct(), Additive(vector) or a callable "
        "(query_i, key_j, edge_key) -> [*B, E, H], got 'dot'. Names are for layers; use Additive(vector, 'leaky_relu') "
        'for "gatv2".',
    ),
    "score of one argument": (
        lambda: call(score=torch.nn.Identity()),
        TypeError,
        "attention: score must take 3 arguments, (query_i, key_j, edge_key), got forward(input: torch.Tensor) -> "
        "torch.Tensor. Without edge_key=, the last one is None.",
    ),
    "score of two arguments": (
        lambda: call(score=lambda query, key: (query * key).sum(-1)),
        TypeError,
        "attention: score must take 3 arguments, (query_i, key_j, edge_key), got <lambda>(query, key). "
        "Without edge_key=, the last one is None.",
    ),
    "score that is no tensor": (
        lambda: call(score=lambda query, key, edge: 1.0),
        TypeError,
        "attention: score must return a tensor [*B, E, H], got float.",
    ),
    "score of whole numbers": (
        lambda: call(score=lambda query, key, edge: (query * key).sum(-1).long()),
        TypeError,
        "attention: score must have a floating-point dtype, got torch.int64. Use score.float().",
    ),
    "score on another device": (
        lambda: call(score=lambda query, key, edge: (query * key).sum(-1).to("meta")),
        ValueError,
        "attention: score must be on query's device, cpu, got meta. Use score.to('cpu').",
    ),
    "class of a normalizer": (
        lambda: call(normalizer=OfTwoForms),
        TypeError,
        "attention: normalizer must be an object, not its class, got OfTwoForms. Use OfTwoForms().",
    ),
    "normalizer of too few arguments": (
        lambda: call(normalizer=OfTwoForms()),
        TypeError,
        "attention: normalizer.edgewise must take 3 arguments, (score, target, num_targets), got edgewise(score).",
    ),
    "score of another shape": (
        lambda: call(score=lambda query, key, edge: query * key),
        ValueError,
        "attention: score must return [*B, E, H] = [3, 2], got [3, 2, 4]. "
        "One number per edge and head: reduce the last dimension of [*B, E, H, D] alone, as sum(-1) does.",
    ),
    "unknown normalizer": (
        lambda: call(normalizer="sofmax"),
        ValueError,
        "attention: normalizer must be one of 'softmax', 'relu', 'sigmoid', 'identity', 'sparsemax', 'entmax15', got "
        "'sofmax'. "
        "Did you mean 'softmax'?",
    ),
    "normalizer without its forms": (
        lambda: call(normalizer=torch.softmax),
        TypeError,
        "attention: normalizer must be a name or have edgewise(score, target, num_targets) and dense(score, mask), got",
    ),
    "unknown backend": (
        lambda: call(backend="Scater"),
        ValueError,
        f"attention: backend must be one of 'auto', {BACKENDS}, got 'Scater'. Did you mean 'scatter'?",
    ),
    "dropout above one": (lambda: call(dropout_p=1.5), ValueError, "attention: dropout_p must lie in [0, 1], got 1.5."),
    "dropout NaN": (
        lambda: call(dropout_p=float("nan")),
        ValueError,
        "attention: dropout_p must lie in [0, 1], got nan.",
    ),
    "lse of another normalizer": (
        lambda: call(normalizer="relu", return_lse=True),
        ValueError,
        "attention: return_lse needs normalizer='softmax', got 'relu'.",
    ),
    "edge_bias of another shape": (
        lambda: call(edge_bias=torch.randn(3, 1)),
        ValueError,
        "attention: edge_bias must have shape [3, 2], got [3, 1].",
    ),
    "edge_key in a batch": (
        lambda: call(X[None], X[None], X[None], edge_key=torch.randn(2, 3, 2, 4)),
        ValueError,
        "attention: edge_key must have shape [3, 2, 4], with or without [1] in front, got [2, 3, 2, 4].",
    ),
    "edge_value of another dtype": (
        lambda: call(edge_value=torch.randn(3, 2, 4).double()),
        TypeError,
        "attention: edge_value must have query's dtype, torch.float32, got torch.float64. "
        "Use edge_value.to(torch.float32).",
    ),
    "offsets of another pattern": (
        lambda: call(pattern=Window(5, radius=1), edge_bias=OffsetBias(torch.zeros(5, 2))),
        ValueError,
        "attention: edge_bias.table must have shape [R, H] = [3, 2] for Window(5, radius=1), got [5, 2].",
    ),
    "offsets of an edge list": (
        lambda: call(edge_bias=OffsetBias(torch.zeros(5, 2))),
        ValueError,
        "attention: edge_bias as a table needs a pattern with coordinates: Full, Window or Grid, "
        "got Edges(num_nodes=5, num_edges=3).",
    ),
    "vector of another dtype": (
        lambda: call(score=Additive(torch.ones(2, 4).double())),
        TypeError,
        "attention: score.vector must have query's dtype, torch.float32, got torch.float64. "
        "Use score.vector.to(torch.float32).",
    ),
    "dense_attention has the same checks": (
        lambda: dense_attention(X, X, X, EDGES, dropout_p=2.0),
        ValueError,
        "dense_attention: dropout_p must lie in [0, 1], got 2.0.",
    ),
    "edge_bias that is a number": (
        lambda: call(edge_bias=0.5),
        TypeError,
        "attention: edge_bias must be a tensor, got float.",
    ),
    "float mask for edges": (
        lambda: call(pattern=torch.ones(5, 5)),
        TypeError,
        "attention: edge_index must have an integer dtype, got torch.float32. Use Edges.from_mask(mask.bool()).",
    ),
    "three-dimensional adjacency": (
        lambda: call(pattern=torch.ones(5, 5, 5).to_sparse()),
        ValueError,
        "attention: edge_index must be a sparse matrix in COO, CSR or CSC layout, got torch.sparse_coo of shape "
        "[5, 5, 5]. Use adjacency.to_sparse_coo().",
    ),
    "width of zero": (
        lambda: call(X[..., :0], X[..., :0]),
        ValueError,
        "attention: query must have a width of at least 1, got [5, 2, 0].",
    ),
    "dropout True": (
        lambda: call(dropout_p=True),
        TypeError,
        "attention: dropout_p must be a number, got True (bool).",
    ),
    "normalizer of another shape": (
        lambda: call(normalizer=Relu6(slice(0, 1))),
        ValueError,
        "attention: normalizer.edgewise must return weights like the scores, torch.float32 [3, 2], "
        "got torch.float32 [3, 1].",
    ),
    "float pointers": (
        lambda: Edges.from_csr(torch.tensor([0, 1]), torch.tensor([0.9])),
        TypeError,
        "Edges.from_csr: index must be a tensor of an integer dtype, got torch.float32.",
    ),
    "mask in a list": (
        lambda: Edges.from_mask([[True]]),
        TypeError,
        "Edges.from_mask: mask must be boolean of shape [T, S], got list.",
    ),
    "batch in a list": (
        lambda: Full.from_batch([0, 0, 1]),
        TypeError,
        "Full.from_batch: batch must be a tensor, got list.",
    ),
    "radius in an array": (
        lambda: Window(10, torch.tensor([1, 2])),
        TypeError,
        "Window: radius must be an integer, got tensor([1, 2]) (Tensor).",
    ),
    "array of arrays": (
        lambda: Grid([(3, 4), 5], 1),
        TypeError,
        "Grid: shape must be a tuple of extents or a list of such tuples, got [(3, 4), 5].",
    ),
    "more nodes than numbers": (
        lambda: Grid((10**7,) * 3, 1),
        ValueError,
        "Grid: nodes must number less than 2^62, got (10000000, 10000000, 10000000). Split the array.",
    ),
    "more sources than numbers": (
        lambda: Full([1, 1, 1], [2**63 - 1, 2**63 - 1, 10]),
        ValueError,
        f"Full: nodes must number less than 2^62, got [({2**63 - 1},), ({2**63 - 1},), (10,)]. Split the array.",
    ),
    "more nodes than an index can name": (
        lambda: Edges(EDGES, 2**62),
        ValueError,
        f"Edges: nodes must number less than 2^62, got {2**62}.",
    ),
    "sizes that are negative as signed numbers": (
        lambda: Full(torch.tensor([2**64 - 5], dtype=torch.uint64)),
        ValueError,
        "Full: sizes must be at least 0, got -5.",
    ),
    "explain_backend's misspelt option": (
        lambda: explain_backend(X, X, X, EDGES, normaliser="relu"),
        ValueError,
        "explain_backend: argument must be one of 'score', 'normalizer', 'edge_bias', 'edge_key', 'edge_value', "
        "'dropout_p', 'return_weights', 'return_lse', got 'normaliser'. Did you mean 'normalizer'?",
    ),
    "edges of NumPy": (
        lambda: call(pattern=EDGES.numpy()),
        TypeError,
        "attention: edge_index must be a [2, E] tensor, EdgeIndex, sparse adjacency, scipy.sparse matrix, networkx "
        "graph or pattern, got ndarray. Use torch.from_numpy(edge_index).",
    ),
    "edges where a pattern is needed": (
        lambda: receptive_field(EDGES, node=0, layers=1),
        TypeError,
        "receptive_field: pattern must be a Pattern, got Tensor. Use Edges(edge_index, num_nodes).",
    ),
    "pattern in place of its maker": (
        lambda: compare(Window(8, 2), [8]),
        TypeError,
        "compare: make_pattern must return the pattern of a size, got Window(8, radius=2). "
        "Use lambda size: Window(size, radius=2), for example.",
    ),
    "explain_backend names itself": (
        lambda: explain_backend(X, X, X, EDGES.float()),
        TypeError,
        "explain_backend: edge_index must have an integer dtype, got torch.float32. Use edge_index.long().",
    ),
    "sizes given twice": (
        lambda: Edges(EDGES, 5, num_sources=5),
        ValueError,
        "Edges: num_nodes excludes num_sources and num_targets, got 5.",
    ),
    "half of the sizes": (
        lambda: Edges(EDGES, num_sources=5),
        ValueError,
        "Edges: num_sources and num_targets must be given together.",
    ),
    "too few nodes": (
        lambda: Edges(EDGES, 3),
        ValueError,
        "Edges: edge_index[0] must lie in [0, 3) because num_nodes is 3, got 4 at edge 2.",
    ),
    "falling pointers": (
        lambda: Edges.from_csr(torch.tensor([0, 2, 1, 3]), torch.tensor([0, 1, 2])),
        ValueError,
        "Edges.from_csr: ptr must rise from 0 to the 3 entries of index, got 0 to 3.",
    ),
    "mask of numbers": (
        lambda: Edges.from_mask(torch.ones(2, 2)),
        TypeError,
        "Edges.from_mask: mask must be boolean of shape [T, S], got torch.float32 of shape [2, 2].",
    ),
    "negative radius": (lambda: Window(5, radius=-1), ValueError, "Window: radius must be at least 0, got -1."),
    "fractional size": (lambda: Window([4, 2.5], 1), TypeError, "Window: sizes must be an integer, got 2.5 (float)."),
    "negative size": (lambda: Full([3, -1]), ValueError, "Full: sizes must be at least 0, got -1."),
    "float sizes": (
        lambda: Full(torch.ones(3)),
        TypeError,
        "Full: sizes must be one-dimensional and of an integer dtype, got torch.float32 of shape [3].",
    ),
    "other components": (
        lambda: Full([3, 2], [4]),
        ValueError,
        "Full: source_sizes must name as many components as sizes, got 1 for 2 sizes.",
    ),
    "four axes": (
        lambda: Grid((2, 2, 2, 2), 1),
        ValueError,
        "Grid: shape must have one to three axes, the same number for all arrays, got [[2, 2, 2, 2]].",
    ),
    "radii of other axes": (
        lambda: Grid((4, 4), (1, 2, 3)),
        ValueError,
        "Grid: radius must be one integer or 2, one per axis, got (1, 2, 3).",
    ),
    "no shape": (
        lambda: Grid(5, 1),
        TypeError,
        "Grid: shape must be a tuple of extents or a list of such tuples, got 5.",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name):
    function, error, text = BAD_CALLS[name]
    with pytest.raises(error) as caught:
        function()
    line = str(caught.value)
    assert line == text or (text[-1] not in ".?" and line.startswith(text))
    assert "\n" not in line


def forward(layer, x=None, edge_index=EDGES, *args):
    return layer(torch.randn(5, 4) if x is None else x, edge_index, *args)


def explained(layer, mask):
    layer.explain, layer._edge_mask = True, mask
    return layer


BAD_LAYERS = {
    "heads that don't divide": (
        lambda: GraphAttention(4, 10, heads=4),
        ValueError,
        "GraphAttention: heads must divide out_channels, 10, got 4. "
        "Use out_channels=12, or head_channels=3 to keep out_channels.",
    ),
    "more heads than channels": (
        lambda: GraphAttention(4, 7, heads=8),
        ValueError,
        "GraphAttention: heads must divide out_channels, 7, got 8. "
        "Use out_channels=8, or head_channels=1 to keep out_channels.",
    ),
    "kv_heads that don't divide": (
        lambda: GraphAttention(4, 12, heads=4, kv_heads=3),
        ValueError,
        "GraphAttention: kv_heads must divide heads, 4, got 3.",
    ),
    "no heads": (lambda: GraphAttention(4, 8, heads=0), ValueError, "GraphAttention: heads must be at least 1, got 0."),
    "no channels": (
        lambda: GraphAttention(0, 8),
        ValueError,
        "GraphAttention: in_channels must be positive, or -1 to be found at the first call, got 0.",
    ),
    "three sides": (
        lambda: GraphAttention((4, 4, 4), 8),
        ValueError,
        "GraphAttention: in_channels must be one integer or a (source, target) pair, got (4, 4, 4).",
    ),
    "unknown score": (
        lambda: DenseGraphAttention(4, 8, score="gat2"),
        ValueError,
        "DenseGraphAttention: score must be one of 'dot_product', 'additive', 'gatv2', got 'gat2'. "
        "Did you mean 'gatv2'?",
    ),
    "unknown backend": (
        lambda: GraphAttention(4, 8, backend="scattr"),
        ValueError,
        f"GraphAttention: backend must be one of 'auto', {BACKENDS}, got 'scattr'. Did you mean 'scatter'?",
    ),
    "dropout": (
        lambda: GraphAttention(4, 8, dropout=2),
        ValueError,
        "GraphAttention: dropout must lie in [0, 1], got 2.",
    ),
    "edge_attr without edge_dim": (
        lambda: forward(GraphAttention(4, 8), None, EDGES, torch.randn(3, 2)),
        ValueError,
        "GraphAttention: edge_attr needs a layer with edge_dim, got [3, 2]. Use GraphAttention(..., edge_dim=2).",
    ),
    "edge_dim without edge_attr": (
        lambda: forward(GraphAttention(4, 8, edge_dim=2)),
        ValueError,
        "GraphAttention: edge_attr must be given because edge_dim is 2, got None.",
    ),
    "edge_attr of another shape": (
        lambda: forward(GraphAttention(4, 8, edge_dim=2), None, EDGES, torch.randn(4, 2)),
        ValueError,
        "GraphAttention: edge_attr must have shape [3, 2], got [4, 2].",
    ),
    "other features": (
        lambda: forward(GraphAttention(3, 8)),
        ValueError,
        "GraphAttention: x must have shape [*B, N, 3], got [5, 4].",
    ),
    "sources without targets": (
        lambda: forward(GraphAttention((4, 4), 8), (torch.randn(5, 4), None)),
        ValueError,
        "GraphAttention: x must be a tensor or a pair (x_source, x_target). "
        "Targets need features too: they make the queries.",
    ),
    "edges out of range": (
        lambda: forward(GraphAttention(4, 8), torch.randn(3, 4)),
        ValueError,
        "GraphAttention: edge_index[0] must lie in [0, 3) because x has 3 rows, got 4 at edge 2.",
    ),
    "edges out of range of one side": (
        lambda: forward(GraphAttention((4, 4), 8), (torch.randn(3, 4), torch.randn(5, 4))),
        ValueError,
        "GraphAttention: edge_index[0] must lie in [0, 3) because x[0] has 3 rows, got 4 at edge 2. "
        "Were the rows swapped?",
    ),
    "pattern of another size": (
        lambda: forward(GraphAttention(4, 8), None, Window(4, radius=1)),
        ValueError,
        "GraphAttention: pattern must have as many sources as x has rows, 5, got 4 in Window(4, radius=1).",
    ),
    "adjacency of another size": (
        lambda: forward(GraphAttention(4, 8), None, torch.eye(6).to_sparse()),
        ValueError,
        "GraphAttention: edge_index must have as many sources as x has rows, 5, got a container with 6.",
    ),
    "edges on another device": (
        lambda: forward(GraphAttention(4, 8), None, EDGES.to("meta")),
        ValueError,
        "GraphAttention: edge_index must be on x's device, cpu, got meta. Use edge_index.to('cpu').",
    ),
    "edge_attr on another device": (
        lambda: forward(GraphAttention(4, 8, edge_dim=2), None, EDGES, torch.randn(3, 2, device="meta")),
        ValueError,
        "GraphAttention: edge_attr must be on x's device, cpu, got meta. Use edge_attr.to('cpu').",
    ),
    "pair of other batches": (
        lambda: forward(GraphAttention((4, 4), 8), (torch.randn(5, 4), torch.randn(2, 5, 4))),
        ValueError,
        "GraphAttention: x must be a pair of the same batch dimensions *B, got [5, 4] and [2, 5, 4].",
    ),
    "batch in place of edge_attr": (
        lambda: forward(GraphAttention(4, 8, edge_dim=1), None, EDGES, torch.tensor([0, 0, 0, 1, 1])),
        TypeError,
        "GraphAttention: edge_attr must hold features of edges, got torch.int64 of shape [5], one integer per node "
        "like batch. Leave batch out, because edges never join two graphs. Full.from_batch(batch) is full inside "
        "each graph.",
    ),
    "mask of an explainer": (
        lambda: forward(explained(GraphAttention(4, 8, add_self_loops=True), torch.ones(2))),
        ValueError,
        "GraphAttention: _edge_mask must have shape [3], one number per edge, got [2].",
    ),
    "misspelt option of a stack": (
        lambda: GraphTransformer(4, 8, 3, 2, feedforward=2),
        TypeError,
        "GraphTransformer: feedforward must be an argument of GraphTransformer, TransformerBlock, GraphAttention. "
        "Did you mean feed_forward?",
    ),
    "misspelt option of a block": (
        lambda: TransformerBlock(8, num_heads=2, layer=DenseGraphAttention),
        TypeError,
        "TransformerBlock: num_heads must be an argument of TransformerBlock, DenseGraphAttention. Did you mean heads?",
    ),
    "option that the dense twin lacks": (
        lambda: GraphTransformer(4, 8, 3, 2, backend="numba", layer=DenseGraphAttention),
        TypeError,
        "GraphTransformer: backend must be an argument of GraphTransformer, TransformerBlock, DenseGraphAttention.",
    ),
    "misspelt option of a sequence model": (
        lambda: Seq2Seq(7, 5, 8, 2, normaliser="relu"),
        TypeError,
        "Seq2Seq: normaliser must be an argument of Seq2Seq, TransformerBlock, GraphAttention. "
        "Did you mean normalizer?",
    ),
    "misspelt option of a readout": (
        lambda: AttentionReadout(4, 8, headchannels=3),
        TypeError,
        "AttentionReadout: headchannels must be an argument of AttentionReadout, GraphAttention. "
        "Did you mean head_channels?",
    ),
    "misspelt option beside weights": (
        lambda: GraphAttention.from_multihead_attention(torch.nn.MultiheadAttention(8, 4), normaliser="relu"),
        TypeError,
        "GraphAttention.from_multihead_attention: normaliser must be an argument of GraphAttention. "
        "Did you mean normalizer?",
    ),
    "heads of a readout": (
        lambda: AttentionReadout(4, 7, heads=8),
        ValueError,
        "AttentionReadout: heads must divide out_channels, 7, got 8. "
        "Use out_channels=8, or head_channels=1 to keep out_channels.",
    ),
    "heads of a sequence model": (
        lambda: Seq2Seq(7, 5, 6, 2, heads=4),
        ValueError,
        "Seq2Seq: heads must divide channels, 6, got 4. Use channels=8, or head_channels=2 to keep channels.",
    ),
    "loops on a bipartite graph": (
        lambda: forward(GraphAttention((4, 4), 8, add_self_loops=True), (torch.randn(5, 4), torch.randn(3, 4)), EDGES),
        ValueError,
        "GraphAttention: add_self_loops needs the same nodes as sources and targets, got 5 sources and 3 targets. "
        "Use add_self_loops=False.",
    ),
    "another dtype": (
        lambda: forward(GraphAttention(4, 8), torch.randn(5, 4).double()),
        TypeError,
        "GraphAttention: x must have the layer's dtype, torch.float32, got torch.float64. "
        "Use x.to(torch.float32), or layer.to(torch.float64).",
    ),
    "edges in a list": (
        lambda: forward(GraphAttention(4, 8), None, [(0, 1), (1, 2)]),
        TypeError,
        "GraphAttention: edge_index must hold patterns if it is a list, got a list of tuple. "
        "Use torch.tensor(edges).t() for a list of pairs, torch.stack([source, target]) for two tensors.",
    ),
    "edge_attr in a list": (
        lambda: forward(GraphAttention(4, 8), None, EDGES, [[1.0], [2.0], [3.0]]),
        TypeError,
        "GraphAttention: edge_attr must be a tensor, got list.",
    ),
    "edge_attr in a batch": (
        lambda: forward(GraphAttention(4, 8, edge_dim=2), None, EDGES, torch.randn(7, 3, 2)),
        ValueError,
        "GraphAttention: edge_attr must have shape [3, 2], got [7, 3, 2].",
    ),
    "class in place of a score": (
        lambda: GraphAttention(4, 8, score=DotProduct),
        TypeError,
        "GraphAttention: score must be DotProduct(), Additive(vector) or a callable "
        "(query_i, key_j, edge_key) -> [*B, E, H], got <class 'graphattn.scores.DotProduct'>.",
    ),
    "vector of another shape": (
        lambda: GraphAttention(4, 8, heads=2, score=Additive(torch.ones(2, 3))),
        ValueError,
        "GraphAttention: score.vector must have shape [heads, out_channels / heads] = [2, 4], got [2, 3].",
    ),
    "vector of another width than the heads": (
        lambda: GraphAttention(4, 7, heads=2, head_channels=3, score=Additive(torch.ones(2, 4))),
        ValueError,
        "GraphAttention: score.vector must have shape [heads, head_channels] = [2, 3], got [2, 4].",
    ),
    "heads without width": (
        lambda: DenseGraphAttention(4, 8, heads=3, head_channels=0),
        ValueError,
        "DenseGraphAttention: head_channels must be at least 1, got 0.",
    ),
    "encoding by name": (
        lambda: GraphAttention(4, 8, encoding="rotary"),
        TypeError,
        "GraphAttention: encoding must be an Encoding, got str. Use one such as graphattn.nn.Rotary(width), or "
        "subclass graphattn.nn.Encoding.",
    ),
    "options that the weights decide": (
        lambda: GraphAttention.from_multihead_attention(torch.nn.MultiheadAttention(8, 4), heads=2, bias=False),
        ValueError,
        "GraphAttention.from_multihead_attention: options can't change what the weights determine, got bias, heads. "
        "Leave them out.",
    ),
    "another layer's weights": (
        lambda: GraphAttention.from_multihead_attention(torch.nn.Linear(3, 3)),
        TypeError,
        "GraphAttention.from_multihead_attention: attention must be a torch.nn.MultiheadAttention, got Linear.",
    ),
    "mask of numbers": (
        lambda: forward(DenseGraphAttention(4, 8), None, torch.ones(5, 5)),
        TypeError,
        "DenseGraphAttention: mask must be a pattern or a boolean tensor, got torch.float32. Use mask.bool(), or "
        "Edges(edge_index, num_nodes) for edges.",
    ),
    "mask of another shape": (
        lambda: forward(DenseGraphAttention(4, 8), None, torch.ones(5, 4, dtype=torch.bool)),
        ValueError,
        "DenseGraphAttention: mask must have shape [T, S] = [5, 5], with or without x's batch dimensions in front, "
        "got [5, 4].",
    ),
    "parallel edges in the twin": (
        lambda: forward(DenseGraphAttention(4, 8), torch.randn(3, 4), graph_zoo()["parallel edges"]),
        ValueError,
        "DenseGraphAttention: mask must not have parallel edges, got Edges(num_nodes=3, num_edges=6). "
        "Use dense_attention or GraphAttention.",
    ),
    "encoding with a mask": (
        lambda: forward(DenseGraphAttention(4, 8, encoding=Encoding()), None, torch.ones(5, 5, dtype=torch.bool)),
        TypeError,
        "DenseGraphAttention: mask must be a pattern because the layer has an encoding, got a tensor.",
    ),
}


@pytest.mark.parametrize("name", BAD_LAYERS)
def test_bad_layers(name):
    function, error, text = BAD_LAYERS[name]
    with pytest.raises(error) as caught:
        function()
    assert str(caught.value) == text


@pytest.mark.parametrize("name", ["empty graph", "no edges", "one node", "one edge"])
def test_small_graphs_are_no_error(name):
    pattern = graph_zoo()[name]
    x = torch.randn(pattern.num_targets, 4, requires_grad=True)
    out, (edges, weights) = GraphAttention(4, 8, heads=2)(x, pattern.edge_index, return_attention_weights=True)
    assert out.shape == (pattern.num_targets, 8)
    assert weights.shape == (edges.size(1), 2) == (pattern.num_edges, 2)
    out.sum().backward()
    assert x.grad.isfinite().all()


class Never(Kernel):
    """A kernel that can't run anything, and would be the cheapest."""

    name = "never"

    def why_not(self, call: Call) -> str | None:
        return "it never can"

    def cost(self, call: Call, costs: Costs) -> float:
        return 0.0

    def run(self, call: Call) -> Result:
        raise AssertionError


def test_a_named_backend_never_falls_back(monkeypatch):
    monkeypatch.setattr("graphattn.functional.KERNELS", (Never(), *KERNELS))
    with pytest.raises(NotImplementedError) as caught:
        call(backend="never")
    expected = "attention: backend='never' cannot run this call: it never can. Use backend='numba' or 'auto'."
    assert str(caught.value) == expected
    assert call(backend="auto").shape == (5, 2, 4)


def test_explain_backend_shows_each_kernels_answer(monkeypatch):
    monkeypatch.setattr("graphattn.functional.KERNELS", (Never(), *KERNELS))
    report = explain_backend(X, X, X, EDGES)
    assert report.chosen == "numba"
    first, never, tiles, flex, numba, triton, linear, scatter, last = str(report).splitlines()
    assert first == "backend='auto' runs 'numba'"
    assert never == "  never    cannot: it never can"
    assert tiles == "  tiles    cannot: only Full, Window and Grid have tiles, not Edges"
    assert flex == "  flex     cannot: tensors are on cpu" and triton == "  triton   cannot: tensors are on cpu"
    assert linear == "  linear   cannot: only Full has all pairs, not Edges(num_nodes=5, num_edges=3)"
    assert numba.startswith("> numba    can run, estimated ") and scatter.startswith("  scatter  can run, estimated ")
    assert last == f"calibration: {report.calibration}"


def test_the_fused_kernel_says_what_it_has_not():
    options = dict(score=lambda query, key, edge: (query * key).amax(-1))
    reason = "the score FunctionScore(<lambda>) can't be fused: "
    with pytest.raises(NotImplementedError) as caught:
        call(backend="numba", **options)
    assert str(caught.value).startswith(f"attention: backend='numba' cannot run this call: {reason}")
    assert str(caught.value).endswith("Use backend='scatter' or 'auto'.")
    assert explain_backend(X, X, X, EDGES, **options).chosen == "scatter"


@pytest.mark.parametrize("mode", ["second order", "forward mode"])
def test_fused_kernels_refuse_derivatives_that_they_lack(mode):
    x = torch.randn(5, 2, 4, requires_grad=True)
    pattern = Edges(EDGES, 5)
    (gradient,) = torch.autograd.grad(call(x, pattern=pattern, backend="numba").sum(), x, create_graph=True)
    if mode == "second order":
        with pytest.raises(NotImplementedError, match=r"have no derivatives of second order. Use backend='scatter'."):
            gradient.sum().backward()
    else:
        with pytest.raises(NotImplementedError, match=r"supports neither forward-mode derivatives nor torch.func. Use"):
            torch.func.jvp(lambda x: call(x, pattern=pattern, backend="numba"), (x.detach(),), (X,))

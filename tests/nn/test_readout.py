"""AttentionReadout."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import SimpleConv
from torch_geometric.nn.aggr import MultiAggregation

from graphattn.nn import AttentionReadout, DenseGraphAttention
from graphattn.normalizers import NORMALIZERS

COUNTS = torch.tensor([3, 1, 0, 4])
INDEX = torch.arange(4).repeat_interleave(COUNTS)
X = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NAMES = [cls.name for cls in NORMALIZERS]


def test_a_readout_is_its_formula():
    torch.manual_seed(0)
    readout = AttentionReadout(3, 4, num_queries=2).double()
    layer = readout.attention
    out = readout(X, INDEX)
    assert out.shape == (4, 8)
    for graph, x in enumerate(X.split(COUNTS.tolist())):
        query, key, value = layer.lin_query(readout.query), layer.lin_key(x), layer.lin_value(x)
        rows = layer.lin_out((query @ key.t() / 2).softmax(1) @ value)
        torch.testing.assert_close(out[graph], rows.flatten())


@pytest.mark.parametrize("normalizer", NAMES)
@pytest.mark.parametrize("score", ["dot_product", "gatv2"])
def test_sparse_equals_the_dense_twin(score, normalizer):
    options = dict(heads=2, num_queries=2, score=score, normalizer=normalizer, dropout=0.3)
    sparse = AttentionReadout(3, 4, **options).double()
    dense = AttentionReadout(3, 4, **options, layer=DenseGraphAttention).double()
    dense.load_state_dict(sparse.state_dict())
    results = []
    for readout in (sparse, dense):
        torch.manual_seed(1)
        x = X.clone().requires_grad_()
        out, weights = readout(x, INDEX.flip(0), return_attention_weights=True)
        loss = out.square().sum() + weights.square().sum()
        gradients = torch.autograd.grad(loss, [x, *readout.parameters()], materialize_grads=True)
        results.append([out, weights, *gradients])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_the_order_of_nodes_does_not_matter():
    readout = AttentionReadout(3, 4, heads=2, num_queries=3).double()
    order = torch.tensor([5, 0, 7, 3, 1, 6, 2, 4])
    out, weights = readout(X, INDEX, return_attention_weights=True)
    shuffled, shuffled_weights = readout(X[order], INDEX[order], return_attention_weights=True)
    torch.testing.assert_close(shuffled, out)
    torch.testing.assert_close(shuffled_weights, weights[order])
    assert (out[[0, 1]] != readout(X, INDEX.flip(0))[[0, 1]]).any()


def test_weights_of_a_graph_sum_to_one_for_each_query_and_head():
    readout = AttentionReadout(3, 4, heads=2, num_queries=3).double()
    _, weights = readout(X.expand(5, 8, 3), INDEX, return_attention_weights=True)
    assert weights.shape == (5, 8, 3, 2)
    sums = torch.zeros(5, 4, 3, 2, dtype=torch.float64).index_add(1, INDEX, weights)
    torch.testing.assert_close(sums, (COUNTS > 0).double()[None, :, None, None].expand_as(sums))


@pytest.mark.parametrize("normalizer", NAMES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_graph_without_nodes_gets_the_bias_alone(normalizer, bias):
    readout = AttentionReadout(3, 4, num_queries=2, normalizer=normalizer, bias=bias).double()
    expected = torch.zeros(4, dtype=torch.float64)
    if bias:
        torch.nn.init.normal_(readout.attention.lin_out.bias)
        expected = readout.attention.lin_out.bias
    torch.testing.assert_close(readout(X, INDEX)[2], expected.repeat(2))
    torch.testing.assert_close(readout(X, INDEX, dim_size=6)[5], expected.repeat(2))
    torch.testing.assert_close(readout(X[:0], INDEX[:0], dim_size=1), expected.repeat(2)[None])
    assert readout(X[:0], INDEX[:0]).shape == (0, 8)


@pytest.mark.parametrize(("normalizer", "factor"), [("softmax", 1), ("relu", 2), ("sigmoid", 2), ("identity", 2)])
def test_softmax_can_not_count_and_sums_can(normalizer, factor):
    readout = AttentionReadout(3, 4, normalizer=normalizer, bias=False).double()
    torch.testing.assert_close(readout(X.repeat(2, 1)), factor * readout(X))


def test_ptr_and_index_say_the_same_and_one_graph_needs_neither():
    readout = AttentionReadout(3, 4, heads=2).double()
    ptr = torch.tensor([0, 3, 4, 4, 8])
    torch.testing.assert_close(readout(X, ptr=ptr), readout(X, INDEX))
    torch.testing.assert_close(readout(X), readout(X, torch.zeros_like(INDEX)))
    together, each = readout(torch.stack([X, -X]), INDEX), [readout(X, INDEX), readout(-X, INDEX)]
    torch.testing.assert_close(together, torch.stack(each))


def test_a_batch_of_a_data_loader_equals_each_graph_alone():
    readout = AttentionReadout(-1, 4, heads=2, num_queries=2)
    graphs = [Data(x=torch.randn(n, 3)) for n in (4, 1, 6)]
    (batch,) = DataLoader(graphs, batch_size=3)
    together = readout(batch.x, batch.batch, dim_size=batch.num_graphs)
    torch.testing.assert_close(together, torch.cat([readout(graph.x) for graph in graphs]))


def test_pyg_takes_it_as_an_aggregation():
    readout = AttentionReadout(3, 4, normalizer="sigmoid").double()
    both = MultiAggregation(["sum", readout])(X, INDEX)
    torch.testing.assert_close(both[:, 3:], readout(X, INDEX))
    edge_index = torch.tensor([[0, 3, 1, 2], [1, 0, 0, 1]])
    rows = SimpleConv(aggr=readout)(X[:4], edge_index)
    torch.testing.assert_close(rows[0], readout(X[[3, 1]])[0])
    torch.testing.assert_close(rows[1], readout(X[[0, 2]])[0])


@pytest.mark.parametrize("normalizer", ["softmax", "sigmoid"])
def test_gradients_are_right(normalizer):
    readout = AttentionReadout(3, 2, num_queries=2, normalizer=normalizer).double()
    readout.attention.backend = "scatter"  # TMP

    def call(x, query):
        return torch.func.functional_call(readout, {"query": query}, (x, INDEX))

    assert torch.autograd.gradcheck(call, (X.clone().requires_grad_(), readout.query.detach().requires_grad_()))


@pytest.mark.parametrize("is_ptr", [False, True])
def test_batches_of_other_sizes_run_compiled(is_ptr):
    readout = AttentionReadout(3, 4, heads=2, num_queries=2).double()
    compiled = torch.compile(readout, fullgraph=True, backend="aot_eager")
    for n in (8, 6, 5):
        graphs = {"ptr": torch.tensor([0, 2, 2, n])} if is_ptr else {"index": INDEX[:n].flip(0)}
        graphs.update(dim_size=3 if is_ptr else 4, return_attention_weights=True)
        results = compiled(X[:n], **graphs), readout(X[:n], **graphs)
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs)
    results[0][0].sum().backward()
    assert readout.query.grad.abs().sum() > 0


def test_parameters_are_drawn_anew():
    readout = AttentionReadout(3, 4, heads=2, score="gatv2")
    with torch.no_grad():
        for parameter in readout.parameters():
            parameter.fill_(7)
    readout.reset_parameters()
    assert not any((parameter == 7).any() for parameter in readout.parameters())
    assert repr(AttentionReadout(3, 4, 2, num_queries=5)) == "AttentionReadout(3, 4, heads=2, num_queries=5)"
    options = dict(kv_heads=1, normalizer="sigmoid", layer=DenseGraphAttention)
    written = "AttentionReadout(3, 4, heads=2, kv_heads=1, normalizer='sigmoid', layer=DenseGraphAttention)"
    assert repr(AttentionReadout(3, 4, 2, **options)) == written


READOUT = AttentionReadout(3, 4).double()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: AttentionReadout(3, 0), ValueError, "AttentionReadout: out_channels must be at least 1, got 0"),
        (lambda: AttentionReadout(3, 4, heads=3), ValueError, "heads must divide out_channels, 4, got 3"),
        (lambda: AttentionReadout(3, 4, num_queries=0), ValueError, "num_queries must be at least 1, got 0"),
        (lambda: AttentionReadout(3, 4, edge_dim=2), TypeError, "edge_dim has no meaning in a readout. Leave it out"),
        (lambda: READOUT(X[:, :2], INDEX), ValueError, r"must have shape \[\*B, N, 3\], with dim=-2, got \[8, 2\]"),
        (lambda: READOUT(X.t(), INDEX, dim=-1), ValueError, r"x must have shape .*, got \[3, 8\] with dim=-1"),
        (lambda: READOUT(X.long(), INDEX), TypeError, "AttentionReadout: x must have a floating-point dtype"),
        (
            lambda: READOUT(X, INDEX[:5]),
            ValueError,
            r"index must have one graph for each of the 8 rows of x, got shape",
        ),
        (lambda: READOUT(X, INDEX, dim_size=3), ValueError, r"index must lie in \[0, 3\) .* dim_size is 3, got 3"),
        (
            lambda: READOUT(X, ptr=torch.tensor([0, 5])),
            ValueError,
            r"ptr must run from 0 to the 8 rows of x without falling, got \[0, 5\]",
        ),
        (lambda: READOUT(X, ptr=torch.tensor([0, 5, 3, 8])), ValueError, r"without falling, got \[0, 5, 3, 8\]"),
        (lambda: READOUT(X, INDEX.float()), TypeError, "index must be a tensor of integers, got torch.float32"),
        (lambda: READOUT(X, INDEX - 1), ValueError, "index must be at least 0, got -1"),
    ],
)
def test_bad_input_is_named(call, error, text):
    with pytest.raises(error, match=text):
        call()

"""TransformerBlock and GraphTransformer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from covering import each_in_turn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from graphattn import Edges, Full, Grid, Window
from graphattn.nn import (
    DenseGraphAttention,
    GraphTransformer,
    RandomWalkPosition,
    RelativeBias,
    Rotary,
    Sinusoidal,
    TransformerBlock,
)
from graphattn.nn.block import EGO
from graphattn.testing import pattern_zoo

SQUARE = {
    name: pattern
    for name, pattern in pattern_zoo().items()
    if pattern.num_sources == pattern.num_targets and name != "hub" and pattern.occurrence() is None
}


@pytest.mark.parametrize("ego", EGO)
def test_a_block_is_its_formula(ego):
    torch.manual_seed(0)
    pattern = Window([5, 3], radius=1)
    block = TransformerBlock(6, heads=2, ego=ego, feed_forward=1.5).double()
    x = torch.randn(8, 6, dtype=torch.float64)
    layer_norm = torch.nn.functional.layer_norm

    def feed(h):
        return block.feed_out(torch.nn.functional.gelu(block.feed_in(h)))

    h = layer_norm(x, [6])
    gathered = block.attention(h, pattern)
    if ego == "add":
        expected = x + gathered + feed(layer_norm(x + gathered, [6]))
    elif ego == "concat":
        expected = x + feed(torch.cat([h, gathered], 1))
    else:
        expected = x + feed(gathered)
    torch.testing.assert_close(block(x, pattern), expected)
    assert block.feed_in.weight.shape == (9, 12 if ego == "concat" else 6)


@pytest.mark.parametrize(("name", "ego"), each_in_turn(SQUARE, EGO))
def test_sparse_equals_the_dense_twin(name, ego):
    pattern = SQUARE[name]
    torch.manual_seed(0)
    sizes, options = (3, 8, 2, 2, 2), dict(ego=ego, score="gatv2", dropout=0.2, attention_dropout=0.3)
    sparse = GraphTransformer(*sizes, **options).double()
    dense = GraphTransformer(*sizes, **options, layer=DenseGraphAttention).double()
    dense.load_state_dict(sparse.state_dict())
    x = torch.randn(pattern.num_targets, 3, dtype=torch.float64)
    results = []
    for model in (sparse, dense):
        torch.manual_seed(1)
        out = model(x, pattern)
        results.append([out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("encoding", [None, Sinusoidal(8), Rotary(4), RelativeBias(2, 3)], ids=str)
def test_a_batch_of_sentences_equals_each_alone(encoding):
    model = GraphTransformer(3, 8, 4, 2, heads=2, encoding=encoding).double()
    x = torch.randn(9, 3, dtype=torch.float64)
    together = model(x, Window([4, 5], radius=2))
    separately = [model(x[:4], Window(4, radius=2)), model(x[4:], Window(5, radius=2))]
    torch.testing.assert_close(together, torch.cat(separately))


def test_a_causal_stack_does_not_see_the_future():
    model = GraphTransformer(3, 8, 4, 3, heads=2, encoding=Rotary(4)).double()
    x = torch.randn(7, 3, dtype=torch.float64)
    changed = x.clone()
    changed[4] += 1
    before, after = model(x, Full(7, causal=True)), model(changed, Full(7, causal=True))
    torch.testing.assert_close(before[:4], after[:4])
    assert (before[4:] != after[4:]).all()


def test_a_memory_is_read_by_its_own_component_alone():
    block = TransformerBlock(4, heads=2, memory_channels=3).double()
    x, memory = torch.randn(5, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    own, across = Full([2, 3], causal=True), Full([2, 3], source_sizes=[4, 2])
    out, weights, of_memory = block(x, own, memory=memory, memory_pattern=across, return_attention_weights=True)
    assert torch.equal(weights[0], own.edge_index) and torch.equal(of_memory[0], across.edge_index)
    assert of_memory[1].shape == (14, 2)
    changed = memory.clone()
    changed[4:] += 1
    again = block(x, own, memory=changed, memory_pattern=across)
    torch.testing.assert_close(out[:2], again[:2])
    assert (out[2:] != again[2:]).all()


def test_encodings_of_features_enter_once_and_others_in_each_layer():
    once = GraphTransformer(3, 8, 2, 2, heads=2, encoding=Sinusoidal(8))
    assert once.encoding is not None and all(block.attention.encoding is None for block in once.blocks)
    each = GraphTransformer(3, 8, 2, 2, heads=2, encoding=RelativeBias(2, 3))
    first, second = (block.attention.encoding for block in each.blocks)
    assert each.encoding is None and first is not second
    x = torch.randn(5, 3)
    torch.testing.assert_close(
        once(x, Full(5)),
        once.lin_out(
            once.norm(once.blocks[1](once.blocks[0](Sinusoidal(8).input(once.lin_in(x), Full(5)), Full(5)), Full(5)))
        ),
    )


def test_without_out_channels_the_features_come_out_normalized():
    model = GraphTransformer(-1, 8, None, 1)
    out = model(torch.randn(9, 3), Grid((3, 3), radius=1))
    assert out.shape == (9, 8)
    torch.testing.assert_close(out.mean(1), torch.zeros(9), atol=1e-5, rtol=0)


def test_edges_features_loops_and_batch_dimensions_go_through():
    model = GraphTransformer(3, 8, 2, 2, heads=2, edge_dim=2, add_self_loops=True).eval()
    edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
    x, edge_attr = torch.randn(4, 3, 3), torch.randn(3, 2)
    out, weights = model(x, edge_index, edge_attr, return_attention_weights=True)
    assert out.shape == (4, 3, 2) and [list(weight.shape) for _, weight in weights] == [[4, 6, 2]] * 2
    assert (out != model(x, edge_index, 2 * edge_attr)).any()


def test_patterns_of_a_data_loader_are_joined():
    model = GraphTransformer(3, 8, 2, 2, encoding=Sinusoidal(8))
    graphs = [Data(x=torch.randn(n, 3), pattern=Full(n)) for n in (3, 4)]
    (batch,) = DataLoader(graphs, batch_size=2)
    separately = torch.cat([model(graph.x, graph.pattern) for graph in graphs])
    torch.testing.assert_close(model(batch.x, batch.pattern), separately)


def test_parameters_are_drawn_anew():
    model = GraphTransformer(3, 8, 2, 1, heads=2, score="gatv2", encoding=RelativeBias(2, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.reset_parameters()
    assert not any((parameter == 7).any() for parameter in model.parameters())


def test_a_stack_compiles_whole():
    model = GraphTransformer(3, 8, 2, 2, heads=2)
    pattern, x = Edges(torch.tensor([[0, 1, 2], [1, 2, 0]]), 3), torch.randn(3, 3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, pattern), model(x, pattern))
    compiled(x, pattern).sum().backward()
    assert model.lin_in.weight.grad.abs().sum() > 0


def test_a_memory_goes_through_a_stack():
    model = GraphTransformer(None, 8, 3, 2, heads=2, memory_channels=-1).double()
    x, memory = torch.randn(5, 8, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    own, across = Full([2, 3], causal=True), Full([2, 3], source_sizes=[4, 2])
    out, weights = model(x, own, memory=memory, memory_pattern=across, return_attention_weights=True)
    expected = x
    for block in model.blocks:
        expected = block(expected, own, memory=memory, memory_pattern=across)
    torch.testing.assert_close(out, model.lin_out(model.norm(expected)))
    for (own_edges, _), (across_edges, weight) in weights:
        assert torch.equal(own_edges, own.edge_index) and torch.equal(across_edges, across.edge_index)
        assert weight.shape == (14, 2)


@pytest.mark.parametrize("encoding", [None, RandomWalkPosition(8, 3)], ids=["none", "random walk"])
def test_values_of_a_sparse_adjacency_are_its_edge_features(encoding):
    model = GraphTransformer(4, 8, 2, 2, heads=2, edge_dim=1, encoding=encoding)
    edge_index, value = torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.randn(3)
    adjacency = torch.sparse_coo_tensor(edge_index.flip(0), value, (5, 5)).to_sparse_csr()
    torch.testing.assert_close(model(X, adjacency), model(X, edge_index, value[:, None]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_and_autocast_run(dtype):
    model = GraphTransformer(4, 8, 2, 2, heads=2, memory_channels=4, encoding=Rotary(4))
    across = {"memory": X, "memory_pattern": Full(5)}
    expected = model(X, Full(5), **across)
    with torch.autocast("cpu", dtype=dtype):
        out = model(X, Full(5), **across)
    out.sum().backward()
    assert out.dtype == dtype and model.lin_in.weight.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)
    half = {"memory": X.to(dtype), "memory_pattern": Full(5)}
    torch.testing.assert_close(model.to(dtype)(X.to(dtype), Full(5), **half).float(), expected, rtol=0.05, atol=0.05)


def test_an_empty_graph_and_an_empty_memory_run():
    model = GraphTransformer(4, 8, 2, 2, heads=2, memory_channels=4)
    assert model(X[:0], Full(0), memory=X, memory_pattern=Full(0, 5)).shape == (0, 2)
    out = model(X, Full(5), memory=X[:0], memory_pattern=Full(5, 0))
    out.sum().backward()
    assert out.isfinite().all() and model.lin_in.weight.grad.isfinite().all()


def lazy():
    model = GraphTransformer(-1, 8, 2, 1)
    model(X, Full(5))
    return model


def test_a_lazy_stack_is_copied_pickled_and_loaded():
    pattern, model = Window(5, radius=2), GraphTransformer(-1, 8, 2, 1, heads=2, encoding=RelativeBias(2, 3))
    model.reset_parameters()
    expected = model(X, pattern)
    fresh = GraphTransformer(-1, 8, 2, 1, heads=2, encoding=RelativeBias(2, 3))
    fresh.load_state_dict(model.state_dict())
    for other in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(X, pattern), expected)


X = torch.randn(5, 4)


def decode(pattern, memory=X):
    return TransformerBlock(4, memory_channels=4)(X, Full(5), memory=memory, memory_pattern=pattern)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: TransformerBlock(0), ValueError, "TransformerBlock: channels must be at least 1, got 0"),
        (lambda: TransformerBlock(4, heads=3), ValueError, "TransformerBlock: heads must divide channels, 4, got 3"),
        (lambda: GraphTransformer(4, 8, 2, 1, heads=3), ValueError, "heads must divide hidden_channels, 8, got 3"),
        (lambda: TransformerBlock(4, ego="sum"), ValueError, "ego must be one of 'add', 'concat', 'none', got 'sum'"),
        (lambda: TransformerBlock(4, feed_forward=0.1), ValueError, "feed_forward must leave at least one hidden"),
        (lambda: TransformerBlock(4, dropout=2), ValueError, "dropout must lie in"),
        (
            lambda: TransformerBlock(4, ego="none", memory_channels=4),
            ValueError,
            "ego must be 'add' where memory_channels is given, got 'none'",
        ),
        (lambda: TransformerBlock(4)(X, Full(5), memory=X), ValueError, "memory must be given exactly where"),
        (lambda: TransformerBlock(4, memory_channels=4)(X, Full(5)), ValueError, "memory_channels, got None"),
        (
            lambda: TransformerBlock(4, memory_channels=0),
            ValueError,
            "TransformerBlock: memory_channels must be positive",
        ),
        (lambda: decode(None), ValueError, "memory_pattern must be given exactly where the block has memory_channels"),
        (
            lambda: TransformerBlock(4)(X, Full(5), memory_pattern=Full(5)),
            ValueError,
            "memory_pattern must be given exactly",
        ),
        (
            lambda: decode(Full(5), X[:, :2]),
            ValueError,
            r"memory must have shape \[\*B, N, 4\], got \[5, 2\]. Use memory_ch",
        ),
        (lambda: decode(Full(5), X.tolist()), TypeError, "TransformerBlock: memory must be a tensor, got list"),
        (
            lambda: decode(Full(5, 3)),
            ValueError,
            "TransformerBlock: pattern must have as many sources as memory has rows, 5, got 3",
        ),
        (
            lambda: GraphTransformer(4, 4, 2, 1)(X, Full(5, 3)),
            ValueError,
            "must have as many sources as x has rows, 5",
        ),
        (lambda: GraphTransformer(4, 4, 2, 1, dropout=2), ValueError, "GraphTransformer: dropout must lie in"),
        (lambda: GraphTransformer(4, 4, 2, 1, encoding="rotary"), TypeError, "encoding must be an Encoding, got str"),
        (lambda: GraphTransformer(None, 8, 2, 1)(X, Full(5)), ValueError, "got .5, 4.. Use hidden_channels=4"),
        (
            lambda: lazy()(X[:, :3], Full(5)),
            ValueError,
            r"x must have shape \[\*B, N, 4\], got \[5, 3\]. Use in_channels=3",
        ),
        (lambda: TransformerBlock(3)(X, Full(5)), ValueError, r"x must have shape \[\*B, N, 3\], got \[5, 4\]"),
        (lambda: GraphTransformer(0, 4, 2, 1), ValueError, "in_channels must be positive, or -1"),
        (lambda: GraphTransformer(4, 4, 2, 0), ValueError, "num_layers must be at least 1, got 0"),
        (lambda: GraphTransformer(3, 4, 2, 1)(X, Full(5)), ValueError, "got .5, 4.. Use in_channels=4"),
        (lambda: GraphTransformer(4, 4, 2, 1)(X.long(), Full(5)), TypeError, "GraphTransformer: x must"),
    ],
)
def test_bad_input_is_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_heads_need_not_divide_the_channels_where_their_width_is_given():
    block = TransformerBlock(6, heads=4, head_channels=2, memory_channels=3)
    out = block(torch.randn(5, 6), Full(5), memory=torch.randn(7, 3), memory_pattern=Full(5, 7))
    assert out.shape == (5, 6)
    assert block.attention.lin_value.out_channels == block.cross_attention.lin_value.out_channels == 8


@pytest.mark.parametrize("kind", ["full", "linear"])
@pytest.mark.parametrize("by_batch", [True, False])
def test_global_attention_adds_all_nodes_of_a_graph(kind, by_batch):
    torch.manual_seed(0)
    window, sizes = Window([4, 3], radius=1), [4, 3]
    block = TransformerBlock(8, 2, global_attention=kind).double()
    x = torch.randn(7, 8, dtype=torch.float64)
    batch = torch.tensor([0] * 4 + [1] * 3) if by_batch else None
    edges = window.edge_index if by_batch else window
    out = block(x, edges, batch=batch)
    h = block.norm(x)
    gathered = block.attention(h, window) + block.global_attention(h, Full(sizes))
    expected = x + gathered
    feed = block.feed_out(torch.nn.functional.gelu(block.feed_in(block.feed_norm(expected))))
    torch.testing.assert_close(out, expected + feed)
    dense = TransformerBlock(8, 2, global_attention=kind, layer=DenseGraphAttention).double()
    dense.load_state_dict(block.state_dict())
    torch.testing.assert_close(dense(x, window, batch=batch), out)


def test_a_stack_with_global_attention_reaches_every_node_of_its_graph_and_no_other():
    model = GraphTransformer(4, 8, 2, num_layers=1, heads=2, global_attention="linear", attention_dropout=0.5)
    x, edges = torch.randn(6, 4, requires_grad=True), torch.tensor([[0], [1]])
    model(x, edges, batch=torch.tensor([0, 0, 0, 1, 1, 1]))[2].sum().backward()
    assert (x.grad.abs().sum(1) > 0).tolist() == [True] * 3 + [False] * 3
    # One graph, where nothing else is said.
    assert model(x, edges).shape == (6, 2)


@pytest.mark.parametrize("kind", ["full", "linear"])
def test_blocks_of_all_nodes_alone_follow_those_along_the_edges(kind):
    torch.manual_seed(0)
    options = dict(heads=2, score="gatv2", feed_forward=2, global_attention=kind, num_global_layers=2)
    model = GraphTransformer(4, 8, 3, num_layers=1, attention_dropout=0.5, **options).double().eval()
    x, window, batch = torch.randn(5, 4, dtype=torch.float64), Window([3, 2], radius=1), torch.tensor([0, 0, 0, 1, 1])
    h = model.blocks[0](model.lin_in(x), window)
    assert model.blocks[0].global_attention is None
    for block in model.global_blocks:
        assert block.attention.feature_map == ("elu" if kind == "linear" else None)
        h = block(h, Full([3, 2]))
    expected = model.lin_out(model.norm(h))
    torch.testing.assert_close(model(x, window), expected)
    out, weights = model(x, window.edge_index, batch=batch, return_attention_weights=True)
    torch.testing.assert_close(out, expected)
    assert len(weights) == 1
    without = GraphTransformer(4, 8, 3, num_layers=1, global_attention=kind, num_global_layers=0)
    assert len(without.global_blocks) == 0 and without.blocks[0].global_attention is None
    with pytest.raises(ValueError, match="num_global_layers needs global_attention, got 2"):
        GraphTransformer(4, 8, 3, num_layers=1, num_global_layers=2)


def test_features_of_edges_go_from_block_to_block():
    torch.manual_seed(0)
    options = dict(heads=2, edge_dim=3, update_edges=True)
    model = GraphTransformer(4, 8, 2, num_layers=2, **options).double()
    x, edges = torch.randn(3, 4, dtype=torch.float64), torch.tensor([[0, 1, 2], [1, 2, 2]])
    given = torch.randn(3, 3, dtype=torch.float64)
    h, updated = model.lin_in(x), given
    for block in model.blocks:
        normed = block.edge_norm(updated)
        gathered, products = block.attention(block.norm(h), edges, normed)
        h, updated = h + gathered, updated + products
        h = h + block.feed_out(torch.nn.functional.gelu(block.feed_in(block.feed_norm(h))))
    out, found = model(x, edges, given)
    torch.testing.assert_close(out, model.lin_out(model.norm(h)))
    torch.testing.assert_close(found, updated)
    # All parameters have a part in both results.
    (out.sum() + found.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    again, _, weights = model(x, edges, given, return_attention_weights=True)
    torch.testing.assert_close(again, out)
    assert [weight.shape for _, weight in weights] == [(3, 2)] * 2
    with pytest.raises(ValueError, match="edge_attr must be given with update_edges, got None"):
        model(x, edges)
    with pytest.raises(ValueError, match=r"edge_attr must have shape \[\*B, E, 3\] with update_edges, got \[3, 2\]"):
        model(x, edges, given[:, :2])


def test_bad_global_attention_is_an_error():
    with pytest.raises(ValueError, match=r"batch must have shape \[3\], the graph of each node, got \[2\]"):
        TransformerBlock(8, global_attention="full")(
            torch.randn(3, 8), Full(3), batch=torch.zeros(2, dtype=torch.int64)
        )
    with pytest.raises(ValueError, match=r"global_attention must be one of .*'full'.*got 'ful'"):
        TransformerBlock(8, global_attention="ful")
    with pytest.raises(ValueError, match="batch needs global_attention, got a tensor"):
        TransformerBlock(8)(torch.randn(3, 8), Full(3), batch=torch.zeros(3, dtype=torch.int64))

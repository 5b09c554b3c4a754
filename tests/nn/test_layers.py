"""GraphAttention, its message route and its dense twin."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import scipy.sparse
import torch
from covering import pairwise
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.explain import AttentionExplainer, Explainer, GNNExplainer
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GPSConv, Sequential, to_hetero

from graphattn import Additive, DotProduct, Edges, Full, Normalized, Window, dense_attention
from graphattn.nn import (
    DenseGraphAttention,
    Encoding,
    GraphAttention,
    LaplacianPosition,
    RelativeBias,
    TransformerBlock,
)
from graphattn.nn.projections import SCORE_NAMES
from graphattn.normalizers import NORMALIZERS
from graphattn.testing import graph_zoo, pattern_zoo

NORMALIZER_NAMES = [cls.name for cls in NORMALIZERS]
ZOO = pattern_zoo()
SQUARE = {name: p for name, p in ZOO.items() if p.num_sources == p.num_targets and name != "hub"}


class Positions(Encoding):
    """A toy encoding that uses all three places."""

    def input(self, x, pattern):
        return x + torch.linspace(0, 1, x.size(-2), dtype=x.dtype).unsqueeze(-1)

    def rotate(self, query, key, pattern):
        return query.flip(-1), key.roll(1, -1)

    def bias(self, pattern):
        source, target = pattern.edge_index
        return (source - target).double().unsqueeze(-1) * torch.tensor([0.1, -0.2], dtype=torch.float64)


def watched(layer: GraphAttention) -> GraphAttention:
    """The same layer by PyG's message route."""
    other = copy.deepcopy(layer)
    other.register_message_forward_hook(lambda module, inputs, output: None)
    return other


@pytest.mark.parametrize(
    ("name", "score", "normalizer", "encoding"), pairwise(SQUARE, SCORE_NAMES, NORMALIZER_NAMES, [None, Positions()])
)
def test_both_routes_and_the_dense_twin_agree(name, score, normalizer, encoding):
    pattern = SQUARE[name]
    torch.manual_seed(0)
    options = dict(heads=2, kv_heads=1, score=score, normalizer=normalizer, edge_dim=3, dropout=0.3, encoding=encoding)
    # Other tests judge the loops, which take seconds to compile for each kind of call.
    layer = GraphAttention(5, 6, **options, backend="scatter").double()
    x = torch.randn(pattern.num_targets, 5, dtype=torch.float64, requires_grad=True)
    edge_attr = torch.randn(pattern.num_edges, 3, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(pattern.num_targets, 6, dtype=torch.float64)
    layers = [layer, watched(layer)]
    if pattern.occurrence() is None:
        twin = DenseGraphAttention(5, 6, **options).double()
        twin.load_state_dict(layer.state_dict())
        layers.append(twin)

    outputs = []
    for each in layers:
        torch.manual_seed(1)
        out = each(x, pattern, edge_attr)
        gradients = torch.autograd.grad((out * direction).sum(), [x, edge_attr, *each.parameters()])
        outputs.append((out, *gradients))
    for other in outputs[1:]:
        for ours, theirs in zip(outputs[0], other, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("batch", [(3,), (2, 2)], ids=str)
def test_batched_features_share_one_pattern(batch):
    layer = GraphAttention(4, 6, heads=2, dropout=0.5).double()
    pattern = graph_zoo()["unsorted edges"]
    x = torch.randn(*batch, 7, 4, dtype=torch.float64)
    twin = DenseGraphAttention(4, 6, heads=2, dropout=0.5).double()
    twin.load_state_dict(layer.state_dict())
    pattern = Edges.from_mask(pattern.mask())
    outputs = []
    for each in (layer, watched(layer), twin):
        torch.manual_seed(3)
        outputs.append(each(x, pattern))
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])
    separately = torch.stack([layer.eval()(one, pattern) for one in x.flatten(0, -3)])
    torch.testing.assert_close(layer(x, pattern).flatten(0, -3), separately)


def test_bipartite_pairs():
    pattern = graph_zoo()["bipartite"]
    layer = GraphAttention((4, 3), 8, heads=2, edge_dim=1).double()
    x = torch.randn(7, 4, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    weight = torch.rand(pattern.num_edges, dtype=torch.float64)
    out, (edge_index, alpha) = layer(x, pattern.edge_index, weight, return_attention_weights=True)
    again, (_, alpha_again) = watched(layer)(x, pattern, weight, return_attention_weights=True)
    torch.testing.assert_close(out, again)
    torch.testing.assert_close(alpha, alpha_again)
    assert torch.equal(edge_index, pattern.edge_index)
    assert alpha.shape == (5, 2)


def test_weights_are_those_of_before_dropout_in_the_order_given():
    layer = GraphAttention(4, 4, heads=2, dropout=0.9)
    edge_index = graph_zoo()["unsorted edges"].edge_index
    x = torch.randn(7, 4)
    _, (edges, alpha) = layer(x, edge_index, return_attention_weights=True)
    sums = torch.zeros(7, 2).index_add_(0, edge_index[1], alpha.detach())
    has_edges = torch.bincount(edge_index[1], minlength=7) > 0
    torch.testing.assert_close(sums, has_edges.float().unsqueeze(1).expand(-1, 2))
    perm = torch.randperm(edges.size(1))
    _, (_, permuted) = layer(x, edge_index[:, perm], return_attention_weights=True)
    assert torch.equal(alpha[perm], permuted)


def test_multihead_attention_that_has_no_equal_is_refused():
    with pytest.raises(ValueError, match="must have no add_bias_kv"):
        GraphAttention.from_multihead_attention(torch.nn.MultiheadAttention(8, 2, add_bias_kv=True))


def test_self_loops_come_last_with_zero_features():
    layer = GraphAttention(4, 4, add_self_loops=True, edge_dim=2, backend="scatter")
    edge_index = torch.tensor([[0, 1, 1], [1, 1, 2]])
    x, edge_attr = torch.randn(3, 4), torch.randn(3, 2)
    out, (edges, _) = layer(x, edge_index, edge_attr, return_attention_weights=True)
    assert edges.tolist() == [[0, 1, 1, 0, 2], [1, 1, 2, 0, 2]]
    plain = GraphAttention(4, 4, edge_dim=2)
    plain.load_state_dict(layer.state_dict())
    expected = plain(x, edges, torch.cat([edge_attr, torch.zeros(2, 2)]))
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "EdgeIndex", "sorted EdgeIndex", "int32", "pattern", "list"])
def test_every_container_gives_the_same(layout):
    layer = GraphAttention(4, 4, heads=2)
    edge_index = torch.tensor([[0, 1, 2, 0], [1, 2, 2, 0]])
    x = torch.randn(3, 4)
    adjacency = torch.sparse_coo_tensor(edge_index.flip(0), torch.ones(4), (3, 3)).coalesce()
    container = {
        "coo": lambda: adjacency,
        "csr": lambda: adjacency.to_sparse_csr(),
        "csc": lambda: adjacency.to_sparse_csc(),
        "EdgeIndex": lambda: EdgeIndex(edge_index, sparse_size=(3, 3)),
        "sorted EdgeIndex": lambda: EdgeIndex(edge_index, sparse_size=(3, 3)).sort_by("col").values,
        "int32": lambda: edge_index.int(),
        "pattern": lambda: Edges(edge_index, 3),
        "list": lambda: [Edges(edge_index[:, 3:], 1), Edges(edge_index[:, 1:3] - 1, 2)],
    }[layout]()
    expected = layer(x, edge_index if layout != "list" else torch.tensor([[0, 1, 2], [0, 2, 2]]))
    assert torch.equal(layer(x, container), expected)


def test_values_of_a_sparse_adjacency_are_edge_features():
    layer = GraphAttention(4, 4, edge_dim=1)
    edge_index, weight = torch.tensor([[0, 1, 2, 0], [1, 2, 2, 0]]), torch.randn(4)
    adjacency = torch.sparse_coo_tensor(edge_index.flip(0), weight, (3, 3))
    x = torch.randn(3, 4)
    torch.testing.assert_close(layer(x, adjacency), layer(x, edge_index, weight))


def test_layer_in_sequential_gps_and_data_loader():
    patterns = [Window(size, radius=1) for size in (4, 2, 5)]
    graphs = [Data(x=torch.randn(p.num_targets, 8), edge_index=p.edge_index, pattern=p) for p in patterns]
    batch = next(iter(DataLoader(graphs, batch_size=3)))
    model = Sequential("x, edge_index", [(GraphAttention(8, 8, heads=2), "x, edge_index -> x"), torch.nn.ReLU()])
    torch.testing.assert_close(model(batch.x, batch.edge_index), model(batch.x, batch.pattern))
    gps = GPSConv(8, GraphAttention(8, 8, heads=2), heads=2)
    assert gps(batch.x, batch.edge_index, batch.batch).shape == (11, 8)
    moved = batch.to("cpu")
    assert isinstance(moved, Batch) and moved.pattern[2].radius == 1


def test_layer_in_to_hetero_with_lazy_channels():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = GraphAttention((-1, -1), 8, heads=2)
            self.second = GraphAttention((-1, -1), 4)

        def forward(self, x, edge_index):
            return self.second(self.first(x, edge_index).relu(), edge_index)

    data = HeteroData()
    data["a"].x, data["b"].x = torch.randn(3, 5), torch.randn(4, 7)
    data["a", "to", "b"].edge_index = torch.tensor([[0, 1, 2], [3, 1, 1]])
    data["b", "back", "a"].edge_index = torch.tensor([[0, 1], [2, 2]])
    model = to_hetero(Model(), data.metadata())
    out = model(data.x_dict, data.edge_index_dict)
    assert out["a"].shape == (3, 4) and out["b"].shape == (4, 4)
    out["a"].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("in_channels", [4, (4, 4), -1], ids=str)
def test_layer_survives_copies_pickles_and_checkpoints(in_channels):
    layer = GraphAttention(in_channels, 6, heads=3, score="gatv2", edge_dim=2, backend="scatter")
    x, edges, edge_attr = torch.randn(3, 4), graph_zoo()["parallel edges"].edge_index, torch.randn(6, 2)
    inputs = ((x, x) if isinstance(in_channels, tuple) else x, edges, edge_attr)
    expected = layer(*inputs)
    assert torch.equal(copy.deepcopy(layer)(*inputs), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(*inputs), expected)
    stored = io.BytesIO()
    torch.save(layer.state_dict(), stored)
    stored.seek(0)
    fresh = GraphAttention(in_channels, 6, heads=3, score="gatv2", edge_dim=2, backend="scatter")
    fresh.load_state_dict(torch.load(stored))
    assert torch.equal(fresh(*inputs), expected)


def test_parameter_names_are_pinned():
    names = {
        name: list(p.shape)
        for name, p in GraphAttention(4, 6, 3, kv_heads=1, score="additive", edge_dim=2).named_parameters()
    }
    assert names == {
        "score_vector": [3, 2],
        "lin_query.weight": [6, 4],
        "lin_query.bias": [6],
        "lin_key.weight": [2, 4],
        "lin_key.bias": [2],
        "lin_value.weight": [2, 4],
        "lin_value.bias": [2],
        "lin_out.weight": [6, 6],
        "lin_out.bias": [6],
        "lin_edge.weight": [2, 2],
    }
    assert not any("bias" in name for name, _ in GraphAttention(4, 6, bias=False).named_parameters())


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("score", SCORE_NAMES)
def test_heads_may_be_wider_or_narrower_than_their_share(score, kv_heads):
    pattern = graph_zoo()["unsorted edges"]
    options = dict(kv_heads=kv_heads, head_channels=5, score=score, edge_dim=2)
    layer = GraphAttention(4, 7, 4, **options, backend="scatter").double()
    twin = DenseGraphAttention(4, 7, 4, **options).double()
    twin.load_state_dict(layer.state_dict())
    shapes = {name: list(p.shape) for name, p in layer.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "lin_query.weight": [20, 4],
        "lin_key.weight": [5 * kv_heads, 4],
        "lin_value.weight": [5 * kv_heads, 4],
        "lin_out.weight": [7, 20],
        "lin_edge.weight": [5 * kv_heads, 2],
    }
    pattern = Edges.from_mask(pattern.mask())
    x = torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True)
    edge_attr = torch.randn(pattern.num_edges, 2, dtype=torch.float64)
    results = []
    for each in (layer, watched(layer), twin):
        out = each(x, pattern, edge_attr)
        results.append((out, *torch.autograd.grad(out.square().sum(), [x, *each.parameters()])))
    assert results[0][0].shape == (2, 7, 7)
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-9, atol=1e-10)


def test_head_channels_of_the_share_change_nothing():
    torch.manual_seed(0)
    plain = GraphAttention(4, 6, heads=2)
    torch.manual_seed(0)
    given = GraphAttention(4, 6, heads=2, head_channels=3)
    x = torch.randn(5, 4)
    assert torch.equal(plain(x, Full(5)), given(x, Full(5)))


def test_repr():
    assert repr(GraphAttention(8, 32, heads=4)) == "GraphAttention(8, 32, heads=4)"
    assert (
        repr(DenseGraphAttention((8, 4), 32, heads=4, kv_heads=2))
        == "DenseGraphAttention((8, 4), 32, heads=4, kv_heads=2)"
    )
    assert repr(GraphAttention(8, 3, heads=4, head_channels=2)) == "GraphAttention(8, 3, heads=4, head_channels=2)"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(score="dot_product", normalizer="softmax", kv_heads=4, dropout=0, encoding=None, backend="auto"), ""),
        (dict(score="gatv2"), ", score='gatv2'"),
        (dict(score=DotProduct(scale=1.0)), ", score=DotProduct(scale=1.0)"),
        (dict(score=Additive(torch.ones(4, 2))), ", score=Additive([4, 2], 'tanh')"),
        (dict(normalizer="entmax15", edge_dim=3), ", normalizer='entmax15', edge_dim=3"),
        (dict(dropout=0.1, bias=False, add_self_loops=True), ", dropout=0.1, bias=False, add_self_loops=True"),
        (dict(encoding=RelativeBias(4, 3)), ", encoding=RelativeBias(4, radius=(3,))"),
        (dict(encoding=LaplacianPosition(8, k=2)), ", encoding=LaplacianPosition(8, k=2)"),
        (dict(encoding=Encoding(), backend="scatter"), ", encoding=Encoding(), backend='scatter'"),
    ],
)
def test_repr_shows_what_was_chosen(options, text):
    layer = GraphAttention(8, 8, heads=4, **options)
    assert repr(layer) == f"GraphAttention(8, 8, heads=4{text})"
    assert f"(attention): {layer}\n" in repr(
        TransformerBlock(8, 4, attention_dropout=options.pop("dropout", 0.0), **options)
    )


def test_repr_names_a_users_own_score_and_normalizer():
    class Square(torch.nn.Module):
        def edgewise(self, score, target, num_targets):
            return score.square()

        def dense(self, score, mask):
            return torch.where(mask, score, 0).square()

    def distance(query_i, key_j, edge_key):
        return -(query_i - key_j).abs().sum(-1)

    layer = DenseGraphAttention(8, 8, score=distance, normalizer=Square())
    assert repr(layer) == "DenseGraphAttention(8, 8, heads=1, score=distance, normalizer=Square)"


def test_a_modules_score_trains_with_the_layer():
    class Distance(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.temperature = torch.nn.Parameter(torch.ones(()))

        def forward(self, query_i, key_j, edge_key):
            return -(query_i - key_j).square().sum(-1) / self.temperature

    layer = GraphAttention(4, 4, heads=2, score=Distance())
    assert "score.temperature" in layer.state_dict()
    layer(torch.randn(6, 4), Full(6)).square().sum().backward()
    assert layer.score.temperature.grad.abs() > 0


def test_isolated_targets_get_the_output_bias_alone():
    layer = GraphAttention(4, 4)
    torch.nn.init.normal_(layer.lin_out.bias)
    out = layer(torch.randn(3, 4), torch.tensor([[0], [1]]))
    assert torch.equal(out[0], layer.lin_out.bias) and torch.equal(out[2], layer.lin_out.bias)


@pytest.mark.parametrize("hook", ["propagate", "message", "aggregate", "edge_update"])
def test_hooks_of_every_kind_fire(hook):
    layer = GraphAttention(4, 4, heads=2)
    x, edge_index = torch.randn(3, 4), torch.tensor([[0, 1, 2], [1, 2, 0]])
    expected = layer(x, edge_index)
    calls = []
    getattr(layer, f"register_{hook}_forward_pre_hook")(lambda module, inputs: calls.append("before"))
    handle = getattr(layer, f"register_{hook}_forward_hook")(lambda module, inputs, output: calls.append("after"))
    torch.testing.assert_close(layer(x, edge_index), expected)
    assert calls == ["before", "after"]
    handle.remove()


def test_a_message_hook_can_change_the_output():
    layer = GraphAttention(4, 4, bias=False)
    layer.register_message_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    assert torch.equal(layer(torch.randn(3, 4), torch.tensor([[0, 1], [1, 2]])), torch.zeros(3, 4))


class TwoLayers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = GraphAttention(4, 8, heads=2)
        self.second = GraphAttention(8, 3)

    def forward(self, x, edge_index):
        return self.second(self.first(x, edge_index).relu(), edge_index)


@pytest.mark.parametrize("algorithm", [AttentionExplainer(), GNNExplainer(epochs=2)], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("is_sorted", [False, True])
def test_explainers_explain_the_layer(algorithm, is_sorted):
    x, edge_index = torch.randn(5, 4), torch.tensor([[0, 1, 2, 3, 4, 4], [1, 2, 3, 4, 0, 1]])
    if is_sorted:
        edge_index = EdgeIndex(edge_index, sparse_size=(5, 5)).sort_by("col").values
    explainer = Explainer(
        TwoLayers(),
        algorithm,
        explanation_type="model",
        edge_mask_type="object",
        model_config=dict(mode="multiclass_classification", task_level="node", return_type="raw"),
    )
    explanation = explainer(x, edge_index, index=1)
    assert explanation.edge_mask.shape == (6,)
    assert explanation.edge_mask.max() > 0


def test_attention_explainer_sees_the_layers_weights():
    layer = GraphAttention(4, 3)
    x, edge_index = torch.randn(4, 4), torch.tensor([[0, 1, 2, 3], [1, 1, 1, 0]])
    explainer = Explainer(
        layer,
        AttentionExplainer(),
        explanation_type="model",
        edge_mask_type="object",
        model_config=dict(mode="multiclass_classification", task_level="node", return_type="raw"),
    )
    _, (_, alpha) = layer(x, edge_index, return_attention_weights=True)
    torch.testing.assert_close(explainer(x, edge_index).edge_mask, alpha.flatten().detach())


def test_twin_takes_padded_batches():
    layer = GraphAttention(4, 6, heads=2)
    twin = DenseGraphAttention(4, 6, heads=2)
    twin.load_state_dict(layer.state_dict())
    sizes = [3, 1, 5]
    parts = [torch.randn(size, 4) for size in sizes]
    padded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    valid = torch.arange(5) < torch.tensor(sizes).unsqueeze(1)
    out = twin(padded, valid[:, :, None] & valid[:, None, :])
    torch.testing.assert_close(out[valid], layer(torch.cat(parts), Full(sizes)))


def test_twin_takes_dense_edge_features():
    layer = GraphAttention(4, 6, heads=2, edge_dim=3)
    twin = DenseGraphAttention(4, 6, heads=2, edge_dim=3)
    twin.load_state_dict(layer.state_dict())
    x, edge_attr = torch.randn(5, 4), torch.randn(5, 5, 3)
    torch.testing.assert_close(twin(x, Full(5).mask(), edge_attr), layer(x, Full(5), edge_attr.flatten(0, 1)))


def test_layer_on_half_types():
    for dtype in (torch.bfloat16, torch.float16):
        layer = GraphAttention(4, 4, heads=2).to(dtype)
        out = layer(torch.randn(6, 4).to(dtype), Window(6, radius=2))
        assert out.dtype == dtype and out.isfinite().all()
        torch.testing.assert_close(
            watched(layer).eval()(torch.ones(6, 4).to(dtype), Window(6, radius=2)),
            layer(torch.ones(6, 4).to(dtype), Window(6, radius=2)),
        )


def test_layer_under_autocast():
    layer = GraphAttention(4, 4, heads=2, edge_dim=2, score="gatv2", backend="scatter")
    x, pattern = torch.randn(6, 4), Window(6, radius=1)
    edge_attr = torch.randn(pattern.num_edges, 2)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, pattern, edge_attr)
        by_messages = watched(layer)(x, pattern, edge_attr)
    torch.testing.assert_close(out.float(), layer(x, pattern, edge_attr), atol=0.05, rtol=0.05)
    torch.testing.assert_close(out, by_messages)
    out.float().sum().backward()
    assert layer.score_vector.grad.dtype == torch.float32


def test_layer_function_equals_attention_by_hand():
    layer = GraphAttention(4, 6, heads=2).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    pattern = Window(5, radius=1)
    query, key, value = (lin(x).view(5, 2, 3) for lin in (layer.lin_query, layer.lin_key, layer.lin_value))
    expected = layer.lin_out(dense_attention(query, key, value, pattern).flatten(-2))
    torch.testing.assert_close(layer(x, pattern), expected)


def test_parameters_of_own_scores_and_normalizers_are_the_layers():
    class Tempered(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.temperature = torch.nn.Parameter(torch.ones(()))

        def edgewise(self, score, target, num_targets):
            return (score / self.temperature).sigmoid()

        def dense(self, score, mask):
            return torch.where(mask, (score / self.temperature).sigmoid(), 0)

    vector = torch.nn.Parameter(torch.randn(2, 4))
    layer = GraphAttention(4, 8, heads=2, score=Additive(vector, "leaky_relu"), normalizer=Tempered())
    assert layer.score_vector is vector and "own_normalizer.temperature" in layer.state_dict()
    layer.double()(torch.randn(6, 4, dtype=torch.float64), Full(6)).square().sum().backward()
    assert vector.grad.abs().sum() > 0 and layer.own_normalizer.temperature.grad.abs() > 0
    copied = copy.deepcopy(layer)
    assert copied.normalizer.own is copied.own_normalizer
    layer = GraphAttention(4, 8, heads=2, normalizer=Normalized(torch.nn.PReLU()))
    assert "own_normalizer.weight" in layer.state_dict()
    layer(torch.randn(6, 4), Full(6)).square().sum().backward()
    assert layer.own_normalizer.weight.grad.abs() > 0
    fixed = GraphAttention(4, 8, heads=2, score=Additive(torch.ones(2, 4)))
    assert "score_vector" in dict(fixed.named_buffers()) and "score_vector" not in dict(fixed.named_parameters())


def test_an_edge_mask_hides_its_own_edge_whatever_loops_there_are():
    edge_index = torch.tensor([[0, 0, 1, 2], [0, 0, 2, 1]])
    layer = GraphAttention(4, 4, add_self_loops=True)
    x = torch.randn(3, 4)
    plain = layer(x, edge_index)
    set_masks(layer, torch.tensor([50.0, 50.0, -50.0, 50.0]), edge_index)
    changed = (layer(x, edge_index) - plain).abs().sum(1) > 1e-6
    clear_masks(layer)
    assert changed.tolist() == [False, False, True]


def test_values_of_a_scipy_matrix_take_the_layers_dtype():
    matrix = scipy.sparse.random(5, 5, 0.5, format="csr", random_state=0)
    out = GraphAttention(4, 4, edge_dim=1)(torch.randn(5, 4), matrix)
    assert out.dtype == torch.float32 and out.isfinite().all()


@pytest.mark.parametrize("batch", [(0,), (2, 0)], ids=str)
def test_an_empty_batch_gives_an_empty_result(batch):
    x = torch.randn(*batch, 7, 4, requires_grad=True)
    for backend in ("auto", "scatter"):
        out = GraphAttention(4, 6, heads=2, backend=backend)(x, graph_zoo()["unsorted edges"])
        assert out.shape == (*batch, 7, 6)
        out.sum().backward()


@pytest.mark.filterwarnings("ignore:Dynamo", "ignore:The .grad attribute")
def test_layer_compiles_with_raw_edges():
    layer = GraphAttention(4, 6, heads=2)
    compiled = torch.compile(layer, backend="aot_eager")
    for nodes in (5, 8):
        x, edge_index = torch.randn(nodes, 4), torch.randint(0, nodes, (2, 3 * nodes))
        torch.testing.assert_close(compiled(x, edge_index), layer(x, edge_index))

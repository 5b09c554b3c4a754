"""Sampled neighborhoods: what is drawn, in what order, how often, and what layers make of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import ClusterLoader, NodeLoader, RandomNodeLoader
from torch_geometric.sampler import NodeSamplerInput
from torch_geometric.transforms import AddSelfLoops
from torch_geometric.utils import trim_to_layer

from graphattn import Edges
from graphattn.nn import GATv2Conv, GraphAttention, TransformerConv
from graphattn.patterns import base
from graphattn.patterns.lookup import known_edges
from graphattn.sampling import ClusterData, NeighborLoader, NeighborSampler


def random_graph(nodes: int = 300, edges: int = 3000) -> Data:
    """A graph with parallel edges, self-loops and nodes of any degree, and features in float64."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    source = (torch.rand(edges, generator=generator) ** 2 * nodes).long()
    target = torch.randint(nodes, (edges,), generator=generator)
    edge_index = torch.stack([source, target])
    return Data(x=draw(nodes, 6), edge_index=edge_index, edge_attr=draw(edges, 3), y=torch.arange(nodes))


def sampled(sampler: NeighborSampler, seeds: list[int]):
    return sampler.sample_from_nodes(NodeSamplerInput(torch.arange(len(seeds)), torch.tensor(seeds, dtype=torch.int64)))


def check_laws(data: Data, fan_outs: list[int], replace: bool, seeds: list[int], seed: int = 0) -> None:
    """All that holds of any sample."""
    out = sampled(NeighborSampler(data, fan_outs, replace=replace, seed=seed), seeds)
    node, source, target, edge = out.node, out.row, out.col, out.edge
    reached = node[len(seeds) :].tolist()
    assert node[: len(seeds)].tolist() == seeds
    assert len(set(reached)) == len(reached) and not set(reached) & set(seeds)
    # Each edge is one of the graph's, by its own number.
    assert torch.equal(data.edge_index[:, edge], torch.stack([node[source], node[target]]))
    assert sum(out.num_sampled_nodes) == len(node) and sum(out.num_sampled_edges) == len(edge)
    degree = torch.bincount(data.edge_index[1], minlength=data.num_nodes)
    drawn = torch.bincount(target, minlength=len(node))
    begin, first_edge = 0, 0
    for hop, fan_out in enumerate(fan_outs):
        end = begin + out.num_sampled_nodes[hop]
        wanted = degree[node[begin:end]]
        if fan_out >= 0:
            wanted = torch.where(wanted > 0, fan_out, 0) if replace else wanted.clamp(max=fan_out)
        assert torch.equal(drawn[begin:end], wanted)
        last_edge = first_edge + out.num_sampled_edges[hop]
        assert all(begin <= i < end for i in target[first_edge:last_edge].tolist())
        # What a hop reaches first is numbered from where its targets end.
        fresh = set(range(end, end + out.num_sampled_nodes[hop + 1]))
        assert {j for j in source[first_edge:last_edge].tolist() if j >= end} == fresh
        begin, first_edge = end, last_edge
    assert not drawn[begin:].any()
    if not replace:
        for i in range(begin):
            ids = edge[target == i]
            assert ids.unique().numel() == ids.numel()
    edge_index = torch.stack([source, target])
    for hops, (rows, columns) in zip(range(len(fan_outs), 0, -1), out.metadata[2], strict=True):
        nodes, edges = sum(out.num_sampled_nodes[: hops + 1]), sum(out.num_sampled_edges[:hops])
        pattern = Edges(edge_index[:, :edges], nodes)
        assert torch.equal(pattern.csr().ptr, rows.ptr) and torch.equal(pattern.csr().index, rows.index)
        assert pattern.csr().perm is None and rows.perm is None
        ptr, index, perm = pattern.csc()
        perm = torch.arange(edges, dtype=torch.int32) if perm is None else perm
        assert torch.equal(ptr, columns.ptr) and torch.equal(index, columns.index)
        assert torch.equal(perm, torch.arange(edges, dtype=torch.int32) if columns.perm is None else columns.perm)


@st.composite
def samples(draw):
    nodes = draw(st.integers(1, 8))
    pair = st.tuples(st.integers(0, nodes - 1), st.integers(0, nodes - 1))
    pairs = draw(st.lists(pair, max_size=40))
    replace = draw(st.booleans())
    fan_out = st.integers(1, 9) if replace else st.one_of(st.just(-1), st.integers(1, 9))
    seeds = draw(st.lists(st.integers(0, nodes - 1), max_size=6))
    edge_index = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).t().contiguous()
    return Data(edge_index=edge_index, num_nodes=nodes), draw(st.lists(fan_out, min_size=1, max_size=3)), replace, seeds


@settings(max_examples=60)
@given(samples(), st.integers(0, 2**63 - 1))
def test_laws_of_samples_of_any_graph(sample, seed):
    check_laws(*sample, seed=seed)


@pytest.mark.parametrize(("fan_outs", "replace"), [([4, 3], False), ([25, -1], False), ([40, 2], True)])
def test_laws_of_samples_of_a_larger_graph(fan_outs, replace):
    # A hub, whose row is long enough to be sorted in strides.
    data = random_graph()
    hub = torch.stack([torch.arange(299, -1, -1), torch.full((300,), 7)])
    data = Data(edge_index=torch.cat([data.edge_index, hub], 1), num_nodes=300)
    check_laws(data, fan_outs, replace, [7, 3, 299, 7])


def test_hops_draw_independently():
    """Which of 64 edges the first hop draws at a row says nothing about what the second one draws at that row."""
    nodes, degree = 5000, 64
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(nodes, (nodes, degree), generator=generator).sort().values.flatten()
    edge_index = torch.stack([source, torch.arange(nodes).repeat_interleave(degree)])
    out = sampled(NeighborSampler(Data(edge_index=edge_index, num_nodes=nodes), [1, 1], seed=3), list(range(500)))
    first, second = out.edge.split(out.num_sampled_edges)
    rows = len(second)
    assert rows > 300
    # One in 64 agrees by chance, about 7; 25 would be rarer than one seed in a hundred thousand.
    assert int((first[:rows] % degree == second % degree).sum()) < 25


def test_an_empty_graph_has_empty_samples():
    check_laws(Data(edge_index=torch.empty(2, 0, dtype=torch.int64), num_nodes=0), [2, -1], False, [])


def star(leaves: int) -> Data:
    """Nodes 1, 2, ... point to node 0."""
    edge_index = torch.stack([torch.arange(1, leaves + 1), torch.zeros(leaves, dtype=torch.int64)])
    return Data(edge_index=edge_index, num_nodes=leaves + 1)


@pytest.mark.parametrize(("leaves", "fan_out"), [(6, 1), (6, 3), (6, 5), (7, 6)])
def test_every_set_of_neighbors_is_as_likely_as_any_other(leaves, fan_out):
    draws = 20_000
    out = sampled(NeighborSampler(star(leaves), [fan_out], seed=1), [0] * draws)
    sets = out.edge.view(draws, fan_out).sort(1).values
    number = {chosen: place for place, chosen in enumerate(itertools.combinations(range(leaves), fan_out))}
    counts = torch.bincount(torch.tensor([number[tuple(row)] for row in sets.tolist()]), minlength=len(number))
    expected = draws / len(number)
    statistic = float((counts - expected).square().sum() / expected)
    assert 1e-3 < chi2.sf(statistic, len(number) - 1) < 1 - 1e-3


def test_with_replacement_every_neighbor_is_as_likely_in_every_draw():
    draws, leaves, fan_out = 5000, 7, 3
    out = sampled(NeighborSampler(star(leaves), [fan_out], replace=True), [0] * draws)
    # Rows are sorted, so that ordered draws are known by how many of a row are alike.
    counts = torch.bincount(out.edge, minlength=leaves)
    expected = draws * fan_out / leaves
    assert 1e-3 < chi2.sf(float((counts - expected).square().sum() / expected), leaves - 1) < 1 - 1e-3
    kinds = torch.tensor([len(set(row)) for row in out.edge.view(draws, fan_out).tolist()]).bincount()[1:] / draws
    torch.testing.assert_close(kinds, torch.tensor([1, 18, 30]) / 49, atol=0.02, rtol=0)


def test_neither_threads_nor_workers_change_a_batch():
    data = random_graph()
    sampler = NeighborSampler(data, [5, 3], seed=7)
    before = torch.get_num_threads()
    try:
        outs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outs.append(sampled(sampler, list(range(0, 300, 2))))
    finally:
        torch.set_num_threads(before)
    for other in outs[1:]:
        assert all(torch.equal(getattr(outs[0], name), getattr(other, name)) for name in ("node", "row", "col", "edge"))
    load = lambda **options: NeighborLoader(data, [5, 3], batch_size=100, seed=7, **options)
    expected = list(load())
    for options in ({"num_workers": 1}, {"num_workers": 2, "filter_per_worker": False}):
        for batch, other in zip(expected, load(**options), strict=True):
            assert torch.equal(batch.n_id, other.n_id) and torch.equal(batch.e_id, other.e_id)
            assert torch.equal(batch.edge_index, other.edge_index) and torch.equal(batch.x, other.x)
            for ours, theirs in zip(batch.layer_patterns, other.layer_patterns, strict=True):
                assert torch.equal(ours.csc().perm, theirs.csc().perm)
            assert known_edges("test", other.edge_index, other.num_nodes, other.num_nodes) is other.pattern


def test_other_seeds_in_another_order_or_of_another_sampler_draw_anew():
    data = random_graph()
    draw = lambda seed, seeds: sampled(NeighborSampler(data, [3], seed=seed), seeds)
    once = draw(0, [5, 6, 7])
    assert torch.equal(once.edge, draw(0, [5, 6, 7]).edge)
    others = [draw(1, [5, 6, 7]).edge, draw(0, [6, 5, 7]).edge, draw(0, [5, 6, 8]).edge[:6]]
    assert all(set(once.edge.tolist()) != set(other.tolist()) for other in others)
    assert set(once.edge[:6].tolist()) != set(others[2].tolist())


@pytest.mark.parametrize("loader", ["NodeLoader", "NeighborLoader"])
def test_batches_are_what_pyg_promises(loader):
    data = random_graph()
    seeds = torch.tensor([9, 4, 250, 31, 77])
    if loader == "NodeLoader":
        batches = list(NodeLoader(data, NeighborSampler(data, [4, 2]), seeds, batch_size=2))
    else:
        batches = list(NeighborLoader(data, [4, 2], seeds, batch_size=2))
    assert [batch.batch_size for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([batch.input_id for batch in batches]), torch.arange(5))
    for batch in batches:
        assert torch.equal(batch.n_id[: batch.batch_size], seeds[batch.input_id])
        assert torch.equal(batch.x, data.x[batch.n_id]) and torch.equal(batch.edge_attr, data.edge_attr[batch.e_id])
        assert torch.equal(data.edge_index[:, batch.e_id], batch.n_id[batch.edge_index])
        assert batch.num_nodes == sum(batch.num_sampled_nodes) and batch.get("seed_time") is None
        assert batch.num_edges == sum(batch.num_sampled_edges)
    mask = torch.zeros(300, dtype=torch.bool)
    mask[seeds] = True
    (batch,) = NeighborLoader(data, [1], mask, batch_size=9)
    assert torch.equal(batch.y[:5], seeds.sort().values) and torch.equal(batch.input_id, seeds.sort().values)


@pytest.fixture
def count_sorts(monkeypatch):
    """How often edges have been compressed."""
    counts = []
    build = base.build_csr
    monkeypatch.setattr(base, "build_csr", lambda *arguments: counts.append(1) or build(*arguments))
    return counts


@pytest.mark.parametrize("given", ["pattern", "layer_patterns", "edge_index"])
def test_edges_of_a_batch_are_never_sorted(given, count_sorts):
    data = random_graph()
    layers = [GraphAttention(6, 6).double() for _ in range(2)]
    loader = NeighborLoader(data, [4, 4], batch_size=150)
    count_sorts.clear()
    for batch in loader:
        x = batch.x
        for hop, layer in enumerate(layers):
            edges = batch.layer_patterns[hop] if given == "layer_patterns" else batch[given]
            x = layer(x[: edges.num_sources] if given == "layer_patterns" else x, edges)
        x[: batch.batch_size].sum().backward()
    assert count_sorts == []
    # This counts what it should.
    layers[0](batch.x, batch.edge_index.clone()).sum().backward()
    assert len(count_sorts) == 2


LAYERS = {
    "GraphAttention": lambda width: GraphAttention(width, 8, heads=2, edge_dim=3),
    "TransformerConv": lambda width: TransformerConv(width, 4, heads=2, edge_dim=3),
    "GATv2Conv": lambda width: GATv2Conv(width, 4, heads=2, edge_dim=3, add_self_loops=False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_with_all_neighbors_seeds_get_what_the_whole_graph_gives_them(name):
    data, seeds = random_graph(), torch.tensor([0, 17, 123, 299])
    torch.manual_seed(0)
    layers = [LAYERS[name](width).double() for width in (6, 8)]
    expected = data.x
    for layer in layers:
        expected = layer(expected, data.edge_index, data.edge_attr)
    (batch,) = NeighborLoader(data, [-1, -1], seeds, batch_size=4)
    whole = trimmed = by_layer = batch.x
    edge_index, edge_attr = batch.edge_index, batch.edge_attr
    for hop, layer in enumerate(layers):
        # Drop-ins for PyG's layers take what those take.
        is_ours = isinstance(layer, GraphAttention)
        whole = layer(whole, batch.pattern if is_ours else batch.edge_index, batch.edge_attr)
        sizes = (batch.num_sampled_nodes, batch.num_sampled_edges)
        trimmed, edge_index, edge_attr = trim_to_layer(hop, *sizes, trimmed, edge_index, edge_attr)
        trimmed = layer(trimmed, edge_index, edge_attr)
        pattern = batch.layer_patterns[hop]
        edges = pattern if is_ours else pattern.edge_index
        by_layer = layer(by_layer[: pattern.num_sources], edges, batch.edge_attr[: pattern.num_edges])
        assert trimmed.shape == by_layer.shape
    assert by_layer.size(0) < batch.num_nodes < data.num_nodes + 1
    for found in (whole, trimmed, by_layer):
        torch.testing.assert_close(found[:4], expected[seeds], atol=1e-12, rtol=1e-12)


def without_crossing(data: Data, part: torch.Tensor) -> torch.Tensor:
    """Edges within parts."""
    source, target = data.edge_index
    return data.edge_index[:, part[source] == part[target]]


def test_a_layer_on_clusters_is_the_layer_without_edges_between_them():
    data = random_graph()
    layer = GraphAttention(6, 4).double()
    for loader in (
        ClusterLoader(ClusterData(data, 6, log=False), batch_size=2, shuffle=True),
        ClusterLoader(ClusterData(data, 3, log=False, sparse_format="csc", recursive=True), batch_size=1),
        RandomNodeLoader(data, num_parts=4, shuffle=True),
    ):
        part = torch.full((300,), -1)
        out = torch.empty(300, 4, dtype=torch.float64)
        for number, batch in enumerate(loader):
            assert int(part[batch.y].max()) == -1
            part[batch.y] = number
            out[batch.y] = layer(batch.x, batch.edge_index)
        assert int(part.min()) == 0 and int(part.max()) > 1
        torch.testing.assert_close(out, layer(data.x, without_crossing(data, part)), atol=1e-12, rtol=1e-12)


GRAPH = random_graph(10, 30)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((GRAPH, [5, 0]), {}, ValueError, r"num_neighbors must be at least 1, or -1, got \[5, 0\]. Leave the hop out"),
        ((GRAPH, [-2]), {}, ValueError, "num_neighbors must be at least -1, got -2"),
        ((GRAPH, []), {}, ValueError, r"num_neighbors must have one number for each hop, got \[\]. Use num_neighbors="),
        ((GRAPH, 10), {}, ValueError, "num_neighbors must have one number for each hop, got 10"),
        ((GRAPH, 2.5), {}, ValueError, "num_neighbors must have one number for each hop, got 2.5"),
        ((GRAPH, [2.5]), {}, TypeError, r"num_neighbors must be an integer, got 2.5 \(float\)"),
        (
            (GRAPH, [-1]),
            {"replace": True},
            ValueError,
            "numbers with replace=True, because -1 takes each neighbor once",
        ),
        ((GRAPH, [1]), {"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ((GRAPH, [1]), {"weight_attr": "w"}, NotImplementedError, "NeighborLoader, which needs pyg-lib"),
        ((GRAPH, [1]), {"time_attr": "t"}, NotImplementedError, "time_attr must be None here, got t. Use torch_geom"),
        ((GRAPH, [1]), {"subgraph_type": "induced"}, NotImplementedError, "must be 'directional' here, got induced"),
        (
            (GRAPH, [1]),
            {"disjoint": True},
            NotImplementedError,
            "disjoint must be False here, got True. Use torch_geom",
        ),
        (
            (HeteroData(), [1]),
            {},
            ValueError,
            "input_nodes must be .type, nodes. with one of the types .., got None",
        ),
        ((GRAPH, {"a": [1]}), {}, NotImplementedError, "num_neighbors must be of one type of nodes, got dict"),
        ((GRAPH.edge_index, [1]), {}, TypeError, "data must be a Data, got Tensor"),
        ((Data(x=GRAPH.x), [1]), {}, ValueError, "data must have an edge_index, got Data"),
        (
            (GRAPH, [1], torch.tensor([3, 10])),
            {},
            IndexError,
            r"input_nodes must lie in \[0, 10\), .* got 10 at place 1",
        ),
        ((GRAPH, [1], torch.ones(9, dtype=torch.bool)), {}, ValueError, r"or a mask of bool of shape \[10\], got"),
        ((GRAPH, [1]), {"batch_size": 0}, ValueError, "NeighborLoader: batch_size must be at least 1, got 0"),
    ],
)
def test_bad_loaders_are_refused_in_one_line(arguments, options, error, text):
    with pytest.raises(error, match=text) as refused:
        NeighborLoader(*arguments, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("of", [torch.as_tensor, np.asarray, lambda mask: mask.tolist()])
def test_a_mask_of_any_kind_names_the_same_seeds(of):
    mask = torch.arange(300) % 100 == 7
    (batch,) = NeighborLoader(random_graph(), [3], of(mask), batch_size=9)
    assert batch.n_id[:3].tolist() == [7, 107, 207] and batch.batch_size == 3


@pytest.mark.parametrize(
    ("nodes", "error", "text"),
    [
        (torch.zeros(300, dtype=torch.uint8), TypeError, "integers of shape .*, or a mask of bool .*, got torch.uint8"),
        (np.ones(500, bool), ValueError, r"a mask of bool of shape \[300\], got shape \[500\]"),
        (3, ValueError, r"must be integers of shape \[n\], or .*, got shape \[\]"),
        ("train_mask", TypeError, "must be integers .*, got 'train_mask'"),
        ((None, [0, 1]), TypeError, "must be integers"),
    ],
)
def test_what_names_no_seeds_is_refused(nodes, error, text):
    with pytest.raises(error, match=f"NeighborLoader: input_nodes {text}" if "must" in text else text):
        NeighborLoader(random_graph(), [3], nodes)


def flip_in_place(batch):
    batch.edge_index.copy_(batch.edge_index.flip(0))
    return batch


@pytest.mark.parametrize("transform", [flip_in_place, AddSelfLoops()])
def test_a_transform_of_the_edges_makes_the_pattern_anew(transform):
    layer = GraphAttention(6, 8).double()
    for batch in NeighborLoader(random_graph(), [3, 3], batch_size=100, transform=transform):
        fresh = layer(batch.x, Edges(batch.edge_index.clone(), batch.num_nodes))
        assert torch.equal(layer(batch.x, batch.edge_index), fresh) and torch.equal(
            layer(batch.x, batch.pattern), fresh
        )
        assert "layer_patterns" not in batch
    with pytest.raises(TypeError, match=r"transform must return a Data, got NoneType. Let it return the batch"):
        next(iter(NeighborLoader(random_graph(), [3], transform=lambda batch: None)))


def test_bad_seeds_and_what_is_not_offered_are_refused():
    sampler = NeighborSampler(GRAPH, [2])
    with pytest.raises(IndexError, match=r"seeds must lie in \[0, 10\), the nodes of the graph, got -1 at place 1"):
        sampled(sampler, [0, -1])
    with pytest.raises(TypeError, match=r"seeds must be integers of shape \[n\], got torch.float32 of shape \[1\]"):
        sampler.sample_from_nodes(NodeSamplerInput(None, torch.zeros(1)))
    with pytest.raises(NotImplementedError, match=r"Use torch_geometric.loader.LinkNeighborLoader"):
        sampler.sample_from_edges(None)
    with pytest.raises(
        NotImplementedError, match=r"must be None, because sampling by time is not supported. Use torch"
    ):
        sampler.sample_from_nodes(NodeSamplerInput(None, torch.tensor([0]), time=torch.tensor([1])))
    with pytest.raises(TypeError, match="NeighborSampler: neighbours is not an argument"):
        NeighborSampler(GRAPH, [2], neighbours=3)

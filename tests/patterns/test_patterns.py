"""Patterns: their definition, edges, mask, CSR and sizes say the same."""

from __future__ import annotations

import copy
import itertools
import pickle

import networkx
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric import EdgeIndex
from torch_geometric.utils import from_scipy_sparse_matrix, grid, to_edge_index

from graphattn import Edges, Full, Grid, Pattern, Window, attention
from graphattn.csr import build_csr, index_dtype, stable_order
from graphattn.patterns import PATTERNS, lookup
from graphattn.testing import graph_zoo, pattern_zoo

ZOO = pattern_zoo()
STRUCTURED = [name for name, pattern in ZOO.items() if not isinstance(pattern, Edges)]


def test_the_zoo_has_every_pattern():
    assert {type(pattern) for pattern in ZOO.values()} == set(PATTERNS)


@pytest.mark.parametrize("name", ZOO)
def test_edges_mask_and_definition_agree(name):
    pattern = ZOO[name]
    source, target = pattern.edge_index
    mask = torch.zeros(pattern.num_targets, pattern.num_sources, dtype=torch.bool)
    mask[target, source] = True
    assert torch.equal(pattern.mask(), mask)
    every = pattern.allows(torch.arange(pattern.num_targets)[:, None], torch.arange(pattern.num_sources))
    assert torch.equal(every, mask)
    assert pattern.num_edges == len(source)
    assert pattern.edge_index.dtype == torch.int64


@pytest.mark.parametrize("name", STRUCTURED)
def test_structured_patterns_list_each_pair_once_by_target_then_source(name):
    pattern = ZOO[name]
    target, source = pattern.mask().nonzero().unbind(1)
    assert torch.equal(pattern.edge_index, torch.stack([source, target]))
    assert pattern.csr().perm is None
    assert pattern.occurrence() is None


@pytest.mark.parametrize("name", ZOO)
def test_csr_and_csc_sort_the_edges_and_keep_parallel_ones_in_order(name):
    pattern = ZOO[name]
    edge = range(pattern.num_edges)
    source, target = (side.tolist() for side in pattern.edge_index)
    for compressed, row, column, rows in (
        (pattern.csr(), target, source, pattern.num_targets),
        (pattern.csc(), source, target, pattern.num_sources),
    ):
        order = sorted(edge, key=lambda e, row=row, column=column: (row[e], column[e], e))
        perm = list(edge) if compressed.perm is None else compressed.perm.tolist()
        assert perm == order
        assert compressed.index.tolist() == [column[e] for e in order]
        assert compressed.ptr.tolist() == [sum(r < i for r in row) for i in range(rows + 1)]
        assert compressed.ptr.dtype == torch.int64 and compressed.index.dtype == torch.int32


def test_occurrence_counts_parallel_edges_in_the_callers_order():
    pattern = Edges(torch.tensor([[1, 0, 1, 1, 0, 2], [0, 2, 0, 0, 2, 2]]), 4)
    assert pattern.occurrence().tolist() == [0, 0, 1, 2, 1, 0]
    assert ZOO["unsorted edges"].occurrence() is not None
    assert ZOO["complete"].occurrence() is None


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("radius", [0, 1, 3, 100])
def test_window_is_the_band_around_the_diagonal(radius, causal):
    sizes = [5, 1, 0, 7]
    offset = torch.block_diag(*(torch.arange(n) - torch.arange(n)[:, None] + 1000 for n in sizes if n)) - 1000
    expected = (offset.abs() <= radius) & ((offset <= 0) if causal else True)
    assert torch.equal(Window(sizes, radius, causal=causal).mask(), expected)


@pytest.mark.parametrize(
    ("shape", "radius"), [((4,), 1), ((3, 5), 1), ((3, 5), (0, 2)), ((2, 3, 4), 1), ((3, 3, 3), (1, 0, 2))]
)
def test_grid_is_the_clipped_neighborhood(shape, radius):
    reach = radius if isinstance(radius, tuple) else (radius,) * len(shape)
    pixels = list(itertools.product(*map(range, shape)))
    expected = [[all(abs(a - b) <= r for a, b, r in zip(p, q, reach, strict=True)) for q in pixels] for p in pixels]
    assert torch.equal(Grid(shape, radius).mask(), torch.tensor(expected))


def test_grid_of_radius_one_is_pygs_grid_graph():
    edge_index, _ = grid(4, 6)
    assert torch.equal(Grid((4, 6), 1).mask(), Edges(edge_index, 24).mask())


def test_full_causal_is_the_lower_triangle_also_between_different_sizes():
    assert torch.equal(Full(4, 6, causal=True).mask(), torch.ones(4, 6, dtype=torch.bool).tril())
    assert torch.equal(Full(6, 4, causal=True).mask(), torch.ones(6, 4, dtype=torch.bool).tril())


@pytest.mark.parametrize("name", STRUCTURED)
def test_offsets_are_source_minus_target_coordinates(name):
    pattern = ZOO[name]
    axes = pattern.shape.size(1)
    coordinates = []
    for shapes in (pattern.source_shape, pattern.shape):
        rows = [list(itertools.product(*map(range, shape))) for shape in shapes.tolist()]
        coordinates.append(torch.tensor([row for part in rows for row in part]).view(-1, axes))
    source, target = pattern.edge_index
    offsets, differences = pattern.offsets(), coordinates[0][source] - coordinates[1][target]
    if getattr(pattern, "border", "clip") == "wrap":
        component = torch.searchsorted(pattern.ptr, target, right=True) - 1
        assert bool(((offsets - differences) % pattern.shape[component] == 0).all())
        assert bool((offsets.abs() <= torch.tensor(pattern.radius) * torch.tensor(pattern.dilation)).all())
    else:
        assert torch.equal(offsets, differences)


@pytest.mark.parametrize("name", STRUCTURED)
def test_offsets_are_numbered_row_major_from_the_lowest(name):
    pattern = ZOO[name]
    offsets, index = pattern.offsets(), pattern.offset_index()
    assert len(index) == 0 or (int(index.min()) >= 0 and int(index.max()) < pattern.num_offsets)
    if getattr(pattern, "global_tokens", ()):
        is_local = index < pattern.num_offsets - 1
        offsets, index = offsets[is_local], index[is_local]
    number = {}
    for offset, place in zip(offsets.tolist(), index.tolist(), strict=True):
        assert number.setdefault(tuple(offset), place) == place
    assert len(set(number.values())) == len(number)
    assert sorted(number) == sorted(number, key=number.get)


def test_numbers_of_offsets():
    assert Window(100, radius=2).num_offsets == 5
    assert Window(2, radius=2).num_offsets == 5
    assert Window(100, radius=2, causal=True).num_offsets == 3
    assert Grid((9, 9), (1, 2)).num_offsets == 15
    assert (Full(4).num_offsets, Full(4, causal=True).num_offsets, Full([2, 3], [5, 1]).num_offsets) == (7, 4, 7)
    assert Full([]).num_offsets == 0


def test_a_large_window_lists_nothing():
    window = Window(1_000_000, radius=64)
    assert window.num_edges == 1_000_000 * 129 - 64 * 65
    assert "edge_index" not in window._kept and "csr" not in window._kept
    assert repr(window) == "Window(1000000, radius=64)"
    assert bool(window.allows(500_000, 500_064)) and not bool(window.allows(500_000, 500_065))


@given(st.lists(st.integers(0, 6), max_size=4), st.integers(0, 7), st.booleans())
def test_ragged_windows_are_the_disjoint_union_of_single_ones(sizes, radius, causal):
    ragged = Window(sizes, radius, causal=causal)
    blocks = [Window(size, radius, causal=causal).mask() for size in sizes]
    expected = torch.block_diag(*blocks).bool() if sizes else torch.zeros(0, 0, dtype=torch.bool)
    assert torch.equal(ragged.mask(), expected.view(sum(sizes), sum(sizes)))
    assert ragged.num_edges == int(expected.sum())


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ([Window(3, 1), Window([2, 4], 1)], Window([3, 2, 4], 1)),
        ([Full(2, 3), Full([1, 1], [0, 2])], Full([2, 1, 1], [3, 0, 2])),
        ([Grid((2, 3), 1), Grid((4, 1), 1)], Grid([(2, 3), (4, 1)], 1)),
        ([graph_zoo()["bipartite"], graph_zoo()["no edges"]], None),
    ],
    ids=["Window", "Full", "Grid", "Edges"],
)
def test_join_is_the_disjoint_union(parts, whole):
    joined = Pattern.join(parts)
    assert torch.equal(joined.mask(), torch.block_diag(*(part.mask() for part in parts)).bool())
    assert whole is None or repr(joined) == repr(whole)


@pytest.mark.parametrize(
    ("parts", "error", "text"),
    [
        ([Window(3, 1), Window(3, 2)], ValueError, "join: patterns' radius must be the same for all, got [1, 2]."),
        ([Grid((3,), 1), Grid((3,), 2)], ValueError, "patterns' radius must be the same"),
        ([Full(3), Full(3, causal=True)], ValueError, "patterns' causal must be the same"),
        ([Full(3), Window(3, 1)], TypeError, "must be one or more patterns of one class, got ['Full', 'Window']"),
        ([], TypeError, "must be one or more patterns of one class"),
    ],
)
def test_patterns_that_differ_in_more_than_size_dont_join(parts, error, text):
    with pytest.raises(error) as caught:
        Pattern.join(parts)
    assert text in str(caught.value)


def test_a_list_of_patterns_is_joined_once_for_all_layers(monkeypatch):
    joined, join = [], Edges._join
    monkeypatch.setattr(Edges, "_join", staticmethod(lambda parts: joined.append(len(parts)) or join(parts)))
    ring = torch.tensor([[0, 1, 2], [1, 2, 0]])
    parts = [Edges(ring) for _ in range(3)]
    x = torch.randn(9, 1, 2)
    first, second = (attention(x, x, x, list(parts), backend="scatter") for _ in range(2))
    assert joined == [3] and torch.equal(first, second)
    # The parts live on, as those of a data set do, but not all of their batches.
    others = [Edges(ring) for _ in range(40)]
    for other in others:
        attention(x[:6], x[:6], x[:6], [parts[0], other], backend="scatter")
        assert attention(x[:3], x[:3], x[:3], [other], backend="scatter").shape == (3, 1, 2)
    assert len(lookup._joined) <= lookup.MOST_JOINED


def test_batch_vectors():
    batch = torch.tensor([0, 0, 2, 2, 2])
    assert repr(Full.from_batch(batch)) == "Full([2, 0, 3])"
    assert repr(Window.from_batch(batch, 1, causal=True)) == "Window([2, 0, 3], radius=1, causal=True)"
    readout = Full.from_batch(torch.tensor([0, 1, 2, 3]), batch)
    assert repr(readout) == "Full([1, 1, 1, 1], source_sizes=[2, 0, 3, 0])"
    for bad in (torch.tensor([1, 0]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match=r"Full.from_batch: batch must be sorted and not negative"):
            Full.from_batch(bad)
    far = torch.tensor([0, 10**9])
    for batches in ([far], [batch, far]):
        with pytest.raises(ValueError, match="batch must not leave almost all graphs empty, got graph 1000000000 with"):
            Full.from_batch(*batches)
    with pytest.raises(ValueError, match=r"Full: nodes must number less than 2\^62, got 10000000000000000000"):
        Full([3, 10**19])
    with pytest.raises(TypeError, match=r"must be one-dimensional and of an integer dtype, got torch.float32"):
        Window.from_batch(torch.zeros(3), 1)


def test_every_container_gives_the_same_edges():
    edge_index = torch.tensor([[0, 3, 1, 3], [1, 0, 2, 2]])
    expected = Edges(edge_index, 4).mask()
    adjacency = torch.sparse_coo_tensor(edge_index.flip(0), torch.ones(4), (4, 4)).coalesce()
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(4))
    graph.add_edges_from(edge_index.t().tolist())
    matrix = scipy.sparse.coo_array(([1, 1, 1, 1], edge_index.numpy()), shape=(4, 4))
    containers = [
        edge_index.int(),
        EdgeIndex(edge_index, sparse_size=(4, 4)),
        EdgeIndex(edge_index, sparse_size=(4, 4)).sort_by("row").values,
        adjacency,
        adjacency.to_sparse_csr(),
        adjacency.to_sparse_csc(),
        graph,
        matrix,
        matrix.tocsr(),
    ]
    for container in containers:
        assert torch.equal(Edges(container).mask(), expected), type(container)
    assert torch.equal(Edges.from_mask(expected).mask(), expected)
    ptr, index, _ = Edges(edge_index, 4).csr()
    assert torch.equal(Edges.from_csr(ptr, index).mask(), expected)
    assert torch.equal(Edges(from_scipy_sparse_matrix(matrix)[0], 4).mask(), expected)


def test_sparse_adjacencies_keep_their_own_order_of_edges():
    edge_index = torch.tensor([[0, 3, 1, 3], [1, 0, 2, 2]])
    adjacency = torch.sparse_coo_tensor(edge_index.flip(0), torch.arange(4.0), (4, 4)).coalesce()
    for container in (adjacency, adjacency.to_sparse_csr()):
        target_source, _ = to_edge_index(container)
        assert torch.equal(Edges(container).edge_index, target_source.flip(0))
    repeated = torch.sparse_coo_tensor(torch.tensor([[0, 0], [1, 1]]), torch.ones(2), (2, 2))
    assert Edges(repeated).num_edges == 2


def test_a_sparse_tensor_is_read_where_torch_sparse_is_installed(monkeypatch):
    class SparseTensor:
        """What torch-sparse's class offers, as far as it is used."""

        def coo(self):
            return torch.tensor([0, 2, 2]), torch.tensor([1, 0, 3]), torch.tensor([0.5, 1.5, 2.5])

        def size(self, dim):
            return (3, 4)[dim]

    monkeypatch.setattr("torch_geometric.typing.WITH_TORCH_SPARSE", True)
    monkeypatch.setattr("torch_geometric.typing.SparseTensor", SparseTensor)
    pattern = Edges(SparseTensor())
    assert pattern.edge_index.tolist() == [[1, 0, 3], [0, 2, 2]]
    assert (pattern.num_sources, pattern.num_targets) == (4, 3)


def test_an_undirected_graph_counts_both_ways_and_loops_once():
    graph = networkx.Graph([("a", "b"), ("b", "b")])
    assert Edges(graph).edge_index.tolist() == [[0, 1, 1], [1, 1, 0]]


def test_sizes_are_those_given_or_the_largest_index():
    edge_index = torch.tensor([[0, 4], [1, 2]])
    assert (Edges(edge_index).num_sources, Edges(edge_index).num_targets) == (5, 5)
    assert Edges(edge_index, 9).num_targets == 9
    assert repr(Edges(edge_index, num_sources=6, num_targets=3)) == "Edges(num_sources=6, num_targets=3, num_edges=2)"
    assert Edges(EdgeIndex(edge_index, sparse_size=(7, 8))).num_sources == 7
    assert Edges(torch.empty(2, 0, dtype=torch.int64)).num_targets == 0


def test_self_loops_come_last_and_only_where_there_is_none():
    pattern = Edges(torch.tensor([[1, 1, 0, 1], [1, 0, 2, 1]]), 4).with_self_loops()
    assert pattern.edge_index.tolist() == [[1, 1, 0, 1, 0, 2, 3], [1, 0, 2, 1, 0, 2, 3]]
    for structured in (Full(3), Window(3, 1), Grid((2, 2), 1)):
        assert structured.with_self_loops() is structured
    with pytest.raises(ValueError, match="as many sources as targets, got 3 sources and 2 targets"):
        Full(2, 3).with_self_loops()


def test_edge_lists_have_no_coordinates():
    with pytest.raises(NotImplementedError, match="Use Full, Window or Grid"):
        ZOO["chain"].offsets()
    with pytest.raises(NotImplementedError, match=r"offset_index: pattern must have coordinates, got Edges."):
        ZOO["chain"].offset_index()


@pytest.mark.parametrize("name", ZOO)
def test_patterns_survive_copies_and_moves(name):
    pattern = ZOO[name]
    pattern.csr(), pattern.csc()
    for other in (copy.deepcopy(pattern), pickle.loads(pickle.dumps(pattern)), pattern.to("cpu")):
        assert repr(other) == repr(pattern) and torch.equal(other.mask(), pattern.mask())
    moved = pattern.to("meta")
    assert {moved.device.type, moved.csr().ptr.device.type, moved.csc().index.device.type} == {"meta"}
    assert pattern.device.type == "cpu"


@pytest.mark.parametrize("name", ZOO)
def test_patterns_are_equal_where_their_definitions_are(name):
    pattern, again = ZOO[name], pattern_zoo()[name]
    pattern.csr()
    for other in (again, copy.deepcopy(pattern), pickle.loads(pickle.dumps(pattern)), pattern.to("cpu")):
        assert pattern == other and (pattern != other) is False and hash(pattern) == hash(other)
    assert {pattern: "kept"}[again] == "kept" and [again].index(pattern) == 0
    for other in ZOO.values():
        # Each pattern of the zoo is another one.
        assert (pattern == other) == (pattern is other)


def test_every_option_and_size_makes_another_pattern():
    edge_index = torch.tensor([[0, 1, 1], [1, 0, 2]])
    different = [
        *(Full(5), Full([5]).with_self_loops() | Full(5), Full([2, 3]), Full([3, 2]), Full(5, causal=True), Full(5, 4)),
        *(Window(5, 2), Window(5, 1), Window(6, 2), Window([5, 0], 2), Window(5, 2, dilation=2)),
        *(Window(5, 2, causal=True), Window(5, 2, global_tokens=(0,)), Window(5, 2, global_tokens=(0, 1))),
        *(Grid((5,), 2), Grid((5, 1), 2), Grid((1, 5), 2), Grid((5,), 2, dilation=2), Grid((5,), 2, causal=True)),
        *(Grid((5,), 2, border="shift"), Grid((5,), 2, border="wrap"), Edges(edge_index), Edges(edge_index, 4)),
        *(
            Edges(edge_index[:, [0, 2, 1]]),
            Edges(edge_index.flip(0)),
            Edges(edge_index[:, :2], 3),
            Window(5, 2).to("meta"),
        ),
    ]
    for pattern, other in itertools.combinations(different, 2):
        assert pattern != other
    assert len(set(different)) == len(different)
    assert Window(5, 2) != "Window(5, radius=2)" and Window(5, 2) is not None


def test_arguments_that_mean_the_same_make_equal_patterns():
    assert Window(5, 2, global_tokens=(3, 0)) == Window(torch.tensor([5]), 2, dilation=1, global_tokens=[0, 3])
    assert Full(4) == Full([4], [4]) == Full.from_batch(torch.zeros(4, dtype=torch.int64))
    assert Grid((4, 6), 1, dilation=(2, 2)) == Grid([(4, 6)], (1, 1), dilation=2, causal=(False, False))
    edge_index = torch.tensor([[0, 1], [1, 0]])
    assert Edges(edge_index) == Edges(edge_index.clone(), num_sources=2, num_targets=2) == Edges(edge_index.int(), 2)
    assert Pattern.join([Window(5, 2, global_tokens=(3, 0)), Window(4, 2, global_tokens=(0, 3))]).global_tokens == (
        0,
        3,
    )


def test_a_pattern_that_tells_no_definition_equals_itself_alone():
    class Own(Edges):
        _definition = Pattern._definition

    edge_index = torch.tensor([[0, 1], [1, 0]])
    own, other = Own(edge_index), Own(edge_index)
    assert own == own and own != other and own != Edges(edge_index) and len({own, other, own}) == 2


def test_a_hash_reads_no_edges():
    meta = Edges(torch.tensor([[0, 1], [1, 0]])).to("meta")
    assert meta == meta and meta != Edges(torch.tensor([[0, 1], [1, 0]])).to("meta")
    assert len({meta, meta}) == 1


def test_what_is_built_in_inference_mode_serves_training():
    with torch.inference_mode():
        pattern = Window(5, radius=1)
        edges = Edges(torch.tensor([[0, 1], [1, 0]]))
        for each in (pattern, edges):
            each.csr(), each.csc()
    for each in (pattern, edges):
        assert not any(x.is_inference() for x in (each.edge_index, *each.csr()[:2], *each.csc()[:2]))


def test_indices_are_narrow_below_two_to_the_31():
    assert index_dtype(2**31 - 1) == torch.int32
    assert index_dtype(2**31) == torch.int64
    wide = build_csr(torch.tensor([0, 0]), torch.tensor([2**31 + 5, 1]), 1, 2**31 + 6)
    assert wide.index.dtype == torch.int64 and wide.index.tolist() == [1, 2**31 + 5]
    assert wide.perm.tolist() == [1, 0]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=20), st.booleans(), st.booleans())
def test_counting_and_sorting_give_the_stable_order(pairs, counts, is_wide):
    row, column = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).t().contiguous()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graphattn.csr._is_countable", lambda *_: counts)
        if is_wide:
            patch.setattr("graphattn.csr.index_dtype", lambda *_: torch.int64)
        ptr, index, perm = build_csr(row, column, 6, 4)
        by_row = stable_order(row, 6)
    order = sorted(range(len(pairs)), key=pairs.__getitem__)
    assert index.tolist() == [pairs[edge][1] for edge in order]
    assert ptr.tolist() == [sum(pair[0] < bound for pair in pairs) for bound in range(7)]
    assert perm is None if order == sorted(order) else perm.tolist() == order
    assert by_row.tolist() == sorted(range(len(pairs)), key=lambda edge: pairs[edge][0])
    assert (ptr.dtype, index.dtype) == (torch.int64, torch.int64 if is_wide else torch.int32)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=20))
def test_from_csr_undoes_csr(pairs):
    edge_index = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).t()
    pattern = Edges(edge_index, num_sources=6, num_targets=4)
    ptr, index, perm = pattern.csr()
    again = Edges.from_csr(ptr, index, 6)
    expected = edge_index if perm is None else edge_index[:, perm.long()]
    assert torch.equal(again.edge_index, expected)

"""Patterns in files: what torch.save writes, what torch.load makes of it, and of what somebody has written by hand."""

from __future__ import annotations

import copy
import copyreg
import io
import pickle

import pytest
import torch
from torch_geometric.data import Batch, Data, InMemoryDataset
from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
from torch_geometric.data.storage import GlobalStorage
from torch_geometric.loader import DataLoader

from graphattn import Edges, Full, Grid, Window, attention
from graphattn.nn import GraphAttention
from graphattn.patterns import PATTERNS, Pattern, saving
from graphattn.patterns.saving import make_pattern
from graphattn.testing import graph_zoo, pattern_zoo, random_call
from graphattn.transforms import SequenceToGraph

ZOO = graph_zoo() | pattern_zoo()
# What PyG makes a Data of, without having it among torch's safe globals.
PYG_CLASSES = [DataEdgeAttr, DataTensorAttr, GlobalStorage]


def load_saved(thing: object, **options):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, **options)


class Written:
    """Pickled as the result of a call, and of what is written to it then: a file that no torch.save would write."""

    def __init__(self, function, arguments, state=None):
        self.reduced = (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def options_of(pattern: Pattern) -> dict:
    return copyreg.dispatch_table[type(pattern)](pattern)[1][1]


def test_every_pattern_can_be_saved():
    assert set(saving.OPTIONS) == set(PATTERNS)


@pytest.mark.parametrize("name", ZOO)
def test_a_pattern_comes_back_from_a_file_with_its_results(name):
    pattern = ZOO[name]
    tensors = random_call(pattern)
    pattern.csr(), pattern.csc()
    for options in ({}, {"weights_only": False}, {"map_location": "cpu"}):
        found = load_saved({"pattern": pattern}, **options)["pattern"]
        assert type(found) is type(pattern) and repr(found) == repr(pattern)
        assert torch.equal(found.edge_index, pattern.edge_index)
        for ours, theirs in zip(found.csc(), pattern.csc(), strict=True):
            assert ours is theirs is None or torch.equal(ours, theirs)
        assert torch.equal(attention(**tensors, pattern=found), attention(**tensors, pattern=pattern))


@pytest.mark.parametrize("name", ZOO)
def test_a_file_holds_integers_and_nothing_derived_from_them(name):
    pattern = ZOO[name]
    pattern.csr(), pattern.csc(), pattern.occurrence()
    assert not set(load_saved(pattern)._kept) - {"edge_index"}
    # In one process, and between processes of one program, what was derived stays.
    handed = saving.ForkingPickler.loads(saving.ForkingPickler.dumps(pattern))
    for other in (copy.copy(pattern), copy.deepcopy(pattern), handed):
        assert set(other._kept) == set(pattern._kept)
        assert torch.equal(other.csr().ptr, pattern.csr().ptr)


def test_joined_patterns_and_unions_come_back():
    window = Window([5, 3], radius=1, global_tokens=(0,))
    for pattern in (Pattern.join([window, window]), window | Edges(torch.tensor([[0], [4]]), 8)):
        found = load_saved([pattern, {"same": pattern}])
        assert found[0] is found[1]["same"]
        assert torch.equal(found[0].edge_index, pattern.edge_index)


def test_graphs_and_batches_come_back():
    to_graph = SequenceToGraph(radius=1)
    graphs = [to_graph(Data(x=torch.randn(length, 4))) for length in (5, 3)]
    layer = GraphAttention(4, 4)
    with torch.serialization.safe_globals(PYG_CLASSES):
        found = load_saved(graphs[0])
        assert torch.equal(layer(found.x, found.pattern), layer(graphs[0].x, graphs[0].pattern))
    # No batch of PyG can be loaded with weights_only, with a pattern or without.
    batch = next(iter(DataLoader(graphs, batch_size=2)))
    expected = layer(batch.x, batch.pattern)
    for found in (Data(**load_saved(batch.to_dict())), load_saved(batch, weights_only=False)):
        assert torch.equal(layer(found.x, found.pattern), expected)
    assert isinstance(load_saved(batch, weights_only=False), Batch)


def test_a_processed_data_set_comes_back_without_a_warning(tmp_path):
    class Sentences(InMemoryDataset):
        def __init__(self, root):
            super().__init__(root)
            self.load(self.processed_paths[0])

        processed_file_names = ("data.pt",)

        def process(self):
            patterns = (Window(5, 1), Window(3, 1), Window(4, 1))
            self.save([Data(x=torch.ones(p.num_targets, 1), pattern=p) for p in patterns], self.processed_paths[0])

    for _ in range(2):
        data = Sentences(tmp_path)
        assert [repr(one.pattern) for one in data] == [f"Window({size}, radius=1)" for size in (5, 3, 4)]


def test_files_of_the_former_form_load_where_they_are_trusted():
    """They hold the object itself, compressed rows and all."""

    class Former(pickle.Pickler):
        def reducer_override(self, thing):
            return saving._hand_over(thing) if isinstance(thing, Pattern) else NotImplemented

    for pattern in (Window([5, 3], 1), Edges(torch.tensor([[0, 1], [1, 1]]))):
        pattern.csr()
        file = io.BytesIO()
        torch.save(pattern, file, pickle_module=type("former", (), {"Pickler": Former}))
        file.seek(0)
        found = torch.load(file, weights_only=False)
        assert torch.equal(found.edge_index, pattern.edge_index) and found.has_kept("csr")
        file.seek(0)
        with pytest.raises(pickle.UnpicklingError, match="Unsupported global"):
            torch.load(file)


EDGE_INDEX = torch.tensor([[0, 1, 2], [1, 1, 0]])
TAMPERED = {
    "an index past the end": (Edges(EDGE_INDEX), {"edge_index": (EDGE_INDEX + 1, 11)}, "EdgeRangeError.* got 3 at"),
    "a negative index": (Edges(EDGE_INDEX), {"edge_index": (EDGE_INDEX - 1, -1)}, "EdgeRangeError.* got -1 at edge"),
    "edges of floats": (Edges(EDGE_INDEX), {"edge_index": (EDGE_INDEX.double(), 5)}, "TypeError: edge_index"),
    "edges that are shared": (
        Edges(EDGE_INDEX),
        {"edge_index": (torch.zeros(2, 1).long().expand(2, 2**40), 0)},
        "cont",
    ),
    "edges nowhere": (Edges(EDGE_INDEX), {"edge_index": (EDGE_INDEX.to("meta"), 5)}, "on meta"),
    "sparse edges": (Edges(EDGE_INDEX), {"edge_index": (EDGE_INDEX.to_sparse(), 5)}, "torch.sparse_coo"),
    "edges of another shape": (
        Edges(EDGE_INDEX),
        {"edge_index": (EDGE_INDEX.flatten(), 5)},
        r"must have shape \[2, E\]",
    ),
    "edges that aren't there": (Edges(EDGE_INDEX), {"edge_index": 5}, "TypeError: Edges: edge_index must be"),
    "other edges": (Edges(EDGE_INDEX), {"edge_index": (EDGE_INDEX, 6)}, "must add up to 6"),
    "fewer nodes": (Edges(EDGE_INDEX), {"num_sources": 2}, "EdgeRangeError"),
    "more nodes than numbers": (Edges(EDGE_INDEX), {"num_sources": 2**70}, "less than 2.62"),
    "a node and a half": (Edges(EDGE_INDEX), {"num_sources": 1.5}, "TypeError: num_sources must be made of numbers"),
    "a list": (Edges(EDGE_INDEX), {"num_sources": [3]}, "TypeError: num_sources"),
    "a negative size": (Window([5], 1), {"sizes": (torch.tensor([-5]), -5)}, "sizes must be at least 0, got -5"),
    "sizes that wrap": (
        Full([1, 1, 1], [1, 1, 10]),
        {"source_sizes": (torch.tensor([2**63 - 1, 2**63 - 1, 10]), 8)},
        "nodes must number less than 2.62",
    ),
    "a negative radius": (Window([5], 1), {"radius": -1}, "radius must be at least 0, got -1"),
    "a radius without end": (Window([5], 1), {"radius": 2**70}, "must be less than 2.62"),
    "a word for a radius": (Window([5], 1), {"radius": "1"}, "TypeError: Window: radius"),
    "a number for a bool": (Full(3), {"causal": 1}, "TypeError: Full: causal"),
    "a token too far": (Window([5], 1), {"global_tokens": (2**63,)}, "global_tokens must be less than 2.62"),
    "a tuple of tuples": (Window([5], 1), {"global_tokens": ((0,),)}, "TypeError: global_tokens"),
    "no border": (Grid((3, 3), 1), {"border": "none"}, "border must be one of"),
    "three radii": (Grid((3, 3), 1), {"radius": (1, 1, 1)}, "radius must be one integer or 2"),
    "an extent below zero": (Grid((3, 3), 1), {"shape": (torch.tensor([[-3, 3]]), 0)}, "shape must be at least 0"),
    "another option": (Full(3), {"csr": 1}, "TypeError: got an unexpected keyword argument 'csr'"),
}


@pytest.mark.parametrize("case", TAMPERED)
@pytest.mark.parametrize("weights_only", [True, False])
def test_a_tampered_file_raises_one_clear_error(case, weights_only):
    pattern, change, error = TAMPERED[case]
    written = Written(make_pattern, (type(pattern).__name__, options_of(pattern) | change))
    with pytest.raises(ValueError, match=f"^torch.load: a saved pattern must be a valid pattern, got .*{error}"):
        load_saved([written], weights_only=weights_only)


@pytest.mark.parametrize(
    "arguments",
    [(), ("Edges",), ("Pattern", {}), ("Window", {"radius": 1}), ("Window", 3), (3, {}), ([], {}, 1)],
    ids=repr,
)
def test_what_is_no_pattern_at_all_raises_the_same_error(arguments):
    with pytest.raises(ValueError, match=r"^torch.load: a saved pattern must be a valid pattern, got "):
        load_saved([Written(make_pattern, arguments)])


def test_a_file_cannot_write_to_a_pattern_that_it_has_made():
    pattern = Edges(EDGE_INDEX.clone())
    wrong = torch.full((2, 3), 10**9)
    rebuild, arguments = wrong.__reduce_ex__(2)
    options = options_of(pattern)
    # First the edges, then the pattern, then other numbers in the tensor of the edges.
    edges = Written(*options["edge_index"][0].__reduce_ex__(2))
    made = Written(make_pattern, ("Edges", options | {"edge_index": (edges, 5)}))
    other = Written(rebuild, (*arguments[:5], {"first": made}))
    edges.reduced = (*edges.reduced[:2], (other,))
    written, found = load_saved([edges, made])
    assert int(written.max()) == 10**9
    assert torch.equal(found.edge_index, EDGE_INDEX)
    # Nor does it allow the classes, whose attributes a file could then write to.
    with pytest.raises(pickle.UnpicklingError, match="Can only build"):
        load_saved([Written(make_pattern, ("Edges", options_of(pattern)), {"num_targets": 10**9})])


def test_a_tensor_with_methods_of_its_own_is_read_by_torch():
    options = options_of(Edges(EDGE_INDEX))
    rebuild, arguments = (EDGE_INDEX + 1).__reduce_ex__(2)
    methods = dict.fromkeys(("clone", "sum", "is_contiguous", "aminmax", "max", "min"), torch.Size)
    edges = Written(torch._tensor._rebuild_from_type_v2, (rebuild, torch.Tensor, arguments, methods))
    with pytest.raises(ValueError, match="EdgeRangeError"):
        load_saved([Written(make_pattern, ("Edges", options | {"edge_index": (edges, 11)}))])


def test_the_format_that_brings_numbers_late_is_refused():
    # Kept, lest its memory, numbers and all, is what the file's tensor gets.
    pattern, file = Edges(torch.randint(0, 99, (2, 99))), io.BytesIO()
    torch.save(pattern, file, _use_new_zipfile_serialization=False)
    file.seek(0)
    with pytest.raises(ValueError, match=r"Save it again with torch.save and its default options."):
        torch.load(file)

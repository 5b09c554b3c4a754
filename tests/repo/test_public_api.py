"""What users rely on: names, arguments that are explained, what an installation brings in."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib

import pytest
from conftest import ROOT
from packaging.version import Version

# Every name that users import. A name that goes, or comes, is a line of CHANGELOG.md.
NAMES = {
    "graphattn": """
        Additive DotProduct Edges Elementwise Full Grid Normalized OffsetBias Pattern Relations Window accelerate
        attention calibrate dense_attention explain_backend explain_score merge nn random_edges random_regular restore
    """,
    "graphattn.calibration": "CalibrationReport calibrate",
    "graphattn.compare": "Comparison compare dense_memory",
    "graphattn.datasets": """
        AmbiguousWords GRAPHS MNIST TREEBANKS UniversalDependencies dataset_root digits_graph generate_ambiguous_words
        load_graph
    """,
    "graphattn.nn": """
        AGNNConv ALiBi AccelerateReport AttentionReadout AttentionalAggregation DenseGraphAttention
        DenseHeteroGraphAttention Encoding FAConv GATConv GATEConv GATv2Conv GENConv GMMConv GPSConv
        GeneralConv GraphAttention GraphMultisetTransformer GraphTransformer HANConv HEATConv HGTConv
        HeteroGraphAttention HypergraphConv LaplacianPosition LearnedPosition PerformerAttention
        PointTransformerConv PolynormerAttention RGATConv
        RandomFeatures RandomWalkPosition RelativeBias ResGatedGraphConv Rotary SGFormerAttention Seq2Seq Set2Set
        SetTransformerAggregation Sinusoidal SoftmaxAggregation SuperGATConv TransformerBlock TransformerConv accelerate
        conv_as_attention restore
    """,
    "graphattn.nn.models": "GAT Polynormer SGFormer",
    "graphattn.distributed": """
        DistributedPattern Part block_parts load_part read_graph read_part save_parts split_graph sum_gradients
    """,
    "graphattn.patterns": """
        Edges Full Grid NodeOrder Pattern Relations Window metis_parts random_edges random_regular
        receptive_field
    """,
    "graphattn.plot": """
        draw_arcs draw_graph draw_graph_weights draw_heads draw_neighborhood draw_pattern draw_pixel_weights
        draw_receptive_field draw_weights explore layout mark_node
    """,
    "graphattn.sampling": "ClusterData HeteroNeighborSampler NeighborLoader NeighborSampler",
    "graphattn.testing": "assert_matches_dense error_budget graph_zoo pattern_zoo random_call",
    "graphattn.transforms": "ImageToGraph SequenceToGraph",
}


def public(module: str) -> dict[str, object]:
    """What the module lists as its own, or else the functions and classes that are written in it or below it."""
    found = importlib.import_module(module)
    if hasattr(found, "__all__"):
        return {name: getattr(found, name) for name in found.__all__}
    things = {name: thing for name, thing in vars(found).items() if not name.startswith("_")}
    return {
        name: thing
        for name, thing in things.items()
        if (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__.startswith(module)
    }


def explained() -> list:
    """Public functions and classes; ruff sees to it that each method has a docstring."""
    found = {f"{module}.{name}": thing for module in NAMES for name, thing in public(module).items()}
    return [
        pytest.param(thing, id=name)
        for name, thing in sorted(found.items())
        if inspect.isfunction(thing) or inspect.isclass(thing)
    ]


@pytest.mark.parametrize("module", sorted(NAMES))
def test_public_names_are_pinned(module):
    assert sorted(public(module)) == sorted(NAMES[module].split())


@pytest.mark.parametrize("thing", explained())
def test_every_argument_is_explained(thing):
    text = inspect.getdoc(thing)
    assert text and re.match(r"[A-Z0-9`\[][^\n]*[.:;,\w]", text), "the first line says what it does"
    if inspect.isclass(thing) and thing.__init__ is object.__init__:
        return
    arguments = [name for name in inspect.signature(thing).parameters if name not in ("self", "args", "kwargs")]
    missing = [name for name in arguments if not re.search(rf"\b{name}\b", text)]
    # Twins share a list: it stands once.
    assert not missing or re.search(r"Arguments[\w, ]* are those of `[\w.]+`", text), missing


def test_an_installation_needs_these_packages_alone():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = lambda lines: sorted(re.match(r"[\w-]+", line)[0] for line in lines)
    assert names(project["dependencies"]) == [
        *("networkx", "numba", "numpy", "scipy", "torch", "torch-geometric", "tqdm"),
    ]


def test_the_oldest_versions_are_those_of_the_ranges():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = sum((extras[name] for name in ("plot", "examples", "partition", "dev")), project["dependencies"])
    pins = re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints-oldest.txt").read_text(), re.MULTILINE)
    pinned = {name: Version(version) for name, version in pins if name != "pyparsing"}
    ranges = dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in listed)
    assert pinned == {name: Version(version) for name, version in ranges.items()}

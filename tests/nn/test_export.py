"""Layers leave Python: torch.export with any numbers of nodes and edges, in torch's own operators, and ONNX."""

from __future__ import annotations

import os

import pytest
import torch

from graphattn import Edges, Full, Grid, Window, attention
from graphattn import nn as ours
from graphattn.nn import GraphAttention, GraphTransformer

EDGES = torch.tensor([[2, 1, 0, 3, 4, 0], [2, 2, 1, 1, 0, 1]])
SIZES = {"x": {0: torch.export.Dim("n")}, "edge_index": {1: torch.export.Dim("e")}}


def minus_distance(query_i, key_j, edge_key):
    return -(query_i - key_j).square().sum(-1)


# Layers that read an edge_index, of 6 features.
LAYERS = {
    "attention": lambda: GraphAttention(6, 6, heads=2),
    "attention with loops": lambda: GraphAttention(6, 6, heads=2, add_self_loops=True, normalizer="relu"),
    "own score": lambda: GraphAttention(6, 6, heads=2, score=minus_distance),
    "GAT with loops": lambda: ours.GATConv(6, 4, heads=2),
    "GATv2": lambda: ours.GATv2Conv(6, 4, heads=2, add_self_loops=False),
    "transformer conv": lambda: ours.TransformerConv(6, 4, heads=2),
    "transformer": lambda: GraphTransformer(6, 8, 6, 1, heads=2),
}
# Patterns that have not run before, each with an encoding that derives something from it.
PATTERNS = {
    "window": lambda: (Window(6, radius=1), ours.Rotary(4)),
    "grid": lambda: (Grid((2, 3), radius=1), ours.RelativeBias(2, (1, 1))),
    "full": lambda: (Full(6), ours.Sinusoidal(8)),
    "edges": lambda: (Edges(EDGES, 6), ours.LaplacianPosition(8, k=2)),
}


class OnPattern(torch.nn.Module):
    """A layer with its pattern: a constant of what is exported."""

    def __init__(self, pattern, encoding):
        super().__init__()
        self.layer, self.pattern = GraphAttention(8, 8, heads=2, encoding=encoding), pattern

    def forward(self, x):
        return self.layer(x, self.pattern)


def example_of(name):
    """A layer, an example, other inputs, and which sizes of the inputs may change."""
    if name in LAYERS:
        torch.manual_seed(0)
        other = {"x": torch.randn(9, 6), "edge_index": torch.randint(9, (2, 17))}
        # Loops that the layer has to find, one of them twice.
        other["edge_index"][:, :3] = torch.tensor([4, 4, 7])
        return LAYERS[name]().eval(), {"x": torch.randn(5, 6), "edge_index": EDGES}, other, SIZES
    layer = OnPattern(*PATTERNS[name]()).eval()
    return layer, {"x": torch.randn(3, 6, 8)}, {"x": torch.randn(4, 6, 8)}, {"x": {0: torch.export.Dim("b")}}


@pytest.mark.parametrize("name", [*LAYERS, *PATTERNS])
def test_a_layer_exports_as_plain_operators_for_any_sizes(name):
    layer, example, other, sizes = example_of(name)
    program = torch.export.export(layer, (), example, dynamic_shapes=sizes)
    torch.testing.assert_close(program.module()(**other), layer(**other), atol=1e-5, rtol=1e-5)
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not [target for target in targets if "graphattn" in target or "higher_order" in target]


def test_a_named_kernel_is_exported_as_its_operator():
    layer = GraphAttention(6, 6, heads=2, backend="numba").eval()
    program = torch.export.export(layer, (torch.randn(5, 6), EDGES))
    assert [node for node in program.graph.nodes if "csr_forward" in str(node.target)]


def test_a_node_without_edges_gets_zeros_from_an_exported_program():
    class Attend(torch.nn.Module):
        def forward(self, x, edge_index):
            return attention(x, x, x, edge_index)

    program = torch.export.export(Attend(), (torch.randn(5, 2, 4), EDGES))
    out = program.module()(torch.randn(5, 2, 4), EDGES)
    assert out[3:].eq(0).all() and out[:3].ne(0).any()


REFUSED = {
    "dropout": (
        lambda: GraphAttention(6, 6, dropout=0.5).train(),
        r"torch.export: dropout_p must be 0, got 0.5. Use model.eval\(\) before.",
    ),
    "sparsemax": (lambda: GraphAttention(6, 6, normalizer="sparsemax"), "torch.export: normalizer must not search"),
    "eigenvectors": (
        lambda: GraphAttention(6, 6, encoding=ours.LaplacianPosition(6, k=2)),
        "torch.export: edge_index must not be an input where a layer derives data from it, here 'LaplacianPosition 2'",
    ),
}


@pytest.mark.parametrize("batch", [None, torch.zeros(5, dtype=torch.int64)], ids=["one graph", "batch"])
def test_attention_to_all_nodes_needs_to_know_how_many(batch):
    model = GraphTransformer(6, 8, 6, 1, heads=2, global_attention="linear").eval()
    example = {"x": torch.randn(5, 6), "edge_index": EDGES} | ({} if batch is None else {"batch": batch})
    sizes = {"x": {0: torch.export.Dim("n")}, "edge_index": None} if batch is None else None
    with pytest.raises(NotImplementedError, match=r"torch\.export: global_attention needs a number of nodes"):
        torch.export.export(model, (), example, dynamic_shapes=sizes)
    if batch is None:
        program = torch.export.export(model, (), example)
        torch.testing.assert_close(program.module()(**example), model(**example), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_the_numbers_is_refused(name):
    make, text = REFUSED[name]
    with pytest.raises(NotImplementedError, match=text):
        torch.export.export(make(), (torch.randn(5, 6), EDGES))


def test_weights_of_loops_that_may_be_there_are_refused():
    layer = GraphAttention(6, 6, add_self_loops=True)
    with pytest.raises(NotImplementedError, match=r"torch\.export: return_attention_weights must be left out with add"):
        torch.export.export(layer, (torch.randn(5, 6), EDGES), {"return_attention_weights": True})


@pytest.mark.parametrize("given", [EDGES, Window(5, radius=1)], ids=["edges", "pattern"])
def test_tracing_is_refused_or_right(given):
    x = torch.randn(5, 6)
    layer = GraphAttention(6, 6, heads=2).eval()
    # A call that is remembered is refused as well.
    layer(x, given)
    with pytest.raises(
        NotImplementedError, match=r"GraphAttention: torch\.jit\.trace can't record .* Use torch\.export"
    ):
        torch.jit.trace(lambda x: layer(x, given), x, check_trace=False)
    conv = ours.TransformerConv(6, 4).eval()
    if isinstance(given, torch.Tensor):
        traced = torch.jit.trace(conv, (x, given), check_trace=False)
        x, edge_index = torch.randn(9, 6), torch.randint(9, (2, 17))
        torch.testing.assert_close(traced(x, edge_index), conv(x, edge_index))


@pytest.mark.skipif("GRAPHATTN_FUZZ" not in os.environ, reason="a minute in all: run by make fuzz")
@pytest.mark.parametrize("name", [*LAYERS, *PATTERNS])
def test_onnxruntime_computes_the_same(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="needs pip install '.[export]'")
    layer, example, other, sizes = example_of(name)
    program = torch.onnx.export(layer, (), kwargs=example, dynamic_shapes=sizes, dynamo=True, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {argument: x.numpy() for argument, x in other.items()})
    torch.testing.assert_close(torch.from_numpy(out), layer(**other), atol=1e-5, rtol=1e-5)

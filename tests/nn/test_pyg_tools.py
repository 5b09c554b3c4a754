"""PyG's tools read our layers as they read PyG's own: the inspector, the cheat sheet, generated code, pickles."""

from __future__ import annotations

import inspect
import io

import pytest
import torch
import torch_geometric.nn as pyg
import torch_geometric.nn.conv as conv
from torch_geometric.inspector import Inspector
from torch_geometric.nn.conv import utils
from torch_geometric.utils import softmax

from graphattn import nn as ours
from graphattn.nn.pyg.fused import FUSED, Fused

EDGES = torch.tensor([[0, 1, 2, 3, 0, 2], [1, 2, 0, 1, 3, 2]])
# Those over relations have tests of their own: test_hetero.
OF_ONE = {
    theirs: mine
    for theirs, mine in FUSED.items()
    if issubclass(mine, Fused) and not mine.__module__.endswith("hetero") and theirs in vars(conv).values()
}
PAIRS = pytest.mark.parametrize(("theirs", "mine"), OF_ONE.items(), ids=[cls.__name__ for cls in OF_ONE])


@PAIRS
@pytest.mark.parametrize("question", utils.__all__)
def test_the_cheat_sheet_says_of_ours_what_it_says_of_pygs(theirs, mine, question, monkeypatch):
    name, ask = theirs.__name__, getattr(utils, question)
    expected = ask(name)
    monkeypatch.setitem(vars(conv), name, mine)
    assert ask(name) == expected


@PAIRS
def test_the_inspector_reads_ours_as_pygs(theirs, mine):
    inspectors = [Inspector(theirs), Inspector(mine)]
    for method in ("__init__", "forward", "message", "edge_update", "aggregate", "update"):
        expected, found = (inspector.inspect_signature(method) for inspector in inspectors)
        assert found == expected
    for method in ("propagate", "edge_updater"):
        expected, found = (inspector.get_params_from_method_call(method, [0]) for inspector in inspectors)
        assert found == expected and list(found) == list(expected)
    for method in ("message", "message_and_aggregate", "edge_update"):
        expected, found = (inspector.implements(method) for inspector in inspectors)
        assert found == expected
    assert str(inspectors[0]) == str(inspectors[1])
    assert inspect.signature(mine) == inspect.signature(theirs)


@PAIRS
def test_help_goes_on_with_pygs_own_documentation(theirs, mine):
    assert inspect.getdoc(mine).endswith(inspect.getdoc(theirs))


def test_methods_of_a_subclass_get_what_they_ask_for():
    found = []
    for base in (pyg.GATConv, ours.GATConv):

        class Mine(base):
            def edge_update(self, alpha_j, alpha_i, index, size_i):
                return softmax(2 * alpha_j + alpha_i, index, num_nodes=size_i)

            def message(self, x_j, x_i, alpha):
                return alpha.unsqueeze(-1) * x_j + x_i

        torch.manual_seed(0)
        layer, x = Mine(3, 2), torch.randn(4, 3)
        found.append(layer(x, EDGES))
    torch.testing.assert_close(*found)


def test_a_layer_that_is_loaded_before_any_is_made_can_be_explained(monkeypatch):
    stored = io.BytesIO()
    torch.save(ours.GATConv(3, 2), stored)
    stored.seek(0)
    for name in ("propagate", "edge_updater"):
        for prefix in ("", "_orig_", "_jinja_"):
            monkeypatch.delattr(pyg.GATConv, prefix + name)
    layer = torch.load(stored, weights_only=False)
    x = torch.randn(4, 3)
    expected = layer(x, EDGES)
    layer.explain, layer._apply_sigmoid = True, False
    layer._edge_mask, layer._loop_mask = torch.ones(6), EDGES[0] != EDGES[1]
    torch.testing.assert_close(layer(x, EDGES), expected)

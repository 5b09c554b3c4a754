"""What a user's type checker makes of the installed package."""

from __future__ import annotations

import inspect
import subprocess
import sys
import sysconfig
import venv

import pytest
from conftest import ROOT

from graphattn import attention, dense_attention
from graphattn.call import AnyOptions

# It runs, and mypy says nothing about it: `assert_type` fails where the type is another one, and a `type: ignore` that
# nothing needs is an error too.
SNIPPET = """
from __future__ import annotations

from typing import TYPE_CHECKING, assert_type

import networkx as nx  # type: ignore[import-untyped, unused-ignore]
import torch
from torch import Tensor

import graphattn.nn as gnn
from graphattn import Additive, Edges, Full, Window, attention, dense_attention
from graphattn.patterns import PatternLike

x, edge_index, flag = torch.randn(3, 2, 4), torch.tensor([[0, 1, 2], [1, 2, 0]]), bool(torch.tensor(True))
Union = Tensor | tuple[Tensor, ...]
assert_type(attention(x, x, x, edge_index), Tensor)
assert_type(attention(x, x, x, edge_index, return_weights=False, return_lse=False, backend="scatter"), Tensor)
assert_type(attention(x, x, x, edge_index, return_weights=True, dropout_p=0.5), tuple[Tensor, Tensor])
assert_type(attention(x, x, x, edge_index, return_lse=True), tuple[Tensor, Tensor])
assert_type(attention(x, x, x, edge_index, return_weights=True, return_lse=True), tuple[Tensor, Tensor, Tensor])
assert_type(attention(x, x, x, edge_index, return_weights=flag), Union)
assert_type(dense_attention(x, x, x, edge_index, seed=None), Tensor)
assert_type(dense_attention(x, x, x, edge_index, return_lse=True), tuple[Tensor, Tensor])
assert_type(dense_attention(x, x, x, edge_index, return_weights=True, return_lse=True), tuple[Tensor, Tensor, Tensor])
assert_type(dense_attention(x, x, x, edge_index, return_lse=flag), Union)


def distance(q: Tensor, k: Tensor, edge: Tensor | None) -> Tensor:
    return -(q - k).abs().sum(-1)


class Square:
    def edgewise(self, s: Tensor, target: Tensor, count: int) -> Tensor:
        return s.square()

    def dense(self, s: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, s, 0).square()


class Bilinear(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, edge: Tensor | None) -> Tensor:
        return (q * k).sum(-1)


def on(pattern: PatternLike) -> Tensor:
    return attention(x, x, x, pattern, score=distance, normalizer=Square())


on(Window(3, radius=1)), on([Full(1), Full(2)]), on(nx.path_graph(3)), on(torch.eye(3).to_sparse())
on(Edges(edge_index))
attention(x, x, x, edge_index, score=Bilinear()), attention(x, x, x, edge_index, score=Additive(torch.ones(2, 4)))
attention(x, x, x, edge_index, score=lambda q, k, _: (q * k).sum(-1))

nodes = torch.randn(3, 8)
Edged = tuple[Tensor, tuple[Tensor, Tensor]]
layer = gnn.GraphAttention(8, 8, heads=2)
assert_type(layer(nodes, edge_index), Tensor)
assert_type(layer((nodes, nodes), edge_index, return_attention_weights=False), Tensor)
assert_type(layer(nodes, Full(3), return_attention_weights=True), Edged)
assert_type(layer(nodes, Full(3), None, True), Edged)
assert_type(layer(nodes, Full(3), return_attention_weights=flag), Tensor | Edged)
assert_type(layer.forward(nodes, edge_index), Tensor)
twin = gnn.DenseGraphAttention(8, 8)
assert_type(twin(nodes, Full(3)), Tensor)
assert_type(twin(nodes, Full(3), return_attention_weights=True), tuple[Tensor, Tensor])
gat, gat2, transformer = gnn.GATConv(8, 4), gnn.GATv2Conv(8, 4), gnn.TransformerConv(8, 4)
assert_type(gat(nodes, edge_index), Tensor)
assert_type(gat((nodes, None), edge_index, size=(3, 3), return_attention_weights=True), Edged)
assert_type(gat2(nodes, edge_index), Tensor)
assert_type(gat2(nodes, Full(3), return_attention_weights=True), Edged)
assert_type(transformer(nodes, edge_index), Tensor)
assert_type(transformer(nodes, edge_index, return_attention_weights=True), Edged)
readout = gnn.AttentionReadout(8, 8)
assert_type(readout(nodes, torch.tensor([0, 0, 1])), Tensor)
assert_type(readout(nodes, torch.tensor([0, 0, 1]), return_attention_weights=True), tuple[Tensor, Tensor])
block, stack = gnn.TransformerBlock(8, heads=2), gnn.GraphTransformer(8, 8, 5, num_layers=2)
assert_type(block(nodes, Full(3)), Tensor)
out, *weights = block(nodes, Full(3), return_attention_weights=True)
assert_type(out, Tensor)
assert_type(stack(nodes, Full(3)), Tensor)
out, listed = stack(nodes, Full(3), return_attention_weights=True)
assert_type(out, Tensor)
model, tokens = gnn.Seq2Seq(5, 5, 8, num_layers=1), torch.tensor([0, 1, 2])
assert_type(model(tokens, [3], tokens, [3]), Tensor)
out, listed = model(tokens, [3], tokens, [3], return_attention_weights=True)
assert_type(out, Tensor)
convolution = gnn.conv_as_attention(torch.nn.Conv1d(1, 1, 3, padding=1))
assert_type(convolution(torch.ones(1, 3)), Tensor)
assert_type(convolution(torch.ones(1, 3), return_attention_weights=True), Edged)

if TYPE_CHECKING:
    import numpy as np

    attention(x, x, x, edge_index, scores=distance)  # type: ignore[call-overload]
    attention(x, x, x, [[0, 1], [1, 0]])  # type: ignore[list-item]
    attention(x, x, x, np.zeros((2, 3)))  # type: ignore[call-overload]
    attention(x, x, x, edge_index, score=lambda q, k: q)  # type: ignore[call-overload]
    attention(x, x, x, edge_index, normalizer=distance)  # type: ignore[call-overload]
    layer(nodes)  # type: ignore[call-overload]
    attention(x, x, x, edge_index, return_weights=True).shape  # type: ignore[attr-defined]
    dense_attention(x, x, x, edge_index, backend="scatter")  # type: ignore[call-overload]
"""


def test_mypy_knows_what_calls_return_and_refuses_wrong_ones(tmp_path):
    pytest.importorskip("mypy", reason="needs pip install '.[dev]'")
    exec(compile(SNIPPET, "snippet", "exec"), {})
    # An environment whose packages are those of this one, the library as it lies here first: mypy reads a package that
    # isn't the user's own code only where it has a py.typed.
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    paths = {"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}
    packages = sysconfig.get_path("purelib", "venv", vars=paths)
    with open(f"{packages}/here.pth", "w") as file:
        file.write(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    (tmp_path / "snippet.py").write_text(SNIPPET)
    python = sysconfig.get_path("scripts", "venv", vars=paths) + "/python"
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        # What it has learnt of torch and the rest is kept beside what `make check` keeps.
        "--cache-dir",
        str(ROOT / ".mypy_cache" / "snippet"),
        "--python-executable",
        python,
        "snippet.py",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("function", "own"), [(attention, "backend"), (dense_attention, "seed")])
def test_the_types_of_the_options_name_every_keyword_argument(function, own):
    named = {"query", "key", "value", "pattern", own, *AnyOptions.__annotations__}
    assert named == set(inspect.signature(function).parameters)

"""Models of PyG's `to_hetero` whose relations share calls.

Such a model is a graph of torch.fx that calls a layer once for each relation, and adds up the results. Here it calls
all of them as one module, which has them anyway, and takes their results out of what that returns.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .fused import SMALL
from .stitched import Given, in_messages, run_together

# A layer's key, its arguments and its named ones.
Called = tuple[str, tuple[Any, ...], dict[str, Any]]


class LayersOfRelations(torch.nn.ModuleDict):
    """The layers that stand for one layer of a model in the graph of its `to_hetero`."""

    theirs = torch.nn.ModuleDict
    # As for a layer.
    leaves_small, small = False, SMALL

    def forward(self, *calls: Called) -> list[Any]:
        """What each called layer returns."""
        given = [Given(self[name], args, kwargs) for name, args, kwargs in calls]
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or self._is_small(given):
            return [layer(*args, **kwargs) for layer, args, kwargs in given]
        return list(run_together(dict(enumerate(given))).values())

    def _is_small(self, given: list[Given]) -> bool:
        """Whether a call of so few edges is left to PyG."""
        of_layers = ((layer, x) for layer, args, kwargs in given for x in (*args, *kwargs.values()))
        return self.leaves_small and in_messages(of_layers) <= self.small


def layers_by_name(model: GraphModule) -> dict[str, torch.nn.ModuleDict]:
    """The modules whose layers the model's graph calls one after another, one for each relation."""
    return {name: model.get_submodule(name) for name, _ in _runs(model)}  # type: ignore[misc]


def call_together(model: GraphModule) -> None:
    """Let the graph call each module of `LayersOfRelations` in place of its layers."""
    runs = [(name, nodes) for name, nodes in _runs(model) if _is_called_together(model, name)]
    for name, nodes in runs:
        with model.graph.inserting_before(nodes[0]):
            calls = tuple((_split(node)[1], node.args, dict(node.kwargs)) for node in nodes)
            together = model.graph.call_module(name, calls)
        for place, node in enumerate(nodes):
            with model.graph.inserting_before(node):
                _replace(node, model.graph.call_function(operator.getitem, (together, place)))
    if runs:
        model.recompile()


def call_one_by_one(model: GraphModule) -> None:
    """Undo `call_together`."""
    called = [node for node in model.graph.nodes if node.op == "call_module"]
    called = [node for node in called if _is_called_together(model, node.target)]
    for together in called:
        for part in list(together.users):
            name, args, kwargs = together.args[part.args[1]]
            with model.graph.inserting_before(part):
                _replace(part, model.graph.call_module(f"{together.target}.{name}", args, kwargs))
        model.graph.erase_node(together)
    if called:
        model.recompile()


def _is_called_together(model: GraphModule, name: str) -> bool:
    return type(model.get_submodule(name)) is LayersOfRelations


def _runs(model: GraphModule) -> Iterator[tuple[str, list[Node]]]:
    """Calls of the layers of a ModuleDict that follow one another, and don't read what one of them returns."""
    name, run = "", list[Node]()
    for node in model.graph.nodes:
        of = _split(node)[0] if node.op == "call_module" else ""
        is_first = any(_split(node)[1] == _split(other)[1] or other in node.all_input_nodes for other in run)
        if of != name or is_first:
            if len(run) > 1:
                yield name, run
            name, run = of, []
        if of and isinstance(model.get_submodule(of), torch.nn.ModuleDict):
            run.append(node)


def _split(node: Node) -> tuple[str, str]:
    """The name of what holds a called module, and of the module there."""
    name, _, key = str(node.target).rpartition(".")
    return name, key


def _replace(node: Node, new: Node) -> None:
    """Let a node of a graph take another's place."""
    new.meta, new.type = dict(node.meta), node.type
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)

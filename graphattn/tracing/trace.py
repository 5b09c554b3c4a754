"""A user's score function, taken apart: what belongs to single nodes and edges, and what mixes them.

The function is traced once for its shapes, as a graph of torch's operators on all edges. Whatever depends on targets,
sources, edges or parameters alone is computed by torch, once per row, with autograd as usual. What is left mixes them,
is the same for every edge and head, and becomes an `Expression`, with the derivatives that torch finds.
"""

from __future__ import annotations

import linecache
import logging
import operator
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from traceback import walk_tb
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from .captures import Captures, Unsupported
from .expression import Expression, reached
from .lowering import lower

# Stands for the number of edges in a trace: no other size is a multiple of it. Fake tensors of it take no memory.
EDGES = 1_000_003
# An fx.Node, whose arguments could be anything.
Node = Any
OF_TORCH = str(Path(torch.__file__).parent)
SIDES = ("target", "source", "edge", "parameter")

POINTWISE = frozenset(
    "add sub mul div neg pow exp log log1p sqrt rsqrt abs sin cos tanh sigmoid relu leaky_relu elu silu mish "
    "softplus hardtanh clamp clamp_min clamp_max minimum maximum where eq ne lt le gt ge sign sgn reciprocal square "
    "logical_and logical_or logical_not bitwise_and bitwise_or bitwise_not masked_fill log_sigmoid_forward".split()
)
REDUCTIONS = frozenset(("sum", "mean", "linalg_vector_norm"))
VIEWS = frozenset(
    "view reshape _unsafe_view expand t transpose permute slice select alias detach unsqueeze squeeze as_strided "
    "unbind split diagonal getitem".split()
)
SAME = frozenset(("clone", "alias", "detach", "lift_fresh_copy", "_to_copy"))


class Input(NamedTuple):
    """What the expression reads: rows [B, N, heads, width] of a side; heads is 1 where all share one row."""

    side: str
    heads: int
    width: int


class _Mixed(NamedTuple):
    """A value that mixes sides: its place among the steps, and whether it is a row per head, or a number."""

    place: int
    is_row: bool


class Trace:
    """A score function for the shapes of a call.

    Attributes:
        inputs: of the expression, in order; the last one, which isn't listed, is the gradient by the score.
        expression: scores and derivatives.
        score: place of the score in the expression.
        slopes: places of the gradients by the inputs.
    """

    def __init__(
        self,
        function: Any,
        given: Sequence[Tensor | None],
        batch: int,
        captured: Captures,
        device: torch.device,
    ) -> None:
        """Trace a function for arguments of these shapes and dtypes, tensors without memory, with EDGES edges."""
        query = _present(given[0])
        self.batch, self.dtype, self.heads = batch, query.dtype, query.size(-2)
        self.paths = list(captured.tensors)
        graph, constants = _trace(function, given, device)
        self._sides: dict[Node, frozenset[str]] = {}
        self._constants = {node: _find(node, x, captured.tensors) for node, x in constants.items()}
        self._steps: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        self._values: dict[Node, _Mixed] = {}
        self._read: OrderedDict[tuple[Node, bool], int] = OrderedDict()
        self.inputs: list[Input] = []
        self._placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self._order = list(graph.nodes)
        for node in self._order:
            self._visit(node)
        self._differentiate()
        self._hoisted = self._follow([node for node, _ in self._read])
        # For what is made of the trace.
        self.kept: dict[Any, Any] = {}

    # Taking the graph apart.

    def _visit(self, node: Node) -> None:
        if node.op == "output":
            self._finish(node.args[0])
        elif node.op == "placeholder":
            side = SIDES[self._placeholders.index(node)] if "val" in node.meta else "parameter"
            self._sides[node] = frozenset((side,))
        elif node.op == "get_attr":
            self._sides[node] = frozenset(("parameter",))
        else:
            _check_operator(node)
            sides = frozenset().union(*(self._sides.get(x, frozenset()) for x in node.all_input_nodes))
            sides = sides - {"parameter"} or frozenset(("parameter",))
            self._sides[node] = sides
            has_mixed = any(x in self._values for x in node.all_input_nodes)
            if has_mixed or len(sides) > 1 or (sides == {"edge"} and self._stays(node)):
                self._values[node] = self._mix(node)

    def _stays(self, node: Node) -> bool:
        """Whether a function of edges alone had better be computed inside: it is as large as rows of all heads."""
        shape = _shape(node)
        is_row = len(shape) == self.batch + 3 and shape[-1] > 1 and shape[-2] > 1
        return is_row and _name(node) in POINTWISE and all(len(_shape(x)) > 0 for x in node.all_input_nodes)

    def _mix(self, node: Node) -> _Mixed:
        name, shape = _name(node), _shape(node)
        rank = len(shape) - self.batch
        sides = " and ".join(sorted(self._sides[node]))
        if name in POINTWISE:
            if rank not in (2, 3):
                raise _unsupported(
                    node, f"mixes {sides} in a shape {_written(shape)} other than [*B, E, H, D] and [*B, E, H]"
                )
            self._check_dtype(node)
            args = tuple(self._operand(x, node, rank == 3) for x in node.args)
            kwargs = {key: self._operand(x, node, rank == 3) for key, x in node.kwargs.items()}
            return self._step(node.target, args, kwargs, rank == 3)
        source = node.args[0]
        if source not in self._values:
            fix = "apply it to query_i, key_j and edge_key apart, before they meet"
            raise _unsupported(node, f"mixes {sides}: {fix}")
        x = self._values[source]
        before = _shape(source)
        if name in SAME:
            self._check_dtype(node)
            if source.meta["val"].dtype == torch.bool and node.meta["val"].dtype != torch.bool:
                return self._step(node.target, (_Place(x.place),), {"dtype": self.dtype}, x.is_row)
            return x if name != "detach" else self._step(node.target, (_Place(x.place),), {}, x.is_row)
        if name in REDUCTIONS:
            self._check_dtype(node)
            at = 2 if name == "linalg_vector_norm" else 1
            dims = node.args[at] if len(node.args) > at else None
            if not x.is_row or dims is None or [dim % len(before) for dim in dims] != [len(before) - 1]:
                fix = "a score may add up the last dimension of [*B, E, H, D] alone"
                what = "edges or heads" if dims is not None else "all numbers"
                raise _unsupported(node, f"over dimensions {dims} mixes {what}: {fix}")
            head = (node.args[1], [-1]) if at == 2 else ([-1],)
            return self._step(node.target, (_Place(x.place), *head, True), {}, rank == 3)
        if name in ("unsqueeze", "squeeze", "view", "reshape", "_unsafe_view", "expand"):
            core, old = tuple(shape), tuple(before)
            if core == old or core == (*old, 1) or (*core, 1) == old:
                return _Mixed(x.place, rank == 3)
            if name == "expand" and len(core) == len(old) and x.is_row and core[:-1] == old[:-1] and old[-1] == 1:
                return x
        raise _unsupported(node, f"of shape {_written(before)}, which mixes {sides}, has no fused form")

    def _operand(self, x: Any, node: Node, is_row: bool) -> Any:
        """An argument of an operation on mixed values: its place, or a number."""
        if not isinstance(x, fx.Node):
            return x
        if x in self._values:
            value = self._values[x]
            if value.is_row != is_row:
                raise _unsupported(
                    node, f"broadcasts {_written(_shape(x))} to {_written(_shape(node))}: use unsqueeze(-1)"
                )
            return _Place(value.place)
        key = (x, is_row)
        if key not in self._read:
            self._read[key] = len(self.inputs)
            self.inputs.append(self._input(x, node, is_row))
        if x.meta["val"].dtype != torch.bool:
            return _Input(self._read[key])
        return _Place(self._step(torch.ops.aten.ne.Scalar, (_Input(self._read[key]), 0), {}, is_row).place)

    def _check_dtype(self, node: Node) -> None:
        dtype = node.meta["val"].dtype
        if dtype not in (torch.bool, self.dtype):
            raise _unsupported(node, f"gives {dtype} in place of {self.dtype}")

    def _input(self, x: Node, node: Node, is_row: bool) -> Input:
        (side,), shape = self._sides[x], _shape(x)
        sizes = (*shape, 1)[-3:] if not is_row else shape[-3:]
        edges, heads, width = (*[1] * (3 - len(sizes)), *sizes)
        front = shape[: -(3 if is_row else 2)]
        if edges != (1 if side == "parameter" else EDGES) or heads not in (1, self.heads):
            raise _unsupported(node, f"reads {_written(shape)}, which has no row per edge, so that it mixes edges")
        if side == "parameter" and any(size != 1 for size in front):
            raise _unsupported(node, f"reads a parameter of shape {_written(shape)}, which differs over the batch")
        return Input(side, heads, width)

    def _step(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], is_row: bool) -> _Mixed:
        self._steps.append((target, args, kwargs))
        return _Mixed(len(self._steps) - 1, is_row)

    def _finish(self, result: Any) -> None:
        if not isinstance(result, fx.Node):
            raise Unsupported("it returns no tensor")
        shape = _shape(result)
        if result.meta["val"].dtype != self.dtype:
            raise Unsupported(f"it returns {result.meta['val'].dtype} in place of {self.dtype}")
        if result not in self._values:
            # A score of one side alone is still a score of edges.
            side = next(iter(self._sides[result]))
            if len(shape) != self.batch + 2 or side == "parameter":
                raise Unsupported("it doesn't return [*B, E, H]")
            place = self._operand(result, result, False)
            self._steps.append((torch.ops.aten.alias.default, (place,), {}))
            self._result = len(self._steps) - 1
            return
        if len(shape) != self.batch + 2 or shape[-2:] != (EDGES, self.heads):
            raise Unsupported(f"it returns {_written(shape)} in place of [*B, E, H]")
        self._result = self._values[result].place

    # The expression.

    def _canonical(self, *inputs: Tensor) -> Tensor:
        """The mixed part as a function of tensors [E, H, width]."""
        values: list[Tensor] = []

        def read(x: Any) -> Any:
            return values[x.at] if isinstance(x, _Place) else inputs[x.at] if isinstance(x, _Input) else x

        for target, args, kwargs in self._steps:
            values.append(target(*map(read, args), **{key: read(x) for key, x in kwargs.items()}))
        return values[self._result]

    def _differentiate(self) -> None:
        def both(*given: Tensor) -> tuple[Tensor, ...]:
            *inputs, slope = given
            score, pull = torch.func.vjp(self._canonical, *inputs)[:2]
            return score, *pull(slope)

        # Sizes that differ from each other and from 1, unless a width is 1.
        with FakeTensorMode():
            given = [torch.empty(7, 5, width, dtype=self.dtype) for _, _, width in self.inputs]
            slope = torch.empty(7, 5, 1, dtype=self.dtype)
            function = torch.func.functionalize(both, remove="mutations")
            table: Any = core_aten_decompositions()
            graph = make_fx(function, table)(*given, slope).graph
        graph.eliminate_dead_code()
        self.expression = Expression()
        self.score, *self.slopes = lower(self.expression, graph)

    # What torch computes ahead of the loops.

    def _follow(self, roots: list[Node]) -> list[Node]:
        """The one-sided nodes that these follow from, in order."""
        found = reached(roots, lambda node: node.all_input_nodes)
        return [node for node in self._order if node in found]

    def read(self, given: Sequence[Tensor | None], tensors: Sequence[Tensor]) -> list[Tensor]:
        """Compute the inputs of the expression: [B, N, heads, width], of edges and parameters also [1, ...].

        Args:
            given: query [*B, T, H, D], key [*B, S, H, D], and edge_key [*B or ones, E, ...] or None.
            tensors: what the function captures, by `paths`.
        """
        rows = dict(zip(SIDES, (None if x is None else x.size(self.batch) for x in given), strict=False))
        cast = lambda x: x.to(self.dtype) if x.is_floating_point() else x
        values: dict[Node, Tensor] = {}
        for node in self._hoisted:
            if node.op == "placeholder":
                values[node] = _present(given[self._placeholders.index(node)])
            elif node.op == "get_attr":
                constant = self._constants[node]
                values[node] = constant if isinstance(constant, Tensor) else tensors[self.paths.index(constant)]
            else:
                side = next(iter(self._sides[node]))
                number = rows.get(side)

                def argument(x: Any, number: int | None = number) -> Any:
                    if isinstance(x, fx.Node):
                        return cast(values[x]) if x.op == "placeholder" else values[x]
                    if isinstance(x, list | tuple):
                        return [argument(part) for part in x]
                    if isinstance(x, int) and not isinstance(x, bool) and x and x % EDGES == 0:
                        return x // EDGES * number if number is not None else x
                    return x

                values[node] = node.target(
                    *map(argument, node.args), **{k: argument(x) for k, x in node.kwargs.items()}
                )
        batch = _present(given[0]).shape[: self.batch]
        return [
            self._as_rows(values[node], is_row, kind, batch, rows.get(kind.side), _present(given[0]).device)
            for (node, is_row), kind in zip(self._read, self.inputs, strict=True)
        ]

    def _as_rows(
        self, x: Tensor, is_row: bool, kind: Input, batch: torch.Size, rows: int | None, device: torch.device
    ) -> Tensor:
        # Rows that are read as they were given may have a half type.
        if rows is not None and x.shape == (*batch, rows, kind.heads, kind.width) and x.is_floating_point():
            return x.reshape(batch.numel(), *x.shape[self.batch :])
        x = x if x.is_floating_point() and kind.side != "parameter" else x.to(device, self.dtype)
        x = x if is_row else x.unsqueeze(-1)
        x = x.view(*[1] * (self.batch + 3 - x.dim()), *x.shape)
        front = x.shape[: self.batch]
        shape = (1 if rows is None else rows, kind.heads, kind.width)
        if kind.side in ("edge", "parameter") and all(size == 1 for size in front):
            return x.reshape(1, *shape)
        return x.expand(*batch, *shape).reshape(batch.numel(), *shape)


class _Place(NamedTuple):
    at: int


class _Input(NamedTuple):
    at: int


class _Lines(TorchFunctionMode):
    """Notes for each node of a graph the line of the user's code that it comes from."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(OF_TORCH):
            frame = frame.f_back
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        # Without it, messages lack the line.
        annotate = getattr(traceback, "annotate", nullcontext)
        with annotate({"line": line}):
            return func(*args, **(kwargs or {}))


def _trace(function: Any, given: Sequence[Tensor | None], device: torch.device) -> tuple[fx.Graph, dict[Node, Tensor]]:
    """The function as a graph of aten's operators on so many edges, and the tensors that it captures."""

    def call(*rows: Tensor | None) -> Any:
        with _Lines():
            return function(*rows)

    try:
        with FakeTensorMode(allow_non_fake_inputs=True), traceback.preserve_node_meta(), _silent():
            fake = [None if x is None else torch.empty(x.shape, dtype=x.dtype, device=device) for x in given]
            table: Any = core_aten_decompositions()
            module = make_fx(torch.func.functionalize(call, remove="mutations"), table)(*fake)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        where, fix = f"{error.func}{_in_line(_users_line(error))}", "use torch.where in place of if, and no .item()"
        raise Unsupported(f"it depends on the values of its arguments ({where}): {fix}") from None
    except Unsupported:
        raise
    except Exception as error:
        raise Unsupported(f"it can't be traced ({first_line(error)})") from None
    module.graph.eliminate_dead_code()
    constants = {node: getattr(module, node.target) for node in module.graph.nodes if node.op == "get_attr"}
    return module.graph, constants


@contextmanager
def _silent() -> Iterator[None]:
    """Without the log of fake tensors: what they refuse is told by a reason."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def first_line(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _find(node: Node, x: Tensor, tensors: dict[str, Tensor]) -> str | Tensor:
    """Where a captured tensor is, or itself if the function made it."""
    for path, tensor in tensors.items():
        if tensor is x:
            return path
    if not all(_name(user).startswith("lift_fresh") for user in node.users):
        raise Unsupported(f"it uses a tensor of shape {list(x.shape)} that can't be found again")
    # Made of numbers by the function itself.
    return x


def _present(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def _shape(node: Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _written(shape: Sequence[int]) -> str:
    return f"[{', '.join('E' if size == EDGES else str(size) for size in shape)}]"


def _name(node: Node) -> str:
    target: Any = node.target
    return str(target.overloadpacket.__name__) if hasattr(target, "overloadpacket") else str(target)


def _check_operator(node: Node) -> None:
    target: Any = node.target
    if target is operator.getitem:
        return
    if not isinstance(target, torch._ops.OpOverload):
        raise _unsupported(node, "isn't an operator of torch")
    if target._schema.is_mutable and not _is_own(node):
        raise _unsupported(node, "writes in place: use its form without the underscore")
    if torch.Tag.nondeterministic_seeded in target.tags:
        raise _unsupported(node, "draws random numbers")


def _is_own(node: Node) -> bool:
    """Whether an operator writes to what torch or the function made, as some of torch's own functions do."""
    target = node.args[0]
    while isinstance(target, fx.Node) and target.op == "call_function" and _name(target) in VIEWS:
        target = target.args[0]
    return isinstance(target, fx.Node) and target.op == "call_function"


def _unsupported(node: Node, what: str) -> Unsupported:
    """An error that names the operation and the user's own line."""
    line = (node.meta.get("custom") or {}).get("line")
    return Unsupported(f"aten.{_name(node)}{_in_line(line)} {what}")


def _users_line(error: Exception) -> str:
    """The last line of an error's stack that is neither torch's nor ours."""
    ours = (OF_TORCH, str(Path(__file__).parent))
    stack = [(frame.f_code.co_filename, number) for frame, number in walk_tb(error.__traceback__)]
    outside = [place for place in stack if not place[0].startswith(ours)]
    return linecache.getline(*outside[-1]).strip() if outside else ""


def _in_line(line: str | None) -> str:
    return f" in `{line}`" if line else ""

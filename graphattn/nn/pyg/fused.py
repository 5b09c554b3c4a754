"""What our versions of PyG's attention layers share: when they are fused, and how PyG's `forward` calls the kernels.

Each runs PyG's `forward` with the edges as a `Graph`. That is neither a tensor nor a sparse matrix, so that PyG adds no
self-loops to it and passes it unread to `edge_updater` and `propagate`, which are ours.
"""

from __future__ import annotations

import functools
import inspect
import operator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.aggr import MeanAggregation, SoftmaxAggregation, SumAggregation

from ...call import as_pattern, is_transformed
from ...errors import check_device, message, shape_of
from ...functional import attention
from ...kernels import KERNELS
from ...patterns import Edges, Pattern
from ...patterns.across_processes import RemotePattern
from ...patterns.base import Sides
from ...patterns.edges import Loops
from ...patterns.lookup import known_edges, remember_edges
from ...precision import without_autocast
from ...scores import Score
from ..hooks import has_hooks as has_hooks
from ..hooks import hooks_of
from .edges import check_edge_attr
from .unfused import UNFUSED

KINDS = ("propagate", "message", "aggregate", "edge_update", "message_and_aggregate")
HOOKS = [f"_{kind}_forward{when}_hooks" for kind in KINDS for when in ("_pre", "")]
_own_hooks = operator.attrgetter(*HOOKS)
REPLACEABLE = ("message", "aggregate", "update", "edge_update")

# What PyG calls the aggregations that a layer may have to be fused.
AGGREGATIONS = {SumAggregation: "'add'", MeanAggregation: "'mean'", SoftmaxAggregation: "'softmax'"}

# Numbers in all messages up to which PyG's own operators, joined by torch.compile, take less time than one of ours.
SMALL_IN_A_GRAPH = 2**15

# Numbers in all messages up to which PyG's own operators take less time on a CPU, on edges that are new in each call.
# Scores that are traced cost more to begin with.
SMALL, SMALL_IF_TRACED = 2**16, 2**19

# PyG class -> our replacement.
FUSED: dict[type[Any], type[Any]] = {}


class Asked(NamedTuple):
    """What a layer asks of the kernels."""

    pattern: Pattern
    query: Tensor
    key: Tensor
    value: Tensor
    score: Score
    options: dict[str, Any]


# Where layers leave what they ask for, while their attention waits for that of others. They go on with zeros.
WAITING: ContextVar[list[Asked] | None] = ContextVar("waiting", default=None)


class Graph:
    """The edges of one call, in PyG's order: renewed self-loops last."""

    def __init__(
        self, pattern: Pattern, renewed: Loops | None, num_given: int, by_messages: bool, return_weights: bool
    ) -> None:
        self.pattern = pattern
        self.renewed = renewed
        self.num_given = num_given
        self.by_messages = by_messages
        self.return_weights = return_weights
        # The position of each edge in the messages, if these have another order.
        self.order: Tensor | None = None
        # The arguments of `edge_updater`, and the weights [E, H] once they are computed.
        self.given: dict[str, Any] = {}
        self.weights: Tensor | None = None

    @property
    def edge_index(self) -> Tensor:
        """[2, E] in the order of messages."""
        edge_index = self.pattern.edge_index
        return edge_index if self.order is None else edge_index[:, self.order]

    def to_messages(self, of_edges: Tensor | None) -> Tensor | None:
        """Reorder a tensor of edges as messages."""
        return of_edges if self.order is None or of_edges is None else of_edges[self.order]

    def from_messages(self, of_messages: Tensor) -> Tensor:
        """Reorder a tensor of messages as edges."""
        return of_messages if self.order is None else of_messages[self.order.argsort()]

    def listed(self, edge_index: Any) -> Tensor:
        """The edges as PyG returns them: the given ones, or new ones of the same kind if loops were renewed."""
        if isinstance(edge_index, RemotePattern):
            return self.pattern.edge_index
        if self.renewed is None:
            return edge_index
        listed = self.pattern.edge_index.to(edge_index.dtype, copy=True)
        if not isinstance(edge_index, EdgeIndex):
            return listed
        return EdgeIndex(listed, sparse_size=(self.pattern.num_sources, self.pattern.num_targets))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, score: Score, **options: Any) -> Tensor:
        """Attend: [T, H, C], in the dtype of PyG's own result."""
        # A graph of torch.compile can't read the list.
        waiting = None if torch.compiler.is_compiling() or self.return_weights else WAITING.get()
        if waiting is not None:
            waiting.append(Asked(self.pattern, query, key, value, score, options))
            return value.new_zeros(()).expand(self.pattern.num_targets, *query.shape[1:-1], value.size(-1))
        tensors = (query, key, value, *score.tensors().values())
        dtypes = {x.dtype for x in tensors}
        dtype = functools.reduce(torch.promote_types, dtypes)
        if len(dtypes) > 1 or any(isinstance(x, Tensor) and x.dtype != dtype for x in options.values()):
            options = {name: x.to(dtype) if isinstance(x, Tensor) else x for name, x in options.items()}
            query, key, value, score = query.to(dtype), key.to(dtype), value.to(dtype), score.to(dtype)
        options |= dict(score=score, return_weights=self.return_weights)
        with without_autocast(query.device.type):
            result = attention(query, key, value, self.pattern, **options)
        if not self.return_weights:
            return result
        out, weights = result
        self.weights = weights.to(dtype)
        return out


class LeavesSmall:
    """What all of our versions share: which calls they leave to PyG's own operators.

    Attributes:
        leaves_small: calls of so few numbers that PyG's own operators take less time run there. `accelerate` sets it
            for layers that it didn't time.
        small: how many numbers these are, in the messages of a convolution and in the rows of other modules.
    """

    leaves_small = False
    small = SMALL
    backend = "auto"

    def _leaves_rows(self, x: Any) -> bool:
        """Whether small calls with such rows are left."""
        if self.backend != "auto" or torch.compiler.is_compiling():
            return False
        # PyG's sums in half precision are less exact.
        is_plain = isinstance(x, Tensor) and x.is_cpu and x.dtype in (torch.float32, torch.float64)
        return is_plain and not torch.is_autocast_enabled("cpu") and WAITING.get() is None


class Fused(LeavesSmall, MessagePassing):
    """What our versions of PyG's layers share: when they are fused, and the methods that PyG's `forward` calls.

    Attributes:
        returns_dropped_weights: PyG's GAT layers return the weights after dropout, ours those before it. True restores
            PyG's behaviour.
        mask_removes_edges: an explainer's mask multiplies messages after their weights were normalized, so that a mask
            of 0 doesn't remove the edge. True adds its logarithm to the scores instead, which does.
        backend: as in `attention`. "scatter" has derivatives of second order.
    """

    returns_dropped_weights = False
    mask_removes_edges = False

    heads: int
    out_channels: int
    dropout: float
    # PyG's class, which a subclass replaces; the aggregation and the dimension of nodes that it is fused for.
    theirs: type[Any]
    aggregation: tuple[type[Any], ...] = (SumAggregation,)
    node_dims: tuple[int, ...] = (0,)

    def __init_subclass__(cls) -> None:
        _register(cls)

    def _set_jittable_templates(self, raise_on_error: bool = False) -> None:
        """Let PyG generate its code for its own class, when the first layer is made or loaded; ours needs none."""
        if "_jinja_propagate" not in vars(self.theirs):
            with torch.random.fork_rng(devices=[]):
                self.theirs(1, 1)

    def edge_updater(self, edge_index: Any, size: Any = None, **kwargs: Any) -> Any:
        """PyG's for edges that it reads itself; for ours, the kernel's input, or PyG's with hooks or explainers."""
        if not isinstance(edge_index, Graph):
            return self._of_pyg("edge_updater")(self, edge_index, size=size, **kwargs)
        edge_index.given = kwargs
        if not edge_index.by_messages:
            return None
        given = {**kwargs, "edge_attr": edge_index.to_messages(kwargs.get("edge_attr"))}
        return self._of_pyg("edge_updater")(self, edge_index.edge_index, size=size, **given)

    def propagate(self, edge_index: Any, size: Any = None, **kwargs: Any) -> Any:
        """PyG's for edges that it reads itself; for ours, fused attention, or PyG's with hooks or explainers."""
        if not isinstance(edge_index, Graph):
            return self._of_pyg("propagate")(self, edge_index, size=size, **kwargs)
        graph, bias = edge_index, None
        if not graph.by_messages:
            bias = self._mask_bias(graph)
            return self._attend(graph, {**kwargs, **graph.given}, bias)
        if "edge_attr" in kwargs:
            kwargs["edge_attr"] = graph.to_messages(kwargs["edge_attr"])
        out = self._of_pyg("propagate")(self, graph.edge_index, size=size, **kwargs)
        if graph.return_weights:
            # Layers that take alpha as an argument have no _alpha.
            alpha: Tensor = kwargs["alpha"] if "alpha" in kwargs else self._alpha  # noqa: SIM401
            if "alpha" in kwargs and self.training and self.dropout > 0 and not self.returns_dropped_weights:
                self._attend(graph, {**kwargs, **graph.given}, bias)
            else:
                graph.weights = graph.from_messages(alpha)
        return out

    # PyG switches between these when an explainer is attached and removed.
    _orig_propagate = _jinja_propagate = propagate
    _orig_edge_updater = _jinja_edge_updater = edge_updater

    def _of_pyg(self, name: str) -> Any:
        """PyG's `propagate` or `edge_updater`: the code generated for its class, or the generic one."""
        # Generated code supports neither explainers nor other arguments of a subclass's methods.
        is_plain = not self.explain and self.decomposed_layers == 1 and own_class(self) is FUSED[self.theirs]
        return getattr(self.theirs if is_plain else MessagePassing, name)

    def _attend(self, graph: Graph, given: dict[str, Any], bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _drops(self) -> float:
        return self.dropout if self.training else 0.0

    def _plain(self, x: Any, edge_index: Any) -> Any:
        """Edges as PyG takes them: those of a pattern, which `_read` finds again by the tensor that lists them."""
        if not isinstance(edge_index, Pattern) or isinstance(edge_index, RemotePattern):
            return edge_index
        source, target = (x, x) if isinstance(x, Tensor) else x
        num_targets = edge_index.num_targets if target is None else target.size(0)
        as_pattern(type(self).__name__, edge_index, source.size(0), num_targets, sides=Sides.of(x))
        # Another tensor of the same memory: the pattern holds its own as a key, and would never be freed.
        listed = edge_index.edge_index.detach()
        if isinstance(edge_index, Edges):
            remember_edges(listed, edge_index)
        return listed

    def _is_theirs(self, edge_index: Any, return_weights: bool, renews: bool, has_edge_attr: bool) -> bool:
        """Whether PyG computes everything: if fused attention would differ, or can't be traced."""
        if torch.jit.is_scripting() or torch.jit.is_tracing():
            return True
        if isinstance(edge_index, RemotePattern):
            self._check_remote(edge_index, return_weights)
            return False
        if why_not_fused(self) is not None or not isinstance(edge_index, Tensor):
            return True
        if is_transformed() or edge_index.is_meta or (self.explain and torch.compiler.is_compiling()):
            return True
        if edge_index.layout != torch.strided:
            is_listed_twice = edge_index.layout == torch.sparse_coo and not edge_index.is_coalesced()
            return return_weights or (renews and (has_edge_attr or is_listed_twice))
        if not torch.compiler.is_compiling():
            return False
        if torch.compiler.is_exporting():
            return renews and (return_weights or has_edge_attr)
        # The number of edges after renewing loops depends on the data, which a compiled graph can't hold.
        if not renews:
            return self.backend == "auto" and edge_index.size(1) * self.heads * self.out_channels <= SMALL_IN_A_GRAPH
        kernels = [kernel for kernel in KERNELS if self.backend in ("auto", kernel.name)]
        return return_weights or has_edge_attr or not any(k.reads_traced_edges(edge_index.device) for k in kernels)

    def _is_small(self, x: Any, *edges: Any, of_edges: Any = None) -> bool:
        """Whether a call is left to PyG's own operators, and right there: some take edges of int32 or a single row of
        `of_edges` for what they aren't.
        """
        if not self.leaves_small or self.explain:
            return False
        count = 0
        for index in edges:
            if type(index) is not Tensor or index.dtype != torch.int64 or index.dim() != 2:
                return False
            count += index.size(1)
        if isinstance(of_edges, Tensor) and (of_edges.dim() == 0 or of_edges.size(0) != count):
            return False
        rows = x[0] if isinstance(x, tuple) else x
        return self._leaves_rows(rows) and count * self._message_width(rows) <= self.small

    def _message_width(self, x: Tensor) -> int:
        """Numbers in the message of an edge between such rows."""
        own = vars(self)
        width: int = own.get("heads", 1) * own.get("out_channels", x.size(-1))
        return width

    def _check_remote(self, pattern: RemotePattern, return_weights: bool) -> None:
        reason = why_not_fused(self)
        if self.explain or self._is_watched() or (self.returns_dropped_weights and return_weights):
            reason = "only PyG's own path supports what is requested: an explainer, hooks, or dropped weights"
        if reason is not None:
            where, rule = type(self).__name__, f"must be in one process: {reason}"
            raise NotImplementedError(message(where, "edge_index", rule, pattern))

    def _is_watched(self) -> bool:
        is_hooked = any(_own_hooks(self)) or any(hooks_of(self.aggr_module))
        return is_hooked or (bool(self.explain) and not self.mask_removes_edges)

    def _read(
        self, x: Any, edge_index: Any, edge_attr: Any, num_targets: int, loops: int | None, return_weights: bool
    ) -> Graph:
        """Read the edges of a call; with `loops`, those between different nodes and the first nodes' loops."""
        where, sides = type(self).__name__, Sides.of(x)
        source = x if isinstance(x, Tensor) else x[0]
        rows = (source.size(0), num_targets)
        check_device(where, "edge_index", edge_index.device, source, sides.source)
        pattern: Edges | RemotePattern
        is_remote = isinstance(edge_index, RemotePattern)
        is_traced = not is_remote and torch.compiler.is_compiling() and edge_index.layout == torch.strided
        if isinstance(edge_index, RemotePattern):
            pattern = edge_index
            as_pattern(where, pattern, *rows, sides=sides)
        elif is_traced:
            plain = edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index
            pattern = Edges.traced(where, plain, *rows, loops, sides)
        else:
            pattern = known_edges(where, edge_index, *rows, sides)
        check_edge_attr(where, edge_attr, self.lin_edge, pattern.num_edges, num_targets)
        renewed = None if loops is None or is_traced else pattern.renew_self_loops(loops)
        wants_dropped = self.returns_dropped_weights and return_weights and self._drops() > 0
        by_messages = not (is_remote or is_traced) and (self._is_watched() or wants_dropped)
        attended = pattern if renewed is None else renewed.pattern
        graph = Graph(attended, renewed, pattern.num_edges, by_messages, return_weights)
        # An explainer's mask is in PyG's order. Hooks on the weights get the caller's order of the given edges.
        if graph.by_messages and renewed is not None and not self.explain:
            graph.order = renewed.order
        return graph

    def _mask_bias(self, graph: Graph) -> Tensor | None:
        """[E, H], the logarithm of an explainer's mask, if masks remove edges."""
        if not (self.explain and self.mask_removes_edges):
            return None
        mask = self._edge_mask
        if mask is None:
            raise ValueError(message(type(self).__name__, "_edge_mask", "must be set to explain the layer", None))
        if mask.shape != (graph.num_given,):
            rule = f"must have shape [{graph.num_given}], one number per edge"
            raise ValueError(message(type(self).__name__, "_edge_mask", rule, shape_of(mask)))
        bias = torch.nn.functional.logsigmoid(mask) if self._apply_sigmoid else mask.log()
        if graph.renewed is not None:
            bias = bias if graph.renewed.kept is None else bias[graph.renewed.kept]
            bias = torch.nn.functional.pad(bias, (0, graph.pattern.num_edges - bias.numel()))
        return bias.unsqueeze(-1).expand(-1, self.heads)


def _register(cls: type[Any]) -> None:
    """Note whom a class replaces."""
    if "theirs" not in vars(cls):
        return
    FUSED[cls.theirs] = cls
    # PyG's cheat sheet and inspector, and `help`, read arguments and documentation from the class.
    own: Any = cls.forward
    own.__signature__ = inspect.signature(cls.theirs.forward)
    if cls.__doc__ is not None and cls.theirs.__doc__ is not None:
        cls.__doc__ = f"{inspect.getdoc(cls)}\n\n{inspect.getdoc(cls.theirs)}"


class FusedModule(LeavesSmall, torch.nn.Module):
    """What our versions share of PyG's modules that pass no messages."""

    def _is_small(self, x: Tensor) -> bool:
        """Whether a call of such rows is left to PyG's own operators."""
        return self.leaves_small and self._leaves_rows(x) and x.numel() <= self.small

    theirs: type[Any]

    def __init_subclass__(cls) -> None:
        _register(cls)

    if TYPE_CHECKING:
        # PyG's attributes have no types.
        def __getattr__(self, name: str) -> Any: ...

    @staticmethod
    def why_not(layer: Any) -> str | None:
        """Why a layer, PyG's or ours, can't be ours; None if it can."""
        return None


def is_traced() -> bool:
    """Whether a compiler, an exporter or torch.func runs the call, which PyG's own code then computes."""
    is_recorded = torch.jit.is_scripting() or torch.jit.is_tracing()
    return is_recorded or torch.compiler.is_compiling() or torch.compiler.is_exporting() or is_transformed()


def writable(out: Tensor, is_the_kernels: bool) -> Tensor:
    """Copy the kernel's output if nothing was added: its backward pass needs it, and the caller may write to it."""
    return out.clone() if is_the_kernels and out.requires_grad else out


def own_class(layer: torch.nn.Module) -> type[Any]:
    """A layer's class, without the subclasses that torch generates for parametrizations and sharded parameters."""
    return _own(type(layer))


def _own(kind: type[Any]) -> type[Any]:
    is_generated = kind.__module__.startswith("torch.")
    return next(cls for cls in kind.__mro__ if not cls.__module__.startswith("torch.")) if is_generated else kind


def pygs_name(kind: type[Any]) -> str:
    """The name of the class of PyG that a class is or inherits from; "" if there is none."""
    return next((cls.__name__ for cls in kind.__mro__ if cls.__module__.startswith("torch_geometric.nn.")), "")


def _why_not_class(kind: type[Any]) -> str | None:
    known: Any = getattr(kind, "theirs", None)
    if FUSED.get(known) is kind:
        return None
    theirs = next((cls for cls in FUSED if issubclass(kind, cls)), None)
    if theirs is None:
        return UNFUSED.get(pygs_name(kind), f"there is no version of {kind.__name__} here")
    own = _own(kind)
    if own is not theirs and own is not FUSED[theirs]:
        return f"{own.__name__} is a subclass of {theirs.__name__}, and may behave differently"
    return None


def why_not_fused(layer: Any) -> str | None:
    """Why a layer's messages can't be fused, whatever its input; None if they can."""
    reason = _why_not_class(type(layer))
    if reason is not None:
        return reason
    known = FUSED.get(own_class(layer), own_class(layer))
    if issubclass(known, FusedModule):
        return known.why_not(layer)
    if not isinstance(layer.aggr_module, known.aggregation):
        return (
            f"aggr={layer.aggr!r} is not {' or '.join(AGGREGATIONS[aggregation] for aggregation in known.aggregation)}"
        )
    if layer.flow != "source_to_target":
        return f"flow={layer.flow!r} is not 'source_to_target'"
    if layer.decomposed_layers != 1:
        return f"decomposed_layers={layer.decomposed_layers} is not 1"
    replaced = [name for name in REPLACEABLE if name in vars(layer)]
    if replaced:
        return f"its {replaced[0]} was replaced"
    return None if layer.node_dim in known.node_dims else f"node_dim={layer.node_dim} is not {known.node_dims[0]}"

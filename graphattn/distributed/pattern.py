"""The pattern of one rank: its own nodes attend to each other and to nodes that other ranks send."""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..dropout import draw_seed, keep_edges_of_heads, keep_scale
from ..errors import message
from ..functional import attention
from ..patterns import Edges
from ..patterns.across_processes import RemotePattern
from ..patterns.edges import Loops
from ..segments import Rows, gather
from .exchange import collective, exchange, gather_objects, raise_together
from .parts import Part


class DistributedPattern(RemotePattern):
    """One rank's part of a graph, to be passed to any layer or to `attention` in place of the whole pattern.

    Every rank has the rows of its own nodes, in the order of `part.nodes`. Layers project them; `attention` then sends
    key and value of boundary nodes to the ranks that have edges from them, both in one exchange, each row at most
    once per rank, and attends locally. Results and gradients are those of one process that holds the whole graph.

    Each rank must run the same layers in the same order, and each must call backward, even if its own loss is 0 or it
    owns no nodes: gradients are sent back through the same exchanges. If a rank skips one, the others wait until the
    process group's timeout and raise a RuntimeError. Set a short timeout, as in `init_process_group("gloo",
    timeout=timedelta(minutes=2))`; after such an error the group can't be used any more.

    Each rank has the gradients of its own nodes' loss with respect to the parameters. Their sum equals the gradients of
    one process: take the loss as a sum over own nodes, divided by the number of nodes of all ranks, and call
    `sum_gradients` after backward; or wrap the model in DistributedDataParallel and multiply the loss by the number of
    ranks, because it averages. Dropout of weights drops the same edges as one process with the same seed, at the cost
    of weights [E, H] and a second pass over them.

    Args:
        part: this rank's, from `split_graph` or `load_part`.
        group: the process group; the default one if None. All of its ranks must construct the pattern at the same time.

    Attributes:
        part: as given, on the pattern's device.
        local: `Edges` from the own nodes and the halo into the own nodes.
        group: as given.

    `edge_index` is that of `local`: `torch.cat([part.nodes, part.halo])` are the nodes behind its sources. Edge
    features, biases and returned weights are in this order too, that of `part.edges`.

    Raises:
        ValueError: the parts of the ranks don't make one graph; on every rank.
        RuntimeError: there is no process group; or a rank stopped, or was slower than the group's timeout.

    Example:
        >>> import torch.distributed as dist
        >>> from graphattn.distributed import block_parts, split_graph
        >>> from graphattn.nn import GraphAttention
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun's, with more
        >>> ring = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
        >>> part = split_graph(ring, block_parts(ring, dist.get_world_size()))[dist.get_rank()]
        >>> pattern = DistributedPattern(part)
        >>> pattern
        DistributedPattern(rank=0 of 1, nodes=4 of 4, halo=0, edges=4 of 4)
        >>> layer, x = GraphAttention(8, 8), torch.randn(4, 8)
        >>> torch.equal(layer(x[part.nodes], pattern), layer(x, ring))
        True
        >>> dist.destroy_process_group()
    """

    def __init__(self, part: Part, group: Any = None) -> None:
        where = "DistributedPattern"
        if not dist.is_initialized():
            fix = "Use torch.distributed.init_process_group('gloo') in a process that torchrun started."
            raise RuntimeError(message(where, "process group", "must be initialized", fix=fix))
        error: Exception | None = None
        try:
            self._take(part, group)
        except (TypeError, ValueError) as found:
            error = found
        raise_together(where, error, group)
        _check_fit(where, part, group)

    def _take(self, part: Part, group: Any) -> None:
        if not isinstance(part, Part):
            fix = "Use split_graph(...)[rank], or load_part."
            raise TypeError(message("DistributedPattern", "part", "must be a Part", type(part).__name__, fix))
        own = part.nodes.numel()
        super().__init__(own, own)
        self.part = part
        self.group = group
        self.local = Edges(part.edge_index, num_sources=own + part.halo.numel(), num_targets=own)
        self._kept["edge_index"] = self.local.edge_index
        if part.send.numel() and not 0 <= int(part.send.min()) <= int(part.send.max()) < own:
            raise ValueError(message("DistributedPattern", "part.send", f"must lie in [0, {own})"))
        for name, counts, rows in (("send", part.send_counts, part.send), ("halo", part.halo_counts, part.halo)):
            if counts.numel() != part.num_parts or int(counts.sum()) != rows.numel() or bool((counts < 0).any()):
                rule = f"must be {part.num_parts} numbers that add up to the {rows.numel()} of part.{name}"
                raise ValueError(message("DistributedPattern", f"part.{name}_counts", rule, counts.tolist()))
        self._sent = Rows.from_index(part.send, own)
        self._send_counts, self._receive_counts = part.send_counts.tolist(), part.halo_counts.tolist()

    def fetch(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Append the halo's rows to those of own nodes, in one exchange for all tensors. Differentiable.

        Args:
            tensors: each [*B, own, H, width], of one dtype and the same *B.

        Returns:
            For each [*B, own + halo, H, width].
        """
        shapes = [x.movedim(-3, 0).shape[1:] for x in tensors]
        widths = [shape.numel() for shape in shapes]
        sent = [gather(x, self._sent, -3).movedim(-3, 0) for x in tensors]
        joined = torch.cat([x.reshape(x.size(0), w) for x, w in zip(sent, widths, strict=True)], 1)
        received = exchange(joined, self._send_counts, self._receive_counts, self.group).split(widths, 1)
        halo = [x.reshape(-1, *shape).movedim(0, -3) for x, shape in zip(received, shapes, strict=True)]
        return tuple(torch.cat(pair, -3) for pair in zip(tensors, halo, strict=True))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
        """Run `attention` with these options on the own nodes' query, key and value."""
        key, value = self.fetch(key) * 2 if key is value else self.fetch(key, value)
        if options["dropout_p"] > 0:
            return self._attend_with_dropout(query, key, value, **options)
        return attention(query, key, value, self.local, **options)

    def _attend_with_dropout(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        dropout_p: float,
        edge_value: Tensor | None,
        return_weights: bool,
        return_lse: bool,
        backend: str,
        **options: Any,
    ) -> Any:
        """Compute weights first, then use the weights that dropout keeps as the scores of a second call.

        Kernels number nodes by their rows, but dropout must depend on the numbers in the whole graph.
        """
        nothing = key.new_zeros(*key.shape[:-1], 1)
        options["backend"] = backend
        _, weights, *lse = attention(
            query, key, nothing, self.local, return_weights=True, return_lse=return_lse, **options
        )
        source, target = self.local.edge_index
        names = torch.cat([self.part.nodes, self.part.halo])
        edges = (names[target], names[source], self.local.occurrence())
        keep = keep_edges_of_heads(draw_seed(query.device), dropout_p, query.shape[:-3], query.size(-2), *edges)
        kept = weights * keep * keep_scale(dropout_p)
        same: dict[str, Any] = dict(normalizer="identity", edge_bias=kept, edge_value=edge_value, backend=backend)
        out = attention(query.new_zeros(*query.shape[:-1], 1), nothing, value, self.local, **same)
        asked = [out, *([weights] if return_weights else []), *lse]
        return asked[0] if len(asked) == 1 else tuple(asked)

    @property
    def num_edges(self) -> int:
        """Edges into the own nodes."""
        return self.local.num_edges

    @property
    def device(self) -> torch.device:
        """The device of the edges."""
        return self.local.device

    def with_self_loops(self) -> DistributedPattern:
        """Let every own node attend to itself. Edges keep their order; new loops come after them, by node."""
        source, target = self.local.edge_index
        is_lonely = torch.ones(self.num_targets, dtype=torch.bool, device=self.device)
        is_lonely[target[source == target]] = False
        loops = is_lonely.nonzero().flatten()
        return self._with_edges(torch.cat([self.local.edge_index, loops.expand(2, -1)], 1))

    def renew_self_loops(self, num_nodes: int) -> Loops:
        """See `Edges.renew_self_loops`."""

        def renew() -> Loops:
            renewed = self.local.renew_self_loops(num_nodes)
            return renewed._replace(pattern=self._with_edges(renewed.pattern.edge_index))

        return self.keep(f"loops of {num_nodes} nodes", renew)

    def _with_edges(self, edge_index: Tensor) -> DistributedPattern:
        """The same ranks and halo, with other edges."""
        other = copy.copy(self)
        other.local = Edges(edge_index, num_sources=self.local.num_sources, num_targets=self.num_targets)
        other._kept = {"edge_index": other.local.edge_index}
        return other

    def _list_edges(self) -> Tensor:
        raise AssertionError("an edge list is stored by the constructor")

    def __repr__(self) -> str:
        part = self.part
        sizes = f"nodes={self.num_targets} of {part.num_nodes}, halo={part.halo.numel()}"
        edges = f"edges={self.num_edges} of {part.num_edges}"
        return f"DistributedPattern(rank={part.rank} of {part.num_parts}, {sizes}, {edges})"


def sum_gradients(model: torch.nn.Module, group: Any = None) -> None:
    """Add up the gradients of all ranks, in place, so that each has those of the whole graph. Call it after backward.

    A parameter without a gradient on some ranks counts as zero there.

    Args:
        model: has the same parameters on every rank.
        group: the process group; the default one if None.

    Raises:
        RuntimeError: a rank has stopped, or is slower than the group's timeout.

    Example:
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> layer(torch.tensor([[1.0, 2.0]])).sum().backward()
        >>> sum_gradients(layer)  # of one rank
        >>> layer.weight.grad
        tensor([[1., 2.]])
        >>> dist.destroy_process_group()
    """
    reduce = lambda x: collective("sum_gradients", lambda: dist.all_reduce(x, group=group), group)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        return
    has_one = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
    reduce(has_one)
    alike = defaultdict(list)
    for parameter, count in zip(parameters, has_one.tolist(), strict=True):
        if count:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            alike[parameter.grad.dtype].append(parameter.grad)
    for grads in alike.values():
        joined = torch.cat([grad.flatten() for grad in grads])
        reduce(joined)
        for grad, summed in zip(grads, joined.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(summed.view_as(grad))


def _check_fit(where: str, part: Part, group: Any) -> None:
    """Raise on every rank unless the parts of all ranks make one graph whose nodes each lie in one part."""
    send, receive = part.send_counts.tolist(), part.halo_counts.tolist()
    facts = gather_objects(where, (part.rank, part.num_parts, part[2:5], send, receive), group)
    size = len(facts)
    for rank, (its_rank, its_parts, graph, _, _) in enumerate(facts):
        if its_parts != size:
            rule, got = f"must be one of {size}, one for each rank", f"one of {its_parts}"
            fix = f"Use split_graph(..., num_parts={size}), or torchrun --nproc-per-node {its_parts}."
            raise ValueError(message(where, "part", rule, got, fix))
        if its_rank != rank:
            raise ValueError(message(where, "part", f"on rank {rank} must be part {rank}", f"part {its_rank}"))
        if graph != facts[0][2]:
            got = f"graph {graph[2]} on rank {rank}, {facts[0][2][2]} on rank 0"
            raise ValueError(message(where, "parts", "must be those of one graph and one assignment", got))
    for sender, receiver in itertools.product(range(size), repeat=2):
        sent, expected = facts[sender][3][receiver], facts[receiver][4][sender]
        if sent != expected:
            got = f"{sent} rows from rank {sender}, where rank {receiver} expects {expected}"
            raise ValueError(message(where, "parts", "must send what is expected", got))
    if dist.get_backend(group) == "nccl":
        # Such a group can't send tensors on the CPU.
        part = part._replace(nodes=part.nodes.cuda(), send=part.send.cuda(), halo=part.halo.cuda())
    _check_cover(where, part, group)
    error = None
    received = exchange(part.nodes[part.send], send, receive, group)
    if not torch.equal(received, part.halo):
        rule = "must receive the nodes of its halo"
        error = ValueError(message(where, "part", rule, f"others on rank {part.rank}"))
    raise_together(where, error, group)


def _check_cover(where: str, part: Part, group: Any) -> None:
    """Raise on every rank unless each node is in exactly one part; each rank checks a range of nodes."""
    parts, nodes, error = part.num_parts, part.num_nodes, None
    width = -(-nodes // parts) or 1
    if part.nodes.numel() and not 0 <= int(part.nodes.min()) <= int(part.nodes.max()) < nodes:
        error = ValueError(message(where, "part.nodes", f"must lie in [0, {nodes})", f"others on rank {part.rank}"))
    raise_together(where, error, group)
    named = part.nodes.sort().values
    send = torch.bincount(named // width, minlength=parts)
    counts = torch.empty_like(send)
    collective(where, lambda: dist.all_to_all_single(counts, send, group=group), group)
    seen = exchange(named, send.tolist(), counts.tolist(), group) - part.rank * width
    times = torch.bincount(seen, minlength=max(0, min(width, nodes - part.rank * width)))
    wrong = (times != 1).nonzero().flatten()
    if wrong.numel():
        node = int(wrong[0])
        got = f"{int(times[node])} for node {node + part.rank * width}"
        error = ValueError(message(where, "parts", "must hold each node once", got))
    raise_together(where, error, group)

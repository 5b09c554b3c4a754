"""What several ranks check together: `python tests/data/distributed_checks.py FOLDER 2 3 4`.

Starting a process costs seconds of imports. This one imports once, and forks the ranks of one world size after another;
each writes FOLDER/SIZE-RANK.json, what each check raised by its name, or None.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch_geometric.nn import GAT

import graphattn
from graphattn import Additive, DotProduct, Edges, attention
from graphattn.distributed import (
    DistributedPattern,
    block_parts,
    load_part,
    save_parts,
    split_graph,
    sum_gradients,
)
from graphattn.nn import GATConv, GATv2Conv, GraphAttention, GraphTransformer, TransformerConv
from graphattn.normalizers import NORMALIZERS
from graphattn.testing import graph_zoo, random_call

TIMEOUT, SHORT = 40.0, 1.5
CHECKS = {}


def check(function):
    """Let every world size run it, with a group of its own."""
    CHECKS[function.__name__] = function
    return function


def random_graph(nodes: int = 40, edges: int = 300, seed: int = 0) -> Edges:
    generator = torch.Generator().manual_seed(seed)
    return Edges(torch.randint(nodes, (2, edges), generator=generator), nodes)


def uneven(nodes: int, size: int) -> torch.Tensor:
    """Interleaved parts, the first with more than half of the nodes."""
    generator = torch.Generator().manual_seed(nodes)
    return torch.randint(2 * size, (nodes,), generator=generator).sub_(size).clamp_(min=0)


def distribute(whole: Edges, assignment: torch.Tensor, group) -> DistributedPattern:
    size = dist.get_world_size(group)
    return DistributedPattern(split_graph(whole, assignment, size)[dist.get_rank(group)], group)


def take(x: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    return x.detach().index_select(dim, index).requires_grad_()


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-12) -> None:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    if ours.numel():
        error = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)
        assert error <= tolerance, f"off by {float(error):.3g}"


def assert_same_call(whole, pattern, tensors, make_options=dict, tolerance: float = 1e-12) -> None:
    """Attend to the whole graph and to this rank's part: results, and gradients of all tensors, must agree.

    Options run on "scatter": that the kernels agree is tested elsewhere, and each kind of call would be compiled.
    """
    backend = {} if make_options is dict else {"backend": "scatter"}
    nodes, edges = pattern.part.nodes, pattern.part.edges
    sides = {name: (edges if name.startswith("edge") else nodes, -2 if name == "edge_bias" else -3) for name in tensors}
    own = {name: take(x, *sides[name]) for name, x in tensors.items()}
    expected = attention(**tensors, pattern=whole, **backend, **make_options())
    found = attention(**own, pattern=pattern, **backend, **make_options())
    expected, found = (x if isinstance(x, tuple) else (x,) for x in (expected, found))
    rows = [(nodes, -3), (edges, -2), (nodes, -2)]
    expected_here = [x.index_select(dim, index) for x, (index, dim) in zip(expected, rows, strict=False)]
    for ours, theirs in zip(found, expected_here, strict=True):
        assert_near(ours, theirs, tolerance)
    # Losses of the ranks add up to that of the whole. A target without edges has an lse of -inf, and no gradient.
    loss = lambda results: sum(torch.where(x.isfinite(), x, 0).sin().sum() for x in results)
    theirs = torch.autograd.grad(loss(expected), list(tensors.values()))
    ours = torch.autograd.grad(loss(found), list(own.values()))
    for name, one, other in zip(tensors, ours, theirs, strict=True):
        assert_near(one, other.index_select(sides[name][1], sides[name][0]), tolerance)


@check
def every_graph_of_the_zoo(group, size):
    for name, whole in graph_zoo().items():
        if whole.num_sources == whole.num_targets:
            nodes = whole.num_targets
            pattern = distribute(whole, uneven(nodes, size), group)
            try:
                assert_same_call(whole, pattern, random_call(whole))
            except AssertionError as error:
                raise AssertionError(name) from error


@check
def every_kind_of_partition(group, size):
    whole = random_graph()
    nodes = torch.arange(40)
    own_edges = Edges(whole.edge_index[:, whole.edge_index[0] % size == whole.edge_index[1] % size], 40)
    for graph, assignment in (
        (whole, block_parts(whole, size)),
        (whole, block_parts(whole, size, torch.randperm(40, generator=torch.Generator().manual_seed(1)))),
        (whole, nodes % size),
        # All but one part empty; one empty part in between; and no boundary at all.
        (whole, torch.full((40,), size - 1)),
        (whole, torch.where(nodes % size == 1, 0, nodes % size)),
        (own_edges, nodes % size),
    ):
        assert_same_call(graph, distribute(graph, assignment, group), random_call(graph))


@check
def every_score_and_normalizer_with_edge_tensors(group, size):
    whole = random_graph()
    pattern = distribute(whole, uneven(40, size), group)
    vector = torch.randn(4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    own = lambda query, key, edge: (query * key).sum(-1).sin()
    tensors = random_call(whole, batch=(2,), heads=4, kv_heads=2, edge_tensors=True)
    for score in (DotProduct(), Additive(vector, "tanh"), Additive(vector, "leaky_relu")):
        assert_same_call(whole, pattern, tensors, lambda score=score: dict(score=score, return_weights=True))
    plain = random_call(whole, heads=4)
    for score in (own, DotProduct(0.3)):
        for cls in NORMALIZERS:
            assert_same_call(whole, pattern, plain, lambda s=score, n=cls.name: dict(score=s, normalizer=n))
    assert_same_call(whole, pattern, plain, lambda: dict(return_weights=True, return_lse=True))


@check
def dropout_drops_the_same_edges(group, size):
    whole = random_graph()
    pattern = distribute(whole, uneven(40, size), group)

    def options(**more):
        torch.manual_seed(3)
        return dict(dropout_p=0.4, return_weights=True, **more)

    tensors = random_call(whole, batch=(2,), heads=4, kv_heads=2, edge_tensors=True)
    assert_same_call(whole, pattern, tensors, lambda: options(return_lse=True))
    for name in ("relu", "sparsemax"):
        assert_same_call(whole, pattern, random_call(whole), lambda name=name: options(normalizer=name))


@check
def half_precision(group, size):
    whole = random_graph()
    pattern = distribute(whole, uneven(40, size), group)
    for dtype, tolerance in ((torch.bfloat16, 2e-2), (torch.float32, 1e-5)):
        assert_same_call(whole, pattern, random_call(whole, dtype=dtype), lambda: {}, tolerance)
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(*(torch.randn(pattern.num_targets, 2, 4) for _ in range(3)), pattern, backend="scatter")
    assert out.dtype == torch.bfloat16


def assert_same_model(model, whole, pattern, x, edge_attr=None, run=None, scale=1.0) -> None:
    """Run a model on the whole graph and on this rank's part: outputs and gradients of inputs and parameters agree."""
    part = pattern.part
    x = x.clone().requires_grad_()
    attributes = () if edge_attr is None else (edge_attr,)
    edges = whole if isinstance(model, GraphAttention | GraphTransformer) else whole.edge_index
    expected = model(x, edges, *attributes)
    expected.sin().sum().backward()
    theirs = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    own = take(x, part.nodes, 0)
    out = (model if run is None else run)(own, pattern, *(a[part.edges] for a in attributes))
    assert_near(out, expected[part.nodes])
    (out.sin().sum() * scale).backward()
    if scale == 1.0:
        sum_gradients(model, pattern.group)
    assert_near(own.grad, x.grad[part.nodes] * scale)
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert_near(p.grad, theirs[name])


@check
def models_run_as_they_are(group, size):
    whole = random_graph()
    pattern = distribute(whole, uneven(40, size), group)
    torch.manual_seed(0)
    x, edge_attr = torch.randn(40, 8, dtype=torch.float64), torch.randn(300, 3, dtype=torch.float64)
    for model, features in (
        (GraphAttention(8, 8, heads=2, add_self_loops=True, edge_dim=3, backend="scatter"), edge_attr),
        (GraphAttention(8, 8, heads=2, score="additive", backend="scatter"), None),
        (GraphTransformer(8, 16, 5, num_layers=3, heads=4, ego="concat"), None),
        (on_scatter(TransformerConv(8, 4, heads=2, edge_dim=3)), edge_attr),
        (on_scatter(GATConv(8, 4, heads=2, edge_dim=3, fill_value="mean")), edge_attr),
        (on_scatter(GATv2Conv(8, 4, heads=2, share_weights=True)), None),
        (accelerated_gat(), None),
    ):
        assert_same_model(model.double(), whole, pattern, x, features)


def on_scatter(layer):
    layer.backend = "scatter"
    return layer


def accelerated_gat() -> GAT:
    model = GAT(8, 16, num_layers=2, heads=4)
    graphattn.accelerate(model)
    for layer in model.convs:
        on_scatter(layer)
    return model


@check
def data_parallel_on_top_averages(group, size):
    whole = random_graph()
    # The default group this time.
    pattern = distribute(whole, uneven(40, size), None)
    torch.manual_seed(0)
    model = GraphTransformer(8, 16, 5, num_layers=2, heads=4).double()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    assert_same_model(model, whole, pattern, torch.randn(40, 8, dtype=torch.float64), run=parallel, scale=float(size))


@check
def compiled_in_one_graph(group, size):
    if size != 2:
        return
    whole = random_graph()
    pattern = distribute(whole, uneven(40, size), group)
    torch.manual_seed(0)
    model = GraphAttention(8, 8, heads=2).double()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same_model(model, whole, pattern, torch.randn(40, 8, dtype=torch.float64), run=compiled)


@check
def each_boundary_row_travels_once(group, size):
    whole = random_graph(30, 400)
    pattern = distribute(whole, uneven(30, size), group)
    part, (source, target) = pattern.part, whole.edge_index
    owner = uneven(30, size)
    crossing = (owner[target] == part.rank) & (owner[source] != part.rank)
    distinct = source[crossing].unique().numel()
    assert part.halo.numel() == distinct < int(crossing.sum())
    travelled, send = [], dist.all_to_all_single

    def counting(out, rows, *rest, **options):
        travelled.append((out.shape, rows.shape))
        return send(out, rows, *rest, **options)

    dist.all_to_all_single = counting
    try:
        query, key, value = (
            torch.randn(part.nodes.numel(), 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)
        )
        attention(query, key, value, pattern).sum().backward()
        # Key and value that are one tensor travel once.
        attention(query, key, key, pattern)
    finally:
        dist.all_to_all_single = send
    received, sent = (distinct, 16), (part.send.numel(), 16)
    assert travelled == [(received, sent), (sent, received), ((distinct, 8), (part.send.numel(), 8))]


def error_of(function) -> str:
    try:
        function()
    except (ValueError, NotImplementedError, RuntimeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was raised")


@check
def parts_that_do_not_fit_are_refused_on_every_rank(group, size):
    whole, rank = random_graph(), dist.get_rank(group)
    parts = split_graph(whole, uneven(40, size), size)
    part = parts[rank]
    others = split_graph(random_graph(seed=1), uneven(40, size), size)
    twice = part.nodes.clone()
    twice[1:2] = twice[0]
    more = split_graph(whole, uneven(40, size + 1), size + 1)[rank]
    counts = part.send_counts.clone()
    counts[1:2] -= 1
    forgetful = part._replace(send=part.send[1:], send_counts=counts)
    swapped = part._replace(send=part.send.flip(0))
    for wrong, text in (
        (more, f"part must be one of {size}, one for each rank, got one of {size + 1}. Use split_graph"),
        (parts[0], "part on rank 1 must be part 1, got part 0"),
        (others[rank] if rank == 1 else part, "parts must be those of one graph"),
        (part._replace(nodes=twice) if rank == 0 else part, "must hold each node once, got"),
        (part._replace(nodes=part.nodes + 40), "On rank 0: DistributedPattern: part.nodes must lie in [0, 40)"),
        (part._replace(send_counts=part.send_counts + 1), "part.send_counts must be"),
        (forgetful if rank == 0 else part, "from rank 0, where rank 1 expects"),
        (swapped if rank == 0 else part, "must receive the nodes of its halo"),
        (part._replace(edge_index=part.edge_index + 1) if rank == 1 else part, "On rank 1: Edges: edge_index[0] must"),
    ):
        found = error_of(lambda wrong=wrong: DistributedPattern(wrong, group))
        assert found.startswith("ValueError: ") and text in found, f"{text!r} is not in {found!r}"


@check
def what_needs_all_sources_is_refused(group, size):
    whole = random_graph()
    pattern = distribute(whole, uneven(40, size), group)
    x = torch.randn(pattern.num_targets, 8)
    hooked = GraphAttention(8, 8)
    hooked.register_propagate_forward_hook(lambda *_: None)
    watched = GATConv(8, 8)
    watched.register_propagate_forward_hook(lambda *_: None)
    for function in (pattern.mask, pattern.csr, lambda: hooked(x, pattern), lambda: watched(x, pattern)):
        assert "NotImplementedError" in error_of(function)
    position = graphattn.nn.LaplacianPosition(8, 2)
    assert "must have all its sources in this process" in error_of(lambda: position.input(x, pattern))


def rewrite_manifest(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@check
def files_of_parts_are_checked_on_every_rank(group, size):
    whole, rank = random_graph(), dist.get_rank(group)
    folder = Path(sys.argv[1]) / f"parts-{size}"
    x, edge_attr = torch.randn(40, 8, dtype=torch.float64), torch.arange(300.0)
    last = f"part-{size - 1}-of-{size}.safetensors"

    def together(change):
        """Let one rank change the files while the others wait."""
        dist.barrier(group)
        if rank == 0:
            change()
        dist.barrier(group)

    def write(seed: int = 0, parts: int = size) -> None:
        graph = random_graph(seed=seed)
        save_parts(folder, split_graph(graph, uneven(40, parts), parts), {"x": x}, {"edge_attr": edge_attr})

    def swap() -> None:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        rewrite_manifest(folder, files=[files[1], files[0], *files[2:]])

    together(write)
    data = load_part(folder, group)
    part = data.pattern.part
    assert torch.equal(data.edge_attr, edge_attr[part.edges]) and torch.equal(data.n_id, part.nodes)
    assert_same_call(whole, data.pattern, random_call(whole))

    def corrupt() -> None:
        content = bytearray((folder / last).read_bytes())
        content[-1] ^= 1
        (folder / last).write_bytes(content)

    for change, text in (
        (corrupt, f"ValueError: On rank {size - 1}: read_part: "),
        (lambda: (write(), (folder / last).write_bytes(b"short")), "must have the checksum of the manifest"),
        (lambda: (folder / last).unlink(), f"FileNotFoundError: On rank {size - 1}: read_part: part must exist"),
        (
            lambda: write(parts=size + 1),
            f"load_part: number of ranks must be that of parts, {size + 1}, got {size}. Use",
        ),
        (lambda: (write(), swap()), "must be of the manifest's rank, 0, got 1"),
        (lambda: (write(), rewrite_manifest(folder, graph="0" * 32)), "must be of the manifest's graph, 0000"),
        (lambda: (folder / "manifest.json").write_text("{}"), "must be a manifest of graphattn-parts-1"),
        (lambda: (folder / "manifest.json").unlink(), "manifest must exist, got nothing at"),
    ):
        together(change)
        found = error_of(lambda: load_part(folder, group))
        assert text in found, f"{text!r} is not in {found!r}"


@check
def a_rank_that_stalls_is_named_by_the_others(group, size):
    pattern = distribute(random_graph(), uneven(40, size), group)
    short = dist.new_group(timeout=datetime.timedelta(seconds=SHORT))
    pattern.group = short
    rows = torch.randn(pattern.num_targets, 2, 4, dtype=torch.float64)
    if dist.get_rank() == 1:
        time.sleep(2 * SHORT)
    begin = time.monotonic()
    found = error_of(lambda: attention(rows, rows, rows, pattern))
    assert time.monotonic() - begin < TIMEOUT / 2
    assert "RuntimeError: exchange: communication on rank" in found and "Has a rank stopped" in found, found


@check
def a_rank_that_dies_is_noticed_by_the_others(group, size):
    pattern = distribute(random_graph(), uneven(40, size), group)
    rows = torch.randn(pattern.num_targets, 2, 4, dtype=torch.float64)
    if dist.get_rank() == 1:
        return
    begin = time.monotonic()
    found = error_of(lambda: attention(rows, rows, rows, pattern))
    assert time.monotonic() - begin < TIMEOUT / 2
    assert "RuntimeError: exchange: communication on rank" in found, found


def run_rank(rank: int, size: int, folder: Path) -> None:
    """Run all checks as one rank; the last ends the process of rank 1."""
    timeout = datetime.timedelta(seconds=TIMEOUT)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store-{size}", rank=rank, world_size=size, timeout=timeout
    )
    raised: dict[str, str | None] = {}
    for name, function in CHECKS.items():
        group = dist.new_group(timeout=timeout)
        begin = time.monotonic()
        try:
            function(group, size)
            raised[name] = None
        except Exception:
            raised[name] = traceback.format_exc()
        print(f"{size} ranks, rank {rank}: {name} {time.monotonic() - begin:.2f} s", flush=True)
    (folder / f"{size}-{rank}.json").write_text(json.dumps(raised))


def forked(function, *arguments) -> int:
    """The number of a new process that runs ``function`` and ends."""
    child = os.fork()
    if child == 0:
        # The first use after a fork replaces torch's pool of threads: here, before two threads do so and one aborts.
        torch.set_num_threads(1)
        function(*arguments)
        os._exit(0)
    return child


def compile_backward(pattern) -> None:
    """Compile the kernels of a backward pass, to the disk."""
    attention(**random_call(pattern), pattern=pattern).sum().backward()


def main() -> None:
    """Fork the ranks of each world size, one after another."""
    folder, *sizes = sys.argv[1:]
    # Neither a pool of torch's threads nor autograd's would survive the fork: no backward here. What all ranks load or
    # compile is loaded before, and compiled for the backward by a child.
    torch.set_num_threads(1)
    whole, layer = random_graph(), GraphAttention(8, 8).double()
    with torch.no_grad():
        torch.compile(layer, backend="aot_eager")(torch.zeros(40, 8, dtype=torch.float64), whole)
    torch._dynamo.reset()
    os.waitpid(forked(compile_backward, whole), 0)
    for size in map(int, sizes):
        for child in [forked(run_rank, rank, size, Path(folder)) for rank in range(size)]:
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()

"""Targets of the GPU kernels, line by line, against PyG, compiled PyG, FlexAttention and SDPA.

    make gpu

Writes results/gpu/results.json and results.md after each case, within a time limit: a case that fails or exceeds its
share gets a line that says so, and the next one runs.
"""

from __future__ import annotations

import argparse
import copy
import functools
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import harness
import torch
from harness import RESULTS, Line, in_ms, ratio, versions
from systems import with_backward, without_gradients
from torch import Tensor
from torch.nn.functional import elu, leaky_relu, scaled_dot_product_attention
from torch_geometric.nn import GATConv, GATv2Conv, GENConv, ResGatedGraphConv, TransformerConv
from torch_geometric.utils import scatter, softmax

from graphattn import Additive, Edges, Full, Grid, Pattern, Window, accelerate, attention, explain_backend
from graphattn.memory import format_bytes, peak_memory

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
BOTH, TITLE = "forward + backward", "The GPU's kernels"
# Nodes, directed edges and the highest degree of public graphs: https://ogb.stanford.edu, and PyG's Reddit.
TWINS = {
    "ogbn-arxiv": (169_343, 2_315_598, 13_000),
    "Reddit": (232_965, 114_615_892, 21_000),
    "ogbn-products": (2_449_029, 123_718_280, 17_000),
}


@dataclass
class Setting:
    """The device. `scale` divides all sizes: a test runs tiny ones."""

    device: str = "cuda"
    backend: str = "triton"
    scale: int = 1
    about: dict[str, object] = field(default_factory=dict)

    def nodes(self, count: int) -> int:
        """A number of nodes, or of edges."""
        return max(count // self.scale, 32)

    def draw(self, *shape: int, dtype: torch.dtype = F32) -> Tensor:
        """A tensor that requires a gradient."""
        return torch.randn(shape, device=self.device, dtype=dtype).requires_grad_()

    def ours(self, *inputs: Tensor, **options: object) -> Tensor:
        """Our kernel."""
        return attention(*inputs, backend=self.backend, **options)

    def race(self, systems: dict[str, Callable[[], object]], seconds: float = 0.5) -> dict[str, list[float]]:
        """Time them in turns, waiting for each run, so that launch times are included."""
        wait = torch.cuda.synchronize if self.device == "cuda" else lambda: None

        def waited(system: Callable[[], object]) -> Callable[[], None]:
            # Some systems compile at the first run, and again at the second; both are before the timing.
            for _ in range(2):
                system()
            return lambda: (system(), wait())[1]

        return harness.race({name: waited(system) for name, system in systems.items()}, seconds, 7)


@dataclass
class Case:
    """Lines with their targets, and the function that measures all of them."""

    lines: list[Line]
    measure: Callable[[list[Line]], None]
    seconds: float = 25


def asked(
    work: str, against: str, at_least: float, aim: float | None = None, unit: str = "x", most: bool = False
) -> Line:
    """A line that isn't measured yet."""
    return Line(work, against, unit, at_least, aim, None, "", more_is_better=not most)


def uniform(setting: Setting, nodes: int, degree: int) -> Tensor:
    """Every target has `degree` sources, drawn uniformly."""
    target = torch.arange(nodes, device=setting.device).repeat_interleave(degree)
    return torch.stack([torch.randint(nodes, target.shape, device=setting.device), target])


def power_law(setting: Setting, nodes: int, edges: int, hub: int) -> Tensor:
    """Both ends by a power law whose first node has about `hub` edges each way, sorted by target."""
    rank = torch.arange(1, nodes + 1, dtype=torch.float64, device=setting.device)
    low, high = 0.0, 3.0
    for _ in range(40):
        exponent = (low + high) / 2
        low, high = (low, exponent) if edges / float((rank**-exponent).sum()) > hub else (exponent, high)
    mass = (rank**-low).cumsum(0)
    ends = []
    for _ in range(2):
        # Nodes of high degree are anywhere, and sources of high degree aren't targets of high degree.
        place = torch.randperm(nodes, device=setting.device)
        drawn = torch.rand(edges, dtype=torch.float64, device=setting.device) * mass[-1]
        ends.append(place[torch.searchsorted(mass, drawn).clamp(max=nodes - 1)])
    ends[1], order = ends[1].sort(stable=True)
    return torch.stack([ends[0][order], ends[1]])


def messages(kind: str) -> Callable[..., Tensor]:
    """PyG's formulation: gather, score, softmax, scatter."""

    def run(query: Tensor, key: Tensor, value: Tensor, edge_index: Tensor, more: Tensor | None = None) -> Tensor:
        source, target = edge_index
        q, k, x = query[target], key[source], value[source]
        if kind == "dot":
            k, x = (k, x) if more is None else (k + more, x + more)
            score = (q * k).sum(-1) * query.size(-1) ** -0.5
        else:
            score = (leaky_relu(q + k, 0.2) * more).sum(-1)
        weight = softmax(score, target, num_nodes=query.size(0))
        return scatter(x * weight.unsqueeze(-1), target, dim=0, dim_size=query.size(0))

    return run


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function under torch.compile, for static shapes."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def compare(setting: Setting, systems: dict[str, Callable], inputs: list[Tensor], what: str) -> dict[str, list[float]]:
    """Check that all compute the same, and time them."""
    wrap = without_gradients if what == "forward" else lambda system: with_backward(system, inputs)
    *_, ours = results = [without_gradients(system)().float() for system in systems.values()]
    for result in results:
        torch.testing.assert_close(ours, result, rtol=2e-2, atol=2e-2)
    return setting.race({name: wrap(system) for name, system in systems.items()})


def roofs(setting: Setting, lines: list[Line]) -> None:
    """Measure the machine: copies in memory and in the cache. These lines have no target."""
    for name, count in (("copy", 2**28), ("L2 copy", 2**21)):
        source = torch.ones(setting.nodes(count), device=setting.device)
        target = torch.empty_like(source)
        # Many copies, so that a launch counts for little.
        taken = setting.race({name: lambda t=target, s=source: [t.copy_(s) for _ in range(50)]})
        setting.about[f"{name} GB/s"] = round(2 * 50 * source.nbytes / statistics.median(taken[name]) / 1e9, 1)
    for line in lines:
        line.measured = float(setting.about["copy GB/s"])
        line.detail = f"L2 {setting.about['L2 copy GB/s']} GB/s"


def of_the_roof(setting: Setting, pattern: Edges, dtype: torch.dtype, line: Line) -> dict[str, list[float]]:
    """Forward against a kernel that only gathers the same rows; its bandwidth is recorded with the machine."""
    from gather_gpu import gathers

    inputs = [setting.draw(pattern.num_targets, 4, 32, dtype=dtype) for _ in range(3)]
    run = lambda: setting.ours(*inputs, pattern)
    loops = gathers(inputs[1], inputs[2], pattern)
    taken = setting.race({**loops, "forward": without_gradients(run), "both": with_backward(run, inputs)})
    best = min(loops, key=lambda name: statistics.median(taken[name]))
    moved = 2 * pattern.num_edges * 128 * dtype.itemsize / statistics.median(taken[best]) / 1e9
    line.measured = 100 * ratio(taken, best, "forward")
    line.detail = f"{best} {in_ms(taken[best])} ({moved:,.0f} GB/s), graphattn {in_ms(taken['forward'])}"
    setting.about["row gather GB/s"] = max(round(moved, 1), setting.about.get("row gather GB/s", 0))
    return taken


def degrees(setting: Setting, lines: list[Line], degree: int) -> None:
    """Both dtypes: fractions of the bound, backward over forward, bfloat16 over float32."""
    pattern = Edges(uniform(setting, setting.nodes(2**18), degree), setting.nodes(2**18))
    *shares, backward, halves = lines
    full, half = (of_the_roof(setting, pattern, t, line) for t, line in zip((F32, BF16), shares, strict=True))
    backward.measured = statistics.median((b - f) / f for f, b in zip(full["forward"], full["both"], strict=True))
    backward.detail = f"forward {in_ms(full['forward'])}, with backward {in_ms(full['both'])}"
    halves.measured = statistics.median(full["forward"]) / statistics.median(half["forward"])
    halves.detail = f"float32 {in_ms(full['forward'])}, bfloat16 {in_ms(half['forward'])}"


def skew(setting: Setting, lines: list[Line]) -> None:
    """A power law with a hub against a uniform graph of the same size, forward and with backward."""
    nodes, degree = setting.nodes(2**18), 16
    edges = {
        "uniform": uniform(setting, nodes, degree),
        "power law": power_law(setting, nodes, degree * nodes, setting.nodes(100_000)),
    }
    patterns = {name: Edges(x, nodes) for name, x in edges.items()}
    inputs = [setting.draw(nodes, 4, 32) for _ in range(3)]
    hub = int(edges["power law"][1].bincount().max())
    for line, what in zip(lines, ("forward", BOTH), strict=True):
        wrap = without_gradients if what == "forward" else lambda system: with_backward(system, inputs)
        taken = setting.race({name: wrap(lambda p=p: setting.ours(*inputs, p)) for name, p in patterns.items()})
        line.measured = ratio(taken, "power law", "uniform")
        line.detail = f"hub of {hub:,} edges, " + ", ".join(f"{name} {in_ms(taken[name])}" for name in patterns)


def against_pyg(setting: Setting, lines: list[Line], kind: str) -> None:
    """Forward and backward against PyG's formulation, eager and compiled."""
    nodes, heads, width = setting.nodes(2**17), 4, 32
    edge_index = uniform(setting, nodes, 16)
    pattern, wide = Edges(edge_index, nodes), 1 if kind == "GAT" else width
    query, key, value = (setting.draw(nodes, heads, n) for n in (wide, wide, width))
    inputs, rest = [query, key, value], [edge_index]
    options: dict[str, object] = {}
    if kind != "dot":
        vector = setting.draw(heads, wide)
        # GAT's own vectors have been applied to the nodes; GATv2 has key and value in one.
        inputs, rest = [query, key, value] if kind == "GAT" else [query, key, vector], [edge_index, vector]
        value = value if kind == "GAT" else key
        options["score"] = Additive(vector, "leaky_relu", 0.2)
    theirs = messages("dot" if kind == "dot" else "additive")
    systems = {
        "PyG": lambda: theirs(query, key, value, *rest),
        "compiled": functools.partial(compiled(theirs), query, key, value, *rest),
        "graphattn": lambda: setting.ours(query, key, value, pattern, **options),
    }
    taken = compare(setting, systems, inputs, BOTH)
    for line, slow in zip(lines, ("PyG", "compiled"), strict=True):
        line.measured = ratio(taken, slow, "graphattn")
        line.detail = ", ".join(f"{name} {in_ms(taken[name])}" for name in systems)


def edge_features(setting: Setting, lines: list[Line]) -> None:
    """Features of edges in key and value, as in weather models, in float16."""
    nodes, heads, width = setting.nodes(2**15), 16, 64
    edge_index = uniform(setting, nodes, 8)
    pattern = Edges(edge_index, nodes)
    inputs = [setting.draw(nodes, heads, width, dtype=F16) for _ in range(3)]
    more = setting.draw(edge_index.size(1), heads, width, dtype=F16)
    theirs = compiled(messages("dot"))
    systems = {
        "compiled": lambda: theirs(*inputs, edge_index, more),
        "graphattn": lambda: setting.ours(*inputs, pattern, edge_key=more, edge_value=more),
    }
    taken = compare(setting, systems, [*inputs, more], BOTH)
    lines[0].measured = ratio(taken, "compiled", "graphattn")
    lines[0].detail = ", ".join(f"{name} {in_ms(taken[name])}" for name in systems)


class Network(torch.nn.Module):
    """Attention layers of PyG with ELU between them."""

    def __init__(self, layers: list[torch.nn.Module]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Rows of the last layer."""
        for layer in self.layers:
            x = elu(layer(x, edge_index))
        return x


def layers(setting: Setting, lines: list[Line], size: tuple[int, int], kind: str) -> None:
    """A step of two of PyG's layers, before and after accelerate, and their peak memory."""
    nodes, edges = map(setting.nodes, size)
    edge_index = torch.randint(nodes, (2, edges), device=setting.device)
    x = torch.randn(nodes, 64, device=setting.device)
    build = {
        "GAT": lambda: GATConv(64, 8, heads=8),
        "GATv2": lambda: GATv2Conv(64, 8, heads=8),
        "TransformerConv": lambda: TransformerConv(64, 16, heads=4),
        "GENConv": lambda: GENConv(64, 64, norm="layer"),
        "ResGatedGraphConv": lambda: ResGatedGraphConv(64, 64),
    }[kind]
    theirs = Network([build(), build()]).to(setting.device)
    ours = copy.deepcopy(theirs)
    accelerate(ours)
    step = lambda model: lambda: model(x, edge_index).square().mean().backward()
    torch.testing.assert_close(ours(x, edge_index), theirs(x, edge_index), rtol=1e-3, atol=1e-3)
    taken = setting.race({"PyG": step(theirs), "graphattn": step(ours)})
    lines[0].measured = ratio(taken, "PyG", "graphattn")
    lines[0].detail = ", ".join(f"{name} {in_ms(taken[name])}" for name in taken)
    if len(lines) > 1:
        before, after = (peak_memory(step(model), setting.device) or 1 for model in (theirs, ours))
        lines[1].measured = after / before
        lines[1].detail = f"PyG {format_bytes(before)}, graphattn {format_bytes(after)}"


def memory(setting: Setting, lines: list[Line]) -> None:
    """The peak allocation of a forward call, in addition to its output and lse."""
    nodes = setting.nodes(2**18)
    pattern = Edges(uniform(setting, nodes, 16), nodes)
    inputs = [setting.draw(nodes, 4, 32) for _ in range(3)]
    run = without_gradients(lambda: setting.ours(*inputs, pattern, return_lse=True))
    out, lse = run()
    size, peak = out.nbytes + lse.nbytes, peak_memory(run, setting.device) or 0
    lines[0].measured, lines[0].detail = peak / size, f"{format_bytes(peak)} of {format_bytes(size)}"


def tiled(setting: Setting, lines: list[Line], pattern: Pattern) -> None:
    """Useful TFLOP/s of "auto", and its speed against FlexAttention, or SDPA for a full pattern."""
    inputs = [setting.draw(pattern.num_targets, 8, 64, dtype=BF16).detach() for _ in range(3)]
    heads_first = lambda x: x.transpose(0, 1).unsqueeze(0)
    peer = lambda: attention(*inputs, pattern, backend="flex")
    if isinstance(pattern, Full):
        peer = lambda: scaled_dot_product_attention(*map(heads_first, inputs))[0].transpose(0, 1)
    taken = compare(setting, {"peer": peer, "graphattn": lambda: attention(*inputs, pattern)}, inputs, "forward")
    flop = 4 * pattern.num_edges * 8 * 64
    chosen = explain_backend(*inputs, pattern).chosen
    for line in lines:
        rate = flop / statistics.median(taken["graphattn"]) / 1e12
        line.measured = rate if line.unit == "TFLOP/s" else ratio(taken, "peer", "graphattn")
        line.detail = f"peer {in_ms(taken['peer'])}, {chosen} {in_ms(taken['graphattn'])}, {rate:.3g} useful TFLOP/s"


def twin(setting: Setting, lines: list[Line], name: str) -> None:
    """A power-law graph with the size, mean degree and highest degree of a public one."""
    nodes, edges, hub = map(setting.nodes, TWINS[name])
    pattern = Edges(power_law(setting, nodes, edges, hub), nodes)
    for dtype in (F32, BF16):
        share, *limits = (line for line in lines if line.work.endswith(str(dtype).removeprefix("torch.")))
        taken = of_the_roof(setting, pattern, dtype, share)
        for limit in limits:
            limit.measured = 1e3 * statistics.median(taken["forward"])
            limit.detail = f"with backward {in_ms(taken['both'])}"


def cases(setting: Setting) -> list[Case]:
    """Every target."""
    pyg, gather = "PyG's formulation", "a kernel that only gathers the rows"
    on = lambda function, *rest: lambda lines: function(setting, lines, *rest)
    found = [Case([asked("copy of 1 GiB", "no target", 0, unit="GB/s")], on(roofs))]
    for degree in (16, 4, 8, 32):
        name, wanted = f"{2**18:,} nodes, degree {degree}, H4 D32", (70, 85) if degree >= 16 else (50, None)
        lines = [asked(f"{name}: forward, {dtype}", gather, *wanted, unit="%") for dtype in ("float32", "bfloat16")]
        lines.append(asked(f"{name}: backward, float32", "forward", 2.3, most=True))
        lines.append(asked(f"{name}: forward in bfloat16", "float32", 1.7))
        found.append(Case(lines, on(degrees, degree)))
    for kind in ("dot", "GAT", "GATv2"):
        name = f"{2**17:,} nodes, degree 16, H4 D32, {kind}: {BOTH}, float32"
        lines = [asked(name, f"{pyg}, eager", 8), asked(name, f"{pyg} under torch.compile", 2)]
        found.append(Case(lines, on(against_pyg, kind), 40))
    for kind in ("GAT", "GATv2", "TransformerConv", "GENConv", "ResGatedGraphConv"):
        large = f"{kind}, 2 layers, 100k nodes, 1M edges, 64 wide: a step, float32"
        found.append(
            Case(
                [asked(large, "PyG's layers", 4), asked(f"{large}: peak memory", "PyG's layers", 0.25, most=True)],
                on(layers, (100_000, 1_000_000), kind),
            )
        )
        small = f"{kind}, 2 layers, 2,708 nodes, 10,556 edges, 64 wide: a step, float32"
        found.append(Case([asked(small, "PyG's layers", 1)], on(layers, (2708, 10_556), kind)))
    name = f"{2**18:,} nodes, degree 16, H4 D32, power law: "
    found.append(
        Case([asked(name + what, "the uniform twin", 1.25, most=True) for what in ("forward", BOTH)], on(skew))
    )
    name = f"{2**15:,} nodes, degree 8, H16 D64, features of edges: {BOTH}, float16"
    found.append(Case([asked(name, f"{pyg} under torch.compile", 2.2)], on(edge_features), 40))
    name = f"{2**18:,} nodes, degree 16, H4 D32: forward, peak memory"
    found.append(Case([asked(name, "output + lse", 1.05, most=True)], on(memory)))
    for name, times in (("ogbn-products", (36, 18.5)), ("ogbn-arxiv", (None, None)), ("Reddit", (None, 12))):
        lines = []
        for dtype, most in zip(("float32", "bfloat16"), times, strict=True):
            work = f"twin of {name}, H4 D32: forward, {dtype}"
            lines.append(asked(work, gather, 70, 85, "%"))
            lines += [] if most is None else [asked(work, "the clock", most, unit="ms", most=True)]
        found.append(Case(lines, on(twin, name), 40))
    side, count = (256, 65_536) if setting.scale == 1 else (16, 256)
    for pattern, rate in ((Window(count, 64), 100), (Grid((side, side), 3), 25)):
        name = f"{type(pattern).__name__} of {count:,}, radius {64 if rate == 100 else 3}, H8 D64: forward, bfloat16"
        lines = [asked(name, "useful pairs", rate, unit="TFLOP/s"), asked(name, "FlexAttention", 0.9)]
        found.append(Case(lines, on(tiled, pattern.to(setting.device)), 40))
    full = Full(setting.nodes(8192)).to(setting.device)
    found.append(Case([asked("Full of 8,192, H8 D64: forward, bfloat16", "SDPA", 0.97, 1)], on(tiled, full), 40))
    return found


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError if the block runs longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(found: list[Case], setting: Setting, seconds: float, folder: Path) -> list[Line]:
    """Measure one case after another, and write the results after each."""
    begin, lines = time.perf_counter(), [line for case in found for line in case.lines]
    for case in found:
        start = time.perf_counter()
        left = seconds - (start - begin)
        try:
            if left < 1:
                raise TimeoutError("no time was left")
            with at_most(min(case.seconds, left)):
                case.measure(case.lines)
        # A kernel that doesn't compile, a CUDA error, too little memory: all are results.
        except Exception as error:
            reason = str(error).strip().partition("\n")[0].replace("|", "/")[:200]
            for line in case.lines:
                line.detail += f"{', then ' if line.detail else ''}failed: {type(error).__name__}: {reason}"
        took = time.perf_counter() - start
        print(f"{took:5.1f} s  {case.lines[0].work}: {case.lines[0].reached()} {case.lines[0].detail}", flush=True)
        harness.write("results", TITLE, setting.about, lines, {"seconds": seconds}, folder)
        with suppress(RuntimeError):
            torch.cuda.empty_cache()
    return lines


def main(arguments: list[str] | None = None) -> list[Line]:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=240, help="of all cases together")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="triton", help="the kernel for edges")
    parser.add_argument("--scale", type=int, default=1, help="divides all sizes")
    options = parser.parse_args(arguments)
    setting = Setting(options.device, options.backend, options.scale)
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else "none"
    setting.about |= {"gpu": gpu, "cuda": torch.version.cuda, **versions()}
    if options.scale > 1:
        setting.about["sizes divided by"] = options.scale
    torch.manual_seed(0)
    lines = run(cases(setting), setting, options.seconds, options.output)
    # The old result says that nothing was measured.
    (options.output / "README.md").unlink(missing_ok=True)
    print((options.output / "results.md").read_text())
    return lines


if __name__ == "__main__":
    main()

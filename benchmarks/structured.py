"""Sequences and pixels: targets of tiles, line by line, and whether "auto" chooses the faster kernel.

    make bench
    python benchmarks/structured.py --choice

The second command measures the choice alone: with the constants of the package, and after `graphattn.calibrate`.

Useful FLOP count only pairs of the pattern: 2 D + 2 V per pair and head forward, 3.5 times that with backward. Writes
results/structured.json, .md and .png; takes about three minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from unittest.mock import patch

import matplotlib
import matplotlib.pyplot as plt
import torch
from gather import machine_and_gather
from harness import RESULTS, Line, in_ms, race, ratio, write
from systems import pyg_attention, with_backward, without_gradients
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch_geometric.utils import to_dense_batch

from graphattn import Full, Grid, Pattern, Window, attention, calibrate, explain_backend
from graphattn.calibrated import costs_of, forget
from graphattn.call import prepare
from graphattn.costs import CPU, Costs
from graphattn.functional import cheapest
from graphattn.kernels import KERNELS
from graphattn.memory import peak_memory
from graphattn.nn import GraphAttention

COLORS = {"tiles": "tab:blue", "numba": "tab:green"}
# The sweep of the cost model: pattern, heads, width of a head.
SWEEP = [
    *((Window(nodes, radius), heads, width) for nodes in (1024, 8192) for radius in (2, 8, 32, 128)
      for heads, width in ((4, 16), (8, 64))),
    *((Grid((side, side), radius), heads, width) for side in (32, 96) for radius in (1, 3, 7)
      for heads, width in ((4, 16), (4, 64))),
    *((Full(sizes), heads, width) for sizes in ([30] * 64, [300] * 4, 1024) for heads, width in ((4, 16), (8, 64))),
]  # fmt: skip


def draw(pattern: Pattern, heads: int, width: int) -> list[Tensor]:
    """Query, key and value."""
    torch.manual_seed(0)
    return [torch.randn(pattern.num_targets, heads, width, requires_grad=True) for _ in range(3)]


def dense(mask: Tensor | None) -> Callable[..., Tensor]:
    """SDPA with the whole mask."""
    heads_first = lambda x: x.transpose(0, 1).unsqueeze(0)

    def run(*inputs: Tensor) -> Tensor:
        return scaled_dot_product_attention(*map(heads_first, inputs), attn_mask=mask).squeeze(0).transpose(0, 1)

    return run


def useful(pattern: Pattern, heads: int, width: int, seconds: float, what: str) -> str:
    """The rate of computing the pattern's own pairs."""
    flop = 4 * pattern.num_edges * heads * width * (1.0 if what == "forward" else 3.5)
    return f"{flop / seconds / 1e9:.0f} useful GFLOP/s"


def sides_of(systems: dict[str, Callable], inputs: list[Tensor], what: str) -> dict[str, Callable]:
    """The timed systems on these inputs, without or with gradients."""
    calls = {name: lambda f=f: f(*inputs) for name, f in systems.items()}
    wrap = without_gradients if what == "forward" else lambda call: with_backward(call, inputs)
    return {name: wrap(call) for name, call in calls.items()}


def against(
    work: str,
    peer: str,
    theirs: Callable,
    pattern: Pattern,
    size: tuple[int, int],
    wanted: dict[str, tuple[float, float]],
    backend: str = "auto",
) -> list[Line]:
    """Our speed relative to a peer, forward and with backward, and our useful rate."""
    inputs = draw(pattern, *size)
    systems = {"peer": theirs, "graphattn": lambda q, k, v: attention(q, k, v, pattern, backend=backend)}
    torch.testing.assert_close(systems["graphattn"](*inputs), theirs(*inputs), rtol=1e-3, atol=1e-4)
    lines = []
    for what, (at_least, aim) in wanted.items():
        taken = race(sides_of(systems, inputs, what), 6, 11)
        rate = useful(pattern, *size, statistics.median(taken["graphattn"]), what)
        chosen = explain_backend(*inputs, pattern, backend=backend).chosen
        detail = f"peer {in_ms(taken['peer'])}, {chosen} {in_ms(taken['graphattn'])}, {rate}"
        times = ratio(taken, "peer", "graphattn")
        lines.append(Line(f"{work}: {what}", peer, "x", at_least, aim, times, detail))
    return lines


def growth() -> Line:
    """A sequence of four times the length should take four times as long."""
    systems = {}
    for nodes in (16_384, 65_536):
        pattern = Window(nodes, 64)
        inputs = draw(pattern, 8, 64)
        systems[f"{nodes:,}"] = without_gradients(lambda i=inputs, p=pattern: attention(*i, p))
    taken = race(systems, 8, 9)
    detail = ", ".join(f"{name}: {in_ms(seconds)}" for name, seconds in taken.items())
    detail += f", {useful(pattern, 8, 64, statistics.median(taken['65,536']), 'forward')}"
    times = ratio(taken, "65,536", "16,384")
    work, peer = "Window of 65,536, radius 64, H8 D64: forward", "a sequence of 16,384"
    return Line(work, peer, "x", 4.2, 4.0, times, detail, more_is_better=False)


def million() -> Line:
    """A million positions, forward and backward, in memory: inputs, and the peak allocation of the step."""
    pattern = Window(1_000_000, 32)
    inputs = draw(pattern, 2, 32)
    step = with_backward(lambda: attention(*inputs, pattern), inputs)
    peak = (peak_memory(step) or 0) + 5 * inputs[0].nbytes
    taken = race({"step": step}, 0, 3)
    detail = f"{in_ms(taken['step'])}, {useful(pattern, 2, 32, statistics.median(taken['step']), 'both')}"
    work = "Window of 1,000,000, radius 32, H2 D32: forward + backward"
    return Line(work, "peak of tensors", "GiB", 20, None, peak / 2**30, detail, more_is_better=False)


def small_graphs() -> list[Line]:
    """As in GPSConv: pad to a dense batch, attend with a mask, and unpad. Projections are included."""
    graphs, nodes, channels, heads = 64, 30, 64, 4
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(channels, heads, batch_first=True)
    mine = GraphAttention.from_multihead_attention(theirs)
    x = torch.randn(graphs * nodes, channels, requires_grad=True)
    batch = torch.arange(graphs).repeat_interleave(nodes)
    pattern = Full.from_batch(batch)

    def padded() -> Tensor:
        h, mask = to_dense_batch(x, batch)
        return theirs(h, h, h, key_padding_mask=~mask, need_weights=False)[0][mask]

    torch.testing.assert_close(mine(x, pattern), padded(), rtol=1e-4, atol=1e-5)
    lines = []
    for what in ("forward", "forward + backward"):
        wrap = without_gradients if what == "forward" else lambda call: with_backward(call, [x, *mine.parameters()])
        other = without_gradients if what == "forward" else lambda call: with_backward(call, [x, *theirs.parameters()])
        taken = race({"padded": other(padded), "graphattn": wrap(lambda: mine(x, pattern))}, 6, 15)
        work = f"64 graphs of 30 nodes, full inside each, with projections: {what}"
        rate = useful(pattern, heads, channels // heads, statistics.median(taken["graphattn"]), what)
        detail = f"padded {in_ms(taken['padded'])}, graphattn {in_ms(taken['graphattn'])}, attention alone {rate}"
        peer = "to_dense_batch + MultiheadAttention"
        wanted = (2.2, 3) if what == "forward" else (1.6, 2)
        lines.append(Line(work, peer, "x", *wanted, ratio(taken, "padded", "graphattn"), detail))
    return lines


def calibrated() -> dict[str, Costs]:
    """The costs of this machine, measured now, into a file of this process alone; none if it is too busy for that."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, GRAPHATTN_CALIBRATION=f"{folder}/file.json"):
        try:
            calibrate()
        except RuntimeError as busy:
            print(busy)
            return {}
        costs = costs_of(torch.device("cpu"))
    forget()
    return {"calibrated": costs}


def sweep() -> tuple[list[Line], list[dict]]:
    """Both kernels over radius, width and size, and how much slower than the faster one "auto" is."""
    found: list[dict] = []
    known = {"the package's constants": CPU, **calibrated()}
    for pattern, heads, width in SWEEP:
        inputs = draw(pattern, heads, width)
        for what in ("forward", "forward + backward"):
            systems = {name: lambda q, k, v, p=pattern, b=name: attention(q, k, v, p, backend=b) for name in COLORS}
            taken = race(sides_of(systems, inputs, what), 0.5, 5)
            given = inputs if what != "forward" else [x.detach() for x in inputs]
            call = prepare("sweep", *given, pattern)
            seconds = {name: statistics.median(times) for name, times in taken.items()}
            estimates = {kernel.name: kernel.cost(call, CPU) for kernel in KERNELS if kernel.name in COLORS}
            chosen = {name: cheapest(call, costs).name for name, costs in known.items()}
            found.append(
                {
                    "pattern": repr(pattern) if len(repr(pattern)) < 40 else f"{type(pattern).__name__}([...])",
                    "heads": heads,
                    "width": width,
                    "what": what,
                    "pairs": pattern.num_edges,
                    "seconds": seconds,
                    "estimates": estimates,
                    "off": {name: seconds[kernel] / min(seconds.values()) for name, kernel in chosen.items()},
                }
            )
    lines = []
    for name in known:
        worst = max(found, key=lambda case: case["off"][name])
        over = sum(case["off"][name] > 1.15 for case in found)
        detail = f"worst: {worst['pattern']}, H{worst['heads']} D{worst['width']}, {worst['what']}; {over} above 1.15x"
        work = f"backend='auto' over {len(found)} windows, grids and full patterns, {name}"
        off = worst["off"][name]
        lines.append(Line(work, "the faster of tiles and numba", "x", 1.15, 1.1, off, detail, more_is_better=False))
    return lines, found


def picture(found: list[dict]) -> None:
    """Estimated against measured seconds of both kernels, and how much each choice costs."""
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    for name, color in COLORS.items():
        points = [(case["seconds"][name], case["estimates"][name]) for case in found]
        panels[0].loglog(*zip(*points, strict=True), "o", color=color, markersize=4, alpha=0.8, label=name)
    ends = [min(min(case["seconds"].values()) for case in found), max(max(case["seconds"].values()) for case in found)]
    panels[0].loglog(ends, ends, "-", color="gray", linewidth=1, zorder=0)
    panels[0].set(xlabel="measured, seconds", ylabel="estimated, seconds", title="the cost model")
    panels[0].legend(frameon=False)
    for case in found:
        faster = min(case["seconds"], key=case["seconds"].get)
        gain = case["seconds"]["numba"] / case["seconds"]["tiles"]
        guess = case["estimates"]["numba"] / case["estimates"]["tiles"]
        panels[1].loglog(gain, guess, "o" if (guess > 1) == (gain > 1) else "x", color=COLORS[faster], markersize=5)
    panels[1].axhline(1, color="gray", linewidth=1, zorder=0)
    panels[1].axvspan(1 / 1.3, 1.3, color="0.93", zorder=0)
    panels[1].set(
        xlabel="measured time of numba / time of tiles",
        ylabel="estimated ratio",
        title='the choice of "auto"; a cross is wrong,\nin the gray band by less than a factor of 1.3',
    )
    # In the logarithmic style, labels of neighboring ticks would touch.
    for set_ticks in (panels[1].set_xticks, panels[1].set_yticks):
        set_ticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
    panels[1].minorticks_off()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "structured.png", dpi=150)
    plt.close(figure)


def main() -> None:
    """Measure everything, or the choice alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choice", action="store_true", help="print how far the choice is off, and write nothing")
    if parser.parse_args().choice:
        for line in sweep()[0]:
            print(line.row())
        return
    matplotlib.use("Agg")
    about = machine_and_gather()
    matrix = torch.randn(2048, 2048)
    product = race({"product": lambda: matrix @ matrix}, 2)
    about["matrix product GFLOP/s"] = round(2 * 2048**3 / statistics.median(product["product"]) / 1e9)

    both = "forward + backward"
    window, grid, full = Window(4096, 64), Grid((64, 64), 3), Full(2048)
    named = "Window of 4,096, radius 64, H8 D64"
    masked = "SDPA with the dense mask"
    lines = against(named, masked, dense(window.mask()), window, (8, 64), {"forward": (12, 25), both: (9, 20)})
    rows = lambda q, k, v: attention(q, k, v, window, backend="numba")
    lines += against(named, "our CSR kernel", rows, window, (8, 64), {"forward": (4, 10)}, backend="tiles")
    lines += [growth(), million()]
    named = "Grid of 64 x 64, 7 x 7, H4 D32"
    lines += against(named, masked, dense(grid.mask()), grid, (4, 32), {both: (8, 20)})
    by_messages = lambda q, k, v: pyg_attention(q, k, v, grid.edge_index)
    lines += against(named, "PyG TransformerConv's message path", by_messages, grid, (4, 32), {both: (10, 30)})
    lines += against(
        "Full of 2,048, H8 D64", "SDPA", dense(None), full, (8, 64), {"forward": (0.97, 1), both: (0.97, 1)}
    )
    lines += small_graphs()
    choice, found = sweep()
    print(write("structured", "Sequences and pixels", about, [*lines, *choice], {"sweep": found}))
    picture(found)


if __name__ == "__main__":
    main()

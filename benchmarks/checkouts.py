"""Compare the times of this checkout and another one, in separate processes that take turns.

    python benchmarks/checkouts.py ../other-checkout [--only power] [--rounds 15]

Prints, per case, the median over rounds of this checkout's time divided by the other's, and at the end the most memory
that each process had. Both processes run the cases below through the public interface, so that a checkout may be as old
as the interface is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Each round runs for this many seconds, after some that aren't counted.
WARM, COUNTED = 0.02, 0.1
MEMORY = "memory"


def cases() -> dict[str, Callable[[], Callable[[], object]]]:
    """The cases by name: each function draws the inputs and returns the run."""
    import torch
    from systems import power_law_edges, random_edges, with_backward, without_gradients

    from graphattn import Additive, Edges, Full, Grid, Window, attention

    def edges(nodes: int, count: int, is_skewed: bool = False) -> Edges:
        index = power_law_edges(nodes, count, 50_000) if is_skewed else random_edges(nodes, count)
        return Edges(index, nodes)

    def call(make: Callable, heads: int, width: int, is_backward: bool, kind: str = "") -> Callable[[], object]:
        torch.manual_seed(0)
        pattern = make()
        dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
        draw = lambda *shape: torch.randn(*shape, dtype=dtype, requires_grad=is_backward)
        rows = (pattern.num_targets, pattern.num_sources, pattern.num_sources)
        inputs = [draw(count, heads, width) for count in rows]
        options = {}
        if kind == "leaky_relu":
            vector = draw(heads, width)
            inputs.append(vector)
            options["score"] = Additive(vector, "leaky_relu")
        if kind == "edge features":
            for name in ("edge_key", "edge_value"):
                options[name] = draw(pattern.num_edges, heads, width)
                inputs.append(options[name])
        if kind == "dropout":
            options["dropout_p"] = 0.5
        run = lambda: attention(*inputs[:3], pattern, **options)
        return with_backward(run, inputs) if is_backward else without_gradients(run)

    small, large = (lambda: edges(20_000, 400_000)), (lambda: edges(100_000, 1_000_000))
    found: dict[str, Callable[[], Callable[[], object]]] = {}
    for name, make, heads, width, kind in (
        ("20k / 400k H4 D32", small, 4, 32, ""),
        ("100k / 1M H4 D32", large, 4, 32, ""),
        ("100k / 1M H8 D8", large, 8, 8, ""),
        ("Cora-sized H8 D8", lambda: edges(2_708, 13_264), 8, 8, ""),
        ("power law 100k / 1M H4 D32", lambda: edges(100_000, 1_000_000, is_skewed=True), 4, 32, ""),
        ("100k / 1M H8 D8, leaky_relu", large, 8, 8, "leaky_relu"),
        ("20k / 400k H4 D32, edge features", small, 4, 32, "edge features"),
        ("20k / 400k H4 D32, dropout", small, 4, 32, "dropout"),
        ("100k / 1M H4 D32, bfloat16", large, 4, 32, "bfloat16"),
        ("window 4,096, radius 64, H8 D64", lambda: Window(4096, radius=64), 8, 64, ""),
        ("grid 128 x 128, radius 3, H4 D32", lambda: Grid((128, 128), radius=3), 4, 32, ""),
        ("64 full graphs of 30, H4 D16", lambda: Full([30] * 64), 4, 16, ""),
        ("10 nodes H4 D16", lambda: edges(10, 30), 4, 16, ""),
    ):
        for is_backward in (False, True):
            label = f"{name}: forward{' + backward' if is_backward else ''}"
            found[label] = lambda make=make, h=heads, d=width, b=is_backward, k=kind: call(make, h, d, b, k)

    def read(nodes: int, count: int, is_sorted: bool) -> Callable[[], object]:
        torch.manual_seed(0)
        index = random_edges(nodes, count)
        index = index[:, index[0].argsort(stable=True)].contiguous() if is_sorted else index

        def run() -> None:
            pattern = Edges(index, nodes)
            pattern.csr(), pattern.csc()

        return run

    for nodes, count in ((30, 60), (2_708, 13_264), (20_000, 400_000)):
        for is_sorted in (False, True):
            label = f"new edges, {nodes:,} / {count:,}{', sorted by source' if is_sorted else ''}"
            found[label] = lambda nodes=nodes, count=count, is_sorted=is_sorted: read(nodes, count, is_sorted)
    return found


def peak_mib() -> float:
    """The most memory that this process has had, in MiB; 0 where the system doesn't say."""
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def serve() -> None:
    """Run the cases named on standard input, and answer with the mean seconds of a run, or the peak of memory."""
    answers, sys.stdout = sys.stdout, sys.stderr
    made, runs = cases(), {}
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        name = line.strip()
        if name == MEMORY:
            print(peak_mib(), file=answers, flush=True)
            continue
        if name not in runs:
            runs.clear()
            runs[name] = made[name]()
        for seconds in (WARM, COUNTED):
            begin, count = time.perf_counter(), 0
            while count == 0 or time.perf_counter() - begin < seconds:
                runs[name]()
                count += 1
            taken = (time.perf_counter() - begin) / count
        print(taken, file=answers, flush=True)


def start(checkout: Path) -> subprocess.Popen[str]:
    """A process that runs a checkout."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), str(HERE)])}
    command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=checkout)


def ask(process: subprocess.Popen[str], name: str) -> float:
    """Seconds of a run, or MiB."""
    assert process.stdin is not None and process.stdout is not None
    print(name, file=process.stdin, flush=True)
    return float(process.stdout.readline())


def main() -> None:
    """Compare the checkouts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("other", nargs="?", type=Path, help="root of the other checkout")
    parser.add_argument("--only", default="", help="only the cases whose name has this in it")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve()
    if arguments.other is None or not (arguments.other / "graphattn").is_dir():
        parser.error(f"other must be the root of a checkout of graphattn, got {arguments.other}")
    names = [name for name in cases() if arguments.only in name]
    this, other = (start(path.resolve()) for path in (HERE.parent, arguments.other))
    for process in (this, other):
        assert process.stdout is not None
        process.stdout.readline()
    print("| case | this / other | this ms | other ms |\n|---|---|---|---|")
    for name in names:
        ask(this, name), ask(other, name)
        pairs = [(ask(this, name), ask(other, name)) for _ in range(arguments.rounds)]
        ratio = statistics.median(a / b for a, b in pairs)
        mine, theirs = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
        print(f"| {name} | {ratio:.3f} | {mine:.3g} | {theirs:.3g} |", flush=True)
    print(f"\nPeak memory of the processes: this {ask(this, MEMORY):,.0f} MiB, other {ask(other, MEMORY):,.0f} MiB.")
    for process in (this, other):
        process.kill()


if __name__ == "__main__":
    main()

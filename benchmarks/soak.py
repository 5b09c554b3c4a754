"""Calls in threads, forks and two training processes for a given time: does memory grow, or a bit change?

    make soak                                  20 minutes
    python benchmarks/soak.py --minutes 1

Every call is one of a fixed set, whose outputs and gradients were stored at the start: each must be bitwise the same,
whatever runs concurrently. Each round also builds a new pattern, runs it twice, and drops it. Two further processes
train with DDP on gloo meanwhile. Writes results/soak.json and results/soak.md; ends with an error if a result differed,
a process failed, or memory grew by more than 64 MiB after the first fifth of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from harness import RESULTS, versions
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from graphattn import Additive, Edges, Full, Grid, Window, attention
from graphattn.nn import GraphAttention
from graphattn.testing import random_call

GROWTH = 64  # MiB


def random_edges(nodes, edges, seed):
    generator = torch.Generator().manual_seed(seed)
    return Edges(torch.randint(0, nodes, (2, edges), generator=generator), nodes)


def fixed_calls():
    """Patterns, tensors and options that cover every CPU kernel, scores, normalizers, widths and dtypes."""
    vector = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    shapes = (
        (random_edges(2000, 30_000, 0), {}, {}),
        (random_edges(2000, 30_000, 1), {"edge_tensors": True}, {"score": Additive(vector, "leaky_relu")}),
        (random_edges(500, 9000, 2), {"heads": 4, "kv_heads": 2}, {"normalizer": "sigmoid", "dropout_p": 0.3}),
        (random_edges(500, 9000, 3), {"dtype": torch.bfloat16}, {}),
        (random_edges(300, 4000, 4), {}, {"normalizer": "entmax15"}),
        (random_edges(300, 4000, 5), {}, {"backend": "scatter"}),
        (Window([800, 30, 500], 16), {"width": 32}, {}),
        (Grid((40, 40), 2), {"batch": (2,), "width": 16}, {}),
        (Full([60, 5, 90]), {"width": 16}, {"normalizer": "relu"}),
    )
    return [
        (pattern, random_call(pattern, **{"width": 8, "dtype": torch.float32, **given}), options)
        for pattern, given, options in shapes
    ]


def run(call, is_alone=True):
    """Output and gradients. Threads share torch's generator, so dropout is repeatable only without concurrency."""
    pattern, tensors, options = call
    options = options if is_alone else {**options, "dropout_p": 0.0}
    torch.manual_seed(0)
    out = attention(**tensors, pattern=pattern, **options)
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), list(tensors.values()))]


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def new_pattern(seed):
    """A pattern of new sizes, twice: another kernel plan, other caches, the same bits."""
    draw = random.Random(seed)
    nodes = draw.randint(1, 3000)
    pattern = draw.choice(
        [random_edges(nodes, draw.randint(0, 20_000), seed), Window([nodes, 7], draw.randint(0, 20)), Full(nodes % 200)]
    )
    call = (pattern, random_call(pattern, width=draw.choice([4, 8, 16]), dtype=torch.float32), {})
    return same(run(call), run(call))


def in_fork(calls, expected):
    """A forked child computes some of the calls on one thread, as a DataLoader's worker would."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os._exit(0 if all(same(run(call), known) for call, known in zip(calls, expected, strict=True)) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def train(rank, deadline, folder):
    """One of two processes that train the same layer, each on its own graph, until the deadline."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = DistributedDataParallel(GraphAttention(16, 16, heads=2))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    pattern, steps = random_edges(1500, 20_000, rank), 0
    x = torch.randn(1500, 16)
    go_on = torch.ones(())
    while go_on:
        loss = (model(x, pattern) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        time.sleep(0.02)
        # Both stop after the same step.
        go_on.fill_(time.time() < deadline)
        torch.distributed.broadcast(go_on, 0)
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    both = [torch.empty_like(weights) for _ in range(2)]
    torch.distributed.all_gather(both, weights)
    with open(os.path.join(folder, str(rank)), "w") as file:
        json.dump({"steps": steps, "equal": torch.equal(*both), "finite": bool(weights.isfinite().all())}, file)
    torch.distributed.destroy_process_group()


def resident():
    """MiB of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    args = parser.parse_args()
    if args.minutes <= 0:
        parser.error(f"--minutes must be above 0, got {args.minutes}")

    start = time.time()
    deadline = start + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        trainers = torch.multiprocessing.spawn(train, (deadline, folder), nprocs=2, join=False)
        done, wrong, memory, failures = soak(start, deadline)
        while not trainers.join():
            pass
        trained = [json.loads(Path(folder, str(rank)).read_text()) for rank in range(2)]
    settled = [mib for seconds, mib in memory if seconds > 0.2 * 60 * args.minutes]
    third = max(len(settled) // 3, 1)
    growth = statistics.median(settled[-third:]) - statistics.median(settled[:third])
    found = {
        "minutes": args.minutes,
        "calls": dict(done),
        "results that differed": wrong,
        "children that failed": failures,
        "steps of two DDP processes": trained[0]["steps"],
        "their weights are equal and finite": all(one["equal"] and one["finite"] for one in trained),
        "MiB after a fifth of the time": round(settled[0]),
        "MiB at the end": round(settled[-1]),
        "growth of the last third over the first, MiB": round(growth, 1),
    }
    # Some two hundred of the thousands of numbers are enough.
    held = {**versions(), **found, "seconds and MiB": memory[:: max(1, len(memory) // 200)]}
    (RESULTS / "soak.json").write_text(json.dumps(held) + "\n")
    about = ", ".join(f"{key} {value}" for key, value in versions().items())
    rows = "\n".join(f"| {name} | {value} |" for name, value in found.items())
    text = f"# Soak\n\n{about}\n\n| | |\n|---|---|\n{rows}\n"
    (RESULTS / "soak.md").write_text(text)
    print(text)
    if wrong or failures or growth > GROWTH or not found["their weights are equal and finite"]:
        sys.exit("Not as it must be: see above.")


def soak(start, deadline):
    """Calls in one thread, in threads and in forks until the deadline; returns counts, errors, and memory over time."""
    calls = fixed_calls()
    expected = [run(call) for call in calls]
    in_threads = [run(call, is_alone=False) for call in calls]
    done, wrong, failures, memory = Counter(), 0, 0, []
    draw = random.Random(0)
    with tqdm(total=round(deadline - start), unit=" s", mininterval=1) as bar:
        while time.time() < deadline:
            place = draw.randrange(len(calls))
            wrong += not same(run(calls[place]), expected[place])
            wrong += not new_pattern(draw.getrandbits(30))
            places = [draw.randrange(len(calls)) for _ in range(8)]
            with ThreadPoolExecutor(4) as pool:
                results = list(pool.map(lambda place: run(calls[place], is_alone=False), places))
            wrong += sum(not same(out, in_threads[place]) for place, out in zip(places, results, strict=True))
            place = draw.randrange(len(calls))
            failures += not in_fork(calls[place : place + 2], expected[place : place + 2])
            done.update({"alone": 1, "of new patterns": 2, "in threads": 8, "forks": 1})
            memory.append((round(time.time() - start, 1), round(resident(), 1)))
            bar.update(round(time.time() - start) - bar.n)
            bar.set_postfix(MiB=f"{memory[-1][1]:.0f}", wrong=wrong, refresh=False)
    return done, wrong, memory, failures


if __name__ == "__main__":
    main()

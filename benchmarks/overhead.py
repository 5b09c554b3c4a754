"""Where the time of a small call goes: microseconds of each step of `attention` and of its backward pass.

    python benchmarks/overhead.py

Writes results/overhead.json and results/overhead.md. A step is the difference of two functions of which one calls the
other; all of them take turns.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable

import torch
from harness import RESULTS, race, versions

from graphattn import Edges, attention
from graphattn.call import prepare, signature
from graphattn.functional import choose
from graphattn.kernels import KERNELS
from graphattn.kernels.rows import op
from graphattn.kernels.rows.cpu import kernel as cpu
from graphattn.kernels.rows.cpu.plan import TaskPlan
from graphattn.kernels.rows.operands import Attend, Backward, Forward, Needs, Tensors, flatten, pack

# Nodes, edges, heads and width.
SIZES = {"10 nodes": (10, 30, 4, 8), "one molecule": (30, 64, 4, 16), "Cora-sized": (2708, 13_264, 8, 8)}


def functions(nodes: int, edges: int, heads: int, width: int) -> dict[str, Callable[[], object]]:
    """The functions that are timed, from the whole call inward."""
    torch.manual_seed(0)
    pattern = Edges(torch.randint(nodes, (2, edges)), nodes)
    query, key, value = (torch.randn(nodes, heads, width) for _ in range(3))
    trained = [x.clone().requires_grad_() for x in (query, key, value)]
    grad = torch.ones_like(query)
    attention(*trained, pattern, backend="numba").backward(grad)

    call = prepare("attention", query, key, value, pattern)
    with_grad = call._replace(query=trained[0], key=trained[1], value=trained[2])
    lists = op.edges_for(with_grad, "numba", TaskPlan)
    given = Tensors(query, key, value, None, None, None, None, None)
    tensors = given.with_one_batch()
    _, mode = op._read_score(call.score, call)
    asked, forward = Attend(given, lists, False, False, False, mode), Forward(tensors, lists, False, mode)
    out, sums, _ = cpu.forward(forward)
    needs = Needs(True, True, True, False, False, False, False)
    backward = Backward(grad.unsqueeze(0), None, None, tensors, out, sums, lists, needs, mode)
    packed = pack(forward)
    of_leaves = flatten(asked._replace(tensors=given._replace(query=trained[0])))
    loops: dict[str, list[Callable[[], object]]] = {"forward": [], "backward": []}
    # Compiled code as `run_tasks` is given it, kept with its arguments.
    run_tasks = cpu.run_tasks
    for name, run in (("forward", lambda: cpu.forward(forward)), ("backward", lambda: cpu.backward(backward))):
        cpu.run_tasks = lambda *a, name=name, **k: loops[name].append(lambda: run_tasks(*a, **k))
        run()
    cpu.run_tasks = run_tasks
    arguments, kernel = tuple(call), next(kernel for kernel in KERNELS if kernel.name == "numba")
    return {
        "attention": lambda: attention(query, key, value, pattern, backend="numba"),
        "prepare": lambda: prepare("attention", query, key, value, pattern),
        "choose": lambda: choose(call, "auto"),
        "signature": lambda: pattern.keep("calls", dict).get(signature(arguments, "numba", KERNELS)),
        "run": lambda: kernel.run(call),
        "compute": lambda: op._compute(asked),
        "apply": lambda: op._Attend.apply(*of_leaves),
        "operator": lambda: torch.ops.graphattn.csr_forward(*packed),
        "kernel": lambda: cpu.forward(forward),
        "loop": lambda: [loop() for loop in loops["forward"]],
        "attention, trained": lambda: attention(*trained, pattern, backend="numba"),
        "with backward": lambda: torch.autograd.grad(attention(*trained, pattern, backend="numba"), trained, grad),
        "backward kernel": lambda: cpu.backward(backward),
        "backward loops": lambda: [loop() for loop in loops["backward"]],
    }


# Name of a step, and the functions of which it is the difference.
STEPS = {
    "attention() without gradients": ("attention", None),
    "- recognizing a call that was checked before": ("signature", None),
    "- operands, views, results": ("run", "compute"),
    "- operands of the compiled code": ("kernel", "loop"),
    "- the loop, its threads included": ("loop", None),
    "the first call of its kind also: checks": ("prepare", None),
    "the first call of its kind also: choosing a kernel": ("choose", None),
    "where something watches (a mode, the profiler): torch's dispatcher": ("operator", "kernel"),
    "attention() with gradients": ("attention, trained", None),
    "- autograd's function": ("apply", "compute"),
    "its backward pass": ("with backward", "attention, trained"),
    "- autograd's engine, saved tensors": ("with backward", "attention, trained", "backward kernel"),
    "- operands of the compiled code (backward)": ("backward kernel", "backward loops"),
    "- the loops (backward)": ("backward loops", None),
}


def measure(size: tuple[int, int, int, int], seconds: float = 20.0) -> dict[str, float]:
    """Microseconds of each step: medians over rounds of the differences."""
    taken = race(functions(*size), seconds=seconds)
    found = {}
    for step, (whole, *parts) in STEPS.items():
        rounds = zip(taken[whole], *(taken[part] for part in parts if part is not None), strict=True)
        found[step] = statistics.median(first - sum(others) for first, *others in rounds) * 1e6
    return found


def main() -> None:
    """Measure all sizes and write the table."""
    about = versions()
    found = {name: measure(size) for name, size in SIZES.items()}
    (RESULTS / "overhead.json").write_text(json.dumps({"machine": about, "microseconds": found}, indent=1) + "\n")
    head = [f"{name}: {n:,} nodes, {e:,} edges, H{h} D{d}" for name, (n, e, h, d) in SIZES.items()]
    lines = [f"| microseconds | {' | '.join(head)} |", "|---|" + "---:|" * len(SIZES)]
    lines += [f"| {step} | {' | '.join(f'{found[name][step]:.1f}' for name in SIZES)} |" for step in STEPS]
    text = "# Where the time of a small call goes\n\n" + ", ".join(f"{key} {value}" for key, value in about.items())
    (RESULTS / "overhead.md").write_text(text + "\n\n" + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

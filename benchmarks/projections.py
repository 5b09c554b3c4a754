"""One product for query, key, value and the skip connection, against the four that layers take.

    python benchmarks/projections.py

Writes results/projections.json and results/projections.md. Layers take four: a kernel reads rows without gaps, and what
copies them into such rows takes longer than the larger product saves. The bound is without these copies.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from gather import machine_and_gather
from harness import Line, in_ms, race, ratio, write
from torch import Tensor

WIDTH, PARTS = 64, 4
ROWS = (30, 300, 1_920, 2_708, 6_371, 20_000)


def systems(rows: int, is_trained: bool) -> dict[str, Callable[[], object]]:
    """Four products, one product whose parts are copied, and one product alone; with backward if trained."""
    x = torch.randn(rows, WIDTH, requires_grad=is_trained)
    weights = [torch.randn(WIDTH, WIDTH, requires_grad=is_trained) for _ in range(PARTS)]
    biases = [torch.randn(WIDTH, requires_grad=is_trained) for _ in range(PARTS)]
    grads = [torch.randn(rows, WIDTH) for _ in range(PARTS)]
    joined = torch.cat(grads, 1)

    def one() -> Tensor:
        return F.linear(x, torch.cat(weights), torch.cat(biases))

    outs: dict[str, Callable[[], list[Tensor]]] = {
        "four": lambda: [F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)],
        "one, copied": lambda: [part.contiguous() for part in one().split(WIDTH, 1)],
        "one": lambda: [one()],
    }
    if not is_trained:
        return dict(outs)
    return {
        name: lambda out=out, name=name: torch.autograd.backward(out(), [joined] if name == "one" else grads)
        for name, out in outs.items()
    }


def main() -> None:
    """Measure all sizes."""
    about, lines = machine_and_gather(), []
    torch.manual_seed(0)
    for rows in ROWS:
        for is_trained in (False, True):
            with torch.set_grad_enabled(is_trained):
                taken = race(systems(rows, is_trained), 3)
            detail = ", ".join(f"{name} {in_ms(seconds)}" for name, seconds in taken.items())
            what = "forward and backward" if is_trained else "forward"
            for name in ("one, copied", "one"):
                work = f"{rows:,} rows of {WIDTH}, {PARTS} projections, {what}: {name}"
                lines.append(Line(work, "four products", "x", 1, None, ratio(taken, "four", name), detail))
    print(write("projections", "One product in place of four", about, lines, {}))


if __name__ == "__main__":
    main()

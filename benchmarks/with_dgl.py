"""The fused CPU kernel against DGL's, which needs an old torch and therefore a separate environment.

    make bench-dgl

Processes take turns: DGL's rounds, ours, DGL's, ours. Writes results/dgl.json, whose lines `make bench` copies.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from cpu import LARGE, SMALL, draw, say
from harness import RESULTS, Line, in_ms, race
from systems import ours, with_backward, without_gradients

TURNS, ROUNDS = 3, 5
WANTED = {"forward": (3, 4.5), "forward + backward": (2.5, 4)}


def main() -> None:
    """Measure both sides of both sizes."""
    python = sys.argv[1]
    lines, versions = [], {}
    for size in (SMALL, LARGE):
        _, pattern, inputs = draw(*size)
        side = lambda inputs=inputs, pattern=pattern: ours(*inputs, pattern)
        runs = {"forward": without_gradients(side), "forward + backward": with_backward(side, inputs)}
        found: dict[str, list[tuple[float, float]]] = {what: [] for what in WANTED}
        for _ in range(TURNS):
            command = [python, str(Path(__file__).with_name("dgl_side.py")), *map(str, size), str(ROUNDS)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            # The first import of DGL prints which backend it chose.
            theirs = json.loads(done.stdout.splitlines()[-1])
            versions = {name: theirs[name] for name in ("dgl", "torch", "threads")}
            mine = race(runs, 60, ROUNDS)
            for what in WANTED:
                found[what].append((statistics.median(theirs[what]), statistics.median(mine[what])))
        for what, (at_least, aim) in WANTED.items():
            measured = statistics.median(theirs / mine for theirs, mine in found[what])
            dgl, graphattn = (in_ms(list(side)) for side in zip(*found[what], strict=True))
            against = f"DGL {versions['dgl']} (torch {versions['torch']})"
            detail = f"DGL {dgl}, graphattn {graphattn}"
            lines.append(Line(f"{say(*size)}: {what}", against, "x", at_least, aim, measured, detail))
            print(lines[-1].row(), flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "dgl.json").write_text(
        json.dumps({"lines": [vars(line) for line in lines], **versions}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()

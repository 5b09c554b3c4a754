"""Published accuracies beside ours, on the real data: what the examples record, as one table.

    make reproduce                                        everything; hours on two cores
    python benchmarks/accuracy.py --only seq2seq          what one example records
    python benchmarks/accuracy.py --only nothing          the table anew from what is recorded

Data sets are read from $GRAPHATTN_DATASETS, or downloaded. Writes results/accuracy.json, one row per model as its
example records it, and results/accuracy.md. A claim without a row says "not measured yet".
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass

from harness import RESULTS, versions

ROOT = RESULTS.parents[1]
RECORD = RESULTS / "accuracy.json"


@dataclass(frozen=True)
class Claim:
    """What one row of the record must show: at least a number, and an aim beyond it.

    `published` is that of others for the same task, `source` who they are. With a published deviation, a result within
    it counts as the published one.
    """

    data: str
    model: str
    measure: str
    at_least: float | None
    aim: float | None = None
    published: float | None = None
    deviation: float | None = None
    source: str = ""

    def judge(self, scores: list[float] | None) -> str:
        """Say how far the mean came."""
        if scores is None:
            return "not measured yet"
        mean = statistics.fmean(scores)
        if self.aim is not None and mean >= self.aim:
            return "aim reached"
        if self.at_least is None:
            return ""
        return "reached" if mean >= self.at_least else "**not reached**"

    def row(self, records: list[dict]) -> str:
        """One row of Markdown."""
        name = (self.data, self.model, self.measure)
        found = [record for record in records if (record["data"], record["model"], record["measure"]) == name]
        scores = found[0]["scores"] if found else None
        ours = "" if scores is None else _spread(statistics.fmean(scores), statistics.pstdev(scores))
        runs = f"{len(scores)} {found[0]['unit']}" if scores is not None else ""
        theirs = "" if self.published is None else f"{_spread(self.published, self.deviation)} ({self.source})"
        asked = ["" if number is None else f"{number:g}" for number in (self.at_least, self.aim)]
        return f"| {' | '.join([*name, theirs, *asked, ours, runs, self.judge(scores)])} |"


COMMANDS: dict[str, list[str]] = {}
CLAIMS: tuple[Claim, ...] = ()

HEADER = """| data | model | measure | published | at least | aim | ours | runs | |
|---|---|---|---|---|---|---|---|---|"""


def _spread(mean: float, deviation: float | None) -> str:
    return f"{mean:.2f}" if not deviation else f"{mean:.2f} +- {deviation:.2f}"


def write(records: list[dict]) -> None:
    """Write results/accuracy.md: every claim, then every other row that was recorded."""
    claimed = {(claim.data, claim.model, claim.measure) for claim in CLAIMS}
    others = [record for record in records if (record["data"], record["model"], record["measure"]) not in claimed]
    further = [Claim(record["data"], record["model"], record["measure"], None) for record in others]
    rows = [claim.row(records) for claim in (*CLAIMS, *further)]
    about = ", ".join(f"{key} {value}" for key, value in versions().items())
    (RESULTS / "accuracy.md").write_text("\n".join(["# Accuracies", "", about, "", HEADER, *rows]) + "\n")
    print(*rows, sep="\n")


def main() -> None:
    """Run the examples on the real data, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help=f"some of {', '.join(COMMANDS)}; or nothing")
    names = parser.parse_args().only
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name, arguments in COMMANDS.items():
        if names is None or name in names:
            command = [sys.executable, *arguments, "--record", str(RECORD)]
            print("$", *arguments, flush=True)
            subprocess.run(command, check=True, cwd=ROOT, env=environment)
    write(json.loads(RECORD.read_text()) if RECORD.exists() else [])


if __name__ == "__main__":
    main()

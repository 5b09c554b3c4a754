"""Published and our accuracies on real data, as recorded by the examples, in one table.

    make reproduce                                        everything; hours on two cores
    python benchmarks/accuracy.py --only seq2seq          what one example records
    python benchmarks/accuracy.py --only nothing          only the table, from recorded results

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
    """The requirement on one row of the record: a least number, and an aim beyond it.

    `published` is the result of `source` for the same task. If we train their model, the least number is within their
    deviation.
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
        """Say which requirement the mean reaches."""
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
        runs = f"{len(scores)} {found[0]['unit'][: -1 if len(scores) == 1 else None]}" if scores is not None else ""
        theirs = "" if self.published is None else f"{_spread(self.published, self.deviation)} ({self.source})"
        taken = {} if scores is None else found[0]
        seconds = [f"{taken[name]:.3g} {name.replace('_', ' ')}" for name in taken if "seconds" in name]
        on = [taken[name] for name in ("cpu",) if name in taken]
        how = ", ".join([*seconds[:1], *on]), f"`{taken['command']}`" if "command" in taken else ""
        asked = ["" if number is None else f"{number:g}" for number in (self.at_least, self.aim)]
        return f"| {' | '.join([*name, theirs, *asked, ours, runs, self.judge(scores), *how])} |"


NODES = [("Cora", "GAT-2018"), ("CiteSeer", "GAT-2018")]
NODES += [(data, model) for model in ("GAT", "GT", "GAT-sep") for data in ("Minesweeper", "Tolokers")]

PROTOCOLS = ("minesweeper", "tolokers", "photo", "cora", "citeseer")

# Each name's commands, all in examples/.
COMMANDS: dict[str, list[list[str]]] = {
    "pos_tagging": [["pos_tagging.py", "--dataset", "ewt", "--seeds", "3"]],
    "image_classification": [
        ["image_classification.py", "--dataset", "mnist", "--full", "--models", "grid", "cnn"],
        ["image_classification.py", "--dataset", "mnist"],
        [
            *("image_classification.py", "--dataset", "mnist", "--models", "pixels"),
            *("--train-sizes", "3000", "--epochs", "15", "--seeds", "1"),
        ],
    ],
    "node_protocols": [["node_protocols.py", "--dataset", data, "--model", model] for data, model in NODES],
    "node_models": [["node_models.py", "--protocol", name] for name in PROTOCOLS],
    "graph_classification": [["graph_classification.py", "--dataset", data] for data in ("NCI1", "PROTEINS")],
    "seq2seq": [["seq2seq.py", "--seeds", "3", "--models", "Seq2Seq", "LSTM"]],
}

EWT, STANZA = "UD English EWT", "Stanza, a BiLSTM, from raw text of v2.5"
GAT, PLATONOV = "Velickovic et al., 2018", "Platonov et al., 2023"
GIN, LENET = "GIN, Errica et al., 2020", "LeNet-5, LeCun et al., 1998"
LUO, SCRIPT = "tuned GraphSAGE, Luo et al., 2024", "the public script of a graph transformer"
CLAIMS = (
    Claim(EWT, "full attention, relative", "accuracy", 94.8, 95.4, 95.40, None, STANZA),
    Claim("MNIST, 55,000 images", "grid attention, 3 x 3", "test accuracy", 99.2, 99.4, 99.05, None, LENET),
    Claim("Cora", "GAT-2018", "accuracy", 82.3, 83.0, 83.0, 0.7, GAT),
    Claim("CiteSeer", "GAT-2018", "accuracy", 71.8, 72.5, 72.5, 0.7, GAT),
    Claim("Minesweeper", "GAT", "ROC AUC", 91.33, 92.01, 92.01, 0.68, PLATONOV),
    Claim("Minesweeper", "GT", "ROC AUC", 91.09, 91.85, 91.85, 0.76, PLATONOV),
    Claim("Minesweeper", "GAT-sep", "ROC AUC", 94.0, 95.0, 93.91, 0.35, PLATONOV),
    Claim("Tolokers", "GAT", "ROC AUC", 83.23, 83.70, 83.70, 0.47, PLATONOV),
    Claim("Tolokers", "GT", "ROC AUC", 82.59, 83.23, 83.23, 0.64, PLATONOV),
    Claim("Tolokers", "GAT-sep", "ROC AUC", 84.5, 85.4, 83.78, 0.43, PLATONOV),
    Claim("Minesweeper", "tuned GAT", "ROC AUC", 97.4, 98.0, 97.92, 0.28, SCRIPT),
    Claim("Tolokers", "tuned GAT", "ROC AUC", 85.6, 86.2, 85.91, 0.83, SCRIPT),
    Claim("Photo", "tuned GAT", "accuracy", 96.2, 96.9, 96.78, None, LUO),
    Claim("Cora", "tuned GAT-2018", "accuracy", 83.8, 84.5, 83.0, 0.7, GAT),
    Claim("CiteSeer", "tuned GAT-2018", "accuracy", 73.0, 73.5, 72.5, 0.7, GAT),
    Claim("NCI1", "sigmoid attention readout", "accuracy", 82.0, 84.0, 80.0, 1.4, GIN),
    Claim("PROTEINS", "sigmoid attention readout", "accuracy", 74.5, 75.5, 73.3, 4.0, GIN),
    Claim("NCI1", "sum and softmax attention readout", "accuracy", 78.0, 80.0, 80.0, 1.4, GIN),
    Claim("PROTEINS", "sum and softmax attention readout", "accuracy", 73.0, 74.0, 73.3, 4.0, GIN),
    Claim("dates", "Seq2Seq", "exact match", 99.0),
)

# The best model with the first word in its name minus the best with the second: the least difference in points.
MARGINS = (
    (EWT, "accuracy", "attention", "BiLSTM", -0.3),
    (EWT, "accuracy", "attention", "window ", -0.3),
    (EWT, "accuracy", "attention", "per token", 4.0),
)

HEADER = """| data | model | measure | published | at least | aim | ours | runs | | time | command |
|---|---|---|---|---|---|---|---|---|---|---|"""


def _spread(mean: float, deviation: float | None) -> str:
    return f"{mean:.2f}" if not deviation else f"{mean:.2f} +- {deviation:.2f}"


def margin(records: list[dict], data: str, measure: str, word: str, other: str, at_least: float) -> str:
    """One line on the difference of the best models of two kinds."""
    means = {
        record["model"]: statistics.fmean(record["scores"])
        for record in records
        if (record["data"], record["measure"]) == (data, measure)
    }
    ours = [model for model in means if word in model]
    theirs = [model for model in means if other in model and word not in model]
    if not ours or not theirs:
        return f"* {data}: {word} against {other}: not measured yet."
    best, rival = max(ours, key=means.__getitem__), max(theirs, key=means.__getitem__)
    points = means[best] - means[rival]
    verdict = "reached" if points >= at_least else "**not reached**"
    return f"* {data}: {best} against {rival}: {points:+.2f} points, asked at least {at_least:+g}: {verdict}."


def write(records: list[dict]) -> None:
    """Write results/accuracy.md: every claim, then every other recorded row."""
    claimed = {(claim.data, claim.model, claim.measure) for claim in CLAIMS}
    others = [record for record in records if (record["data"], record["model"], record["measure"]) not in claimed]
    further = [Claim(record["data"], record["model"], record["measure"], None) for record in others]
    rows = [claim.row(records) for claim in (*CLAIMS, *further)]
    about = ", ".join(f"{key} {value}" for key, value in versions().items() if key != "cpu")
    margins = [margin(records, *line) for line in MARGINS]
    text = "\n".join(["# Accuracies", "", about, "", HEADER, *rows, "", *margins])
    (RESULTS / "accuracy.md").write_text(text + "\n")
    print(text)


def _add_machine() -> None:
    """Say of new rows on what they were measured: those of one table come from several machines."""
    rows = json.loads(RECORD.read_text())
    rows = [row if "cpu" in row else {**row, "cpu": versions()["cpu"]} for row in rows]
    RECORD.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def main() -> None:
    """Run the examples on the real data, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help=f"some of {', '.join(COMMANDS)}; or nothing")
    names = parser.parse_args().only
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name, commands in COMMANDS.items():
        for script, *arguments in commands if names is None or name in names else []:
            command = [f"examples/{script}", *arguments, "--record", str(RECORD)]
            print("$", *command, flush=True)
            subprocess.run([sys.executable, *command], check=True, cwd=ROOT, env=environment)
            _add_machine()
    write(json.loads(RECORD.read_text()) if RECORD.exists() else [])


if __name__ == "__main__":
    main()

"""How examples report results: one printed line per result, and a file of all of them on request."""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path


def report(
    data: str,
    model: str,
    measure: str,
    scores: Sequence[float],
    unit: str = "seeds",
    record: Path | None = None,
    **details: float,
) -> str:
    """Print a result as mean +- deviation, and write it to `record`, in place of an older one of the same name.

    Args:
        data, model, measure: the result's name, such as "Cora", "GAT", "accuracy"; together they are unique.
        scores: one number for each run.
        unit: what differs between runs.
        record: a JSON file, created if missing.
        details: further numbers of the model, such as its parameters or its seconds per epoch. The file also has the
            command.

    Returns:
        The line.
    """
    mean, deviation = statistics.fmean(scores), statistics.pstdev(scores)
    spread = f" +- {deviation:.2f} over {len(scores)} {unit}" if len(scores) > 1 else ""
    further = "".join(f", {name.replace('_', ' ')} {number:,.5g}" for name, number in details.items())
    line = f"{data}, {model}: {measure} {mean:.2f}{spread}{further}"
    print(line, flush=True)
    if record is not None:
        rows = json.loads(record.read_text()) if record.exists() else []
        name = {"data": data, "model": model, "measure": measure}
        rows = [row for row in rows if not name.items() <= row.items()]
        rounded = [round(score, 4) for score in scores]
        rows.append({**name, "scores": rounded, "unit": unit, **details, "command": _command()})
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    return line


def _command() -> str:
    """What was typed, without the paths of this machine."""
    words, kept = iter(sys.argv[1:]), [f"examples/{Path(sys.argv[0]).name}"]
    for word in words:
        if word in ("--record", "--root", "--output"):
            next(words, None)
        else:
            kept.append(word)
    return " ".join(kept)

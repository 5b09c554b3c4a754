"""Run every example without options, and write the table of examples/README.md.

make examples
"""

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# In the order of presentation.
EXAMPLES = (
    "by_hand",
    "one_operation",
    "node_classification",
    "node_protocols",
    "node_models",
    "minesweeper_is_a_grid",
    "pos_tagging",
    "image_classification",
    "graph_classification",
    "seq2seq",
    "cnn_rnn_attention",
    "convolution_is_attention",
    "own_score",
    "heterogeneous",
    "accelerate_pyg",
    "distributed_sampling",
)
HEADER = """| example | what it shows | seconds | last line printed | picture |
|---|---|---|---|---|"""


def run(name: str) -> tuple[float, str]:
    """Return the seconds that an example takes, and the last line that it prints about its result."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    command = [sys.executable, str(HERE / f"{name}.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        sys.exit(f"{name}.py failed:\n{done.stderr}")
    lines = [line for line in done.stdout.splitlines() if line.strip() and not line.startswith(("Picture", "Page"))]
    return time.perf_counter() - start, lines[-1].strip()


def row(name: str, seconds: float, last: str) -> str:
    """One row of Markdown, with the first line of the example's docstring."""
    what = (ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text())) or "").splitlines()[0]
    pictures = sorted((ROOT / "docs" / "images").glob(f"{name}*.png"))
    pictures = [f'<img src="../docs/images/{path.name}" width="200" alt="{name}">' for path in pictures[:1]]
    cells = [f"[{name}.py]({name}.py)", what, f"{seconds:.0f}", f"`{last}`", "".join(pictures)]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def main():
    rows = []
    for name in tqdm(EXAMPLES, unit=" examples"):
        rows.append(row(name, *run(name)))
        tqdm.write(rows[-1])
    readme = HERE / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition("| example |")
    after = rest.partition("\n\n")[2]
    readme.write_text(before + "\n".join([HEADER, *rows]) + "\n\n" + after)


if __name__ == "__main__":
    main()

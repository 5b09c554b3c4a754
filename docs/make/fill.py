"""Copy text from other files into the pages of docs/, between `<!-- fill: ... -->` and `<!-- end -->`.

make docs-fill
"""

import ast
import re
from pathlib import Path

from attending import write_attending
from rooms import draw_rooms, write_rooms

ROOT = Path(__file__).resolve().parents[2]
DOCS, RESULTS = ROOT / "docs", ROOT / "benchmarks" / "results"
FILL = re.compile(r"(<!-- fill: (\w+) ?(.*?) -->\n).*?(<!-- end -->)", re.S)


def fill(markdown):
    """Replace the text between the marks of a page."""
    return FILL.sub(lambda found: f"{found[1]}\n{FILLS[found[2]](found[3])}\n\n{found[4]}", markdown)


def results(name):
    """A table of benchmarks/results: its machine, its command, its picture, its lines."""
    _, machine, table = (RESULTS / f"{name}.md").read_text().strip().split("\n\n", 2)
    command = "make reproduce" if name == "accuracy" else f"python benchmarks/{name}.py"
    parts = [f"Command: `{command}`", f"Machine: {machine}."]
    if (RESULTS / f"{name}.png").exists():
        parts.append(f"![The same as a picture](../benchmarks/results/{name}.png)")
    return "\n\n".join([*parts, table])


def further_results(named):
    """Every table of benchmarks/results that isn't named."""
    names = sorted(path.stem for path in RESULTS.glob("*.md") if path.stem not in named.split())
    titles = [(RESULTS / f"{name}.md").read_text().partition("\n")[0].lstrip("# ") for name in names]
    return "\n\n".join(f"## {title}\n\n{results(name)}" for name, title in zip(names, titles, strict=True))


def example_paths():
    """The examples, in the order in which examples/README.md links to them."""
    names = re.findall(r"\[(\w+\.py)\]\(", (ROOT / "examples" / "README.md").read_text())
    return [ROOT / "examples" / name for name in dict.fromkeys(names)]


def gallery(_):
    """Each example: its title, its picture, the rest of its docstring."""
    parts = []
    for path in example_paths():
        title, _, rest = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n\n")
        parts += [f"## {path.stem}", f"**{title}**"]
        pictures = sorted((DOCS / "images").glob(f"{path.stem}*.png"))
        parts += [f"![What {picture.stem} draws](images/{picture.name})" for picture in pictures]
        parts += [escape_comparisons(rest), f"[Read {path.name}](../examples/{path.name})"]
    return "\n\n".join(parts)


def escape_comparisons(text):
    """Keep `->` and `<` of running text from becoming HTML; indented commands stay."""
    return "\n".join(line if line.startswith("    ") else line.replace("<", "&lt;") for line in text.splitlines())


FILLS = {
    "results": results,
    "further_results": further_results,
    "gallery": gallery,
    "attending": lambda _: write_attending(ROOT),
    "rooms": lambda _: write_rooms(ROOT),
}


def main():
    """Fill all pages, and draw the rooms."""
    (DOCS / "images" / "rooms.svg").write_text(draw_rooms(ROOT))
    for page in sorted(DOCS.rglob("*.md")):
        page.write_text(fill(page.read_text()))


if __name__ == "__main__":
    main()

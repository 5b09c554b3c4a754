"""What `make docs` fills in: pages say where, by `<!-- fill: name argument -->`, files of the repository say what."""

import ast
import re
from pathlib import Path

import latex2mathml.converter
from mkdocs.structure.files import File
from rooms import draw_rooms, write_rooms

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
FILL = re.compile(r"<!-- fill: (\w+) ?(.*?) -->")


def on_config(config):
    """Write blocks of ```math as MathML, which browsers draw without a script."""
    fences = [{"name": "math", "class": "math", "format": write_math}]
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": fences}
    return config


def write_math(source, *_, **__):
    return f'<div class="math">{latex2mathml.converter.convert(source, display="block")}</div>'


def on_files(files, config):
    """Add the pictures of the benchmarks, and a page for the source of each example."""
    for picture in sorted(RESULTS.glob("*.png")):
        files.append(File.generated(config, f"images/results/{picture.name}", abs_src_path=str(picture)))
    for path in example_paths():
        text = f"# {path.name}\n\n```python\n{path.read_text()}```\n"
        files.append(File.generated(config, f"gallery/{path.stem}.md", content=text))
    return files


def on_page_markdown(markdown, **_):
    """Fill in what the page asks for; pictures of the benchmarks have another place here than in the repository."""
    markdown = markdown.replace("](../benchmarks/results/", "](images/results/")
    return FILL.sub(lambda found: FILLS[found[1]](found[2]), markdown)


def results(name):
    """A table of benchmarks/results: its machine, its command, its picture, its lines."""
    _, machine, table = (RESULTS / f"{name}.md").read_text().strip().split("\n\n", 2)
    command = "make reproduce" if name == "accuracy" else f"python benchmarks/{name}.py"
    parts = [f"Command: `{command}`", f"Machine: {machine}."]
    if (RESULTS / f"{name}.png").exists():
        parts.append(f"![The same as a picture](images/results/{name}.png)")
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
        parts += [f"## {path.stem} {{ #{path.stem} }}", f"**{title}**"]
        pictures = sorted((ROOT / "docs" / "images").glob(f"{path.stem}*.png"))
        parts += [f"![What {picture.stem} draws](images/{picture.name})" for picture in pictures]
        parts += [escape_comparisons(rest), f"[Read {path.name}](gallery/{path.stem}.md)"]
    return "\n\n".join(parts)


def escape_comparisons(text):
    """Keep `->` and `<` of running text from becoming HTML; indented commands stay."""
    return "\n".join(line if line.startswith("    ") else line.replace("<", "&lt;") for line in text.splitlines())


def include(name):
    """A Markdown file of the repository, without its title; links to other files of it become plain code."""
    text = (ROOT / name).read_text().partition("\n")[2].strip()
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)[^)]*\)", r"`\1`", text)


FILLS = {
    "results": results,
    "further_results": further_results,
    "gallery": gallery,
    "include": include,
    "rooms": lambda _: draw_rooms(ROOT),
    "rooms_table": lambda _: write_rooms(ROOT),
}

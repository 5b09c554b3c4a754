"""How `make docs` converts the pages: formulas, links to files that the site has elsewhere, included texts."""

import re

import latex2mathml.converter
from fill import RESULTS, ROOT, example_paths
from mkdocs.structure.files import File

# A text of the repository; a forge shows the link in the next line instead.
INCLUDE = re.compile(r"<!-- include: (\S+) -->\n.*")


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
    """Include texts; pictures of the benchmarks and sources of the examples have other paths on the site."""
    markdown = INCLUDE.sub(lambda found: include(found[1]), markdown)
    markdown = markdown.replace("](../benchmarks/results/", "](images/results/")
    return re.sub(r"\]\(\.\./examples/(\w+)\.py\)", r"](gallery/\1.md)", markdown)


def include(name):
    """A Markdown file of the repository, without its title; links to other files of it become plain code."""
    text = (ROOT / name).read_text().partition("\n")[2].strip()
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)[^)]*\)", r"`\1`", text)

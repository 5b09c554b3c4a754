"""Every block of Python in docs/ runs as it stands, and prints what the page says that it prints."""

from __future__ import annotations

import importlib
import importlib.util
import linecache
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from test_public_api import NAMES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# A block of Python, and the block of text behind it, if one follows at once: what it prints.
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.M | re.S)
PAGES = {page.relative_to(DOCS).as_posix(): page.read_text() for page in sorted(DOCS.rglob("*.md"))}
# Numbers that a page's text takes from a table of benchmarks/results.
QUOTED = {
    "faq.md": ("layers.md", "12.1 GiB", "279 MiB"),
    "howto/large_graphs.md": ("cpu.md", "10.3 GiB", "7.0 s"),
    "scaling.md": ("distributed.md", "7.34 MiB", "177 MiB"),
}
# Blocks that run only where this is so: they need other packages, or take half a minute, which `make fuzz` has.
ONLY_IF = {
    "onnxruntime": importlib.util.find_spec("onnxruntime") is not None,
    "aoti_compile_and_package": "GRAPHATTN_FUZZ" in os.environ,
}
# Texts of the repository that the site shows.
INCLUDED = ("CONTRIBUTING.md", "CHANGELOG.md", "datasets/README.md")


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```python" in text])
def test_every_block_of_a_page_runs_and_prints_what_it_says(page, tmp_path, monkeypatch, capsys):
    plt.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = list(BLOCK.finditer(PAGES[page]))
    assert len(blocks) == PAGES[page].count("```python")
    for block in blocks:
        if not all(can_run for word, can_run in ONLY_IF.items() if word in block[1]):
            continue
        # Tracebacks name the page and its line, and who asks finds what stands there.
        code = "\n" * PAGES[page].count("\n", 0, block.start(1)) + block[1]
        monkeypatch.setitem(linecache.cache, page, (len(code), None, code.splitlines(keepends=True), page))
        exec(compile(code, page, "exec"), names)
        printed = capsys.readouterr().out
        assert block[2] is None or printed.split() == block[2].split(), f"{page} prints:\n{printed}"
    plt.close("all")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_of_a_page_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", PAGES[page]):
        made = link.startswith("images/results/") and (ROOT / "benchmarks" / "results" / Path(link).name).exists()
        assert link.startswith("https://") or made or (DOCS / page).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("page", QUOTED)
def test_numbers_in_the_text_are_those_of_the_results(page):
    name, *numbers = QUOTED[page]
    results = (ROOT / "benchmarks" / "results" / name).read_text()
    assert all(number in PAGES[page] and number in results for number in numbers)


def test_sizes_are_written_in_binary_units():
    folders = ("benchmarks", "docs", "examples", "graphattn")
    paths = [path for folder in folders for kind in ("*.md", "*.py", "*.html") for path in (ROOT / folder).rglob(kind)]
    # Rates are decimal, as everywhere; what a user types may be.
    found = {path.name for path in paths if re.search(r"\b[kKMGT]B\b(?!/s)", path.read_text())}
    assert found == {"memory.py"}


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == sorted(PAGES)


def test_every_public_name_is_in_the_reference():
    documented = {path.rpartition(".")[2] for path in re.findall(r"^::: (\S+)", "".join(PAGES.values()), re.M)}
    public = {name for names in NAMES.values() for name in names.split()}
    # Constants, and a module, which has a page.
    assert public - documented == {"GRAPHS", "TREEBANKS", "nn"}


def test_the_page_on_scaling_has_the_tables_that_its_command_prints():
    command = [sys.executable, "benchmarks/distributed.py", "--page"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(lines) > 30, done.stderr
    assert not set(lines) - set(PAGES["scaling.md"].splitlines())


@pytest.fixture
def make(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "make"))
    return importlib.import_module


@pytest.mark.parametrize("page", PAGES)
def test_what_pages_copy_is_what_there_is(make, page):
    assert PAGES[page] == make("fill").fill(PAGES[page]), "Use make docs-fill."


def test_every_page_says_something_where_nothing_is_built():
    for page, text in PAGES.items():
        said = re.sub(r"<!--.*?-->|^#.*$", "", text, flags=re.M)
        assert re.search(r"\w{3}", said), page
        assert text.count("<!-- fill: ") == text.count("<!-- end -->"), page


def test_every_line_of_the_results_is_on_a_page():
    pages = "".join(PAGES.values())
    for path in (ROOT / "benchmarks" / "results").glob("*.md"):
        # For contributors only.
        if path.stem == "mutants":
            continue
        for line in path.read_text().splitlines()[2:]:
            assert line in pages


def test_the_site_has_all_texts_and_links_to_its_own_pages(make):
    for package in ("mkdocs", "latex2mathml"):
        pytest.importorskip(package, reason="needs pip install '.[docs]'")
    hooks = make("hooks")
    built = "".join(hooks.on_page_markdown(text) for text in PAGES.values())
    assert "](../examples/" not in built and "](../benchmarks/" not in built and "<!-- include" not in built
    assert all((ROOT / name).read_text().splitlines()[-1] in built for name in INCLUDED)


def test_the_gallery_shows_every_example_with_its_picture(make):
    gallery = PAGES["gallery.md"]
    for path in make("fill").example_paths():
        assert f"## {path.stem}\n" in gallery and f"[Read {path.name}](../examples/{path.name})" in gallery
    shown = set(re.findall(r"images/(\w+\.png)", gallery))
    assert shown == {path.name for path in (DOCS / "images").glob("*.png")}


def test_the_drawing_of_the_rooms_is_that_of_their_imports(make):
    rooms = make("rooms")
    assert (DOCS / "images" / "rooms.svg").read_text() == rooms.draw_rooms(ROOT), "Use make docs-fill."
    levels, found = rooms.levels_of(ROOT), rooms.imports_of(ROOT)
    assert found["nn"] >= {"functional", "patterns"} and found["errors"] == set()
    assert rooms.draw_rooms(ROOT).count("<rect") == len(levels) + 1
    assert rooms.direct({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == [("a", "b"), ("b", "c")]


def test_docstrings_become_markdown(make):
    pytest.importorskip("griffe", reason="needs pip install '.[docs]'")
    docstrings = make("docstrings")
    text = "Sum.\n\n    a + b\n\nArgs:\n    x: [*B, E] float,\n        as `y`.\n\nIt is.\n\nExample:\n    >>> 1\n    1"
    parts = ("Sum.", "    a + b", "**Arguments**", "- `x`: `[*B, E]` float, as `y`.", "It is.")
    assert docstrings.to_markdown(text).split("\n\n") == [*parts, "**Example**", "```pycon\n>>> 1\n1\n```"]


def test_what_the_site_includes_is_there():
    filled = re.findall(r"<!-- include: (\S+) -->", "".join(PAGES.values()))
    assert sorted(filled) == sorted(INCLUDED) and all((ROOT / name).exists() for name in filled)

"""Convert docstrings to Markdown: sections to headings, arguments to lists, examples and shapes to code."""

import re
import textwrap
from pathlib import Path

import griffe

SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Numerics|Example|References):$")
TITLES = {"Args": "Arguments"}
ENTRY = re.compile(r"([\w*, ]+): (.*)", re.S)
SHAPE = re.compile(r"\[(?:\*B|[A-Z0-9])[^\]`]*\](?!\()")
# The documented names of the reference, by the last word of their path.
PATHS = {
    path.rpartition(".")[2]: path
    for page in sorted((Path(__file__).parents[1] / "reference").glob("*.md"))
    for path in re.findall(r"^::: (\S+)", page.read_text(), re.M)
}


class HouseStyle(griffe.Extension):
    """Rewrites every docstring when its object is read."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called by griffe for modules, classes, functions and attributes."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Write a docstring as Markdown; text between sections stays between them."""
    blocks, title = [], None
    for line in text.splitlines():
        section = SECTION.match(line)
        if section or (title and line and not line.startswith(" ")):
            title = section[1] if section else None
            blocks.append((title, []))
        elif not blocks:
            blocks.append((None, []))
        if not section:
            blocks[-1][1].append(line)
    return "\n\n".join(write(title, textwrap.dedent("\n".join(lines)).strip("\n")) for title, lines in blocks)


def write(title: str | None, text: str) -> str:
    """One section."""
    if title is None:
        return quote(text)
    if title in ("Args", "Attributes", "Raises"):
        text = "\n".join(write_entry(entry) for entry in re.split(r"\n(?=\S)", text))
    elif title == "Example":
        text = f"```pycon\n{text}\n```"
    else:
        text = quote(text)
    return f"**{TITLES.get(title, title)}**\n\n{text}"


def write_entry(entry: str) -> str:
    """An item of a list: `name: what it is`, continued on indented lines."""
    entry = re.sub(r"\n\s+", " ", entry)
    found = ENTRY.fullmatch(entry)
    if not found:
        return f"- {quote(entry)}"
    names = ", ".join(f"`{name}`" for name in found[1].split(", "))
    return f"- {names}: {quote(found[2])}"


def quote(text: str) -> str:
    """Make code of shapes, and links of names in backticks that the reference has."""
    lines = []
    for line in text.split("\n"):
        if not line.startswith("    "):
            parts = re.split(r"(`[^`]*`)", line)
            parts[::2] = [SHAPE.sub(r"`\g<0>`", part) for part in parts[::2]]
            parts[1::2] = [link(part) for part in parts[1::2]]
            line = "".join(parts)
        lines.append(line)
    return "\n".join(lines)


def link(code: str) -> str:
    """A code span, as a link if it is a name in the reference."""
    path = PATHS.get(code.strip("`").partition("(")[0])
    return f"[{code}][{path}]" if path else code

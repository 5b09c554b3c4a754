"""A drawing of the rooms of the package and their imports, generated from the code."""

import ast
import functools
import tomllib
from html import escape
from pathlib import Path

import grimp

WIDTH, HEIGHT, GAP, ROW = 98, 30, 14, 84
# With its own background, so that it is readable on light and dark pages.
STYLE = (
    "svg{font:12px system-ui,sans-serif}.ground{fill:#fff;stroke:none}path{fill:none;stroke:#8a8699}"
    "marker path{fill:#8a8699;stroke:none}rect{fill:#f6f5fa;stroke:#332288}text{fill:#1d1b26;text-anchor:middle}"
    ".level{fill:#6a6678;text-anchor:start}"
)


def levels_of(root: Path) -> dict[str, int]:
    """The level of each room, from the contract in pyproject.toml that holds them."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    rooms = {room: level for level, layer in enumerate(reversed(layers)) for room in layer.split(" : ")}
    return {room: level for room, level in rooms.items() if room != "__main__"}


@functools.cache
def imports_of(root: Path) -> dict[str, set[str]]:
    """The other rooms whose names each room imports."""
    levels = levels_of(root)
    graph = grimp.build_graph("graphattn", cache_dir=None)
    for room in levels:
        graph.squash_module(f"graphattn.{room}")
    found = {room: graph.find_modules_directly_imported_by(f"graphattn.{room}") for room in levels}
    return {room: {name.rpartition(".")[2] for name in names} & (set(levels) - {room}) for room, names in found.items()}


def direct(found: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that don't follow from a longer path of imports."""

    def reach(room: str) -> set[str]:
        seen: set[str] = set()
        todo = list(found[room])
        while todo:
            other = todo.pop()
            if other not in seen:
                seen.add(other)
                todo += found[other]
        return seen

    below = {room: reach(room) for room in found}
    return [(a, b) for a in found for b in sorted(found[a]) if not any(b in below[c] for c in found[a] - {b})]


def draw_rooms(root: Path) -> str:
    """An SVG: a row per level, the highest on top, and an arrow for each direct import."""
    levels = levels_of(root)
    top = max(levels.values())
    rows = [[room for room in levels if levels[room] == level] for level in range(top, -1, -1)]
    width = max(map(len, rows)) * (WIDTH + GAP) + 60
    arrows = direct(imports_of(root))
    place: dict[str, tuple[float, int]] = {}
    for line, row in reversed(list(enumerate(rows))):
        # From the bottom: each row is ordered by the rooms below that it imports.
        stands = {room: [place[b][0] for a, b in arrows if a == room and b in place] for room in row}
        row.sort(key=lambda room: sum(stands[room]) / len(stands[room]) if stands[room] else 0)
        left = (width + 60 - len(row) * (WIDTH + GAP) + GAP) / 2
        place.update({room: (left + i * (WIDTH + GAP), 8 + line * ROW) for i, room in enumerate(row)})
    parts = []
    for room, other in arrows:
        (x, y), (to_x, to_y) = place[room], place[other]
        x, to_x, begin = x + WIDTH / 2, to_x + WIDTH / 2, y + HEIGHT
        if y == to_y:
            # Neighbors on one level: the arrow goes below them, and up into the near half of the other.
            to_x, end, bend = to_x + (8 if x > to_x else -8), begin + 2, begin + 26
        else:
            end = to_y - 3
            bend = (begin + end) // 2
        curve = f"M{x:.0f} {begin} C{x:.0f} {bend} {to_x:.0f} {bend} {to_x:.0f} {end}"
        parts.append(f'<path d="{curve}" marker-end="url(#head)"/>')
    for line in range(len(rows)):
        parts.append(f'<text x="4" y="{8 + line * ROW + 20}" class="level">{top - line}</text>')
    for room, (x, y) in place.items():
        parts.append(f'<rect x="{x:.0f}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="4"/>')
        parts.append(f'<text x="{x + WIDTH / 2:.0f}" y="{y + 20}">{escape(room)}</text>')
    height = len(rows) * ROW - (ROW - HEIGHT) + 40
    head = (
        f'<style>{STYLE}</style><defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>'
    )
    title = "The rooms by level, with an arrow from each room to those that it imports"
    about = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}"'
    ground = f'<rect class="ground" width="{width}" height="{height}" rx="6"/>'
    return "\n".join([f"<svg {about}>{head}{ground}", *parts, "</svg>\n"])


def write_rooms(root: Path) -> str:
    """A table: level, room, and the first line of its docstring."""
    lines = ["| level | room | what it is |", "|---|---|---|"]
    for room, level in sorted(levels_of(root).items(), key=lambda pair: (-pair[1], pair[0])):
        path = root / "graphattn" / room
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        text = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        lines.append(f"| {level} | `{room}` | {text} |")
    return "\n".join(lines)

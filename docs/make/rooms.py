"""The rooms of the package and who imports whom, read off the code and drawn."""

import ast
import functools
from html import escape
from pathlib import Path

WIDTH, HEIGHT, GAP, ROW = 98, 30, 14, 84
# On a ground of its own, so that it can be read on light and dark pages.
STYLE = (
    "svg{font:12px system-ui,sans-serif}.ground{fill:#fff;stroke:none}path{fill:none;stroke:#8a8699}"
    "marker path{fill:#8a8699;stroke:none}rect{fill:#f6f5fa;stroke:#332288}text{fill:#1d1b26;text-anchor:middle}"
    ".level{fill:#6a6678;text-anchor:start}"
)


def levels_of(root: Path) -> dict[str, int]:
    """The level of each room, from the test that holds them."""
    for node in ast.parse((root / "tests" / "repo" / "test_architecture.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "LEVELS":
            return {room: level for room, level in ast.literal_eval(node.value).items() if room != "__main__"}
    raise LookupError("tests/repo/test_architecture.py has no LEVELS")


def files_of(root: Path, room: str) -> list[Path]:
    """The files of a room: a module, or a folder of them."""
    path = root / "graphattn" / room
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


@functools.cache
def imports_of(root: Path) -> dict[str, set[str]]:
    """The rooms whose names each room imports, found in its source."""
    levels = levels_of(root)
    found: dict[str, set[str]] = {}
    for room in levels:
        found[room] = set()
        for path in files_of(root, room):
            # As many dots as it takes to leave the room.
            dots = len(path.relative_to(root / "graphattn").parts)
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.level == dots:
                    names = [node.module] if node.module else [alias.name for alias in node.names]
                    found[room] |= {name.partition(".")[0] for name in names} & set(levels)
        found[room].discard(room)
    return found


def direct(found: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that no longer way of other imports implies."""

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
        # From the bottom: each row in the order of what it stands on.
        stands = {room: [place[b][0] for a, b in arrows if a == room and b in place] for room in row}
        row.sort(key=lambda room: sum(stands[room]) / len(stands[room]) if stands[room] else 0)
        left = (width + 60 - len(row) * (WIDTH + GAP) + GAP) / 2
        place.update({room: (left + i * (WIDTH + GAP), 8 + line * ROW) for i, room in enumerate(row)})
    parts = []
    for room, other in arrows:
        (x, y), (to_x, to_y) = place[room], place[other]
        x, to_x, begin = x + WIDTH / 2, to_x + WIDTH / 2, y + HEIGHT
        if y == to_y:
            # Neighbors on one level: around below, and up into the other's near half.
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
        files = files_of(root, room)
        first = next((path for path in files if path.name == "__init__.py"), files[0])
        text = (ast.get_docstring(ast.parse(first.read_text())) or "").partition("\n")[0]
        lines.append(f"| {level} | `{room}` | {text} |")
    return "\n".join(lines)

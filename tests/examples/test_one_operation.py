"""The example of one operation prints, draws and writes its pages."""

from __future__ import annotations

from conftest import run_example


def test_one_operation_runs_four_patterns(tmp_path):
    printed = run_example("one_operation.py", "--smoke", "--output", str(tmp_path)).splitlines()
    assert [line.split(": ")[1].split("(")[0] for line in printed if "add up" in line] == [
        "Full",
        "Window",
        "Grid",
        "Edges",
    ]
    assert all(line.endswith("add up to 1.0000") for line in printed if "add up" in line)
    assert (tmp_path / "one_operation.png").exists()
    pages = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("explore_*.html")}
    kinds = {"sentence": "words", "window": "words", "image": "pixels", "graph": "nodes"}
    assert set(pages) == {f"explore_{name}.html" for name in kinds}
    assert all(f'"kind": "{kind}"' in pages[f"explore_{name}.html"] for name, kind in kinds.items())

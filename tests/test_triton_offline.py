"""What becomes of the GPU's kernel on GPUs that aren't here: registers, spills, loads, instructions, variants."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton, which Linux alone has")
HERE = Path(__file__).resolve().parent
BASELINE = json.loads((HERE / "triton_sm90.json").read_text())


def compile_for(*arguments: str, cache: Path) -> dict[str, dict]:
    command = [sys.executable, "-W", "ignore", str(HERE / "offline_triton.py"), *arguments]
    paths = {"PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]), "TRITON_CACHE_DIR": str(cache)}
    environment = {**os.environ, **paths, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_variant_has_become_worse_on_hopper(tmp_path):
    results = compile_for("90", cache=tmp_path)
    assert results.keys() == BASELINE.keys()
    for name, found in results.items():
        before = BASELINE[name]
        assert found["stack"] == 0, f"{name} spills"
        assert found["compiled"] == 1, f"{name} is compiled anew for graphs of another size"
        assert found["reg"] <= 1.1 * before["reg"], name
        assert 0 < found["loop"] <= 1.1 * before["loop"], name
        # Rows are read in whole quarters of a cache line, or as wide as the row allows.
        assert max(found["loads"]) >= max(before["loads"]) >= 64, name


def test_nothing_spills_on_ampere(tmp_path):
    assert all(found["stack"] == 0 for found in compile_for("80", "1", cache=tmp_path).values())

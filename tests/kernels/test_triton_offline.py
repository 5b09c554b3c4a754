"""What becomes of the GPU's kernel on GPUs that aren't here: registers, spills, loads, instructions, variants."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="needs Triton, which Linux alone has")
HERE = Path(__file__).resolve().parent
# A variant takes some ten seconds: all of them are compiled by `make fuzz` alone.
CHOSEN = () if "GRAPHATTN_FUZZ" in os.environ else ("few",)
# Each Triton compiles in its own way: there is a baseline of the oldest, and of CI's.
BASELINE = HERE / f"triton_{'.'.join(triton.__version__.split('.')[:2])}_sm90.json"
# Of these one Triton or the other keeps up to four values for the end of the program, outside of the loop over edges,
# and so needs 128 registers alone.
PARKED = (
    "forward_rows H4/4 D32 fp32 rows 16 sigmoid edges dropout",
    "source_gradients H4/4 D32 fp64 rows 1 cut identity tanh edges dropout",
    "source_gradients H8/2 D64 fp16 rows 1 cut relu edges",
    "target_gradients H8/2 D64 fp16 rows 1 cut relu edges",
)


def compile_for(*arguments: str, cache: Path) -> dict[str, dict]:
    command = [sys.executable, "-W", "ignore", str(HERE / "offline_triton.py"), *arguments]
    paths = {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), *sys.path]), "TRITON_CACHE_DIR": str(cache)}
    environment = {**os.environ, **paths, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_variant_has_become_worse_on_hopper(tmp_path):
    if not BASELINE.exists():
        pytest.skip(f"there is no baseline of Triton {triton.__version__}; tests/kernels/offline_triton.py makes one")
    baseline = json.loads(BASELINE.read_text())
    results = compile_for("90", *CHOSEN, cache=tmp_path)
    assert results.keys() == baseline.keys() if not CHOSEN else results.keys() < baseline.keys()
    for name, found in results.items():
        before = baseline[name]
        assert found["stack"] <= (16 if name in PARKED else 0), f"{name} spills"
        assert found["compiled"] == 1, f"{name} is compiled anew for graphs of another size"
        assert found["reg"] <= 1.1 * before["reg"], name
        assert 0 < found["loop"] <= 1.1 * before["loop"], name
        assert found["sums"] == before["sums"], name
        # Rows are read in whole quarters of a cache line, or as wide as the row allows; merges read little.
        assert max(found["loads"]) >= max(before["loads"]) >= (32 if name.startswith("merge") else 64), name


def test_scores_are_summed_in_the_same_order_in_every_pass():
    ways: dict[str, set] = {}
    for name, found in json.loads(BASELINE.read_text()).items():
        if not name.startswith("merge"):
            heads, width, dtype = name.split()[1:4]
            ways.setdefault(f"{heads} {width} {dtype}", set()).update(map(tuple, found["sums"]))
    assert len(ways) > 5
    for name, found in ways.items():
        assert len(found) == 1, f"{name}: {found}"


@pytest.mark.skipif(bool(CHOSEN), reason="half a minute for another chip than the test above: make fuzz runs it")
def test_nothing_spills_on_ampere(tmp_path):
    for name, found in compile_for("80", *CHOSEN, cache=tmp_path).items():
        assert found["stack"] == 0, f"{name} spills"

"""Full-graph attention over several processes equals that of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from distributed_checks import CHECKS
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
SIZES = (2, 3, 4)


@pytest.fixture(scope="session")
def raised(tmp_path_factory):
    """What each check raised, by world size, rank and name: run once, whichever worker comes first."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "ranks"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "log").exists():
            command = [sys.executable, str(ROOT / "tests" / "distributed_checks.py"), str(folder), *map(str, SIZES)]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
            (folder / "log").write_text(done.stdout + done.stderr)
    log = (folder / "log").read_text()
    found = {}
    for size in SIZES:
        paths = [folder / f"{size}-{rank}.json" for rank in range(size)]
        assert all(path.exists() for path in paths), log
        found[size] = [json.loads(path.read_text()) for path in paths]
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CHECKS)
def test_ranks_find_that(name, size, raised):
    problems = {rank: found[name] for rank, found in enumerate(raised[size]) if found[name] is not None}
    assert not problems, "\n".join(f"rank {rank}: {problem}" for rank, problem in problems.items())

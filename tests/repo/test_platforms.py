"""The package needs nothing that only some systems have."""

from __future__ import annotations

import re
import subprocess
import sys

from conftest import ROOT

ONLY_POSIX = re.compile(
    r"sched_getaffinity|register_at_fork|os\.fork|waitpid|getuid|sysconf|mkfifo|killpg|signal\.SIG|madvise|/proc\b"
    r"|import (?:resource|fcntl|pwd|grp|termios|signal)"
)


def test_what_only_some_systems_have_is_used_where_it_is_looked_for():
    found = {}
    for path in (ROOT / "graphattn").rglob("*.py"):
        if "__pycache__" not in path.parts and (names := set(ONLY_POSIX.findall(path.read_text("utf-8")))):
            found[path.relative_to(ROOT / "graphattn").as_posix()] = names
    # Each behind a question for the system or for the name itself.
    assert found == {
        "compiled/memory.py": {"madvise"},
        "compiled/threads.py": {"register_at_fork"},
        "cli/info.py": {"sched_getaffinity"},
        "calibrated.py": {"/proc"},
    }


def test_calls_and_commands_run_without_what_windows_lacks():
    code = """
import os, sys
import numba, torch, torch_geometric.nn
for name in ("fork", "register_at_fork", "sched_getaffinity", "getuid", "sysconf", "waitpid", "mkfifo", "killpg"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
sys.platform = "win32"

import graphattn.datasets, graphattn.distributed, graphattn.plot, graphattn.sampling, graphattn.testing
from graphattn import Edges, attention
from graphattn.cli import main
from graphattn.compiled import threads

torch.set_num_threads(2)
x = torch.randn(2_000, 2, 8)
edges = Edges(torch.randint(2_000, (2, 20_000)), 2_000)
torch.testing.assert_close(*(attention(x, x, x, edges, backend=backend) for backend in ("numba", "scatter")))
assert not threads.uses_threads_of_torch()
assert main(["info"]) == 0
assert main(["compare", "--sizes", "16", "--repeats", "1", "--backend", "scatter", "--no-picture"]) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0 and not done.stderr.count("Warning"), done.stderr
    assert "compiled loops run on our own" in done.stdout and "can't be told" not in done.stdout

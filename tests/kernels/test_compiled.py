"""Trouble with Numba, or with what it compiled before: the call is computed anyway, after one warning."""

from __future__ import annotations

import ast
import compileall
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numba
import numpy as np
import pytest
import torch
from numba.core.codegen import CPUCodeLibrary

from graphattn import Edges, attention, errors
from graphattn.compiled import cache, folders, remove_compiled, settle
from graphattn.compiled.cache import cache_folder, keep_on_disk
from graphattn.compiled.load import compiled_modules

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "graphattn"
X, INDEX = torch.randn(50, 2, 8), torch.randint(50, (2, 400))
MODULES = [*(f"graphattn.{module}" for module in compiled_modules()), cache.__name__]

CALL = """
import torch, graphattn
from graphattn import Edges, attention
x = torch.randn(50, 2, 8)
edges = Edges(torch.randint(50, (2, 400)), 50)
expected = attention(x, x, x, edges, backend="scatter")
print(graphattn.__file__)
print(all(torch.allclose(attention(x, x, x, edges), expected, atol=1e-5) for _ in range(2)))
print(graphattn.explain_backend(x, x, x, edges).chosen)
"""


def run(code: str, path: Path = ROOT, **environment: object) -> tuple[list[str], list[str]]:
    """Lines that a fresh process prints, and its warnings of ours."""
    given = {name: str(value) for name, value in environment.items()}
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        env={**inherited, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", **given},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), re.findall(r"UserWarning: (graphattn: .*)", done.stderr)


@pytest.fixture
def anew(monkeypatch):
    """A process that has warned of nothing yet."""
    monkeypatch.setattr(errors, "_warned", set())


def twice(x):
    return 2 * x


def compiled_twice(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A function of a module as a new process has it, with this folder for what is compiled."""
    module = ModuleType(__name__)
    module.twice = numba.njit(twice)
    monkeypatch.setattr(cache, "cache_folder", lambda modules: folder)
    keep_on_disk({"module": module})
    return module.twice


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A file with a compiled function, which is sought there."""
    assert compiled_twice(tmp_path, monkeypatch)(3) == 6
    (path,) = tmp_path.iterdir()
    return path


def test_what_is_compiled_is_kept_for_each_choice_of_types(kept, monkeypatch):
    for known, argument in ((True, 3), (False, 3.0), (True, 3.0), (False, np.ones(2)), (True, np.ones(2))):
        function = compiled_twice(kept.parent, monkeypatch)
        assert np.all(function(argument) == 2 * argument)
        assert sum(function.stats.cache_hits.values()) == known
    assert len(list(kept.parent.iterdir())) == 3


def test_a_running_process_writes_again_after_all_was_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "parents", lambda: [tmp_path])
    folder = tmp_path / "numba-0123456789abcdef"
    folder.mkdir()
    function = compiled_twice(folder, monkeypatch)
    for argument in (3, 3.0):
        assert function(argument) == 6
        assert remove_compiled().files == 1
    assert function(np.ones(2)).sum() == 4 and len(list(folder.iterdir())) == 1
    shutil.rmtree(folder)
    assert function(2j) == 4j and len(list(folder.iterdir())) == 1


DAMAGES = {
    "truncated": lambda held: held[:100],
    "empty": lambda held: b"",
    "of zeros": lambda held: bytes(len(held)),
    "a bit flipped": lambda held: held[:-999] + bytes([held[-999] ^ 1]) + held[-998:],
    "of another program": lambda held: b"#!/bin/sh\n" * 99,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_written_anew_after_one_warning(anew, kept, monkeypatch, damage):
    sound = kept.read_bytes()
    for _ in range(2):
        kept.write_bytes(DAMAGES[damage](sound))
        function = compiled_twice(kept.parent, monkeypatch)
        if errors._warned:
            assert function(3) == 6
        else:
            with pytest.warns(
                UserWarning, match=rf"compiled code in {kept} can't be read, and is compiled again, got .*"
            ):
                assert function(3) == 6
        assert compiled_twice(kept.parent, monkeypatch)(3) == 6
    assert list(kept.parent.iterdir()) == [kept]


def test_code_for_other_types_is_not_run(kept, monkeypatch):
    compiled_twice(kept.parent, monkeypatch)(3.0)
    (other,) = set(kept.parent.iterdir()) - {kept}
    shutil.copy(other, kept)
    assert compiled_twice(kept.parent, monkeypatch)(3) == 6


def test_a_full_disk_is_warned_of_once(anew, tmp_path, monkeypatch):
    def refuse(path, held):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    function = compiled_twice(tmp_path, monkeypatch)
    with pytest.warns(UserWarning, match="^graphattn: ") as caught:
        assert (function(3), function(3.0)) == (6, 6.0)
    (text,) = [str(warning.message) for warning in caught]
    assert text == (
        f"graphattn: compiled code can't be cached in {tmp_path}, so that every process compiles it again, got "
        "OSError: [Errno 28] No space left on device. Free space there, or set NUMBA_CACHE_DIR to a writable folder."
    )
    assert not list(tmp_path.iterdir())


def test_the_source_of_a_score_is_not_left_half_written_on_a_full_disk(anew, tmp_path, monkeypatch):
    def refuse(path, held):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "in_use", [tmp_path])
    monkeypatch.setattr(Path, "write_bytes", refuse)
    source = "import numba\n\n@numba.njit\ndef thrice(x):\n    return 3 * x\n"
    with pytest.warns(
        UserWarning, match=r"No space left on device\. Free space there, or set NUMBA_CACHE_DIR"
    ) as caught:
        assert cache.load_source("score", source).thrice(2) == 6
    assert len(caught) == 1 and not list(tmp_path.iterdir())


def test_a_file_that_belongs_to_someone_else_is_compiled_again_after_one_warning(anew, kept, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    function = compiled_twice(kept.parent, monkeypatch)
    with pytest.warns(UserWarning, match=rf"compiled code in {kept} can't be read.*If this happens again, delete"):
        assert function(3) == 6


def forbid(monkeypatch, *folders: Path) -> None:
    """Let nothing be made below folders."""
    make = Path.mkdir

    def refuse(self, *arguments, **options):
        if set(folders) & set(self.parents):
            raise PermissionError(13, "Permission denied", str(self))
        make(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)


def test_compiled_code_goes_where_it_can_be_written(anew, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    # Whatever NUMBA_CACHE_DIR is here.
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    beside = cache_folder(MODULES)
    assert beside.parent == PACKAGE / "compiled" / "__pycache__"
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "named"))
    assert cache_folder(MODULES) == tmp_path / "named" / beside.name
    forbid(monkeypatch, tmp_path / "named")
    assert cache_folder(MODULES) == beside
    forbid(monkeypatch, beside.parent)
    assert cache_folder(MODULES) == tmp_path / "user" / "graphattn" / beside.name
    forbid(monkeypatch, tmp_path)
    module = ModuleType(__name__)
    module.twice = numba.njit(twice)
    with pytest.warns(
        UserWarning, match=r"compiled code can't be cached.*named, .* To cache it, set NUMBA_CACHE_DIR to"
    ):
        keep_on_disk({"csr": sys.modules["graphattn.csr"]})
    assert module.twice(3) == 6


def test_a_process_without_a_home_has_its_cache_beside_the_sources(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def expanduser(path):
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.setattr(Path, "expanduser", expanduser)
    assert cache_folder(MODULES).parent.name == "__pycache__"


def test_a_change_in_any_source_has_a_folder_of_its_own(monkeypatch):
    assert cache_folder(MODULES).name != cache_folder(MODULES[1:]).name


def test_every_module_that_numba_compiles_is_listed():
    def imported(path: Path) -> set[str]:
        nodes = ast.parse(path.read_text()).body
        named = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
        named += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        return {name.partition(".")[0] for name in named}

    found = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        # There lie the loops of scores that were traced.
        if "__pycache__" not in path.parts and imported(path) & {"numba", "llvmlite"}
    }
    assert found | {"kernels.rows.operands"} == {*compiled_modules(), "compiled.cache"}


# Half a minute each: `make fuzz` runs them.
@pytest.mark.skipif("GRAPHATTN_FUZZ" not in os.environ, reason="a minute in all: run by make fuzz")
@pytest.mark.parametrize("kind", ["zip", "pyc"])
def test_a_package_without_sources_beside_it_compiles_and_keeps(kind, tmp_path):
    sources = [path for path in PACKAGE.rglob("*") if path.suffix in {".py", ".html", ".typed"}]
    place = tmp_path / "package"
    if kind == "zip":
        place = tmp_path / "package.zip"
        with zipfile.ZipFile(place, "w") as archive:
            for path in sources:
                archive.write(path, path.relative_to(ROOT))
    else:
        shutil.copytree(PACKAGE, place / "graphattn", ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(place, quiet=1, legacy=True)
        for path in place.rglob("*.py"):
            path.unlink()
    (where, *printed), warned = run(CALL, place, XDG_CACHE_HOME=tmp_path / "user")
    assert where.startswith(str(place)) and printed == ["True", "numba"] and not warned
    parent = tmp_path / "user" if kind == "zip" else place
    assert [path.suffix for path in parent.rglob("graphattn.kernels.rows.cpu.jit.forward.forward_tasks*")] == [".nbc"]


def test_a_call_on_a_full_disk(tmp_path):
    pytest.importorskip("resource", reason="limits the size of files, as Windows can't")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    (_, *printed), warned = run(limit + CALL, NUMBA_CACHE_DIR=tmp_path)
    assert printed == ["True", "numba"]
    assert len(warned) == 1 and "File too large. Free space there, or set NUMBA_CACHE_DIR" in warned[0]


@pytest.mark.skipif("GRAPHATTN_FUZZ" not in os.environ, reason="compiles a call for half a minute: run by make fuzz")
def test_a_call_among_truncated_files_heals_them(tmp_path):
    run(CALL)
    kept = cache_folder(MODULES)
    # All that the call needs is there, so that only what is truncated is compiled again.
    shutil.copytree(kept, tmp_path / kept.name)
    for path in (tmp_path / kept.name).glob("*plan_tasks*"):
        path.write_bytes(path.read_bytes()[:100])
    (_, *printed), warned = run(CALL, NUMBA_CACHE_DIR=tmp_path)
    assert printed == ["True", "numba"]
    assert len(warned) == 1 and "can't be read, and is compiled again, got ValueError" in warned[0]
    (_, *printed), warned = run(CALL, NUMBA_CACHE_DIR=tmp_path)
    assert printed == ["True", "numba"] and not warned


@pytest.mark.skipif("GRAPHATTN_FUZZ" not in os.environ, reason="loads Numba twice: run by make fuzz")
def test_a_process_may_import_numba_and_the_package_anew():
    code = """
import sys
import torch

def sort():
    from graphattn import Edges
    return Edges(torch.tensor([[2, 0, 1, 2], [1, 1, 0, 0]])).csr()

expected = sort()
for name in [name for name in sys.modules if name.partition(".")[0] in ("graphattn", "numba")]:
    del sys.modules[name]
print(all(map(torch.equal, sort(), expected)))
"""
    assert run(code) == (["True"], [])


TRAIN = """
from graphattn import Full, Grid, Window
for pattern in (edges, Window(50, radius=2), Grid((5, 10), radius=1), Full([20, 30])):
    y = x.clone().requires_grad_()
    attention(y, y, y, pattern).sum().backward()
x = x.requires_grad_()
torch.compile(lambda x: attention(x, x, x, edges), backend="eager")(x).sum().backward()
try:
    attention(x, x, x, edges, backend="numba")
except NotImplementedError as error:
    print(error)
"""


@pytest.mark.skipif("GRAPHATTN_FUZZ" not in os.environ, reason="ten seconds: run by make fuzz")
def test_a_switch_that_turns_compiling_off_leaves_plain_torch():
    (_, *printed), warned = run(CALL + TRAIN, NUMBA_DISABLE_JIT=1)
    fix = "Use backend='scatter' or 'auto'."
    refusal = f"attention: backend='numba' cannot run this call: NUMBA_DISABLE_JIT is set. {fix}"
    assert printed == ["True", "scatter", refusal]
    rule = "compiled code can't run, and calls take longer"
    assert warned == [f"graphattn: {rule}, got NUMBA_DISABLE_JIT is set. Unset it."]


def test_a_numba_that_cannot_be_imported_leaves_plain_torch(tmp_path):
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("raise ImportError('Numba needs NumPy 1.0 or less')")
    (_, *printed), warned = run(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + CALL + TRAIN)
    reason = "Numba can't be loaded (ImportError: Numba needs NumPy 1.0 or less)"
    refusal = f"attention: backend='numba' cannot run this call: {reason}. Use backend='scatter' or 'auto'."
    assert printed == ["True", "scatter", refusal]
    fix = "Use pip install --force-reinstall numba."
    assert warned == [f"graphattn: compiled code can't run, and calls take longer, got {reason}. {fix}"]


def test_a_numba_that_fails_to_compile_leaves_plain_torch(tmp_path):
    code = """
import llvmlite.binding
from graphattn.compiled import why_not_compiled
assert why_not_compiled() is None
parse = llvmlite.binding.parse_assembly
llvmlite.binding.parse_assembly = lambda *_: parse("of another LLVM")
"""
    (_, *printed), warned = run(code + CALL + TRAIN, NUMBA_CACHE_DIR=tmp_path)
    expected = "LLVM IR parsing error <string>:1:1: error: expected top-level entity of another LLVM ^"
    reason = f"Numba can't compile (RuntimeError: {expected})"
    refusal = f"attention: backend='numba' cannot run this call: {reason}. Use backend='scatter' or 'auto'."
    assert printed == ["True", "scatter", refusal]
    fix = "Use pip install --force-reinstall numba llvmlite, or set NUMBA_DISABLE_JIT=1."
    assert warned == [f"graphattn: compiled code can't run, and calls take longer, got {reason}. {fix}"]


@pytest.fixture
def failing(anew, monkeypatch):
    """Loops that nothing has compiled yet, and a list of functions: whether one of a name and types can't be."""
    load = sys.modules["graphattn.compiled.load"]
    compile_for, fails = load._compile_for, []

    def compile_some(function, types):
        if any(fail(function.__name__, types) for fail in fails):
            raise load.NotCompiled(MemoryError("out of memory"))
        compile_for(function, types)

    attention(X, X, X, INDEX, backend="numba")
    monkeypatch.setattr(load, "_loops", {})
    monkeypatch.setattr(load, "_reason", [None])
    monkeypatch.setattr(load, "_compile_for", compile_some)
    return fails


def test_a_forward_pass_that_does_not_compile_runs_in_plain_torch(failing):
    failing.append(lambda name, _: name == "forward_tasks")
    with pytest.warns(UserWarning, match=r"can't compile \(MemoryError: out of memory\)"):
        found = attention(X, X, X, INDEX)
    torch.testing.assert_close(found, attention(X, X, X, INDEX, backend="scatter"))


def test_a_backward_pass_that_does_not_compile_raises_once(failing):
    """The forward pass has run by then; the next one is by a kernel that can run."""
    failing.append(lambda name, _: "gradient" in name)
    x, edges = X.clone().requires_grad_(), Edges(INDEX, 50)
    expected = torch.autograd.grad(attention(x, x, x, edges, backend="scatter").sum(), x)
    out = attention(x, x, x, edges)
    with pytest.warns(UserWarning, match="can't run"), pytest.raises(RuntimeError, match=r"can't compile \(MemoryE"):
        out.sum().backward()
    found = torch.autograd.grad(attention(x, x, x, edges).sum(), x)
    torch.testing.assert_close(found, expected)


def test_a_timeout_while_a_loop_is_compiled_is_raised(monkeypatch):
    def stop(*_):
        raise TimeoutError("stopped")

    function = numba.njit(twice)
    monkeypatch.setattr(CPUCodeLibrary, "_optimize_final_module", stop)
    with pytest.raises(TimeoutError, match="stopped"):
        sys.modules["graphattn.compiled.load"]._compile_for(function, (numba.types.int64,))


def test_a_loop_that_does_not_compile_for_its_shape_stays_as_it_is(failing):
    expected = attention(X, X, X, INDEX, backend="scatter")
    failing.append(lambda name, types: "Literal" in str(types))
    with pytest.warns(UserWarning, match="can't run"):
        found = settle(lambda: attention(X, X, X, INDEX, backend="numba"))
    torch.testing.assert_close(found, expected)


DRAW = """
import sys, torch
from torch_geometric.data import Data
from torch_geometric.sampler import NodeSamplerInput
from graphattn.sampling import NeighborSampler
edge_index = torch.stack([torch.arange(3000) % 7 % 50, torch.arange(3000) % 50])
sampler = NeighborSampler(Data(edge_index=edge_index, num_nodes=50), [5, 10], seed=2**62 + 1)
drawn = sampler.sample_from_nodes(NodeSamplerInput(None, torch.arange(40)))
print(drawn.edge.tolist(), drawn.node.tolist())
"""


@pytest.mark.skipif("GRAPHATTN_FUZZ" not in os.environ, reason="ten seconds: run by make fuzz")
def test_a_sampler_draws_the_same_where_nothing_is_compiled():
    compiled, warned = run(DRAW)
    assert not warned
    found, warned = run(DRAW, NUMBA_DISABLE_JIT=1, OMP_NUM_THREADS=2)
    assert found == compiled and len(warned) == 1


@pytest.mark.skipif("GRAPHATTN_FUZZ" not in os.environ, reason="ten seconds: run by make fuzz")
def test_a_sampler_without_numba_says_what_it_needs():
    code = (
        "import sys; sys.modules['numba'] = None\ntry:"
        + DRAW.replace("\n", "\n    ")
        + "\nexcept ImportError as e: print(e)"
    )
    text = "graphattn: compiled code must be available, got Numba is not installed (pip install numba)."
    assert run(code) == ([text], [])


@pytest.mark.skipif("GRAPHATTN_FUZZ" not in os.environ, reason="ten seconds: run by make fuzz")
def test_a_package_that_is_imported_anew_finds_its_operators():
    code = """
import sys, torch

def attend():
    from graphattn import Edges, Window, attention
    x = torch.linspace(-1, 1, 800).view(50, 2, 8).requires_grad_()
    index = torch.stack([torch.arange(400) % 49, torch.arange(400) % 50])
    outs = [attention(x, x, x, pattern) for pattern in (Edges(index, 50), Window(50, radius=2))]
    sum(outs).sum().backward()
    return outs[0].detach(), outs[1].detach(), x.grad

def purge():
    for name in [name for name in sys.modules if name.partition(".")[0] == "graphattn"]:
        del sys.modules[name]

expected = attend()
former = sys.modules["graphattn"]
x = torch.randn(5, 1, 4)
edge_index = torch.tensor([[0, 1, 2], [1, 2, 3]])
graph = torch.compile(lambda x: former.attention(x, x, x, edge_index), fullgraph=True, backend="aot_eager")
out = graph(x)
for _ in range(2):
    purge()
    print(all(map(torch.equal, attend(), expected)), sys.modules["graphattn"] is not former)
purge()
# What was made of the former package goes on, its compiled graphs among it.
print(torch.equal(graph(x), out), torch.equal(former.attention(x, x, x, edge_index), out))
print(sys.modules["graphattn.kernels.rows.cpu.kernel"].__name__)
"""
    printed, warned = run(code)
    assert printed == ["True True"] * 3 + ["graphattn.kernels.rows.cpu.kernel"] and not warned

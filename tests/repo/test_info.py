"""`python -m graphattn info` says what a bug report needs; `clear-cache` removes what was compiled, nothing else."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time

import numba
import pytest
import torch
from conftest import ROOT
from test_repository import PROJECT

import graphattn
from graphattn.cli import info, main
from graphattn.compiled import folders, remove_compiled
from graphattn.kernels import KERNELS

FOLDER = "numba-0123456789abcdef"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The only folder that holds compiled code."""
    monkeypatch.setattr(folders, "parents", lambda: [tmp_path])
    (tmp_path / FOLDER).mkdir()
    return tmp_path / FOLDER


def shown(capsys):
    assert main(["info"]) == 0
    return capsys.readouterr().out


def test_versions_of_all_that_may_be_used_are_told(capsys):
    out = shown(capsys)
    needed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["partition"]]
    assert {name.partition(">")[0] for name in needed} <= set(info.PACKAGES)
    assert f"{graphattn.__version__} in {graphattn.__path__[0]}" in out and torch.__version__ in out
    assert all(f"\n  {package} " in out for package in info.PACKAGES)


def test_each_kernel_is_told_with_the_reason_where_it_cannot_run(capsys, monkeypatch):
    out = shown(capsys)
    assert all(f"\n  {kernel.name} on cpu " in out for kernel in KERNELS)
    assert "numba on cpu    can run\n" in out and "triton on cpu   cannot: tensors are on cpu\n" in out
    # The package has a function of this name, too.
    load = importlib.import_module("graphattn.compiled.load")
    monkeypatch.setattr(load, "_reason", ["NUMBA_DISABLE_JIT is set"])
    out = shown(capsys)
    assert "numba on cpu    cannot: NUMBA_DISABLE_JIT is set\n" in out and "scatter on cpu  can run\n" in out
    assert "folder  none: NUMBA_DISABLE_JIT is set\n" in out


def test_the_cache_is_told_with_its_size(cache, capsys, monkeypatch):
    (cache / "code-0123.nbc").write_bytes(bytes(3000))
    monkeypatch.setattr(folders, "in_use", [cache])
    assert f"folder  {cache}, can be written\n  files   1, 2.93 KiB in {cache}\n" in shown(capsys)
    monkeypatch.setattr(folders, "in_use", [])
    assert f"folder  none can be written: {cache.parent}\n" in shown(capsys)


def test_a_part_that_fails_leaves_the_others(capsys, monkeypatch):
    def refuse(*_):
        raise RuntimeError("driver lost")

    monkeypatch.setattr(torch.cuda, "device_count", refuse)
    out = shown(capsys)
    assert "can't be told  RuntimeError: driver lost\n" in out and "scatter on cpu  can run\n" in out


def test_a_process_without_numba_tells_what_is_missing():
    code = "import sys; sys.modules['numba'] = None; from graphattn.cli import main; main(['info'])"
    environment = {**os.environ, "NUMBA_CACHE_DIR": "nowhere"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert any(line.split() == ["NUMBA_CACHE_DIR", "nowhere"] for line in done.stdout.splitlines())
    assert "numba on cpu    cannot: Numba is not installed (pip install numba)\n" in done.stdout


def test_what_was_compiled_is_removed_and_nothing_else(cache, capsys):
    mine = ["graphattn.csr.sort-0123456789abcdef.nbc", "score_0123456789abcdef.py", f"x.{'0' * 32}"]
    others = ["notes.txt", "score.py", f"x.{'1' * 32}"]
    for name in (*mine, *others):
        (cache / name).write_bytes(bytes(1024))
    # Left by a process that was ended long ago; the other may be written just now.
    os.utime(cache / mine[2], (time.time() - 2 * folders.ABANDONED_SECONDS,) * 2)
    for path in ("calibration.json", "numba-mine/code.nbc", "0123456789abcdef/code.nbc"):
        (cache.parent / path).parent.mkdir(exist_ok=True)
        (cache.parent / path).touch()
    assert main(["clear-cache"]) == 0
    assert capsys.readouterr().out == f"Removed 3 files, 3 KiB.\n  {cache}\n"
    assert sorted(path.name for path in cache.iterdir()) == sorted(others)
    assert len(list(cache.parent.rglob("code.nbc"))) == 2 and (cache.parent / "calibration.json").exists()
    assert main(["clear-cache"]) == 0
    assert capsys.readouterr().out == "Removed 0 files, 0 B.\n"


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_are_not_followed(cache, tmp_path):
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "kept.nbc").touch()
    (tmp_path / f"numba-{'f' * 16}").symlink_to(tmp_path / "else")
    (cache / "link.nbc").symlink_to(tmp_path / "else" / "kept.nbc")
    assert remove_compiled().files == 1
    assert (tmp_path / "else" / "kept.nbc").exists() and not (cache / "link.nbc").is_symlink()


def test_a_file_that_cannot_be_removed_is_named(cache, capsys, monkeypatch):
    (cache / "code.nbc").touch()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    assert main(["clear-cache"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "Removed 0 files, 0 B.\n"
    assert printed.err == f"clear-cache: not removed: {cache / 'code.nbc'}: Permission denied\n"


def test_the_users_folder_for_numba_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert folders.parents()[0] == tmp_path / "named" and folders.parents()[2] == tmp_path / "user" / "graphattn"

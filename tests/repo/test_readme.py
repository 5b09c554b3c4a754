"""The README's code runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def test_the_examples_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example, twin, own_score, accelerate = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    for name in ("on_a_graph", "on_sentences", "on_pixels"):
        assert names[name].shape == (12, 32) and names[name].isfinite().all()
    assert not torch.equal(names["on_a_graph"], names["on_pixels"])
    exec(compile(twin, "README.md", "exec"), names)
    assert names["sparse"].shape == names["dense"].shape == (12, 4, 8)
    exec(compile(own_score, "README.md", "exec"), names)
    assert names["out"].shape == (12, 4, 8) and "score = " in capsys.readouterr().out
    exec(compile(accelerate, "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("2 layers accelerated, 0 left\n")


def test_every_link_to_a_file_leads_somewhere():
    root = Path(__file__).resolve().parents[2]
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 20
    assert all(link.startswith("https://") or (root / link).exists() for link in links)


def test_what_it_tells_to_make_can_be_made():
    makefile = (Path(__file__).resolve().parents[2] / "Makefile").read_text()
    commands = re.findall(r"make ([a-z-]+)", README)
    assert len(commands) > 4
    assert all(re.search(rf"^{command}:", makefile, re.M) for command in commands)

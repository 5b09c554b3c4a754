"""The README's code runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def test_the_examples_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example, models, accelerate = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    for name in ("on_a_graph", "on_sentences", "in_a_window", "on_pixels"):
        assert names[name].shape == (12, 32) and names[name].isfinite().all()
    assert names["sparse"].shape == names["dense"].shape == (12, 4, 8)
    assert not torch.equal(names["on_a_graph"], names["on_pixels"])
    exec(compile(models, "README.md", "exec"), names)
    assert names["tags"].shape == (12, 17) and names["one_vector_each"].shape == (2, 8)
    assert (tmp_path / "attention.html").stat().st_size > 10_000
    exec(compile(accelerate, "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("2 layers accelerated, 0 left\n")


def test_every_link_to_a_file_leads_somewhere():
    root = Path(__file__).resolve().parents[1]
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 3
    assert all(link.startswith("https://") or (root / link).exists() for link in links)

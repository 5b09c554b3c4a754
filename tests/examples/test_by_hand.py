"""The worked page is right, fits the page, and would say so if it weren't."""

from __future__ import annotations

import runpy
import sys

import matplotlib.pyplot as plt
import pytest
from conftest import ROOT, run_example

import graphattn


def test_the_page_agrees_with_the_library_and_draws(tmp_path):
    lines = run_example("by_hand.py", "--output", str(tmp_path)).splitlines()
    verdicts = [line for line in lines if " equal to graphattn: " in line]
    assert len(verdicts) == 11 and all("graphattn: yes (difference " in line for line in verdicts)
    assert lines[-1].startswith("11 of 11 equal to graphattn, largest difference ")
    assert max(map(len, lines[:-2])) <= 100
    assert "    q1.k1 =  1, q1.k2 =  1, q1.k3 =  2, q1.k4 =  1   / sqrt(2):    0.707  0.707  1.414  0.707" in lines
    assert (tmp_path / "by_hand.png").exists()


def test_the_page_notices_a_library_that_is_wrong(tmp_path, monkeypatch, capsys):
    right = graphattn.attention

    def wrong(*arguments, **options):
        out, weights = right(*arguments, **options)
        return out + 1e-11, weights

    monkeypatch.setattr(graphattn, "attention", wrong)
    monkeypatch.setattr(sys, "argv", ["by_hand.py", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(ROOT / "examples" / "by_hand.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.count("equal to graphattn: NO (difference 1e-11)") == 4 and "7 of 11 equal" in printed


def test_rows_of_the_picture_are_targets(tmp_path):
    page = runpy.run_path(str(ROOT / "examples" / "by_hand.py"))
    found = page["attend"](page["INPUTS"], page["HEADS"][0])
    page["draw"]({"once": found, "twice": found}, tmp_path / "page.png")
    weights = plt.gcf().axes[1]
    assert (weights.get_xlabel(), weights.get_ylabel()) == ("source $j$", "target $i$")
    assert weights.images[0].get_array().tolist() == found[1]
    plt.close("all")

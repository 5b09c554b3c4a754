"""What a user copies runs, and its checks would notice a mistake."""

from __future__ import annotations

import runpy

import pytest
import torch
from conftest import ROOT, run_example

from graphattn import Normalized
from graphattn.testing import assert_matches_dense, pattern_zoo, random_call


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(ROOT / "examples" / "own_score.py"))


def test_the_example_checks_learns_and_explains():
    lines = run_example("own_score.py").splitlines()
    assert lines[0].endswith("equal the dense reference: outputs, weights and every gradient.")
    first, second = map(float, lines[1].split(": ")[1].split(", "))
    assert abs(first - 0.5) < 0.01 and abs(second - 2) < 0.05
    assert lines[2] == "target_0: 32 numbers per target and head" and "score = x8" in lines
    assert lines[-3].startswith("Not compiled: ") and "aten.amax" in lines[-3]
    assert lines[-1].endswith("learned in a layer, compiled for the CPU")


@pytest.mark.parametrize("name", ["one edge", "no edges", "parallel edges", "window ragged", "grid 2-D"])
def test_its_normalizer_equals_the_dense_twin_on_other_patterns(example, name):
    pattern = pattern_zoo()[name]
    assert_matches_dense(random_call(pattern), pattern, normalizer=Normalized(example["squared_relu"]))


def test_its_check_notices_forms_that_disagree(example):
    class Wrong(Normalized):
        def dense(self, score, mask):
            return 1.001 * super().dense(score, mask)

    pattern = pattern_zoo()["window ragged"]
    with pytest.raises(AssertionError, match="out is off by"):
        assert_matches_dense(random_call(pattern), pattern, normalizer=Wrong(example["squared_relu"]))


def test_a_wider_kernel_is_closer_to_the_mean(example):
    narrow, wide = example["Gaussian"](1), example["Gaussian"](1)
    wide.log_width.data += 5
    query, key = torch.zeros(2, 1, 1), torch.tensor([[[1.0]], [[3.0]]])
    assert narrow(query, key, None).flatten().tolist() == [-0.5, -4.5]
    assert wide(query, key, None).abs().max() < 1e-3

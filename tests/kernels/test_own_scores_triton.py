"""The GPU's loops of traced scores: interpreted, against the oracle, and compiled for GPUs that aren't here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from covering import few
from random_scores import RandomScore
from test_own_scores import SCORES, tensors_of

from graphattn import Additive, Edges, Normalized
from graphattn.kernels.rows.gpu import kernel as gpu_kernel
from graphattn.kernels.rows.gpu import plan as gpu_plan
from graphattn.kernels.rows.op import FUNCTIONS
from graphattn.testing import assert_matches_dense, graph_zoo, pattern_zoo, random_call

pytest.importorskip("triton", reason="needs Triton, which Linux alone has")
# The interpreter's NumPy warns of quotients of zeros, which lanes without an edge have.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
HERE = Path(__file__).resolve().parent
ZOO = pattern_zoo()
SMALL = [name for name, pattern in ZOO.items() if pattern.num_edges < 25]
interpreted_alone = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="a GPU is here: make gpu runs the kernels compiled"
)


@pytest.fixture
def interpreted(monkeypatch):
    """Let the CPU's tensors reach the GPU's kernel and loops."""
    monkeypatch.setattr(gpu_kernel.TritonCSR, "device", "cpu")
    monkeypatch.setitem(FUNCTIONS, "cpu", FUNCTIONS["cuda"])


@interpreted_alone
@pytest.mark.parametrize("name", ["cosine", "SuperGAT", "gate over edges", "decay", "kinks", "waves"])
def test_scores_equal_the_oracle(name, interpreted):
    score, shape = SCORES[name]
    pattern = ZOO["parallel edges"]
    tensors = tensors_of(pattern, shape, batch=(2,))
    if shape is not None:
        tensors["edge_key"] = tensors["edge_key"][len(name) % 2].detach().requires_grad_()
    assert_matches_dense(tensors, pattern, score=score, backend="triton", dropout_p=0.3)


@interpreted_alone
@pytest.mark.parametrize("seed", range(min(int(os.environ.get("GRAPHATTN_FUZZ", 5)), 100)))
def test_random_scores_equal_the_oracle(seed, interpreted):
    pattern = ZOO[SMALL[seed % len(SMALL)]]
    heads, kv_heads, width = [(4, 2, 3), (2, 2, 20), (3, 1, 1), (1, 1, 16), (5, 5, 7)][seed % 5]
    tensors = random_call(pattern, heads=heads, kv_heads=kv_heads, width=width)
    if seed % 2:
        tensors["edge_key"] = torch.randn(pattern.num_edges, heads, width, dtype=torch.float64, requires_grad=True)
    assert_matches_dense(tensors, pattern, score=RandomScore(seed, heads, width), backend="triton")


@interpreted_alone
@pytest.mark.parametrize("name", ["star in", "star out"])
def test_rows_cut_into_pieces_equal_the_oracle(name, interpreted, monkeypatch):
    monkeypatch.setattr(gpu_plan, "PIECE_EDGES", (2, 2))
    monkeypatch.setattr(gpu_plan, "SHORT_ROW", 1)
    pattern = Edges(graph_zoo()[name].edge_index, graph_zoo()[name].num_sources)
    for score in ("learned width", "SuperGAT"):
        assert_matches_dense(tensors_of(pattern, None), pattern, score=SCORES[score][0], backend="triton")


@interpreted_alone
@pytest.mark.parametrize("normalizer", few(["entmax15", Normalized(torch.square), "sparsemax"], 2))
def test_every_normalizer_is_fused(normalizer, interpreted):
    pattern = ZOO["unsorted edges"]
    for score in (None, Additive(torch.ones(4, 3, dtype=torch.float64))):
        assert_matches_dense(tensors_of(pattern, None), pattern, score=score, normalizer=normalizer, backend="triton")


@interpreted_alone
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_stays_within_the_oracles_own_error(dtype, interpreted):
    score, shape = SCORES["gate over edges"]
    pattern = ZOO["unsorted edges"]
    assert_matches_dense(tensors_of(pattern, shape, dtype=dtype), pattern, score=score, backend="triton")


# Of the offline tests, that of the kernel's own scores runs in every test run.
@pytest.mark.skipif("GRAPHATTN_FUZZ" not in os.environ, reason="a minute in all: run by make fuzz")
@pytest.mark.parametrize("chip", ["90", "80"])
def test_nothing_spills(chip, tmp_path):
    paths = {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), *sys.path]), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / "offline_own_scores.py"), chip, "float32", "bfloat16"],
        capture_output=True,
        text=True,
        env={**os.environ, **paths, "TRITON_INTERPRET": "0"},
    )
    assert done.returncode == 0, done.stderr
    for name, found in json.loads(done.stdout).items():
        assert found["stack"] == 0, f"{name} spills"
        # Rows are read in whole quarters of a cache line.
        assert max(found["loads"]) >= 64, name

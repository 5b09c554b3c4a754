"""What the GPU's rows are cut into, how much of them a program takes, and what a call should cost: without Triton."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from graphattn import Edges, explain_backend
from graphattn.calibrated import _known
from graphattn.call import prepare
from graphattn.costs import CUDA
from graphattn.kernels.base import FORWARD_SHARE
from graphattn.kernels.rows.gpu import kernel as gpu_kernel
from graphattn.kernels.rows.gpu import plan as gpu_plan
from graphattn.testing import graph_zoo, random_call

WIDTHS = [(1, 1, 1), (8, 1, 16), (4, 1, 64), (1, 4, 64), (2, 8, 128), (1, 1, 256), (1, 32, 256), (8, 1, 8), (4, 1, 2)]


@pytest.mark.parametrize("name", list(graph_zoo()))
def test_a_plan_has_every_edge_once_and_long_rows_first(name, monkeypatch):
    monkeypatch.setattr(gpu_plan, "PIECE_EDGES", (16, 16))
    csr = graph_zoo()[name].csr()
    *_, long, short, cut = gpu_plan.ItemPlan.of(csr)
    items = torch.cat([long, short]).long()
    edges = [torch.arange(begin, end) for begin, end in items[:, 1:3].tolist()]
    assert torch.equal(
        torch.cat([torch.empty(0, dtype=torch.int64), *edges]).sort().values, torch.arange(len(csr.index))
    )
    whole = items[items[:, 3] < 0]
    assert torch.equal(torch.cat([whole[:, 0], cut[:, 0].long()]).sort().values, torch.arange(len(csr.ptr) - 1))
    degree = items[:, 2] - items[:, 1]
    assert (degree <= 16).all() and (degree[len(long) :] <= gpu_plan.SHORT_ROW).all()
    assert (whole[:, 2] - whole[:, 1]).diff().le(0).all()
    pieces = items[items[:, 3] >= 0]
    assert torch.equal(pieces[:, 3], torch.arange(len(pieces)))
    for row, first, last in cut.tolist():
        assert (pieces[first:last, 0] == row).all() and len(pieces[first:last]) > 1


def test_parallel_edges_are_counted_in_their_order():
    edges = Edges(torch.tensor([[0, 1, 0, 0, 2], [1, 1, 1, 0, 1]]), 3)
    assert gpu_plan.ItemPlan.of(edges.csr()).occurrence.tolist() == [0, 0, 1, 0, 0]
    assert gpu_plan.ItemPlan.of(Edges(torch.tensor([[0, 1], [1, 1]]), 2).csr()).occurrence.numel() == 0


@pytest.mark.parametrize("is_backward", [False, True])
@pytest.mark.parametrize("is_short", [False, True])
@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_a_program_holds_what_fits_into_registers(widths, itemsize, is_short, is_backward):
    kv_heads, group, width = widths
    rows, heads, warps = gpu_plan.block_of(kv_heads, group, (width, width), itemsize, is_short, is_backward)
    one = gpu_plan.power_of_two(group) * gpu_plan.power_of_two(width)
    room = gpu_plan.TILE // 2 ** (is_short + is_backward + (itemsize == 8))
    # A group of heads stays together, whatever its size: it has more warps then.
    assert rows * heads * one <= max(room, one) and heads <= gpu_plan.power_of_two(kv_heads)
    # Long rows lie beside each other only where a warp would load less than a quarter of a tile.
    assert (rows == 1 or is_short or (rows // 2) * heads * one < 256) and 1 <= warps <= gpu_plan.MOST_WARPS
    assert warps == 1 or one > room


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("narrow", [1, 2, 8, 32, 256])
@pytest.mark.parametrize("wide", [1, 4, 64, 256])
def test_every_pass_sums_a_width_by_as_many_threads(wide, narrow, itemsize):
    """A tile that has less than a warp loads at once is spread by its size: then all passes must have the same."""
    for kv_heads, group in ((1, 1), (8, 1), (2, 4)):
        blocks = {
            gpu_plan.block_of(kv_heads, group, (narrow, wide), itemsize, is_short, is_backward)
            for is_short in (False, True)
            for is_backward in (False, True)
        }
        smallest = min((width for width in (narrow, wide) if width > 1), default=0)
        filled = [x.rows * x.heads * group * smallest * itemsize >= 512 * x.warps for x in blocks]
        assert len(blocks) == 1 or all(filled) or smallest == 0


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        # Eight heads of 64 lie in one tile, or eight rows of one head; backward has half as much room.
        ((8, 1, (64, 64), 4, False, False), (1, 8, 1)),
        ((8, 1, (64, 64), 4, True, False), (8, 1, 1)),
        ((8, 1, (64, 64), 4, True, True), (4, 1, 1)),
        # A group of 16 heads of 64 fills the tile forward, and two warps backward.
        ((1, 16, (64, 64), 4, False, False), (1, 1, 1)),
        ((1, 16, (64, 64), 4, False, True), (1, 1, 2)),
        # Eight heads of 8 are half of what a warp loads at once: two long rows in a program.
        ((8, 1, (8, 8), 4, False, False), (2, 8, 1)),
    ],
)
def test_blocks_by_hand(block, expected):
    assert gpu_plan.block_of(*block) == expected


def call_on_a_thousand_edges(requires_grad=True, **options):
    pattern = Edges(torch.randint(64, (2, 1000), generator=torch.Generator().manual_seed(0)), 64)
    tensors = {name: x.requires_grad_(requires_grad) for name, x in random_call(pattern, **options).items()}
    return prepare("attention", pattern=pattern, **tensors)


def test_the_estimate_by_hand():
    # 64 nodes, two heads of 4 in float32: every number that is gathered lies in the cache.
    call = call_on_a_thousand_edges(dtype=torch.float32)
    rows, edges = 64 * 2 * 8 * 4, 1000
    moved = 3 * (2 * rows + 8 * edges) / CUDA.triton_memory + 3 * edges * 2 * 8 * 4 / CUDA.triton_cache
    counted = 3.8 * edges * 2 * (1 + 0.15 * 8) / CUDA.triton_instructions
    estimated = gpu_plan.estimate(call, CUDA)
    assert estimated == pytest.approx(max(moved, counted) + CUDA.triton_call, rel=1e-12)
    alone = call_on_a_thousand_edges(requires_grad=False, dtype=torch.float32)
    assert gpu_plan.estimate(alone, CUDA) == pytest.approx(FORWARD_SHARE * estimated, rel=1e-12)


def test_bytes_and_the_cache_decide_where_instructions_do_not():
    costs = replace(CUDA, triton_instructions=math.inf, triton_call=0.0)
    seconds = lambda costs=costs, **options: gpu_plan.estimate(call_on_a_thousand_edges(**options), costs)
    full = seconds(dtype=torch.float32, width=64)
    assert 0.5 < seconds(dtype=torch.bfloat16, width=64) / full < 0.52
    assert seconds(dtype=torch.float32, width=64, edge_tensors=True) / full > 1
    beyond = seconds(replace(costs, triton_cache_bytes=0.0), dtype=torch.float32, width=64)
    assert full < beyond < full * costs.triton_cache / costs.triton_memory


def test_auto_takes_the_kernel_only_where_it_was_checked(monkeypatch):
    monkeypatch.setattr(gpu_kernel.TritonCSR, "device", "cpu")
    monkeypatch.setattr(gpu_kernel, "HAS_TRITON", True)
    pattern = graph_zoo()["unsorted edges"]
    tensors = random_call(pattern)
    kernel = gpu_kernel.TritonCSR()
    known = (torch.device("cpu"), torch.get_num_threads())
    monkeypatch.setitem(_known, known, replace(CUDA, features=()))
    report = explain_backend(**tensors, pattern=pattern)
    assert report.chosen != "triton" and report.answers["triton"] == (None, math.inf)
    assert "\n  triton   runs only if named explicitly\n" in str(report)
    assert str(explain_backend(**tensors, pattern=pattern, backend="triton")).startswith("backend='triton' runs")
    assert not kernel.reads_traced_edges(torch.device("cpu"))
    monkeypatch.setitem(_known, known, replace(CUDA, triton_call=1e-5))
    report = explain_backend(**tensors, pattern=pattern)
    assert report.chosen == "triton" and "\n> triton   can run, estimated 0.01 ms\n" in str(report)
    assert kernel.reads_traced_edges(torch.device("cpu")) and not kernel.reads_traced_edges(torch.device("meta"))

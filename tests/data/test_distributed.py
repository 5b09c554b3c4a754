"""Full-graph attention over several processes equals that of one."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from covering import few
from distributed_checks import CHECKS
from filelock import FileLock
from torch_geometric.data import Data

from graphattn import Edges, cli
from graphattn.distributed import (
    DistributedPattern,
    block_parts,
    load_part,
    read_graph,
    read_part,
    save_parts,
    split_graph,
)

ROOT = Path(__file__).resolve().parents[2]
SIZES = few((3, 2, 4))


@pytest.fixture(scope="session")
def raised(tmp_path_factory):
    """What each check raised, by world size, rank and name: run once, whichever worker comes first."""
    if not hasattr(os, "fork"):
        pytest.skip("ranks are forks, which Windows doesn't have")
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "ranks"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "log").exists():
            command = [
                sys.executable,
                str(ROOT / "tests" / "data" / "distributed_checks.py"),
                str(folder),
                *map(str, SIZES),
            ]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
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


PATH = torch.tensor([[0, 1, 2, 3, 1, 2, 3, 4], [1, 2, 3, 4, 0, 1, 2, 3]])


@pytest.mark.parametrize(
    ("edges", "assignment", "num_parts", "text"),
    [
        (PATH, torch.tensor([0, 0, 1, 1]), None, "edge_index.* must lie in .0, 4. because num_nodes is 4"),
        (
            Edges(PATH, 5),
            torch.tensor([0, 0, 1, 1]),
            None,
            "assignment must have a part for each of the 5 nodes, got 4",
        ),
        (PATH, torch.tensor([0, 0, -1, 1, 1]), None, r"assignment must lie in \[0, 2\), got -1 for node 2"),
        (PATH, torch.tensor([0, 0, 1, 1, 2]), 2, r"assignment must lie in \[0, 2\), got 2 for node 4"),
        (PATH, torch.zeros(5), None, "assignment must be a tensor of integers, got torch.float32"),
        (Edges(PATH, num_sources=5, num_targets=6), torch.zeros(5, dtype=int), None, "as many sources as targets"),
    ],
)
def test_an_assignment_must_cover_the_nodes(edges, assignment, num_parts, text):
    with pytest.raises((ValueError, TypeError), match=text):
        split_graph(edges, assignment, num_parts)


def test_blocks_have_equal_work():
    hub = torch.stack([torch.arange(1, 100), torch.zeros(99, dtype=torch.int64)])
    part = block_parts(hub, 2)
    # The hub and its 99 edges weigh as much as the other 99 nodes.
    assert part.tolist() == [0] + [1] * 99
    assert block_parts(PATH, 3, torch.tensor([4, 3, 2, 1, 0])).tolist() == [2, 2, 1, 0, 0]
    assert block_parts(torch.empty(2, 0, dtype=torch.int64), 3).numel() == 0
    with pytest.raises(ValueError, match="order must name each of the 5 nodes once"):
        block_parts(PATH, 2, torch.tensor([0, 1, 2, 3, 3]))


def test_without_a_process_group_there_is_one_clear_line(tmp_path):
    part = split_graph(PATH, block_parts(PATH, 2))[0]
    for function in (lambda: DistributedPattern(part), lambda: load_part(tmp_path)):
        with pytest.raises(
            RuntimeError, match=r"process group must be initialized. Use torch.distributed.init_process_group"
        ):
            function()


def write_graphs(folder: Path) -> dict[str, Data]:
    """The same graph in every kind of file."""
    features = {"x": torch.arange(5.0).view(5, 1), "edge_attr": torch.arange(8.0)}
    torch.save(Data(edge_index=PATH, num_nodes=5, **features), folder / "data.pt")
    torch.save({"edge_index": PATH, **features}, folder / "dictionary.pt")
    np.savez(folder / "arrays.npz", edge_index=PATH.numpy(), num_nodes=5, **{k: x.numpy() for k, x in features.items()})
    (folder / "edges.txt").write_text("# source target\n" + "".join(f"{a}\t{b}\n" for a, b in PATH.t().tolist()))
    (folder / "edges.csv").write_text("".join(f"{a},{b},0.5\n" for a, b in PATH.t().tolist()))
    return {
        name: read_graph(str(folder / name))
        for name in ("data.pt", "dictionary.pt", "arrays.npz", "edges.txt", "edges.csv")
    }


def test_every_kind_of_file_is_the_same_graph(tmp_path):
    allowed = set(torch.serialization.get_safe_globals())
    for name, data in write_graphs(tmp_path).items():
        assert torch.equal(data.edge_index, PATH) and data.num_nodes == 5, name
        assert ("x" in data) == name.endswith((".pt", ".npz")), name
    assert set(torch.serialization.get_safe_globals()) == allowed, "other files could be read before, and not now"


@pytest.mark.parametrize(
    ("name", "begin", "separator", "end"),
    [
        ("edges.txt", "", ", ", ""),
        ("edges.txt", "# from, to\n\n", " , ", "  # a note"),
        ("edges.txt", "FromNodeId ToNodeId\n", " ", " 0.5,a"),
        ("edges.csv", "source,target\n", ",", ""),
        ("edges.csv", '\ufeff"id, from","id, to",weight\n', ",", ",0.5"),
        ("edges.csv", "\ufeff", ",", ""),
        ("edges.csv", "", "\t", ""),
        ("edges.tsv", "source node\ttarget node\tweight\n", "\t", "\tmuch"),
        ("edges.csv.gz", "# a graph\nsource,target\n", ",", ",,"),
        ("edges.gz", "", "  ", ""),
    ],
)
def test_lists_of_edges_are_read_as_they_are_written(name, begin, separator, end, tmp_path):
    text = begin + "".join(f"{a}{separator}{b}{end}\n" for a, b in PATH.t().tolist())
    text = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    data = read_graph(str(tmp_path / name))
    assert torch.equal(data.edge_index, PATH) and data.num_nodes == 5


def test_a_file_without_the_number_of_nodes_ends_with_the_last_edge_or_asks_for_it(tmp_path):
    path = tmp_path / "graph.pt"
    torch.save({"edge_index": PATH, "y": torch.zeros(5), "edge_attr": torch.zeros(8)}, path)
    assert read_graph(str(path)).num_nodes == 5
    torch.save({"edge_index": PATH, "y": torch.zeros(6)}, path)
    with pytest.raises(
        ValueError, match=r"must hold num_nodes, got y of shape \[6\], where edges reach 5 nodes\. Store"
    ):
        read_graph(str(path))


@pytest.mark.parametrize("method", ["metis", "blocks", "rcm"])
def test_the_command_writes_parts(method, tmp_path, capsys):
    write_graphs(tmp_path)
    for parts in ("3", "2"):  # the second partition replaces the first
        command = ["partition", str(tmp_path / "data.pt"), "--parts", parts, "--output", str(tmp_path / "parts")]
        assert cli.main([*command, "--method", method]) == 0
    printed = capsys.readouterr().out
    assert "| 0 | " in printed and "Wrote 2 parts of Edges(" in printed and "with their rows of x" in printed
    assert len(list((tmp_path / "parts").iterdir())) == 3
    both = [read_part(tmp_path / "parts", rank) for rank in range(2)]
    assert torch.cat([part.nodes for part, _ in both]).sort().values.tolist() == [0, 1, 2, 3, 4]
    for part, tensors in both:
        assert tensors["x"].flatten().tolist() == part.nodes.tolist()
        assert tensors["edge_attr"].tolist() == part.edges.tolist()
        names = torch.cat([part.nodes, part.halo])
        assert torch.equal(
            torch.stack([names[part.edge_index[0]], part.nodes[part.edge_index[1]]]), PATH[:, part.edges]
        )


def test_the_command_warns_of_empty_parts_and_shows_how_far_it_is(tmp_path, capsys):
    write_graphs(tmp_path)
    (tmp_path / "own.txt").write_text("0\n0\n2\n2\n2\n")
    command = ["partition", str(tmp_path / "data.pt"), "--parts", "4", "--output", str(tmp_path / "parts")]
    assert cli.main([*command, "--assignment", str(tmp_path / "own.txt")]) == 0
    out, progress = capsys.readouterr()
    assert "| 1 | 0 | 0 | 0 |" in out
    assert "partition: cutting Edges(num_nodes=5, num_edges=8) into 4 parts ...\n" in progress
    assert "cut:" in progress and "write:" in progress
    text = "partition: --parts should leave no part without nodes, got 2 of 4: 1, 3. Use --parts 2.\n"
    assert progress.endswith(text)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permissions of this kind")
def test_parts_can_be_read_by_whoever_can_read_the_manifest(tmp_path):
    for mask, permissions in ((0o022, 0o644), (0o027, 0o640)):
        earlier = os.umask(mask)
        try:
            save_parts(tmp_path, split_graph(PATH, block_parts(PATH, 2)))
        finally:
            os.umask(earlier)
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {permissions}


def test_many_parts_take_no_object_for_each_pair_of_them():
    path = torch.stack([torch.arange(499), torch.arange(1, 500)])
    tracemalloc.start()
    try:
        parts = split_graph(path, torch.arange(500))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12e6, "250,000 tensors alone take more than 20 MB of Python's memory"
    for rank, part in enumerate(parts):
        assert part.halo.tolist() == [rank - 1] * (rank > 0) and part.send.tolist() == [0] * (rank < 499)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["data.pt", "--parts", "0"], "--parts must be at least 1, got 0"),
        (["nothing.npz", "--parts", "2"], "read_graph: file must exist, got nothing at"),
        (["edges.txt", "--parts", "2", "--method", "mets"], "Did you mean 'metis'"),
        (["evil.pt", "--parts", "2"], "must be a graph in the format of its ending, got Weights only load failed"),
        (["bad.txt", "--parts", "2"], "must be a graph in the format of its ending, got could not convert string"),
        (["empty.npz", "--parts", "2"], r"must hold an edge_index [2, E], got x"),
        (["edges.txt", "--parts", "2", "--assignment", "short.txt"], "must have a part for each of the 5 nodes, got 2"),
        (
            ["edges.txt", "--parts", "2", "--assignment", "bad.txt"],
            "--assignment must be a file with an integer on each",
        ),
        (
            ["edges.txt", "--parts", "2", "--assignment", "edges.txt"],
            "must be a file with an integer on each line, got",
        ),
        (["edges.txt", "--parts", "2", "--assignment", "none.txt"], "must have a part for each of the 5 nodes, got 0"),
        (["edges.txt", "--parts", "2", "--seed", "99999999999"], "metis_parts: seed must be less than 2^31"),
        (["far.txt", "--parts", "2"], "must use most of the node numbers, got node 3000000000 in 2 edges. Number the"),
        (
            ["named.csv", "--parts", "2"],
            "got could not convert string 'carol' to int64 at row 0, column 1. Write the n",
        ),
        (["indexed.csv", "--parts", "2"], "Write the numbers of two nodes on each line, such as 0,1."),
        (
            ["none.txt", "--parts", "2"],
            "must be a graph in the format of its ending, got no edge. Write the numbers of two nodes",
        ),
        (["edges.txt", "--parts", "6"], "--parts must be at most 5, the number of nodes, got 6. Use one for each proc"),
        (
            ["edges.txt", "--parts", "2", "--assignment", "short.txt", "--method", "rcm"],
            "does not apply to --assignment",
        ),
        (["edges.txt", "--parts", "2", "--method", "blocks", "--seed", "1"], "--seed applies only to --method metis"),
        (["halves.npz", "--parts", "2"], "must hold an edge_index of integers, got torch.float64"),
        (["words.npz", "--parts", "2"], "must be a graph in the format of its ending"),
        (["bad.gz", "--parts", "2"], "must be a graph in the format of its ending, got Not a gzipped file"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, text, tmp_path, capsys, monkeypatch):
    write_graphs(tmp_path)
    torch.save(Path("code"), tmp_path / "evil.pt")
    (tmp_path / "bad.txt").write_text("0 one")
    (tmp_path / "short.txt").write_text("0\n1\n")
    (tmp_path / "bad.gz").write_text("0 1")
    (tmp_path / "none.txt").write_text("")
    (tmp_path / "far.txt").write_text("0 3000000000\n1 2\n")
    (tmp_path / "named.csv").write_text("alice,bob\ncarol,dave\n")
    (tmp_path / "indexed.csv").write_text(",source,target\n0,1,2\n1,2,3\n")
    np.savez(tmp_path / "empty.npz", x=np.zeros(3))
    np.savez(tmp_path / "halves.npz", edge_index=np.full((2, 3), 0.5))
    np.savez(tmp_path / "words.npz", edge_index=np.array([["a"], ["b"]]))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["partition", *arguments, "--output", "parts"]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "parts").exists()

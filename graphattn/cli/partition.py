"""`python -m graphattn partition`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from ..distributed import block_parts, read_graph, save_parts, split_graph
from ..errors import check_choice, check_int, message
from ..patterns import Edges, metis_parts

METHODS = ("metis", "blocks", "rcm")


def add_to(commands: Any) -> None:
    """Add the command and its options."""
    about = "Cut a graph into parts, one file for each rank of graphattn.distributed, with checksums and a manifest."
    example = "example: python -m graphattn partition Cora --parts 4 --output parts"
    parser = commands.add_parser("partition", help=about, description=about, epilog=example, allow_abbrev=False)
    parser.set_defaults(run=_partition)
    add = parser.add_argument
    graph = "a data set, such as Cora; a Data in a .pt file (read with weights_only=True: no code in it runs); a .npz "
    graph += "with edge_index; or a list of edges, .txt, .csv, .tsv or .gz"
    add("graph", metavar="GRAPH", help=graph)
    add("--parts", type=int, required=True, metavar="P", help="number of parts, one for each rank")
    add("--output", type=Path, required=True, metavar="FOLDER", help="where to write")
    method = (
        "metis (default; few rows are exchanged), blocks (contiguous, of equal work), rcm (blocks after reordering)"
    )
    add("--method", metavar="NAME", help=method)
    add(
        "--assignment",
        type=Path,
        metavar="FILE",
        help="your own parts: a text file with the part of one node per line",
    )
    add("--seed", type=int, metavar="N", help="of METIS (default 0)")


def _partition(arguments: argparse.Namespace) -> int:
    if arguments.assignment is not None and arguments.method is not None:
        rule, fix = "does not apply to --assignment", "Leave --method out."
        raise ValueError(message("partition", "--method", rule, arguments.method, fix))
    method = "metis" if arguments.method is None else arguments.method
    check_choice("partition", "--method", method, METHODS)
    if arguments.seed is not None and (method != "metis" or arguments.assignment is not None):
        raise ValueError(message("partition", "--seed", "applies only to --method metis", arguments.seed))
    num_parts = check_int("partition", "--parts", arguments.parts, 1)
    data = read_graph(arguments.graph)
    pattern = Edges(data.edge_index, data.num_nodes)
    if num_parts > pattern.num_targets:
        rule = f"must be at most {pattern.num_targets}, the number of nodes"
        raise ValueError(message("partition", "--parts", rule, num_parts, "Use one for each process."))
    # METIS reports no progress.
    print(f"partition: cutting {pattern} into {num_parts} parts ...", file=sys.stderr)
    if arguments.assignment is not None:
        assignment = _read_assignment(arguments.assignment)
    elif method == "metis":
        assignment = metis_parts(pattern, num_parts, seed=arguments.seed or 0)
    else:
        order = pattern.reorder("rcm")[1].perm if method == "rcm" else None
        assignment = block_parts(pattern, num_parts, order)
    parts = split_graph(pattern, assignment, num_parts, progress=True)
    tensors = {name: x for name, x in data.to_dict().items() if isinstance(x, torch.Tensor) and name != "edge_index"}
    of_nodes = {name: x for name, x in tensors.items() if data.is_node_attr(name)}
    of_edges = {name: x for name, x in tensors.items() if data.is_edge_attr(name)}
    save_parts(arguments.output, parts, of_nodes, of_edges, progress=True)
    print("| part | nodes | edges | rows from others |\n|---|---|---|---|")
    for part in parts:
        print(f"| {part.rank} | {part.nodes.numel():,} | {part.edges.numel():,} | {part.halo.numel():,} |")
    rows = f"their rows of {', '.join([*of_nodes, *of_edges])}" if of_nodes or of_edges else "no features or labels"
    print(f"Wrote {len(parts)} parts of {pattern} to {arguments.output}, with {rows}.")
    empty = [part.rank for part in parts if not part.nodes.numel()]
    if empty:
        listed = f"{', '.join(map(str, empty[:6]))}{', ...' if len(empty) > 6 else ''}"
        rule, got = "should leave no part without nodes", f"{len(empty)} of {num_parts}: {listed}"
        print(message("partition", "--parts", rule, got, f"Use --parts {num_parts - len(empty)}."), file=sys.stderr)
    left = sorted(set(tensors) - set(of_nodes) - set(of_edges))
    if left:
        print(f"Left out, having neither a row per node nor one per edge: {', '.join(left)}")
    return 0


def _read_assignment(path: Path) -> torch.Tensor:
    try:
        parts = [int(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        rule = "must be a file with an integer on each line"
        raise ValueError(message("partition", "--assignment", rule, error)) from error
    return torch.tensor(parts, dtype=torch.int64)

"""The command line: `python -m graphattn COMMAND`. Each command is one function that adds it and one that runs it."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

import graphattn

from .calibration.command import add_calibrate
from .compare import compare
from .compare.result import Comparison
from .distributed import block_parts, read_graph, save_parts, split_graph
from .errors import check_choice, check_int, message
from .kernels import KERNELS
from .memory import parse_bytes
from .normalizers import NORMALIZERS
from .patterns import Edges, Full, Grid, Pattern, Relations, Window, metis_parts
from .scores import Additive, DotProduct, Score


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        argv: arguments without the program's name; those of the process if omitted.

    Returns:
        0; or 2, after one line on stderr, if the input is wrong; or 141 if the reader of the output closes the pipe.

    Example:
        >>> main(["compare", "--sizes", "0"])
        2
    """
    parser = _Parser(prog="python -m graphattn", description="Sparse attention on graphs.", allow_abbrev=False)
    parser.set_defaults(run=None)
    parser.add_argument("--version", action="version", version=f"graphattn {graphattn.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_compare(commands)
    _add_partition(commands)
    add_calibrate(commands)
    try:
        try:
            arguments = parser.parse_args(argv)
            if arguments.run is None:
                parser.print_help()
                return 0
            return arguments.run(arguments)
        finally:
            # Buffered output must fail here, not when the interpreter exits.
            print(end="", flush=True)
    except BrokenPipeError:
        # The reader closed the pipe. The interpreter flushes again on exit, so that stdout must lead elsewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # The exit status that a shell reports after SIGPIPE.
    except (ValueError, NotImplementedError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    # Overriding this method is argparse's only way not to print the usage before every error.
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}. Use --help for the options.")


class Choice(NamedTuple):
    """A pattern of the command line: its name, its default sizes, its one option, how it is made."""

    name: str
    sizes: Sequence[int]
    option: str | None
    default: int
    make: Callable[[int, int], Pattern | Relations]


def random_edges(size: int, degree: int) -> Edges:
    """Let every node attend to `degree` distinct nodes, drawn at random from a fixed seed.

    Raises:
        ValueError: there are fewer nodes than `degree`.

    Example:
        >>> random_edges(100, 3).mask().sum(1).unique()
        tensor([3])
    """
    if degree > size:
        raise ValueError(message("compare", "--degree", f"must be at most {size}, the number of nodes", degree))
    generator = torch.Generator().manual_seed(size)
    # Sorted draws from fewer nodes, spread by their rank, are distinct.
    draws = torch.randint(size - degree + 1, (size, degree), generator=generator).sort(1).values
    source = draws + torch.arange(degree)
    target = torch.arange(size).repeat_interleave(degree)
    return Edges(torch.stack([source.flatten(), target]), size)


def random_relations(size: int, degree: int) -> Relations:
    """Four relations between the same nodes, over each of which every node attends to `degree` random ones."""
    source, target = random_edges(size, min(4 * degree, size)).edge_index
    kind = torch.arange(len(source)) % 4
    return Relations.from_types(torch.stack([source, target]), kind, size, 4)


def square_grid(pixels: int, radius: int) -> Grid:
    """Make the square grid whose number of pixels is nearest."""
    return Grid([max(1, round(math.sqrt(pixels)))] * 2, radius)


FEW = (32, 64, 128, 256)
MANY = (256, 512, 1024, 2048, 4096, 8192)
PATTERNS = {
    "full": Choice("full pattern", FEW, None, 0, lambda size, _: Full(size)),
    "causal": Choice("causal pattern", FEW, None, 0, lambda size, _: Full(size, causal=True)),
    "window": Choice("window of radius {}", MANY, "radius", 16, Window),
    "grid": Choice("square grid of radius {}", MANY, "radius", 2, square_grid),
    "random": Choice("random edges of in-degree {}", MANY, "degree", 16, random_edges),
    "relations": Choice("4 relations of in-degree {} each", MANY, "degree", 4, random_relations),
}
SCORES = ("dot_product", "tanh", "leaky_relu")
PICTURES = (".png", ".svg", ".pdf")


def _add_compare(commands: Any) -> None:
    normalizers = [cls.name for cls in NORMALIZERS]
    backends = ["auto", *(kernel.name for kernel in KERNELS)]
    about = "Compare sparse with dense attention: errors, time and peak memory, as a table and a picture."
    example = "example: python -m graphattn compare --pattern grid --radius 3 --sizes 256 1024 4096"
    parser = commands.add_parser("compare", help=about, description=about, epilog=example, allow_abbrev=False)
    parser.set_defaults(run=_compare)
    add = parser.add_argument
    add("--pattern", default="window", metavar="NAME", help=f"{', '.join(PATTERNS)}; default: window")
    add("--radius", type=int, metavar="R", help="reach of a window (default 16) or of a grid (default 2)")
    add("--degree", type=int, metavar="K", help="edges into each node of random edges (default 16)")
    sizes = "numbers of nodes; a grid takes the nearest square (default 256 to 8192; 32 to 256 if full or causal)"
    add("--sizes", type=int, nargs="+", metavar="N", help=sizes)
    add("--heads", type=int, default=4, metavar="H", help="number of heads (default 4)")
    add("--width", type=int, default=32, metavar="D", help="width of query, key and value per head (default 32)")
    add("--score", default="dot_product", metavar="NAME", help=f"{', '.join(SCORES)} (default dot_product)")
    add("--normalizer", default="softmax", metavar="NAME", help=f"{', '.join(normalizers)} (default softmax)")
    add("--backend", default="auto", metavar="NAME", help=f"of the sparse side: {', '.join(backends)} (default auto)")
    add("--device", default="cpu", metavar="NAME", help="cpu or cuda (default cpu)")
    add("--memory-limit", default="2GiB", metavar="BYTES", help="memory limit of the dense sides (default 2GiB)")
    add("--repeats", type=int, default=3, metavar="COUNT", help="timed runs, the median counts (default 3)")
    picture = f"picture to write, {', '.join(PICTURES)} (default outputs/compare_PATTERN.png)"
    add("--output", type=Path, metavar="PATH", help=picture)
    add("--no-picture", action="store_true", help="print only the table")


def _compare(arguments: argparse.Namespace) -> int:
    check_choice("compare", "--pattern", arguments.pattern, PATTERNS)
    check_choice("compare", "--backend", arguments.backend, ["auto", *(kernel.name for kernel in KERNELS)])
    check_choice("compare", "--device", arguments.device, ("cpu", "cuda"))
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(message("compare", "--device", "needs a GPU that torch sees", "'cuda'", "Use --device cpu."))
    for option in ("heads", "width", "repeats"):
        check_int("compare", f"--{option}", getattr(arguments, option), 1)
    choice = PATTERNS[arguments.pattern]
    reach = _read_option(arguments, choice)
    sizes = sorted({check_int("compare", "--sizes", size, 1) for size in arguments.sizes or choice.sizes})
    output = arguments.output or Path("outputs", f"compare_{arguments.pattern}.png")
    check_choice("compare", "ending of --output", output.suffix, PICTURES)

    comparison = compare(
        lambda size: choice.make(size, reach).to(arguments.device),
        sizes,
        heads=arguments.heads,
        width=arguments.width,
        score=_make_score(arguments.score, arguments.heads, arguments.width),
        normalizer=arguments.normalizer,
        backend=arguments.backend,
        memory_limit=parse_bytes("compare", "--memory-limit", arguments.memory_limit),
        repeats=arguments.repeats,
        name=choice.name.format(reach),
        progress=True,
    )
    print(comparison)
    for row in comparison.rows:
        if row.size != row.targets:
            print(f"--sizes {row.size} became N = {row.targets:,}, the nearest square.")
    if not arguments.no_picture:
        _save_picture(comparison, output)
    return 0


def _save_picture(comparison: Comparison, output: Path) -> None:
    try:
        figure: Any = comparison.plot()[0].figure
    except ImportError as error:
        print(f"No picture. {error}")
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output)
    except OSError as error:
        got = f"{str(output)!r} ({error.strerror})"
        raise ValueError(message("compare", "--output", "must be a writable path", got)) from error
    print(f"Picture: {output}")


def _read_option(arguments: argparse.Namespace, choice: Choice) -> int:
    """Return the pattern's option, radius or degree; raise for one that it doesn't have."""
    for option in ("radius", "degree"):
        number = getattr(arguments, option)
        if number is not None and option != choice.option:
            rule = f"does not apply to --pattern {arguments.pattern}"
            raise ValueError(message("compare", f"--{option}", rule, number, f"Leave --{option} out."))
    number = choice.default if choice.option is None else getattr(arguments, choice.option)
    return choice.default if number is None else check_int("compare", f"--{choice.option}", number, 0)


def _make_score(name: str, heads: int, width: int) -> Score:
    check_choice("compare", "--score", name, SCORES)
    if name == "dot_product":
        return DotProduct()
    vector = torch.randn(heads, width, generator=torch.Generator().manual_seed(0)) / math.sqrt(width)
    return Additive(vector, name)


METHODS = ("metis", "blocks", "rcm")


def _add_partition(commands: Any) -> None:
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

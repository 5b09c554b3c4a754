"""Plants one-line faults and says which test finds each: `make mutants` writes benchmarks/results/mutants.md.

Every fault is planted in a copy of the checkout, and the tests that should know of it run there until the first one
fails. A fault that no test finds is a gap in the tests; a test run that has become shorter must still find them all.
Faults in compiled code take longer, since all of it is compiled again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SECONDS = 600
# A process that has imported what takes seconds, and nothing of ours: a copy of it runs the tests of a fault.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["numba", "scipy.sparse", "torch_geometric.nn", "torch._dynamo"])


class Mutant(NamedTuple):
    """A fault: text that a file has once, what stands there instead, and the tests that should find it."""

    file: str
    old: str
    new: str
    tests: str


CPU, GPU = "kernels/rows/cpu/jit", "kernels/rows/gpu"
TILES, PANELS = "kernels/tiles", "kernels/tiles/panels"
# Tests of every kernel against the oracle, and of what it can't show.
ROWS = "random fused large_scores threads oracle"
TRITON = "triton triton_plan large_scores"
OF_TILES = "tiles tiles_numba"
OF_PATTERNS = "patterns pattern_options unions links tiles"

MUTANTS = [
    # The dropout hash, as each kernel repeats it.
    Mutant(f"{CPU}/dropout.py", "word ^= word >> np.uint64(15)", "word ^= word >> np.uint64(16)", ROWS),
    Mutant(
        f"{CPU}/dropout.py",
        "return (word ^ ((word >> np.uint64(32)) * np.uint64(0x9E3779B9))) & np.uint64(0xFFFFFFFF)",
        "return word & np.uint64(0xFFFFFFFF)",
        "random " + ROWS,
    ),
    Mutant(f"{CPU}/columns.py", "ir.Constant(threshold.type, 2**32)", "ir.Constant(threshold.type, 2**33)", ROWS),
    Mutant("dropout.py", "word = word ^ (word >> 15)", "word = word ^ (word >> 14)", "random oracle"),
    Mutant("dropout.py", "return round(dropout_p * 2**32)", "return int(dropout_p * 2**31)", "random laws oracle"),
    Mutant("dropout.py", "return 1.0 / (1.0 - dropout_p)", "return 1.0 + dropout_p", "random laws testing"),
    # Rows on the CPU, forward.
    Mutant(
        f"{CPU}/edges.py",
        "while position - count > first and index",
        "while position - count > first + 1 and index",
        ROWS,
    ),
    Mutant(f"{CPU}/normalizers.py", "s[t] = s[t] if not s[t] <= 0 else 0", "s[t] = s[t] if s[t] > 0 else 0", ROWS),
    Mutant(f"{CPU}/normalizers.py", "s[t] = s[t] if s[t] != -np.inf else 0", "s[t] = s[t]", ROWS),
    Mutant(f"{CPU}/columns.py", "builder.select(is_finite, largest, splat(builder, args[6], lanes))", "largest", ROWS),
    Mutant(f"{CPU}/heads.py", "[2 * i + lane // 8 for lane", "[2 * i + lane % 2 for lane", ROWS),
    Mutant(
        f"{CPU}/heads.py",
        "factors = load_x(builder.add(of_x, d), 16), load_y(builder.add(of_y, d), 16)",
        "factors = load_x(builder.add(of_x, d), 16), load_y(of_y, 16)",
        ROWS,
    ),
    Mutant(
        f"{CPU}/activations.py",
        'fcmp_ordered(">", x, zero)',
        'fcmp_ordered(">=", x, zero)',
        "scores_and_normalizers " + ROWS,
    ),
    Mutant(f"{CPU}/backward.py", "if b == 0 or ev_stride > 0:", "if True:", ROWS),
    Mutant(f"{CPU}/backward.py", "if has_key and group == 1 and (b == 0 or ek_stride > 0):", "if has_key:", ROWS),
    Mutant(f"{CPU}/columns.py", "builder.sub(builder.add(at, at), head)", "builder.add(at, at)", ROWS),
    Mutant(
        "kernels/rows/cpu/kernel.py",
        "places = plan.places if plan.places.numel() else plan.perm",
        "places = plan.perm",
        ROWS,
    ),
    Mutant(
        "kernels/rows/cpu/kernel.py",
        "else -operands.grad_lse.contiguous()",
        "else operands.grad_lse.contiguous()",
        ROWS,
    ),
    Mutant("kernels/rows/cpu/kernel.py", "if operands.grad_weights is not None and plan.slots:", "if False:", ROWS),
    Mutant(
        "kernels/rows/cpu/kernel.py",
        "by_edge = batches > 1 and any(",
        "by_edge = False and any(",
        "threads",
    ),
    Mutant(
        "compiled/threads.py",
        "loop(begin, min(begin + grain, total), *arguments)",
        "loop(begin + 1, min(begin + grain, total), *arguments)",
        "threads",
    ),
    Mutant("compiled/threads.py", "1) * multiple", "1)", "threads"),
    Mutant("compiled/jit/pool.py", "held = [begin, end,", "held = [integer(0), end,", "threads"),
    Mutant("compiled/block.py", 'torch.float16: "uint16"', 'torch.float16: "int16"', ROWS),
    Mutant("compiled/load.py", "self.seconds_left -= time.perf_counter() - start", "pass", "fixed_shapes"),
    Mutant(
        "compiled/load.py",
        "numbers = () if shape is None else tuple(shape.fixed.values())",
        "numbers = ()",
        "fixed_shapes",
    ),
    # Scores of one's own.
    Mutant("tracing/captures.py", "x.requires_grad, first)", "x.requires_grad)", "own_scores"),
    Mutant("tracing/captures.py", "if x._version != version:", "if False:", "own_scores"),
    Mutant(
        "tracing/lowering.py",
        'lambda call: call.make("div", call.constant(1.0), call.number(0)),',
        "lambda call: call.number(0),",
        "own_scores",
    ),
    Mutant("tracing/lookup.py", "    check(trace, function", "    (trace, function", "own_scores"),
    Mutant("kernels/rows/cpu/emit.py", "= b == 0 or stride{n} > 0", "= True", "own_scores"),
    Mutant("kernels/rows/own.py", "if bias is not None:", "if False:", "own_scores"),
    Mutant(
        "compiled/jit/lanes.py",
        'return builder.select(builder.fcmp_unordered("uno", x, y)',
        'return builder.select(builder.fcmp_ordered("ord", x, y)',
        "own_scores",
    ),
    Mutant("kernels/rows/gpu/emit.py", "if wide == power_of_two(wide):", "if True:", "own_scores_triton"),
    # The operators.
    Mutant(
        "kernels/rows/op.py",
        "grad_lse = grad_lse[..., 1] if",
        "grad_lse = grad_lse[..., 0] if",
        ROWS,
    ),
    # What a pattern remembers of a call.
    Mutant("call.py", "x is None or x.dim() > dims else", "x is None or x.dim() >= dims else", "repeated_calls"),
    Mutant("call.py", "marks += (x.shape, x.stride(), x.dtype, x.device)", "marks += (x.shape,)", "repeated_calls"),
    Mutant("call.py", "repr(return_lse),", "", "repeated_calls"),
    Mutant(
        "functional.py",
        "is_shared = type(pattern) is Edges and captured is None",
        "is_shared = type(pattern) is Edges",
        "repeated_calls",
    ),
    Mutant(
        "functional.py",
        "known = pattern.num_sources, pattern.num_targets, pattern.num_edges, known",
        "pass",
        "repeated_calls",
    ),
    # Columns of one matrix.
    Mutant(f"{CPU}/forward.py", "np.int64(index[e])) * value_pitch", "np.int64(index[e])) * value_row", "rows_apart"),
    Mutant("kernels/rows/operands.py", "or of_batch[0] == rows * pitch) else 0", "or True) else 0", "rows_apart"),
    Mutant("nn/joined.py", "if torch.is_grad_enabled() or", "if", "joined"),
    Mutant("nn/joined.py", "or len({linear.bias is None for linear in linears}) > 1", "", "joined"),
    Mutant("call.py", "if not is_known or _is_autocast(query.device.type):", "if not is_known:", "repeated_calls"),
    Mutant("kernels/rows/op.py", "is_rounded = call.dropout_p > 0 or call.query", "is_rounded = call.query", ROWS),
    # Rows on a GPU, in Triton's interpreter.
    Mutant(f"{GPU}/jit/forward.py", "acc *= shrink[:, :, None]", "acc *= 1.0", TRITON),
    Mutant(
        f"{GPU}/jit/tiles.py",
        "mask = mask & (column < WIDTH)[None, None, :]",
        "mask = mask",
        TRITON,
    ),
    Mutant(f"{GPU}/jit/scores.py", "return (1 - a * a) * vector", "return (1 - a) * vector", TRITON),
    Mutant(
        f"{GPU}/jit/backward.py",
        "acc += tl.load(part_ptr + at, mask=mask, other=0.0)",
        "acc = tl.load(part_ptr + at, mask=mask, other=0.0)",
        TRITON,
    ),
    Mutant(
        f"{GPU}/plan.py",
        "is_first[csr.ptr[:-1][csr.ptr.diff() > 0]] = True",
        "is_first[:1] = True",
        TRITON,
    ),
    # Scatter, segments, CSR.
    Mutant(
        "kernels/scatter.py", "occurrence = None if occurrence is None else occurrence[perm]", "pass", "oracle laws"
    ),
    Mutant("kernels/scatter.py", "column_perm = inverse[column_perm]", "pass", "oracle laws"),
    Mutant(
        "segments.py",
        "perm = _every(x.size(0), x.device) if perm is None else perm",
        "perm = _every(x.size(0), x.device)",
        "scores_and_normalizers oracle laws",
    ),
    Mutant(
        "segments.py",
        "return _segment_sum(tangent, *_saved(ctx))",
        "return _segment_sum(0 * tangent, *_saved(ctx))",
        "laws",
    ),
    Mutant("csr.py", "& (column[1:] < column[:-1])).any())", "& (column[1:] < 0)).any())", "patterns laws oracle"),
    Mutant(
        "csr.py",
        "order = order[stable_order(row[order], num_rows)]",
        "order = order[stable_order(row, num_rows)]",
        "patterns csr_op large_graph limits",
    ),
    Mutant("compiled/jit/sort.py", "rises &= not falls", "rises = True", "patterns"),
    Mutant("compiled/jit/sort.py", "places[i] = at[perm[i]]", "places[i] = at[i]", "oracle csr_op"),
    # Scores and normalizers.
    Mutant("scores.py", "leaky_relu(x, self.negative_slope)", "leaky_relu(x)", "oracle scores_and_normalizers"),
    Mutant(
        "scores.py",
        "x.repeat_interleave(heads // x.size(-2), -2)",
        "torch.cat([x] * (heads // x.size(-2)), -2)",
        "oracle scores_and_normalizers",
    ),
    Mutant("normalizers.py", "for _ in range(64):", "for _ in range(4):", "entmax laws scores_and_normalizers"),
    Mutant(
        "normalizers.py",
        "return mean - (1 / count - (square - mean.square())).clamp(min=0).sqrt()",
        "return mean - (1 / count - (square - mean.square())).abs().sqrt()",
        "entmax laws scores_and_normalizers",
    ),
    Mutant(
        "normalizers.py",
        "return torch.where(score == -torch.inf, 0, weight)",
        "return weight",
        "scores_and_normalizers",
    ),
    Mutant("functional.py", "top = torch.maximum(top_a, top_b)", "top = top_a", "laws large_scores"),
    # Tiles and panels.
    Mutant(f"{TILES}/op.py", "slope += weight * call.by_head(part.rows_once(grad_lse[..., 1:]))", "pass", OF_TILES),
    Mutant(
        f"{TILES}/op.py",
        '"relu": lambda score, weight, slope: slope.mul_(score > 0)',
        '"relu": lambda score, weight, slope: slope',
        OF_TILES,
    ),
    Mutant(f"{TILES}/parts.py", "column %= count[..., axis, None].clamp(min=1)", "pass", OF_TILES),
    Mutant(
        f"{TILES}/parts.py",
        "out.index_copy_(1, targets[~repeated], x[:, ~repeated])",
        "out.index_copy_(1, targets.flatten(), x.flatten(1, 2) * ~repeated.flatten()[:, None, None])",
        OF_TILES,
    ),
    Mutant(f"{PANELS}/jit/loops.py", "hi[j] = max(hi[j], hi[j - 1])", "pass", OF_TILES),
    Mutant(f"{PANELS}/jit/loops.py", "if n < PANEL else -1", "", OF_TILES),
    Mutant(f"{PANELS}/plan.py", "component[end - 1] + 1)", "component[end - 1])", "tiles_numba"),
    Mutant(f"{PANELS}/plan.py", "torch.repeat_interleave(pattern.ptr[:-1], sizes) + 1)", "0)", OF_TILES),
    Mutant(f"{PANELS}/plan.py", "first_chunk.repeat(pattern", "first_chunk.repeat(0 * pattern", OF_TILES),
    Mutant(
        "compiled/jit/channels.py", "builder, *ends), builder.load(sums[1]))", "builder, *ends), ends[0])", "batches"
    ),
    # Patterns.
    Mutant(
        "patterns/grid.py",
        "highest = extent - 1 - (extent - 1 - position) % dilation - radius * dilation",
        "highest = extent - 1 - radius * dilation",
        OF_PATTERNS,
    ),
    Mutant("patterns/grid.py", "(rank - radius).clamp(min=0)", "(rank - radius)", OF_PATTERNS),
    Mutant(
        "patterns/global_tokens.py",
        "return allowed & (source <= target) if self.causal else allowed",
        "return allowed",
        OF_PATTERNS,
    ),
    Mutant("patterns/box.py", "is_new[:, 1] &= ~tokens.hold(other)", "pass", OF_PATTERNS),
    Mutant(
        "patterns/box.py", "return (offset - lowest) % extent + lowest", "return offset % extent + lowest", OF_PATTERNS
    ),
    Mutant(
        "patterns/lookup.py",
        "state = (*state, tensor._version)",
        "state = (*state, 0)",
        "patterns links errors compile",
    ),
    Mutant("patterns/lookup.py", "torch.equal(kept if", "True or torch.equal(kept if", "compile"),
    Mutant("nn/pyg/timing.py", "if found[name].speedup >= 1 else []", "", "accelerate"),
    Mutant("nn/pyg/timing.py", "model = copy.deepcopy(model)", "model = model", "accelerate"),
    # Layers.
    Mutant(
        "nn/attention.py",
        "edge_attr = torch.nn.functional.pad(edge_attr, (0, 0, 0, pattern.num_edges - given.num_edges))",
        "edge_attr = torch.nn.functional.pad(edge_attr, (0, 0, pattern.num_edges - given.num_edges, 0))",
        "layers",
    ),
    Mutant(
        "nn/attention.py",
        "return repeat_heads(value_j, self.heads) * alpha.unsqueeze(-1)",
        "return value_j * alpha.unsqueeze(-1)",
        "layers",
    ),
    Mutant("nn/attention.py", "alpha = alpha * keep * keep_scale(self.dropout)", "alpha = alpha * keep", "layers"),
    # What takes linear time, and sums of rows.
    Mutant("kernels/linear.py", "query, key).tril()", "query, key).tril(-1)", "linear"),
    Mutant("kernels/linear.py", "states.cumsum(1)[:, :-1]", "states.cumsum(1)[:, 1:]", "linear"),
    Mutant(
        "kernels/linear.py", "~group.is_source[..., None, None], 0)", "~group.is_source[..., None, None], 1)", "linear"
    ),
    Mutant(
        "nn/pyg/sums.py",
        "x.index_select(0, pattern.edge_index[1])",
        "x.index_select(0, pattern.edge_index[0])",
        "batches",
    ),
    Mutant("nn/pyg/sums.py", "pattern.csc() if transposed else", "pattern.csr() if transposed else", "convs"),
    Mutant("patterns/lookup.py", "if version != index._version:", "if version is None:", "batches"),
    Mutant("nn/pyg/convs.py", "(of_key + of_query).t()", "of_key.t()", "convs"),
    Mutant(
        "nn/projections.py",
        "self._map_features(query, True), self._map_features(key)",
        "self._map_features(query, True), key",
        "feature_maps",
    ),
    Mutant(
        "nn/block.py",
        "gathered = gathered + self.global_attention(",
        "gathered = self.global_attention(",
        "transformer",
    ),
    Mutant("nn/attention.py", '"edge_value": edge,', '"edge_value": None,', "layers"),
    Mutant("nn/projections.py", "query, key = self.encoding.rotate(query, key, pattern)", "pass", "encodings layers"),
    Mutant(
        "nn/readout.py", "order = index.argsort(stable=True)", "order = index.argsort(stable=True).flip(0)", "readout"
    ),
    Mutant("nn/encodings/rotary.py", "first * sine + second * cosine", "second * cosine - first * sine", "encodings"),
    Mutant("offset_bias.py", "self.table if dtype is None else self.table.to(dtype)", "self.table", "encodings oracle"),
    # Features of edges, given weights, calls that relations share, what is exported, and calibrations.
    Mutant(
        "nn/edge_products.py",
        "ptr = (by_target.ptr[first : last + 1] - start)",
        "ptr = by_target.ptr[first : last + 1]",
        "edge_products",
    ),
    Mutant("nn/edge_products.py", "some = order[start : start + CHUNK]", "some = order[:CHUNK]", "edge_products"),
    Mutant("nn/pyg/weighted.py", "((into, members), (back, degree))", "((into, degree), (back, members))", "convs"),
    Mutant("nn/pyg/weighted.py", ".diff().clamp(min=1)", ".diff()", "convs"),
    Mutant("nn/pyg/batches.py", "edge_bias=pair_bias,", "edge_bias=None,", "batches"),
    Mutant("nn/block.py", "given[0] = edge_attr + self.drop(given[0])", "pass", "transformer"),
    Mutant("nn/pyg/stitched.py", "found[name] = found[name] + (out", "found[name] = (out", "stitched"),
    Mutant("nn/pyg/stitched.py", "has_vectors=theirs is conv.GATv2Conv", "has_vectors=False", "stitched"),
    Mutant(
        "nn/pyg/to_hetero.py",
        "call_function(operator.getitem, (together, place))",
        "call_function(operator.getitem, (together, -1))",
        "stitched",
    ),
    Mutant("nn/pyg/to_hetero.py", "is_first = any(", "is_first = False and any(", "stitched"),
    Mutant(f"{CPU}/backward.py", "i if slot < 0 else targets + slot", "i", "oracle"),
    Mutant("kernels/rows/cpu/kernel.py", "pieces[begin:end].sum(0)", "pieces[begin]", "oracle"),
    Mutant("kernels/rows/own.py", "if has_vectors_of_targets(call):", "if False:", "oracle"),
    Mutant(f"{CPU}/channels.py", "delta * factor if slot < 0 else", "delta * factor if True else", "channels"),
    Mutant(f"{CPU}/channels.py", "shift = where(top > -np.inf, top, 0.0)", "shift = top", "channels"),
    Mutant(f"{CPU}/channels.py", "store(part_top, part + h, top)", "store(part_top, part + h, shift)", "channels"),
    Mutant("kernels/rows/cpu/kernel.py", "and not has_more", "", "channels"),
    Mutant(
        "kernels/rows/cpu/jit/backward.py",
        "g, at, one, grad_out, (b * targets + i) * out_row, v, value, ev,",
        "g, at, one, grad_out, (b * targets + j) * out_row, v, value, ev,",
        "fused",
    ),
    Mutant("patterns/edges.py", "is_absent=(none, looped)", "is_absent=(none, ~looped)", "export"),
    Mutant("calibrated.py", 'if hasattr(os, "geteuid") and owner != os.geteuid():', "if False:", "calibration"),
    # Networks and data sets.
    Mutant("nn/models.py", "x = torch.lerp(product, x, self.gate)", "x = torch.lerp(x, product, self.gate)", "models"),
    Mutant("nn/models.py", "total = total + x", "total = x", "models"),
    Mutant("nn/models.py", "attend_by_features(query.sigmoid(), key", "attend_by_features(query, key", "models"),
    Mutant("nn/models.py", "return (count * value + sums", "return (value + sums", "models"),
    Mutant("nn/models.py", "torch.lerp(local, x, self.global_weight)", "(local + x) / 2", "models"),
    Mutant(
        "datasets/arxiv.py", "mask[torch.from_numpy(nodes[:, 0])] = True", "mask[: len(nodes)] = True", "graph_files"
    ),
    # Sampling.
    Mutant(
        "sampling/jit/neighbors.py",
        "state = mix(np.uint64(key) ^ np.uint64(first + row))",
        "state = mix(np.uint64(key) ^ np.uint64(row))",
        "sampling links",
    ),
    Mutant("sampling/jit/neighbors.py", "top = degree - count + place", "top = degree - count", "sampling links"),
    # Loops over channels, products with vectors, batches without padding.
    Mutant(f"{CPU}/edges.py", "MOST_EDGES = 2 * TASK_EDGES", "MOST_EDGES = TASK_EDGES", "fused"),
    Mutant("nn/pyg/jit/gates.py", "subtract(builder, one, gate)", "gate", "convs"),
    Mutant("nn/pyg/jit/groups.py", "multiply_add(builder, factor, subtract(builder, x, out), one)", "one", "batches"),
    Mutant("nn/pyg/jit/groups.py", "(dot(grad, to, x, at, channels) - delta)", "delta", "batches"),
    Mutant("nn/pyg/jit/shares.py", "= -slope * out[at]", "= slope * out[at]", "convs"),
    Mutant("nn/products.py", "* own[:, None, None]", "", "products"),
    Mutant("nn/products.py", "along.masked_fill(inverse >= 1 / SHORTEST, 0)", "along", "products"),
    Mutant("nn/pyg/linear_attention.py", "total = total + padding[:, None, None] * counted", "pass", "batches"),
    Mutant("nn/pyg/linear_attention.py", "(total + 1e-6)", "total", "batches"),
    Mutant("patterns/edges.py", "before = counts.cumsum(1) - counts", "before = counts.cumsum(1)", "patterns"),
    Mutant("patterns/lookup.py", "if len(_joined) >= MOST_JOINED:", "if False:", "patterns"),
]


def main() -> None:
    """Run all faults, or those whose file or text matches, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="faults whose file or text has this in it")
    parser.add_argument(
        "--column", default="covering design", help="name of the results' column; others stay as they are"
    )
    parser.add_argument("--new", action="store_true", help="only faults that no test has found yet")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time")
    arguments = parser.parse_args()
    misplaced = [mutant for mutant in MUTANTS if source_of(mutant).count(mutant.old) != 1]
    if misplaced:
        sys.exit("mutants.py: a file must have the text of its fault once: " + ", ".join(map(str, misplaced)))
    chosen = [mutant for mutant in MUTANTS if any(arguments.only in text for text in mutant)]
    # The quick ones first.
    chosen.sort(key=lambda mutant: "/cpu/" in mutant.file or "/panels/jit/" in mutant.file)
    path = RESULTS / "mutants.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    known = [key(mutant) for mutant in MUTANTS]
    # Those that aren't planted any more go.
    results = {name: {fault: found[fault] for fault in known if fault in found} for name, found in results.items()}
    column = results.setdefault(arguments.column, {})
    if arguments.new:
        chosen = [mutant for mutant in chosen if column.get(key(mutant), [None])[0] is None]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        # Code is kept by a hash of all that is compiled: faults elsewhere share it, each of these has its own.
        os.environ.setdefault("NUMBA_CACHE_DIR", f"{folder}/numba")
        os.environ["TRITON_INTERPRET"] = "1"
        for mutant, (found, seconds) in zip(chosen, pool.map(lambda x: find(x, Path(folder)), chosen), strict=True):
            column[key(mutant)] = [found, round(seconds)]
            print(f"{seconds:4.0f} s  {found or 'NOT FOUND'}  {mutant.file}: {mutant.new}", flush=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "mutants.md").write_text(table(results))
    sys.exit(any(column.get(key(mutant), [None])[0] is None for mutant in chosen))


def source_of(mutant: Mutant) -> str:
    """The file without the fault."""
    return (ROOT / "graphattn" / mutant.file).read_text()


def key(mutant: Mutant) -> str:
    """Name of a fault in the results."""
    return f"{mutant.file}: {mutant.old} -> {mutant.new}"


def find(mutant: Mutant, folder: Path) -> tuple[str | None, float]:
    """Name of the first test that fails in a copy with the fault, or None; and the seconds that it took."""
    copy = Path(tempfile.mkdtemp(dir=folder))
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True)
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    (copy / "graphattn" / mutant.file).write_text(source_of(mutant).replace(mutant.old, mutant.new))
    files = [next((copy / "tests").rglob(f"test_{name}.py")) for name in dict.fromkeys(mutant.tests.split())]
    log, begin = copy / "log", time.perf_counter()
    process = PROCESSES.Process(target=run_tests, args=(copy, list(map(str, files)), log))
    process.start()
    process.join(SECONDS)
    failed = re.search(r"^(?:FAILED|ERROR) (?:\S*/)?(.+?)(?: - .*)?$", log.read_text(errors="replace"), re.MULTILINE)
    if process.exitcode is None:
        process.kill()
        found = f"still running after {SECONDS} s"
    elif process.exitcode:
        found = failed.group(1) if failed else f"exit status {process.exitcode}"
    else:
        found = None
    shutil.rmtree(copy, ignore_errors=True)
    return found, time.perf_counter() - begin


def run_tests(copy: Path, files: list[str], log: Path) -> None:
    """Run tests in a copy until one fails, in a process of their own, and leave with pytest's exit status."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.path[0] = str(copy)
    sys.dont_write_bytecode = True
    import pytest

    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files]))


def table(results: dict[str, dict[str, list]]) -> str:
    """What is written: each fault, and per column the first test that failed."""
    columns = list(results)
    head = [f"first test that fails, {name} | s" for name in columns]
    lines = [
        "# Faults that the tests find",
        "",
        "Written by `make mutants`. Each fault is one line of `graphattn`; tests run until the first one fails.",
        "",
        f"| file | line | with the fault | {' | '.join(head)} |",
        "|---|---|---|" + "---|---:|" * len(columns),
    ]
    for mutant in MUTANTS:
        cells = [f"`{mutant.file}`", *(f"`{text}`".replace("|", "\\|") for text in (mutant.old, mutant.new))]
        for name in columns:
            found, seconds = results[name].get(key(mutant), ["not run", ""])
            cells += [f"`{found}`" if found else "**none**", str(seconds)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""Compile the loops of some scores of one's own for a GPU that isn't here, and print what became of them, as JSON.

    python tests/kernels/offline_own_scores.py 90 float32 bfloat16

For each loop what `offline_triton` says of its own: registers, bytes of stack (spills), widths of loads. Neither a GPU
nor its driver is used.
"""

from __future__ import annotations

import json
import sys

import torch
from offline_triton import TYPES, Recorder, build, inspect
from triton.backends.compiler import GPUTarget

from graphattn import random_regular
from graphattn.kernels.rows import own as rows_own
from graphattn.kernels.rows.gpu import own as gpu_own
from graphattn.tracing import traced

F = torch.nn.functional
HEADS, WIDTH, NODES, DEGREE = 4, 32, 64, 16
VECTOR = torch.ones(HEADS, WIDTH, requires_grad=True)


def supergat(query_i, key_j, edge_key):
    """Mixes an additive score and a product, and trains a vector."""
    ends = ((query_i + key_j) * VECTOR).sum(-1)
    return F.leaky_relu(ends * (query_i * key_j).sum(-1).sigmoid(), 0.2)


SCORES = {
    "Gaussian": lambda query_i, key_j, edge_key: -(query_i - key_j).square().sum(-1),
    "additive": lambda query_i, key_j, edge_key: ((query_i + key_j).tanh() * VECTOR).sum(-1),
    "SuperGAT": supergat,
    "gate": lambda query_i, key_j, edge_key: (query_i * key_j * edge_key.sigmoid()).sum(-1),
}


def main() -> None:
    """Print one line of JSON per loop."""
    target, kept = GPUTarget("cuda", int(sys.argv[1]), 32), []
    compile_source = gpu_own._compile
    gpu_own._compile = lambda trace, loop: Recorder(compile_source(trace, loop), kept)
    pattern, results = random_regular(NODES, DEGREE), {}
    for dtype in (getattr(torch, name) for name in sys.argv[2:]):
        for name, score in SCORES.items():
            rows = torch.zeros(NODES, HEADS, WIDTH, dtype=dtype)
            of_edges = torch.zeros(pattern.num_edges, HEADS, WIDTH, dtype=dtype) if name == "gate" else None
            trace, captured = traced(score, rows, rows, of_edges, torch.float32)
            inputs = tuple(trace.read((rows, rows, of_edges), list(captured.tensors.values())))
            slopes = torch.zeros(1, pattern.num_edges, HEADS)
            own = rows_own.Own(trace, pattern, 1, tuple(x.detach() for x in inputs), slopes)
            for loop in (rows_own.SCORE, *rows_own.loops_of(trace, range(len(inputs)))):
                kept.clear()
                trace.kept.clear()
                gpu_own.edge_loop(loop, own)
                kernel, arguments, options = kept[-1]
                results[f"{name} {TYPES[dtype]} {loop.name}"] = inspect(build(kernel, arguments, options, target))
    print("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(found)}" for name, found in results.items()) + "\n}")


if __name__ == "__main__":
    main()

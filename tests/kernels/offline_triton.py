"""Compile every variant of the GPU's kernel for a GPU that isn't here, and print what became of it, as JSON.

    python tests/kernels/offline_triton.py 90 > tests/kernels/triton_3.9_sm90.json    a new baseline
    python tests/kernels/offline_triton.py 80 few                                     some variants for another chip

A new baseline comes after a change that is meant.

For each variant: registers, bytes of stack (spills), the widths of loads from global memory in bits, the instructions
of the longest loop, which is that over edges (several at a time where it is unrolled), how a head's width is shared
where it is summed (numbers of a thread side by side, threads of a warp, warps), and how many times the variant would be
compiled for graphs of several sizes.
Neither a GPU nor its driver is used.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from graphattn import random_regular
from graphattn.kernels.rows import operands
from graphattn.kernels.rows.gpu import kernel as gpu_kernel
from graphattn.kernels.rows.gpu import plan as gpu_plan
from graphattn.kernels.rows.gpu.jit import backward as gpu_backward
from graphattn.kernels.rows.gpu.jit import forward as gpu_forward
from graphattn.kernels.rows.op import NORMALIZER_CODES, SCORE_CODES
from graphattn.precision import accumulate_dtype

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
TYPES |= {torch.int32: "i32", torch.int64: "i64"}
KERNELS = {
    gpu_forward: ("forward_rows", "weigh_rows", "merge_forward"),
    gpu_backward: ("target_gradients", "source_gradients", "merge_sums"),
}
# Heads, kv heads, width, dtype, edges of a row, and what else the call has. A few: long rows and cut ones,
# both kinds of scores, grouped heads; then the rest: other dtypes and normalizers, awkward widths, the widest rows.
FEW = [
    (8, 8, 16, torch.float32, 16, "leaky_relu"),
    (8, 2, 64, torch.float16, 16, "cut relu edges"),
]
VARIANTS = [
    (4, 4, 32, torch.float32, 4, "sigmoid edges dropout"),
    *FEW,
    (4, 4, 64, torch.bfloat16, 4, ""),
    (4, 4, 32, torch.float64, 16, "cut identity tanh edges dropout"),
    (4, 4, 32, torch.float32, 16, ""),
    (8, 2, 64, torch.float16, 16, ""),
    (3, 3, 24, torch.float32, 16, ""),
    (1, 1, 128, torch.float32, 4, ""),
    (4, 4, 32, torch.float32, 4, "tanh edges"),
    (8, 8, 32, torch.float16, 16, "edges"),
    (2, 1, 256, torch.bfloat16, 16, "cut edges dropout"),
    (4, 4, 32, torch.float32, 16, "relu dropout"),
    (4, 4, 32, torch.float32, 16, "cut"),
    (8, 8, 8, torch.float32, 16, ""),
    (8, 8, 8, torch.float32, 4, ""),
    (8, 8, 8, torch.bfloat16, 16, ""),
    (8, 8, 8, torch.bfloat16, 4, ""),
    (8, 8, 16, torch.float32, 4, ""),
    (4, 4, 64, torch.bfloat16, 16, ""),
]
# Nodes of the graphs that are launched, of which the last is compiled: an odd number, an even one, a multiple of 16.
NODES = (17, 50, 64)


class Recorder:
    """Stands for a kernel, and keeps the arguments of its launches."""

    def __init__(self, kernel: Any, kept: list) -> None:
        self.kernel, self.kept = kernel, kept

    def __getitem__(self, grid: tuple) -> Any:
        """Keep the call instead of launching it."""
        return lambda *arguments, **options: self.kept.append((self.kernel, arguments, options))


def launches(heads: int, kv_heads: int, width: int, dtype: torch.dtype, degree: int, extra: str, nodes: int) -> list:
    """Every launch of forward, weights and backward, with all gradients that the call has."""
    kept: list = []
    originals = {(module, name): getattr(module, name) for module, names in KERNELS.items() for name in names}
    for (module, name), kernel in originals.items():
        setattr(module, name, Recorder(kernel, kept))
    pattern, words = random_regular(nodes, degree), extra.split()
    number = accumulate_dtype(dtype)
    zeros = lambda *shape, dtype=dtype: torch.zeros(shape, dtype=dtype)
    query, key = (zeros(1, nodes, count, width) for count in (heads, kv_heads))
    score = next((code for name, code in SCORE_CODES.items() if name in words), 0)
    normalizer = next((code for cls, code in NORMALIZER_CODES.items() if cls.name in words), 0)
    vector = zeros(heads, width, dtype=number) if score else None
    bias, edge = None, None
    if "edges" in words:
        bias, edge = zeros(1, pattern.num_edges, heads), zeros(1, pattern.num_edges, kv_heads, width)
    seed, dropout_p = (torch.zeros(1, dtype=torch.int64), 0.5) if "dropout" in words else (None, 0.0)
    tensors = operands.Tensors(query, key, key, vector, bias, edge, edge, seed)
    usual = gpu_plan.PIECE_EDGES
    gpu_plan.PIECE_EDGES = (degree // 2,) * 2 if "cut" in words else usual
    edges = operands.EdgeLists(
        None, None, *(list(gpu_plan.ItemPlan.of(side)) for side in (pattern.csr(), pattern.csc()))
    )
    gpu_plan.PIECE_EDGES = usual
    mode = operands.Mode(score, normalizer, 1.0, 0.0, dropout_p)
    is_exact = (normalizer == operands.SOFTMAX and dtype != number) or dropout_p > 0
    out, sums, exact = gpu_kernel.forward(operands.Forward(tensors, edges, is_exact, mode))
    gpu_kernel.weights(operands.Weights(tensors, sums, edges, mode))
    needs = operands.Needs(*(x is not None for x in tensors[:7]))
    saved = out if exact is None else exact
    backward = operands.Backward(out, None, None, tensors, saved, sums, edges, needs, mode)
    gpu_kernel.backward(backward)
    for (module, name), kernel in originals.items():
        setattr(module, name, kernel)
    return kept


def warps_of(options: dict) -> int:
    """Those of a launch; Triton's own default where it names none."""
    return options.get("num_warps", 4)


def told_apart(kernel: Any, arguments: tuple, options: dict) -> tuple:
    """What makes Triton compile a launch anew."""
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | options
    parts: list = [warps_of(options)]
    for parameter in kernel.params:
        value = given[parameter.name]
        if isinstance(value, torch.Tensor):
            parts.append(value.dtype)
        elif parameter.is_constexpr or value is None or not isinstance(value, int):
            parts.append(None if isinstance(value, float) else value)
        else:
            parts.append((value >= 2**31, not parameter.do_not_specialize and (value == 1, value % 16 == 0)))
    return tuple(map(str, parts))


def build(kernel: Any, arguments: tuple, options: dict, target: GPUTarget) -> Any:
    """Compile a launch as Triton would on the device."""
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | options
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[(place,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = f"*{TYPES[value.dtype]}"
            attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = parameter.annotation_type or ("i64" if value >= 2**31 else "i32")
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options={"num_warps": warps_of(options)})


def inspect(compiled: Any) -> dict[str, Any]:
    """Registers, stack, widths of loads, instructions of the longest loop, and how a width is summed."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        run = lambda *flags: (
            subprocess.run([TOOLS / "cuobjdump", *flags, file.name], capture_output=True, text=True).stdout
        )
        usage, code = run("-res-usage"), run("-sass")
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", code)]
    loop = 0
    for at, text in lines:
        jump = re.search(r"\bBRA\b.* 0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < at:
            body = [other for place, other in lines if int(jump[1], 16) <= place <= at]
            loop = max(loop, len(body) if any("LDG" in other for other in body) else 0)
    widths = sorted(
        {int(width or 32) for text in (t for _, t in lines) for width in re.findall(r"LDG\.E(?:\.(\d+))?", text)}
    )
    found = {name.lower(): int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK")}
    return {**found, "loads": widths, "loop": loop, "sums": sums_of(compiled.asm["ttgir"])}


def sums_of(code: str) -> list[list[int]]:
    """How the last dimension of three is shared where it is summed: each way in Triton's intermediate code."""
    blocked = r"(#\w+) = #ttg\.blocked<\{" + ", ".join(
        rf"{name} = \[\d+, \d+, (\d+)\]" for name in ("sizePerThread", "threadsPerWarp", "warpsPerCTA")
    )
    layouts = {name: list(map(int, numbers)) for name, *numbers in re.findall(blocked, code)}
    sums = re.findall(r'"tt\.reduce".*?axis = 2.*?\(tensor<\d+x\d+x\d+xf\d+, (#\w+)>\)', code, re.DOTALL)
    return sorted({tuple(layouts[name]) for name in sums})  # type: ignore[return-value]


def main() -> None:
    """Print one line of JSON per variant."""
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    results: dict[str, Any] = {}
    for variant in FEW if sys.argv[2:] == ["few"] else VARIANTS:
        heads, kv_heads, width, dtype, _, extra = variant
        found: dict[str, list] = {}
        for nodes in NODES:
            for launch in launches(*variant, nodes):
                kernel, _, options = launch
                sizes = "".join(f"{word.lower()} {options[word]} " for word in ("ROWS", "SIZE") if word in options)
                name = f"{kernel.__name__} H{heads}/{kv_heads} D{width} {TYPES[dtype]} {sizes}{extra}"
                found.setdefault(name.strip(), []).append(launch)
        for name, same in found.items():
            times = len({told_apart(*launch) for launch in same})
            results[name] = {**inspect(build(*same[-1], target)), "compiled": times}
    print("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(found)}" for name, found in results.items()) + "\n}")


if __name__ == "__main__":
    main()

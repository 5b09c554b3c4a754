"""The loops compile for processors and systems that aren't here: LLVM says what it would run there."""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
from typing import NamedTuple

import pytest
import torch

from graphattn import Edges, Window, attention
from graphattn.compiled import load

pytest.importorskip("numba", reason="compiles the loops")
llvm = importlib.import_module("llvmlite.binding")
LABEL = re.compile(r"\.?(LBB\d+_\d+):")
BRANCH = re.compile(r"\s+(?:j\w+|b(?:\.\w+)?|cbn?z\s+\w+,|tbn?z\s+\S+ \S+)\s+\.?(LBB\d+_\d+)\b")


class Machine(NamedTuple):
    """What multiplies and adds vectors there, how often a loop with such may store or load what has no register, and
    which features the tiles' vectors depend on.
    """

    triple: str
    processor: str
    products: str
    most_spills: int
    most_reloads: int
    features: tuple[str, ...] = ()


# Loops: their module, and how many of those inside multiply and add vectors at least.
ROWS, TILES = "kernels.rows.cpu.jit.", "kernels.tiles.panels.jit.loops"
LOOPS = {
    "rows, forward": (f"{ROWS}forward", "forward_tasks", 4),
    "rows, targets' gradients": (f"{ROWS}backward", "target_gradient_tasks", 4),
    "rows, sources' gradients": (f"{ROWS}backward", "source_gradient_tasks", 2),
    "tiles, forward": (TILES, "forward_tasks", 4),
    "tiles, backward": (TILES, "backward_tasks", 8),
}
FUSED = r"\s+vfmadd\w+ps\s.*[xyz]mm"
MACHINES = {
    "Arm Linux": Machine("aarch64-linux-gnu", "neoverse-n1", r"\s+fmla\s+v\d+\.4s", 4, 13),
    "Apple": Machine("arm64-apple-darwin", "apple-m1", r"\s+fmla\.4s", 1, 6),
    "Windows": Machine("x86_64-pc-windows-msvc", "x86-64-v4", FUSED, 1, 10, ("sse2", "avx", "avx512f")),
    "Windows without AVX-512": Machine("x86_64-pc-windows-msvc", "x86-64-v3", FUSED, 0, 10, ("sse2", "avx")),
    # Half of the registers, each of a quarter of the width.
    "Windows without AVX2": Machine("x86_64-pc-windows-msvc", "x86-64-v2", r"\s+mulps\s", 7, 20, ("sse2",)),
}
MORE = {"Windows", "Windows without AVX2"}
# Of the backward loops, which take twice as long, one machine; tiles are for `make fuzz`.
FIRST = "Arm Linux"


class Found(Exception):
    """The code has been seen: nothing needs to be compiled for this machine."""


def module_for(name, features, monkeypatch):
    """A module of loops; that of tiles, whose blocks depend on the processor, imported anew as if on that one."""
    loaded = importlib.import_module("graphattn.compiled.load")
    if name != TILES:
        return load(name)
    load(name)
    package = importlib.import_module("graphattn.kernels.tiles.panels.jit")
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: dict.fromkeys(features, True))
    for part in ("block", "loops"):
        monkeypatch.setattr(package, part, getattr(package, part))
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{part}")
    module = importlib.import_module(f"graphattn.{TILES}")
    # The plan's bits don't depend on it, and are compiled already.
    module.write_bits = loaded._modules[TILES].write_bits
    monkeypatch.setitem(loaded._modules, TILES, module)
    return module


@functools.cache
def code(name, features):
    """What Numba hands to LLVM for a loop, with the sizes of a call as constants."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        where, function, _ = LOOPS[name]
        loop = getattr(module_for(where, features, monkeypatch), function)
        codegen = importlib.import_module("numba.core.codegen")
        null = importlib.import_module("numba.core.caching").NullCache()
        written = []

        def keep(library):
            written.append(str(library._final_module))
            if function in library.name:
                raise Found
            optimize(library)

        def compile_fixed(self, types):
            if self._function is loop:
                monkeypatch.setattr(loop, "_cache", null)
                monkeypatch.setattr(codegen.CPUCodeLibrary, "_optimize_final_module", keep)
                loop.compile(self._fixed)
            compile_any(self, types)

        loops = importlib.import_module("graphattn.compiled.load")
        optimize, compile_any = codegen.CPUCodeLibrary._optimize_final_module, loops.Loop._compile
        is_tiles, x = where == TILES, torch.randn(50, 2, 16, requires_grad=True)
        pattern = Window(50, 8) if is_tiles else Edges(torch.randint(50, (2, 300)), 50)
        monkeypatch.setattr(loops, "_loops", {})
        monkeypatch.setattr(loops.Loop, "_compile", compile_fixed)
        with pytest.raises(Found):
            attention(x, x, x, pattern, backend="tiles" if is_tiles else "numba").sum().backward()
    # Numba's own function that frees memory was made for this machine already.
    text = re.sub(
        r"^define [^\n]*@NRT_decref\([^\n]*\{\n.*?^\}\n",
        "declare void @NRT_decref(ptr)\n",
        written[-1],
        flags=re.M | re.S,
    )
    return re.sub(r"^target (triple|datalayout).*\n", "", text, flags=re.M)


def assembly(code, machine):
    """The loop as LLVM writes it for another machine, with its notes on registers."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(machine.triple)
    target = target.create_target_machine(cpu=machine.processor, opt=3, reloc="pic", codemodel="small")
    target.set_asm_verbosity(True)
    module = llvm.parse_assembly(code)
    module.triple, module.data_layout = machine.triple, str(target.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = True
    passes = llvm.create_pass_builder(target, options)
    passes.getModulePassManager().run(module, passes)
    return target.emit_assembly(module).splitlines()


def inner_loops(lines):
    """The lines of each loop that has no other one in it."""
    at, loops = {}, []
    for number, line in enumerate(lines):
        if label := LABEL.match(line):
            at[label[1]] = number
        elif (branch := BRANCH.match(line)) and branch[1] in at:
            loops.append((at[branch[1]], number))
    holds = lambda outer, inner: outer != inner and outer[0] <= inner[0] and inner[1] <= outer[1]
    inner = [lines[low : high + 1] for low, high in loops if not any(holds((low, high), other) for other in loops)]
    # Blocks of an inner loop may lie elsewhere; LLVM notes at an outer one's first line which loops it has.
    return [inside for inside in inner if not any("Child Loop" in line for line in inside)]


def is_left_to_fuzz(loop, name):
    is_first = name not in MORE if loop == "rows, forward" else name == FIRST and loop.startswith("rows")
    return not is_first and "GRAPHATTN_FUZZ" not in os.environ


@pytest.mark.parametrize(
    ("loop", "name"),
    [
        pytest.param(loop, name, marks=pytest.mark.skipif(is_left_to_fuzz(loop, name), reason="run by make fuzz"))
        for loop in LOOPS
        for name in MACHINES
    ],
)
def test_loops_compile_to_vectors_for_other_machines(loop, name):
    machine = MACHINES[name]
    lines = assembly(code(loop, machine.features), machine)
    busy = [loop for loop in inner_loops(lines) if any(re.match(machine.products, line) for line in loop)]
    assert len(busy) >= LOOPS[loop][2]
    for inside in busy:
        assert not [line for line in inside if re.match(r"\s+(?:bl|blr|callq?)\s", line)]
        assert sum("Spill" in line for line in inside) <= machine.most_spills
        assert sum("Reload" in line for line in inside) <= machine.most_reloads
    # Memory, as Numba manages it, functions of ours, a logarithm per target: no helper in place of an instruction.
    called = {found[1] for line in lines if (found := re.match(r"\s+(?:bl|callq?|b|jmp)\s+_?([A-Za-z]\w*)", line))}
    ours = r"NRT_|ZN9graphattn|_ZN9graphattn|LBB|mem(?:set|cpy|move)|bzero$|logf$"
    assert not {name for name in called if not re.match(ours, name)}

"""What `import graphattn` loads and names, and what the wheel holds. Who imports whom: `lint-imports`."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import graphattn

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "graphattn"

# Public modules that `import graphattn` leaves alone.
LAZY = {"calibration", "compare", "datasets", "distributed", "plot", "sampling", "testing", "transforms"}


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_nothing_heavy():
    code = """
import sys, torch_geometric
before = set(sys.modules)
import graphattn, graphattn.plot
new = set(sys.modules) - before
names = {name.partition(".")[0] for name in new}
heavy = {"numba", "llvmlite", "triton", "matplotlib", "sklearn", "pandas", "networkx", "scipy"}
# Modules take the time of an import: nearly all of them must be our own.
print(sorted(names & heavy), len([name for name in new if not name.startswith("graphattn")]))
"""
    loaded, others = run_python(code).rsplit(" ", 1)
    assert loaded == "[]" and int(others) < 30, others


def test_modules_load_on_first_use():
    code = f"""
import sys, graphattn
lazy = {sorted(LAZY)}
assert not [name for name in lazy if "graphattn." + name in sys.modules], "loaded at once"
assert set(lazy) < set(dir(graphattn))
for name in lazy:
    assert getattr(graphattn, name) is sys.modules["graphattn." + name]
print(graphattn.plot.draw_pattern.__module__, "matplotlib" in sys.modules)
"""
    assert run_python(code) == "graphattn.plot.matrices False"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("GraphAttention", "graphattn: attribute must exist, got 'GraphAttention'. Use graphattn.nn.GraphAttention."),
        ("metis_parts", "graphattn: attribute must exist, got 'metis_parts'. Use graphattn.patterns.metis_parts."),
        ("MNIST", "graphattn: attribute must exist, got 'MNIST'. Use graphattn.datasets.MNIST."),
        ("draw_arcs", "graphattn: attribute must exist, got 'draw_arcs'. Use graphattn.plot.draw_arcs."),
        ("Tensor", "module 'graphattn' has no attribute 'Tensor'"),
        ("Windows", "module 'graphattn' has no attribute 'Windows'"),
        ("__wrapped__", "module 'graphattn' has no attribute '__wrapped__'"),
    ],
)
def test_a_name_of_a_module_is_found_in_the_message(name, text):
    with pytest.raises(AttributeError) as caught:
        getattr(graphattn, name)
    assert str(caught.value) == text


def test_everything_but_its_kernel_works_without_numba():
    code = """
import sys
sys.modules.update({name: None for name in ("numba", "triton", "matplotlib", "sklearn")})
import torch, graphattn, graphattn.datasets, graphattn.plot, graphattn.testing
layer = graphattn.nn.GraphAttention(4, 4)
print(list(layer(torch.zeros(3, 4), graphattn.Window(3, radius=1)).shape))
"""
    assert run_python(code) == "[3, 4]"


def test_wheel_holds_the_package_alone(tmp_path):
    build = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
    # A copy, so that nothing is built into the checkout.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for folder in ("graphattn", "tests", "examples", "datasets"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".typed", ".html", ".txt", ".md"} and "processed" not in path.parts:
                copy = source / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    inside = {name for name in held if not name.startswith(f"graphattn-{graphattn.__version__}.dist-info/")}
    kinds = {".py", ".typed", ".html"}
    assert inside == {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.suffix in kinds}


def test_the_datasets_folder_holds_no_code():
    assert not list((ROOT / "datasets").rglob("*.py"))

"""The table of all layers of PyG that attend, read off PyG's own package: which are ours, and what that gains."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import textwrap
import warnings
from pathlib import Path

# What a class computes that attends.
STEPS = {"softmax", "MultiheadAttention", "scaled_dot_product_attention"}
# Why what nobody takes for attention between nodes, and is listed all the same, isn't here.
REASONS = {
    "Attention": "part of `MultiHead`",
    "DMoNPooling": "its softmax is over clusters",
    "DiffGroupNorm": "its softmax is over clusters",
    "EdgePooling": "its softmax scores edges to contract, and sums nothing",
    "InducedSetAttentionBlock": "reads and writes padded batches",
    "JumpingKnowledge": "attends to the layers before",
    "MultiAggregation": "joins other aggregations, by padded attention if asked to; those inside are changed",
    "MultiheadAttentionBlock": "reads and writes padded batches",
    "NeuralFingerprint": "its softmax is over bits of the fingerprint",
    "PoolingByMultiheadAttention": "reads and writes padded batches",
    "SelectTopK": "its softmax ranks nodes, and sums nothing",
    "SetAttentionBlock": "reads and writes padded batches",
}
RESULTS = ("attending", "relations")


def attending() -> dict[str, type]:
    """Every class of torch_geometric.nn that attends, by the module that defines it and its name."""
    import torch
    import torch_geometric.nn

    from graphattn.nn.pyg.fused import FUSED
    from graphattn.nn.pyg.unfused import UNFUSED

    found = {}
    for info in pkgutil.walk_packages(torch_geometric.nn.__path__, "torch_geometric.nn."):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(info.name)
        for name, cls in vars(module).items():
            if not (inspect.isclass(cls) and issubclass(cls, torch.nn.Module) and cls.__module__ == info.name):
                continue
            tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
            used = {x.attr if isinstance(x, ast.Attribute) else x.id for x in ast.walk(tree) if _is_name(x)}
            is_known = cls in FUSED or name in UNFUSED
            if used & STEPS or "Attention" in name or name.endswith("GATConv") or is_known:
                found[f"{info.name.removeprefix('torch_geometric.nn.')}.{name}"] = cls
    return found


def _is_name(x: ast.AST) -> bool:
    return isinstance(x, ast.Attribute | ast.Name)


def write_attending(root: Path) -> str:
    """The table, with the measured speed and memory of those that benchmarks time."""
    from graphattn.nn.pyg.fused import FUSED
    from graphattn.nn.pyg.unfused import UNFUSED

    measured: dict[str, list[str]] = {}
    for name in RESULTS:
        for line in json.loads((root / "benchmarks" / "results" / f"{name}.json").read_text())["lines"]:
            kind = line["work"].partition(":")[0].partition(",")[0]
            kind = kind if kind.endswith(("Conv", "Aggregation", "Set2Set", "Transformer")) else f"{kind}Conv"
            what = "of its memory" if "peak memory" in line["work"] else "its speed"
            if line["measured"] is not None:
                measured.setdefault(kind, []).append(f"{line['measured']:.2g}x {what}")
    reasons = REASONS | UNFUSED
    rows = ["| layer of PyG | here | beside PyG |", "|---|---|---|"]
    for path, cls in sorted(attending().items()):
        name = cls.__name__
        here = f"`graphattn.nn.{name}`" if cls in FUSED else reasons.get(name, "not looked at yet")
        rows.append(f"| `{path}` | {here} | {', '.join(measured.get(name, [])[:2]) if cls in FUSED else ''} |")
    return "\n".join(rows)

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
# Why a layer isn't here. One that PyG adds later says so itself.
REASONS = {
    "MultiAggregation": "joins other aggregations, by padded attention if asked to; those inside are changed",
    "InducedSetAttentionBlock": "reads and writes padded batches",
    "MultiheadAttentionBlock": "reads and writes padded batches",
    "PoolingByMultiheadAttention": "reads and writes padded batches",
    "SetAttentionBlock": "reads and writes padded batches",
    "PerformerAttention": "counts padding among the keys; `GraphAttention(feature_map=...)` has linear attention",
    "PolynormerAttention": "counts padding among the keys, and takes linear time as it is",
    "SGFormerAttention": "counts padding among the keys, and takes linear time as it is",
    "Attention": "of `DNAConv`: attends to the layers before, a handful for each edge",
    "FeaStConv": "its softmax is over heads, not over neighbors",
    "FusedGATConv": "needs dgNN and a GPU; `GATConv` computes the same",
    "HypergraphConv": "its weights belong to pairs of a node and a hyperedge, and are used twice",
    "DenseGATConv": "takes a dense matrix; `GraphAttention(Full(...))` doesn't",
    "DMoNPooling": "its softmax is over clusters",
    "JumpingKnowledge": "attends to the layers before",
    "LPAttLayer": "its features of pairs are computed by PyG's code, edge by edge",
    "NeuralFingerprint": "its softmax is over bits of the fingerprint",
    "DiffGroupNorm": "its softmax is over clusters",
    "ASAPooling": "its weights belong to pairs of a node and a cluster; the convolution inside is changed",
    "EdgePooling": "its softmax scores edges to contract, and sums nothing",
    "MemPooling": "its softmax is over clusters",
    "SelectTopK": "its softmax ranks nodes, and sums nothing",
}
RESULTS = ("attending", "relations")


def attending() -> dict[str, type]:
    """Every class of torch_geometric.nn that attends, by the module that defines it and its name."""
    import torch
    import torch_geometric.nn

    from graphattn.nn.pyg.fused import FUSED

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
            if used & STEPS or "Attention" in name or name.endswith("GATConv") or cls in FUSED:
                found[f"{info.name.removeprefix('torch_geometric.nn.')}.{name}"] = cls
    return found


def _is_name(x: ast.AST) -> bool:
    return isinstance(x, ast.Attribute | ast.Name)


def write_attending(root: Path) -> str:
    """The table, with the measured speed and memory of those that benchmarks time."""
    from graphattn.nn.pyg.fused import FUSED

    measured: dict[str, list[str]] = {}
    for name in RESULTS:
        for line in json.loads((root / "benchmarks" / "results" / f"{name}.json").read_text())["lines"]:
            kind = line["work"].partition(":")[0].partition(",")[0]
            kind = kind if kind.endswith(("Conv", "Aggregation", "Set2Set", "Transformer")) else f"{kind}Conv"
            what = "of its memory" if "peak memory" in line["work"] else "its speed"
            if line["measured"] is not None:
                measured.setdefault(kind, []).append(f"{line['measured']:.2g}x {what}")
    rows = ["| layer of PyG | here | beside PyG |", "|---|---|---|"]
    for path, cls in sorted(attending().items()):
        name = cls.__name__
        here = f"`graphattn.nn.{name}`" if cls in FUSED else REASONS.get(name, "not looked at yet")
        rows.append(f"| `{path}` | {here} | {', '.join(measured.get(name, [])[:2]) if cls in FUSED else ''} |")
    return "\n".join(rows)

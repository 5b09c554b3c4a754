"""What only relations tell: the example generates it, learns it, and draws the weights of each relation."""

from __future__ import annotations

import runpy

import torch
from conftest import ROOT, run_example


def test_the_example_trains_compares_and_draws(tmp_path):
    printed = run_example("heterogeneous.py", "--smoke", "--output", str(tmp_path)).splitlines()
    assert printed[0] == "700 nodes of 2 types, 3,000 edges of 3 relations"
    assert printed[1] == "The layer equals its dense reference."
    assert printed[-1].startswith("Test accuracy: with relations ")
    assert (tmp_path / "heterogeneous_generated.png").exists()


def test_the_rule_is_told_by_relations_alone():
    example = runpy.run_path(str(ROOT / "examples" / "heterogeneous.py"))
    torch.manual_seed(0)
    data, labelled = example["generate"](300, 40)
    value, means = data["item"].x[:, 0], {}
    for relation in ("likes", "dislikes"):
        source, target = data["item", relation, labelled].edge_index
        means[relation] = torch.zeros(300).index_add(0, target, value[source])
    assert torch.equal(data[labelled].y, (means["likes"] > means["dislikes"]).long())
    merged = example["without_relations"](data)
    assert merged["item", "any", "person"].shape == (2, 3000)

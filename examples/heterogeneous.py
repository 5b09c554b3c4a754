"""Several types of nodes and edges: what only the relations tell, and the weights of each relation.

    python examples/heterogeneous.py                    generated, no download
    python examples/heterogeneous.py --dataset DBLP     a real graph, which is downloaded if its files are missing

In the generated graph people like some items, dislike others, and know each other. Items have features, people have
none. The rule: a person's label is whether the items that the person likes have a higher mean value than those that the
person dislikes. Who knows whom tells nothing. Expected: above 90 % with relations, about 50 % where all relations are
one, which a coin reaches, too.
"""

import argparse
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from torch_geometric.data import HeteroData
from tqdm import tqdm

from graphattn.datasets import load_graph
from graphattn.nn import DenseHeteroGraphAttention, HeteroGraphAttention

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def generate(people, items):
    """Return the graph, in which each person likes 5 items and dislikes 5, and knows 5 people."""
    data = HeteroData()
    data["item"].x = torch.randn(items, 8)
    value = data["item"].x[:, 0]
    data["person"].x = torch.ones(people, 1)
    means = {}
    for relation in ("likes", "dislikes"):
        chosen = torch.randint(items, (people, 5))
        means[relation] = value[chosen].mean(1)
        person = torch.arange(people).repeat_interleave(5)
        data["item", relation, "person"].edge_index = torch.stack([chosen.flatten(), person])
    data["person", "knows", "person"].edge_index = torch.stack([torch.randint(people, (5 * people,)), person])
    data["person"].y = (means["likes"] > means["dislikes"]).long()
    part = torch.rand(people)
    for name, low, high in (("train_mask", 0, 0.6), ("val_mask", 0.6, 0.8), ("test_mask", 0.8, 1)):
        data["person"][name] = (part >= low) & (part < high)
    return data, "person"


def real(name):
    """Return a graph of PyG's, with features for the types that have none: the number of each node's edges."""
    data = load_graph(name)[0]
    (labelled,) = [kind for kind in data.node_types if "train_mask" in data[kind] or "train_idx" in data[kind]]
    store = data[labelled]
    if "train_idx" in store:
        y = torch.zeros(data[labelled].num_nodes, dtype=torch.long)
        for part in ("train", "test"):
            mask = torch.zeros(len(y), dtype=torch.bool)
            mask[store[f"{part}_idx"]] = True
            store[f"{part}_mask"], y[store[f"{part}_idx"]] = mask, store[f"{part}_y"]
        store.y, store.val_mask = y, store.train_mask
    for kind in data.node_types:
        if "x" not in data[kind]:
            degree = torch.zeros(data[kind].num_nodes, 1)
            for relation in data.edge_types:
                if relation[2] == kind:
                    degree += data[relation].edge_index[1].bincount(minlength=len(degree)).view(-1, 1)
            data[kind].x = degree.log1p()
    return data, labelled


def without_relations(data):
    """The same edges, all in one relation for each pair of types."""
    merged = {}
    for (source, _, target), index in data.edge_index_dict.items():
        merged.setdefault((source, "any", target), []).append(index)
    return {relation: torch.cat(parts, 1) for relation, parts in merged.items()}


class Network(torch.nn.Module):
    """Attention over relations, then a linear classifier of one type of node."""

    def __init__(self, channels, metadata, classes, labelled):
        super().__init__()
        self.attention = HeteroGraphAttention(channels, 32, metadata, heads=4)
        self.classify = torch.nn.Linear(32, classes)
        self.labelled = labelled

    def forward(self, x, edges):
        return self.classify(F.elu(self.attention(x, edges)[self.labelled]))


def train(model, x, edges, store, epochs, label):
    """Return the test accuracy at the best validation accuracy, in percent."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    best, accuracy, y = -1.0, 0.0, store.y
    for _ in tqdm(range(epochs), desc=label, disable=None):
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x, edges)[store.train_mask], y[store.train_mask]).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            right = (model(x, edges).argmax(-1) == y).float()
        if right[store.val_mask].mean() > best:
            best, accuracy = right[store.val_mask].mean().item(), right[store.test_mask].mean().item()
    return 100 * accuracy


@torch.no_grad()
def shares(model, x, edges, labelled):
    """The part of a target's weight that each relation has, by head: {relation: [targets, heads]}."""
    _, weights = model.attention(x, edges, return_attention_weights=True)
    found = {}
    for relation, rows in weights.items():
        if relation[2] == labelled:
            total = rows.new_zeros(len(x[labelled]), rows.size(1))
            found[relation] = total.index_add(0, edges[relation][1], rows)
    return found


def draw(found, path, title):
    """A box for each relation and head: over the targets, the part of the weight that the relation gets."""
    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    heads = next(iter(found.values())).size(1)
    for r, rows in enumerate(found.values()):
        places = [r + (head - (heads - 1) / 2) * 0.2 for head in range(heads)]
        boxes = axes.boxplot(
            rows.T.tolist(), positions=places, widths=0.15, showfliers=False, patch_artist=True, manage_ticks=False
        )
        for head, box in enumerate(boxes["boxes"]):
            box.set(facecolor=f"C{head}", label=f"head {head}" if r == 0 else None)
        for line in boxes["medians"]:
            line.set(color="black")
    axes.set_xticks(range(len(found)), [" ".join(relation) for relation in found])
    axes.set(ylabel="part of a node's weight", ylim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, ncols=heads, loc="outside lower center")
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="generated", help="generated, DBLP, IMDB, AIFB or MUTAG")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    parser.add_argument("--smoke", action="store_true", help="a small graph and three epochs")
    options = parser.parse_args()
    epochs = 3 if options.smoke else options.epochs

    torch.manual_seed(0)
    is_real = options.dataset != "generated"
    data, labelled = real(options.dataset) if is_real else generate(200 if options.smoke else 4000, 500)
    store, x, edges = data[labelled], data.x_dict, data.edge_index_dict
    channels, classes = {name: rows.size(1) for name, rows in x.items()}, int(store.y.max()) + 1
    print(f"{sum(map(len, x.values())):,} nodes of {len(x)} types, {data.num_edges:,} edges of {len(edges)} relations")

    torch.manual_seed(0)
    model = Network(channels, data.metadata(), classes, labelled)
    accuracy = train(model, x, edges, store, epochs, "with relations")
    merged = without_relations(data)
    torch.manual_seed(0)
    blind = Network(channels, (data.node_types, list(merged)), classes, labelled)
    without = train(blind, x, merged, store, epochs, "without")

    # The same layer with matrices, on a part of the graph that is small enough.
    if not is_real:
        small, _ = generate(50, 40)
        small_edges = {name: index.unique(dim=1) for name, index in small.edge_index_dict.items()}
        dense = DenseHeteroGraphAttention(channels, 32, data.metadata(), heads=4)
        dense.load_state_dict(model.attention.state_dict())
        outs = (layer(small.x_dict, small_edges)["person"] for layer in (model.attention, dense))
        torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-4)
        print("The layer equals its dense reference.")

    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"heterogeneous_{options.dataset.lower()}.png"
    title = f"{options.dataset}: how much of the attention of a {labelled} each relation gets"
    draw(shares(model, x, edges, labelled), path, title)
    print(f"Picture: {path}")
    print(f"Test accuracy: with relations {accuracy:.1f} %, with all relations as one {without:.1f} %")


if __name__ == "__main__":
    main()

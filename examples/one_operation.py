"""A sentence, a window, an image and a graph as one operation: only the pattern differs.

    python examples/one_operation.py            a picture, and four pages to click through, in outputs/

Nothing is trained. Similar nodes attend to each other: equal words, pixels of equal brightness, club members with
friends in common. Expected, after some seconds: for each pattern a line with its edges and the sum of the weights of
one node, which is 1; the picture one_operation.png; and pages explore_*.html that any browser opens.
"""

import argparse
from pathlib import Path

import matplotlib
import networkx
import torch
from sklearn.datasets import load_digits

from graphattn import Edges, Full, Grid, Window, attention
from graphattn.plot import draw_arcs, draw_graph_weights, draw_pattern, draw_pixel_weights, explore, layout

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WORDS = "I saw a saw".split()
DIGIT = torch.from_numpy(load_digits().images[3] / 16).float()
CLUB = networkx.karate_club_graph()
# Heads differ in how sharply they distinguish similar from different; the last doesn't, so its weights are uniform.
SHARPNESS = torch.tensor([4.0, 8.0, 2.0, 0.0])


def embed_words():
    """Equal words are similar, and neighbors slightly: one-hot words, then sines of the position."""
    word = torch.nn.functional.one_hot(torch.tensor([sorted(set(WORDS)).index(word) for word in WORDS]))
    angle = torch.arange(len(WORDS))[:, None] * torch.tensor([0.5, 1.0])
    return torch.cat([word, 0.4 * angle.sin(), 0.4 * angle.cos()], 1)


def embed_pixels():
    """Dark pixels are similar to dark ones, and bright pixels to bright ones."""
    return 2 * DIGIT.reshape(-1, 1) - 1


def embed_members():
    """Members are more similar if they share more friends."""
    friends = torch.from_numpy(networkx.to_numpy_array(CLUB, weight=None)).float() + torch.eye(len(CLUB))
    return 1.5 * torch.nn.functional.normalize(friends, dim=1)


def attend(x, pattern):
    """The one operation: x [N, D] attends to itself along the pattern; the weights are [E, H]."""
    value = x[:, None].expand(-1, len(SHARPNESS), -1)
    query = SHARPNESS[:, None] * value
    _, weights = attention(query, value, value, pattern, return_weights=True)
    return weights


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder of the picture and the pages")
    parser.add_argument("--smoke", action="store_true", help="half the resolution")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    club = Edges(CLUB)
    place = layout(club, "kamada_kawai") * torch.tensor([1.6, 1.0])
    members = {"names": [str(member) for member in CLUB], "position": place}
    # Title, pattern, features, the node whose attention is drawn, the drawing function and its options, those of the
    # page.
    columns = (
        ("a sentence", Full(4), embed_words(), 3, draw_arcs, {"target": 3}, {"names": WORDS}),
        ("a sentence, in a window", Window(4, radius=1), embed_words(), 2, draw_arcs, {"target": 2}, {"names": WORDS}),
        (
            "an image",
            Grid((8, 8), radius=2),
            embed_pixels(),
            28,
            draw_pixel_weights,
            {"pixel": (3, 4)},
            {"image": DIGIT},
        ),
        ("a graph", club, embed_members(), 2, draw_graph_weights, {"target": 2}, members),
    )
    figure = plt.figure(figsize=(15, 7.6), layout="constrained")
    panels = figure.subplots(2, len(columns), height_ratios=[1, 0.92])
    for (title, pattern, x, node, draw, how, page), (upper, lower) in zip(columns, panels.T, strict=True):
        weights = attend(x, pattern)
        total = float(weights[pattern.edge_index[1] == node, 0].sum())
        print(f"{title}: {pattern}, {pattern.num_edges} edges, weights of node {node} add up to {total:.4f}")
        draw(upper, pattern, weights[:, 0], **how, **page).set_title(title, fontsize=15)
        draw_pattern(lower, pattern, names=WORDS if draw is draw_arcs else None, target=node)
        name = f"Edges({pattern.num_edges} edges)" if pattern is club else repr(pattern)
        lower.set_title(name, fontsize=12, family="monospace")
        path = options.output / f"explore_{title.split()[-1]}.html"
        print(f"Page: {explore(path, pattern, weights, title=f'Attention on {title}', **page)}")
    panels[1, 0].set_ylabel("target: who attends", fontsize=11)
    panels[1, 0].set_xlabel("source: who is attended to", fontsize=11)
    figure.suptitle("attention(query, key, value, pattern)", fontsize=17, family="monospace")
    path = options.output / "one_operation.png"
    figure.savefig(path, dpi=50 if options.smoke else 88, pil_kwargs={"optimize": True})
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()

"""The picture of pos_tagging.py: accuracy of each model, its cost, and what attention looks at."""

import statistics

import matplotlib
import torch

from graphattn.plot import COLORS

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def style(model):
    """Marker and color of a kind of network."""
    kinds = {"per": ("s", 0), "window": ("s", 0), "BiLSTM": ("D", 4), "full": ("o", 5), "truncated": ("^", 6)}
    marker, color = kinds[model.split()[0]]
    return {"marker": marker, "color": COLORS[color]}


def draw_results(figure, results, kinds):
    """Accuracy of each model on all words, on ambiguous and on unseen ones."""
    panels = figure.subplots(1, len(kinds), sharey=True)
    for axes, kind in zip(panels, kinds, strict=True):
        for row, (model, result) in enumerate(results.items()):
            mean, spread = statistics.fmean(result[kind]), statistics.pstdev(result[kind])
            axes.errorbar(mean, row, xerr=spread, capsize=3, **style(model))
            axes.annotate(f"{mean:.1f}", (mean, row), (0, 6), textcoords="offset points", ha="center", fontsize=8)
        axes.set_title(f"right on {kind}, %", fontsize=11)
        axes.set_yticks(range(len(results)), results)
        axes.set_ylim(len(results) - 0.4, -0.8)
        axes.grid(axis="y", color="#DDDDDD")
        axes.margins(x=0.12)
        axes.spines[["top", "right", "left"]].set_visible(False)


def draw_parameters(axes, results):
    """Accuracy over parameters, of windows by radius and of attention."""
    places = {}
    for model, result in results.items():
        kind = "window of a radius" if style(model)["marker"] == "s" else model.split(",")[0]
        places.setdefault(kind, []).append((result["parameters"] / 1e3, statistics.fmean(result["all words"]), model))
    for kind, points in places.items():
        x, y, models = zip(*points, strict=True)
        axes.plot(x, y, linestyle="-" if "window" in kind else "", label=kind, **style(models[0]))
        for place in points if "window" in kind else ():
            radius = place[2].removeprefix("window ").replace("per token", "0")
            axes.annotate(radius, place[:2], (7, -9), textcoords="offset points")
    axes.set(xlabel="parameters behind the inputs, thousands", ylabel="right on all words, %")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    axes.margins(0.12)
    axes.spines[["top", "right"]].set_visible(False)


def draw_attention(panels, name, tagger, corpus, words):
    """How much each word attends to each other word, as the mean over the heads of each layer."""
    with torch.no_grad():
        logits, weights = tagger(*corpus.encode([words]), return_attention_weights=True)
    names = [f"{word}  {corpus.tags[tag]}" for word, tag in zip(words, logits.argmax(1), strict=True)]
    for layer, (axes, ((source, target), weight)) in enumerate(zip(panels, weights, strict=True), 1):
        looks = torch.zeros(len(words), len(words)).index_put_((target, source), weight.mean(1))
        axes.imshow(looks.numpy(), cmap="Greys", vmin=0)
        axes.set_xticks(range(len(words)), words, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(words)), names)
        axes.set_title(f"layer {layer}: each row's word looks at", fontsize=11)
    panels[0].set_xlabel(f"{name}, mean of {weight.size(1)} heads")


def telling_sentence(corpus, taggers, best):
    """A short test sentence that attention tags right, and on which the network of single words makes most errors."""
    _, _, sizes, y = corpus.test
    right = taggers[best].tag(corpus.test) == y
    wrong = taggers["per token"].tag(corpus.test) != y if "per token" in taggers else corpus.kinds["ambiguous words"]
    ends = zip(sizes.cumsum(0).tolist(), sizes.tolist(), strict=True)
    rows = [slice(end - size, end) for end, size in ends if 4 <= size <= 10]
    chosen = max(rows, key=lambda row: (bool(right[row].all()), int(wrong[row].sum())))
    return corpus.test_words[chosen]


def draw(results, taggers, corpus, best, title, path):
    height = 1.4 + 0.32 * len(results)
    upper, lower = plt.figure(figsize=(14, height + 4), layout="constrained").subfigures(2, height_ratios=[height, 4])
    draw_results(upper, results, [kind for kind, mask in corpus.kinds.items() if mask.any()])
    upper.suptitle(title, fontsize=13)
    panels = lower.subplots(1, 3)
    draw_parameters(panels[0], results)
    if best is not None:
        draw_attention(panels[1:], best, taggers[best], corpus, telling_sentence(corpus, taggers, best))
    path.parent.mkdir(parents=True, exist_ok=True)
    upper.figure.savefig(path, dpi=100)
    print(f"Picture: {path}")

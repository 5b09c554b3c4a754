"""Attention compared with CNN and RNN: a CNN is attention with a fixed window; an RNN is sequential, and forgets.

    python examples/cnn_rnn_attention.py

(a) A convolution and the attention that `conv_as_attention` makes of it, on one signal. (b) The first token of a
sequence is the label of its last; in between is noise. An LSTM, a stack of windows and full attention learn this, with
equally many parameters and training steps, at growing distances. (c) Seconds per training step over the sequence's
length. (d) Which inputs the middle output depends on, from gradients, compared with the formula layers * radius.
Expected: (a) equal up to rounding. (b) LSTM: chance from 16 tokens on (with 600 steps, 53 to 76 % at 16 tokens, and
chance at 32); windows: chance beyond layers * radius = 16; full attention: 100 % everywhere. (c) The time of windows
and the LSTM grows with the length, that of full attention with its square; on one core, torch's LSTM is no slower than
windows. (d) As the formula says.
"""

import argparse
import statistics
import time
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from report import report
from tqdm import tqdm

from graphattn import Full, Window
from graphattn.nn import DenseGraphAttention, GraphAttention, GraphTransformer, conv_as_attention
from graphattn.plot import COLORS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Four tokens that are classes, four of noise, and the question at the end.
CLASSES, NOISE, TOKENS = 4, 4, 9
RADIUS, LAYERS = 8, 2
STYLE = {
    "LSTM": {"color": COLORS[4], "marker": "s", "linestyle": "--", "markersize": 5},
    "windowed attention": {"color": COLORS[2], "marker": "^", "linestyle": "-.", "markersize": 5},
    "full attention": {"color": COLORS[0], "marker": "o", "linestyle": "-", "markersize": 8, "fillstyle": "none"},
    "full attention as a matrix": {"color": COLORS[7], "marker": "D", "linestyle": ":", "markersize": 4},
}


class LSTM(torch.nn.Module):
    """Torch's LSTM and a linear classifier; the pattern is ignored."""

    def __init__(self, in_channels, hidden, out_channels):
        super().__init__()
        self.lstm = torch.nn.LSTM(in_channels, hidden, batch_first=True)
        self.classify = torch.nn.Linear(hidden, out_channels)

    def forward(self, x, pattern):
        return self.classify(self.lstm(x)[0])


class CNN(torch.nn.Sequential):
    """Convolutions that keep the length, with channels last; the pattern is ignored."""

    def __init__(self, channels, radius, layers):
        convolutions = [torch.nn.Conv1d(channels, channels, 2 * radius + 1, padding=radius) for _ in range(layers)]
        super().__init__(*(part for convolution in convolutions for part in (convolution, torch.nn.GELU())))

    def forward(self, x, pattern):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def transformer(layer=GraphAttention):
    return GraphTransformer(TOKENS, 32, CLASSES, LAYERS, heads=2, feed_forward=2, layer=layer)


# The constructor of each, and its pattern for n tokens; about 17,500 parameters each.
MODELS = {
    "LSTM": (lambda: LSTM(TOKENS, 60, CLASSES), lambda n: None),
    "windowed attention": (transformer, lambda n: Window(n, RADIUS)),
    "full attention": (transformer, Full),
    "full attention as a matrix": (lambda: transformer(DenseGraphAttention), Full),
}


def compare_convolution(axes):
    """The same signal through a convolution and through attention; returns their largest difference."""
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(1, 1, kernel_size=9, padding=4).double()
    place = torch.arange(60, dtype=torch.float64)
    signal = ((place / 5).sin() + 0.3 * torch.randn(60)).view(1, 1, -1)
    with torch.no_grad():
        expected, out = conv(signal).flatten(), conv_as_attention(conv)(signal).flatten()
    apart = float((out - expected).abs().max())
    axes.plot(place, signal.flatten(), color="0.75", label="input")
    axes.plot(place, expected, color=COLORS[4], linewidth=3, alpha=0.6, label="convolution, 9 wide")
    axes.plot(place, out, ".", color=COLORS[0], label="attention of 9 heads")
    axes.set(title=f"(a) A convolution is attention: {apart:.0e} apart", xlabel="position", ylabel="value")
    axes.legend(fontsize=8, frameon=False)
    return apart


def draw_sequences(batch, distance, generator):
    """One-hot tokens [batch, distance + 1, 9] and labels: the first token's class, then noise, then the question."""
    label = torch.randint(0, CLASSES, (batch,), generator=generator)
    token = torch.randint(CLASSES, CLASSES + NOISE, (batch, distance + 1), generator=generator)
    token[:, 0], token[:, -1] = label, TOKENS - 1
    return F.one_hot(token, TOKENS).float(), label


def learner(name, batch, distance, seed):
    """Return a training step on fresh sequences, and a function that returns the accuracy on others, in percent."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    build, of_length = MODELS[name]
    model, pattern = build(), of_length(distance + 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def step():
        x, label = draw_sequences(batch, distance, generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x, pattern)[:, -1], label).backward()
        optimizer.step()

    @torch.no_grad()
    def test(sequences=1000):
        x, label = draw_sequences(sequences, distance, generator)
        return 100 * (model(x, pattern)[:, -1].argmax(-1) == label).float().mean().item()

    return step, test


def recall(name, distance, seed, steps):
    step, test = learner(name, 16, distance, seed)
    for _ in range(steps):
        step()
    return test()


def draw_recall(axes, found):
    """Accuracy over distance: means, and bars of one deviation."""
    axes.axhline(100 / CLASSES, color="0.6", linewidth=0.8)
    axes.axvline(LAYERS * RADIUS, color="0.6", linewidth=0.8)
    axes.text(LAYERS * RADIUS, 108, " layers x radius", fontsize=8)
    for name, of_distance in found.items():
        mean = [statistics.fmean(scores) for scores in of_distance.values()]
        deviation = [statistics.pstdev(scores) for scores in of_distance.values()]
        axes.errorbar(list(of_distance), mean, deviation, label=name, capsize=2, **STYLE[name])
    axes.set_xscale("log", base=2)
    axes.set(xticks=list(of_distance), xticklabels=list(of_distance), ylim=(0, 116), yticks=range(0, 101, 25))
    axes.set(title="(b) Recall of the first token", xlabel="distance in tokens", ylabel="accuracy, %")
    axes.text(min(of_distance), 100 / CLASSES - 3, "chance", fontsize=8, va="top")
    axes.legend(fontsize=8, frameon=False, loc="center right")


def time_steps(lengths, repeats, longest=2.0):
    """Median seconds of a training step on one sequence, for each model and length that doesn't take too long."""
    seconds = {name: {} for name in MODELS}
    for length in tqdm(lengths, desc="timing", disable=None):
        steps = {}
        for name, of_length in seconds.items():
            # Estimated from the length before: the number of pairs grows fourfold.
            expected = (4 if "full" in name else 2) * of_length.get(length // 2, 0.0)
            if expected > longest or (of_length and length // 2 not in of_length):
                tqdm.write(f"{length} tokens, {name}: left out, it would take more than {longest:g} s per step")
                continue
            steps[name], _ = learner(name, 1, length - 1, seed=0)
            steps[name]()
        turns = {name: [] for name in steps}
        # In turns, so that other work on the machine affects all of them.
        for _ in range(repeats):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                turns[name].append(time.perf_counter() - start)
        for name, turn in turns.items():
            seconds[name][length] = statistics.median(turn)
    return seconds


def draw_times(axes, seconds):
    for name, of_length in reversed(seconds.items()):
        axes.plot(list(of_length), list(of_length.values()), label=name, **STYLE[name])
    axes.set_xscale("log", base=2)
    axes.set(title="(c) One training step", xlabel="tokens", ylabel="seconds", yscale="log")
    axes.set(xticks=list(of_length), xticklabels=[f"{length:,}" for length in of_length])
    axes.legend(fontsize=8, frameon=False)


def receptive_fields(length=49, radius=4):
    """Of each network: the size of the gradient of its middle output by each input, and its reach by the formula."""
    torch.manual_seed(0)
    middle = length // 2
    networks = [
        *((f"window of radius {radius}", n, GraphTransformer(8, 8, 8, n), Window(length, radius)) for n in (1, 2, 3)),
        *((f"CNN {2 * radius + 1} wide", n, CNN(8, radius, n), None) for n in (1, 3)),
        ("full attention", 1, GraphTransformer(8, 8, 8, 1), Full(length)),
        ("LSTM", 1, LSTM(8, 8, 8), None),
    ]
    fields = {}
    for name, layers, network, pattern in networks:
        x = torch.randn(1, length, 8, dtype=torch.float64, requires_grad=True)
        network.double()(x, pattern)[0, middle].square().sum().backward()
        reach = middle if name in ("full attention", "LSTM") else layers * radius
        fields[f"{name}, {layers} layer" + "s" * (layers > 1)] = (
            x.grad[0].norm(dim=-1),
            -reach,
            reach * (name != "LSTM"),
        )
    return fields


def draw_fields(figure, axes, fields):
    """A row for each network: darker is a larger gradient; white is exactly zero. Frames show the formula."""
    sizes = torch.stack([size / size.max() for size, _, _ in fields.values()])
    middle = sizes.size(1) // 2
    drawn = axes.imshow(sizes.log10().where(sizes > 0, torch.nan).numpy(), cmap="Blues", vmin=-7, vmax=0, aspect="auto")
    for row, (_, first, last) in enumerate(fields.values()):
        corner = (middle + first - 0.5, row - 0.42)
        axes.add_patch(plt.Rectangle(corner, last - first + 1, 0.84, fill=False, edgecolor=COLORS[4], linewidth=1.6))
    axes.set(yticks=range(len(fields)), yticklabels=list(fields), xlabel="position of the input")
    axes.set(title="(d) What the middle output sees; frames: by formula", xticks=range(0, sizes.size(1), 8))
    axes.tick_params(axis="y", length=0, labelsize=8)
    figure.colorbar(drawn, ax=axes, label="log10 of the gradient, over its largest", fraction=0.04, pad=0.02)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120, help="training steps of (b)")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder of the picture")
    parser.add_argument("--record", type=Path, help="a JSON file for the results")
    parser.add_argument("--smoke", action="store_true", help="two distances, seeds and lengths, and few steps")
    options = parser.parse_args()
    if options.seeds < 1 or options.steps < 1:
        parser.error("--seeds and --steps must be at least 1")
    seeds, steps = (2, 3) if options.smoke else (options.seeds, options.steps)
    distances = (8, 32) if options.smoke else (4, 8, 12, 16, 20, 32, 64)
    lengths = (64, 128) if options.smoke else tuple(2**power for power in range(6, 14))
    figure, panels = plt.subplots(2, 2, figsize=(12, 8.4), layout="constrained")

    apart = compare_convolution(panels[0, 0])
    print(f"(a) A convolution and its attention differ by {apart:.1e}.")

    parameters = {name: sum(p.numel() for p in build().parameters()) for name, (build, _) in MODELS.items()}
    found = {name: {distance: [] for distance in distances} for name in list(MODELS)[:3]}
    runs = [(name, distance, seed) for name in found for distance in distances for seed in range(seeds)]
    for name, distance, seed in tqdm(runs, desc="training", disable=None):
        found[name][distance].append(recall(name, distance, seed, steps))
    for name, of_distance in found.items():
        for distance, scores in of_distance.items():
            data = f"recall over {distance} tokens"
            report(data, name, "accuracy", scores, record=options.record, parameters=parameters[name])
    draw_recall(panels[0, 1], found)

    for name, of_length in (seconds := time_steps(lengths, repeats=2 if options.smoke else 3)).items():
        for length, median in of_length.items():
            report(f"{length} tokens", name, "ms per step", [1e3 * median], record=options.record)
    draw_times(panels[1, 0], seconds)

    fields = receptive_fields()
    for name, (size, first, last) in fields.items():
        seen = ((size > 0).nonzero().flatten() - len(size) // 2).tolist()
        verdict = "as" if seen == list(range(first, last + 1)) else "NOT as"
        print(f"(d) {name}: inputs {seen[0]:+d} to {seen[-1]:+d}, {verdict} the formula says")
    draw_fields(figure, panels[1, 1], fields)

    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "cnn_rnn_attention.png"
    figure.savefig(path, dpi=100)
    print(f"Picture: {path}")
    at_last = ", ".join(f"{name} {statistics.fmean(scores[distances[-1]]):.1f} %" for name, scores in found.items())
    print(f"Recall over {distances[-1]} tokens, where chance is {100 / CLASSES:g} %: {at_last}")


if __name__ == "__main__":
    main()

"""Self-attention by hand: four vectors, small integers, every number on the page, and each compared with graphattn.

    python examples/by_hand.py

Queries, keys and values; scores; softmax; outputs; all of them at once as O = V softmax(K^T Q / sqrt(D)); two heads and
W_o; positions; attention truncated to a window, or restricted to the edges of a graph. In the printed text vectors are
columns, as in the lecture: column i of a matrix of scores belongs to target i, row j to source j. In the picture rows
are targets, as everywhere else. Everything is computed with Python's own numbers first, then by the library. Expected:
every comparison says "yes"; otherwise the exit code is 1.
"""

import argparse
import math
import sys
from pathlib import Path

import matplotlib
import torch

from graphattn import Edges, Full, Window, attention
from graphattn.nn import GraphAttention, Sinusoidal

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INPUTS = [[1, 0], [0, 1], [1, 1], [2, -1]]
# W_q, W_k, W_v of each head, and W_o, as lists of rows.
HEADS = [
    ([[1, 0], [1, 1]], [[0, 1], [1, 0]], [[1, 1], [0, 2]]),
    ([[0, 1], [1, -1]], [[1, 0], [1, 1]], [[2, 0], [1, 1]]),
]
W_OUT = [[1, 0, 1, 0], [0, 1, 0, -1]]
EDGES = [(2, 1), (3, 1), (1, 2), (2, 2), (4, 2), (3, 4)]
ORDER = [3, 0, 2, 1]
differences = []


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def transpose(vectors):
    return [list(row) for row in zip(*vectors, strict=True)]


def times(matrix, vectors):
    """The matrix times each vector."""
    return [[dot(row, vector) for row in matrix] for vector in vectors]


def softmax(scores):
    """exp(s_j) / sum of exp(s): a score of -inf, no edge, gets 0; without any edge, all are 0."""
    exponentials = [math.exp(score) for score in scores]
    return [exponential / (sum(exponentials) or 1) for exponential in exponentials]


def attend(inputs, head, is_edge=lambda source, target: True):
    """Scores, weights and outputs of one head, each a list of columns."""
    queries, keys, values = (times(matrix, inputs) for matrix in head)
    scores = [
        [dot(k, q) / math.sqrt(len(q)) if is_edge(j, i) else -math.inf for j, k in enumerate(keys, 1)]
        for i, q in enumerate(queries, 1)
    ]
    weights = [softmax(column) for column in scores]
    return scores, weights, times(transpose(values), weights)


def attend_twice(inputs):
    """W_o times the outputs of both heads, one above the other."""
    first, second = (attend(inputs, head)[2] for head in HEADS)
    return times(W_OUT, [above + below for above, below in zip(first, second, strict=True)])


def add(vectors, waves):
    return [[x + wave for x, wave in zip(*pair, strict=True)] for pair in zip(vectors, waves, strict=True)]


def say(text=""):
    print(f"    {text}" if text else "")


def show(*matrices):
    """Print matrices of one height side by side, each a pair of its name and its columns."""
    blocks = []
    for name, columns in matrices:
        form = "{:4.0f}" if all(float(x).is_integer() for column in columns for x in column) else "{:8.3f}"
        rows = ["".join("       ." if x == -math.inf else form.format(x) for x in row) for row in transpose(columns)]
        width = max(map(len, (name, *rows)))
        blocks.append([f"{line:<{width}}" for line in (f"{name:^{len(rows[0])}}", *rows)])
    for lines in zip(*blocks, strict=True):
        say("   ".join(lines).rstrip())


def distance(a, b):
    return max(abs(x - y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True))


def check(what, columns, theirs):
    """Compare with the library's rows, print the result, and keep the difference for the exit code."""
    differences.append(distance(columns, theirs.detach().view(len(columns), -1).tolist()))
    say(f"{what} equal to graphattn: {'yes' if differences[-1] <= 1e-12 else 'NO'} (difference {differences[-1]:.0e})")


def tensor(vectors):
    return torch.tensor(vectors, dtype=torch.float64)


def run_attention(pattern):
    """Outputs and weights of the first head by the library, which takes query, key and value as [4, 1, 2]."""
    query, key, value = ((tensor(INPUTS) @ tensor(matrix).t()).unsqueeze(1) for matrix in HEADS[0])
    return attention(query, key, value, pattern, return_weights=True)


def run_layer(inputs, encoding=None):
    """The library's layer of two heads, with our weights."""
    layer = GraphAttention(2, 2, heads=2, head_channels=2, bias=False, encoding=encoding).double()
    linears = (layer.lin_query, layer.lin_key, layer.lin_value, layer.lin_out)
    stacked = [first + second for first, second in zip(*HEADS, strict=True)]
    for linear, weight in zip(linears, (*stacked, W_OUT), strict=True):
        linear.weight.data = tensor(weight)
    return layer(tensor(inputs), Full(len(inputs)))


def draw(found, path):
    """Scores, weights and outputs of each pattern, a row per target; dots where there is no edge."""
    figure, panels = plt.subplots(len(found), 3, figsize=(9.5, 9.6), layout="constrained")
    names = ("scores  $q_i \\cdot k_j / \\sqrt{D}$", "weights: softmax of each row", "outputs: weights times values")
    scales = (("RdBu_r", -3.5, 3.5), ("Blues", 0, 1.3), ("RdBu_r", -3.5, 3.5))
    for row, (pattern, (scores, weights, outputs)) in zip(panels, found.items(), strict=True):
        is_edge = tensor(scores).isfinite()
        parts = (scores, tensor(weights).where(is_edge, -math.inf).tolist(), outputs)
        for axes, rows, (colors, low, high) in zip(row, parts, scales, strict=True):
            values = tensor(rows)
            axes.imshow(values.where(values.isfinite(), torch.nan).numpy(), cmap=colors, vmin=low, vmax=high)
            for place in torch.ones_like(values).nonzero().tolist():
                value = float(values[*place])
                axes.text(*place[::-1], "·" if value == -math.inf else f"{value:.2f}", ha="center", va="center")
            axes.set(
                yticks=range(4), yticklabels=range(1, 5), xlabel="source $j$", ylabel="target $i$", facecolor="0.93"
            )
            axes.set(xticks=range(len(values[0])), xticklabels=range(1, len(values[0]) + 1))
            axes.tick_params(length=0)
        row[0].set_ylabel(f"{pattern}\n\ntarget $i$", fontsize=11)
        row[2].set_xlabel("component")
    for axes, name in zip(panels[0], names, strict=True):
        axes.set_title(name, fontsize=11, pad=10)
    figure.savefig(path, dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder of the picture")
    parser.add_argument("--smoke", action="store_true", help="no effect: the script takes no time")
    options = parser.parse_args()

    print("1. A query, a key and a value for each vector")
    say("q_i = W_q a_i,  k_j = W_k a_j,  v_j = W_v a_j")
    queries, keys, values = (times(matrix, INPUTS) for matrix in HEADS[0])
    matrices = (transpose(matrix) for matrix in HEADS[0])
    show(("  a1  a2  a3  a4", INPUTS), *zip(("W_q", "W_k", "W_v"), matrices, strict=True))
    show(("  q1  q2  q3  q4", queries), ("  k1  k2  k3  k4", keys), ("  v1  v2  v3  v4", values))

    print("\n2. Scores: how strongly does target i attend to source j?    score_ij = q_i . k_j / sqrt(D), D = 2")
    for i, query in enumerate(queries, 1):
        products = [f"q{i}.k{j} = {dot(query, key):2d}" for j, key in enumerate(keys, 1)]
        scores = [dot(query, key) / math.sqrt(2) for key in keys]
        say(", ".join(products) + "   / sqrt(2):  " + "".join(f"{score:7.3f}" for score in scores))

    print("\n3. Softmax: the scores of one target become weights. Target 1:")
    scores, weights, outputs = attend(INPUTS, HEADS[0])
    exponentials = [math.exp(score) for score in scores[0]]
    say("exp(score):      " + " ".join(f"{x:7.3f}" for x in exponentials) + f"     their sum {sum(exponentials):.3f}")
    say("divided by it:   " + " ".join(f"{x:7.3f}" for x in weights[0]) + f"     their sum {sum(weights[0]):.3f}")
    say("o1 = " + " + ".join(f"{w:.3f} v{j}" for j, w in enumerate(weights[0], 1)))
    say("   = " + " + ".join(f"{w:.3f} ({v[0]}, {v[1]})" for w, v in zip(weights[0], values, strict=True)))
    say(f"   = ({outputs[0][0]:.3f}, {outputs[0][1]:.3f})")
    theirs, their_weights = run_attention(Full(4))
    check("o1", outputs[:1], theirs[:1])

    print("\n4. All outputs in parallel: O = V softmax(K^T Q / sqrt(D))")
    product = times(keys, queries)
    scaled = [[x / math.sqrt(2) for x in column] for column in product]
    normalized = [softmax(column) for column in scaled]
    show(("K^T Q", product), ("over sqrt(D)", scaled), ("softmax of each column", normalized))
    parallel = times(transpose(values), normalized)
    show(("O = V times that", parallel))
    check("weights", normalized, their_weights)
    check("O", parallel, theirs)

    print("\n5. Two heads: each has its own W_q, W_k, W_v; W_o mixes their outputs")
    show(*zip(("W_q of head 1", "W_k", "W_v"), map(transpose, HEADS[1]), strict=True), ("W_o", transpose(W_OUT)))
    second = attend(INPUTS, HEADS[1])[2]
    both = attend_twice(INPUTS)
    show(("O of head 0", parallel), ("O of head 1", second))
    show(("O = W_o times both, one above the other", both))
    check("O", both, run_layer(INPUTS))

    print("\n6. Positions: without them, attention sees a set, and the order is lost")
    shuffled = [INPUTS[place] for place in ORDER]
    say(f"The same vectors in the order {', '.join(f'a{place + 1}' for place in ORDER)}:")
    out = attend_twice(shuffled)
    show(("O of the shuffled inputs", out), ("O from 5., its columns shuffled", [both[place] for place in ORDER]))
    say(f"Shuffled inputs, shuffled outputs, and nothing else: {distance(out, [both[p] for p in ORDER]):.0e} apart.")
    check("O", out, run_layer(shuffled))
    say()
    say("Add to the vector at place p = 0, 1, 2, 3 a wave, (sin p, cos p):")
    waves = [[math.sin(place), math.cos(place)] for place in range(4)]
    first, second = add(INPUTS, waves), add(shuffled, waves)
    show(("waves", waves), ("inputs + waves", first))
    before, after = attend_twice(first), attend_twice(second)
    before = [before[place] for place in ORDER]
    show(("O of the shuffled inputs", after), ("O of the first order, shuffled", before))
    say(f"Now the order matters: the two are {distance(after, before):.3f} apart.")
    check("O of the first order", attend_twice(first), run_layer(INPUTS, Sinusoidal(2)))
    check("O of the shuffled inputs", after, run_layer(shuffled, Sinusoidal(2)))

    print("\n7. Truncated attention, and attention on a graph: fewer pairs, . where there is no edge")
    listed = ", ".join(f"{source}->{target}" for source, target in EDGES)
    found = {"all pairs": (scores, weights, outputs)}
    for name, sentence, is_edge, pattern in (
        ("window of radius 1", "A window of radius 1, |i - j| <= 1", lambda j, i: abs(i - j) <= 1, Window(4, radius=1)),
        (
            "edges of a graph",
            f"The edges of a graph, {listed}",
            lambda j, i: (j, i) in EDGES,
            Edges(torch.tensor(EDGES).t() - 1, 4),
        ),
    ):
        found[name] = attend(INPUTS, HEADS[0], is_edge)
        say(f"{sentence}:")
        show(("scores", found[name][0]), ("softmax", found[name][1]))
        show(("O", found[name][2]))
        theirs, their_weights = run_attention(pattern)
        on_edges = [[found[name][1][i][j]] for j, i in pattern.edge_index.t().tolist()]
        check("weights of the edges", on_edges, their_weights)
        check("O", found[name][2], theirs)
        say()
    say("Target 3 has no edge in this graph, so that its output is zero, here and in graphattn.")

    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "by_hand.png"
    draw(found, path)
    print(f"\nPicture: {path}")
    wrong = sum(difference > 1e-12 for difference in differences)
    largest = max(differences)
    print(f"{len(differences) - wrong} of {len(differences)} equal to graphattn, largest difference {largest:.0e}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

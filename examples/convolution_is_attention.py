"""A convolution is self-attention in which each head looks at one offset: the same layer twice, and what its heads see.

    python examples/convolution_is_attention.py

Passes handwritten digits through a 3 x 3 convolution, and through the attention that `conv_as_attention` makes of it.
Expected: outputs differ by less than 1e-5 in float32 and 1e-12 in float64, and the picture shows nine heads, each of
which attends to only one neighbor, or to none if that is outside the image, which is zero padding.
"""

import argparse
from pathlib import Path

import matplotlib
import torch

from graphattn.datasets import digits_graph
from graphattn.nn import conv_as_attention

matplotlib.use("Agg")
import matplotlib.pyplot as plt

KERNELS = {
    "vertical edges": [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
    "horizontal edges": [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
    "outline": [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],
}
PIXELS = {(3, 4): "red", (0, 7): "blue"}


def build():
    """One channel in, and four out: by three well-known kernels and a random one."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(1, len(KERNELS) + 1, kernel_size=3, padding=1)
    with torch.no_grad():
        conv.weight[: len(KERNELS), 0] = torch.tensor(list(KERNELS.values())) / 4
        conv.bias[: len(KERNELS)] = 0
    return conv


def compare(conv, images):
    """Print how far attention is from the convolution, in the output and in the gradient of the images."""
    for dtype in (torch.float64, torch.float32):
        images = images.detach().to(dtype).requires_grad_()
        results = []
        for layer in (conv.to(dtype), conv_as_attention(conv)):
            out = layer(images)
            results.append((out, *torch.autograd.grad(out.square().sum(), images)))
        out, gradient = ((ours - theirs).abs().max().item() for ours, theirs in zip(*results, strict=True))
        print(f"{dtype}: outputs differ by {out:.1e}, gradients by {gradient:.1e} at most.")


def show(axes, values, colors, limits):
    """An array as a picture without ticks."""
    axes.set(xticks=[], yticks=[], facecolor="0.9")
    return axes.imshow(values.numpy(), cmap=colors, vmin=limits[0], vmax=limits[1])


def draw_heads(figure, weights, pixel, color, title):
    """A map for each head: how much the pixel attends to itself and its neighbors; gray outside the image."""
    framed = torch.nn.functional.pad(weights, (0, 0, 1, 1, 1, 1), value=torch.nan)
    figure.suptitle(f"Weights of its nine heads: {title}", fontsize=11, color=f"tab:{color}")
    for head, axes in enumerate(figure.subplots(3, 3).flat):
        seen = framed[pixel[0] : pixel[0] + 3, pixel[1] : pixel[1] + 3, head]
        show(axes, seen, f"{color.title()}s", (0, 1.4))
        for row, column in torch.cartesian_prod(torch.arange(3), torch.arange(3)).tolist():
            if not seen[row, column].isnan():
                axes.text(column, row, f"{seen[row, column]:g}", ha="center", va="center", fontsize=8)
        axes.set_xlabel(f"head {head}" + ("" if seen.nansum() > 0 else ": no one"), fontsize=8, labelpad=2)


def draw(conv, image, path):
    """The image, each head's attention at two pixels, both outputs, and their difference."""
    attention = conv_as_attention(conv)
    with torch.no_grad():
        expected, (out, ((source, target), weights)) = conv(image), attention(image, return_attention_weights=True)
    rows, columns = image.shape[-2:]
    figure = plt.figure(figsize=(14, 6.7), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.3], wspace=0.04)
    upper, lower = left.subfigures(2, 1, height_ratios=[1, 1.15])
    show(axes := upper.subplots(), image[0], "gray_r", (0, 1))
    axes.set_title("The image, and two pixels with their neighborhoods", fontsize=11)
    for (row, column), color in PIXELS.items():
        axes.add_patch(plt.Rectangle((column - 1.5, row - 1.5), 3, 3, fill=False, ec=f"tab:{color}", lw=2))
        axes.plot(column, row, "o", color=f"tab:{color}")
    axes.set(xlim=(-1.7, columns + 0.7), ylim=(rows + 0.7, -1.7))
    for part, (pixel, color), where in zip(lower.subfigures(1, 2), PIXELS.items(), ("inside", "corner"), strict=True):
        here = target == pixel[0] * columns + pixel[1]
        seen = torch.zeros(rows * columns, weights.size(-1)).index_add_(0, source[here], weights[here])
        draw_heads(part, seen.view(rows, columns, -1), pixel, color, where)
    largest, apart = (values.abs().max().item() for values in (expected, out - expected))
    panels = right.subplots(3, 4)
    for column, name in enumerate((*KERNELS, "random kernel")):
        for row, (values, limit) in enumerate(((expected, largest), (out, largest), (out - expected, apart or 1))):
            drawn = show(panels[row, column], values[column], "RdBu_r", (-limit, limit))
            if column == 3 and row > 0:
                right.colorbar(drawn, ax=panels[:2] if row == 1 else panels[2], fraction=0.03, pad=0.02)
        panels[0, column].set_title(name, fontsize=11)
    for axes, name in zip(panels[:, 0], ("convolution", "self-attention", "their difference"), strict=True):
        axes.set_ylabel(name, fontsize=11)
    right.suptitle(f"One layer, computed twice: they differ by {apart:.1e} at most, where values reach {largest:.1f}")
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder of the picture")
    parser.add_argument("--smoke", action="store_true", help="ten digits in place of all")
    options = parser.parse_args()
    images = digits_graph().x.view(-1, 1, 8, 8)[: 10 if options.smoke else None]
    conv = build()
    print(f"{conv} on {len(images):,} digits is {conv_as_attention(conv).layer}")
    compare(conv, images)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "convolution_is_attention.png"
    draw(conv, images[3], path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()

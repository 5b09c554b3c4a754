"""Images and sequences as graphs that carry a pattern."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.transforms import Compose

from graphattn import Full, Grid, Window
from graphattn.nn import GraphAttention, RelativeBias
from graphattn.transforms import ImageToGraph, SequenceToGraph


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# Images.


def test_every_pixel_is_a_node_with_its_channels():
    given = Data(image=image(3, 4, 5), y=torch.tensor([1]))
    data = ImageToGraph()(given)
    for node in range(20):
        row, column = divmod(node, 5)
        assert torch.equal(data.x[node], given.image[:, row, column])
        assert data.pos[node].tolist() == [row, column]
    assert data.num_nodes == 20 and data.y.tolist() == [1] and "image" not in data
    assert "image" in given and "x" not in given


def test_every_patch_is_a_node_with_its_pixels():
    given = image(2, 6, 4)
    data = ImageToGraph(patch=2)(Data(image=given))
    assert data.x.shape == (6, 8) and repr(data.pattern) == "Grid((3, 2), radius=1)"
    for node in range(6):
        row, column = 2 * (node // 2), 2 * (node % 2)
        assert torch.equal(data.x[node], given[:, row : row + 2, column : column + 2].flatten())
        assert data.pos[node].tolist() == [row + 0.5, column + 0.5]


def test_patches_are_what_unfold_makes_of_an_image():
    given = image(3, 9, 6)
    data = ImageToGraph(patch=3)(Data(image=given))
    assert torch.equal(data.x, torch.nn.functional.unfold(given[None], 3, stride=3)[0].t())


def test_an_image_without_channels_has_one():
    with_one, without = (ImageToGraph()(Data(image=x)) for x in (image(1, 4, 4), image(4, 4)))
    assert torch.equal(with_one.x, without.x) and without.x.shape == (16, 1)


def test_bytes_become_numbers_from_0_to_1_and_others_stay():
    pixels = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    assert ImageToGraph()(Data(image=pixels)).x.flatten().tolist() == pytest.approx([0, 0.2, 1])
    for dtype in (torch.int64, torch.float64, torch.bfloat16):
        assert ImageToGraph()(Data(image=pixels.to(dtype))).x.dtype == dtype


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({}, Grid((5, 5), 1)),
        ({"radius": (1, 2)}, Grid((5, 5), (1, 2))),
        ({"radius": 2, "border": "shift"}, Grid((5, 5), 2, border="shift")),
        ({"radius": 1, "dilation": 2, "causal": True}, Grid((5, 5), 1, dilation=2, causal=True)),
        ({"radius": None}, Full(25)),
    ],
)
def test_options_are_those_of_the_pattern(options, pattern):
    data = ImageToGraph(**options)(Data(image=image(5, 5)))
    assert data.pattern == pattern


def test_another_attribute_may_hold_the_image():
    data = ImageToGraph(attr="x")(Data(x=image(4, 4)))
    assert data.x.shape == (16, 1) and data.num_nodes == 16


@pytest.mark.parametrize("options", [{}, {"dilation": 2}, {"dilation": (1, 5), "causal": True}, {"radius": None}])
def test_a_batch_of_images_equals_separate_runs(options):
    transform = ImageToGraph(**options)
    graphs = [transform(Data(image=image(3, *shape))) for shape in ((4, 5), (6, 3), (2, 2))]
    (batch,) = DataLoader(graphs, batch_size=3)
    torch.manual_seed(0)
    encoding = None if transform.radius is None else RelativeBias(2, (1, 1))
    layer = GraphAttention(3, 8, heads=2, encoding=encoding).double()
    separate = [layer(graph.x.double(), graph.pattern) for graph in graphs]
    torch.testing.assert_close(layer(batch.x.double(), batch.pattern), torch.cat(separate))
    assert batch.pos.shape == (42, 2)


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (
            Data(x=torch.zeros(3, 4)),
            ValueError,
            r"data must have 'image', got Data\(x=\[3, 4\]\)\. Use ImageToGraph\(at",
        ),
        (Data(image=[[0, 1]]), TypeError, "image must be a tensor, got list"),
        (Data(image=torch.zeros(7)), ValueError, r"image must have shape \[H, W\] or \[C, H, W\], got \[7\]"),
        (Data(image=torch.zeros(2, 3, 4, 4)), ValueError, r"image must have shape .* got \[2, 3, 4, 4\]"),
        (Data(image=torch.zeros(4, 5)), ValueError, r"sides that are multiples of patch=2, got \[1, 4, 5\]"),
    ],
)
def test_data_without_an_image_is_refused(data, error, text):
    with pytest.raises(error, match=f"ImageToGraph: .*{text}"):
        ImageToGraph(patch=2)(data)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"patch": 0}, ValueError, "ImageToGraph: patch must be at least 1, got 0"),
        ({"radius": -1}, ValueError, "Grid: radius must be at least 0, got -1"),
        ({"radius": 1.5}, TypeError, "Grid: radius must be an integer"),
        ({"border": "crop"}, ValueError, "Grid: border must be one of"),
        (
            {"radius": None, "border": "wrap"},
            ValueError,
            "ImageToGraph: border must be 'clip' with radius=None, .* got",
        ),
    ],
)
def test_options_of_images_are_checked_at_once(options, error, text):
    with pytest.raises(error, match=text):
        ImageToGraph(**options)


# Sequences.


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({}, Full(6)),
        ({"causal": True}, Full(6, causal=True)),
        ({"radius": 2}, Window(6, 2)),
        ({"radius": 1, "dilation": 2, "causal": True}, Window(6, 1, dilation=2, causal=True)),
        ({"radius": 1, "global_tokens": [0]}, Window(6, 1, global_tokens=(0,))),
    ],
)
@pytest.mark.parametrize("shape", [(6,), (6, 3)])
def test_a_sequence_gets_a_pattern_of_its_length(options, pattern, shape):
    given = Data(x=torch.zeros(shape))
    data = SequenceToGraph(**options)(given)
    assert data.pattern == pattern and data.x is given.x and "pattern" not in given


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"radius": 1},
        {"radius": 1, "dilation": 2},
        {"radius": 1, "dilation": 5, "causal": True},
        {"radius": 1, "global_tokens": (0, 2)},
        {"radius": 0, "dilation": 3, "global_tokens": (9,)},
    ],
)
def test_a_batch_of_sequences_equals_separate_runs(options):
    transform = SequenceToGraph(**options)
    graphs = [transform(Data(x=image(length, 4).double())) for length in (5, 1, 3, 0, 2)]
    (batch,) = DataLoader(graphs, batch_size=5)
    torch.manual_seed(0)
    layer = GraphAttention(4, 8, heads=2).double()
    torch.testing.assert_close(layer(batch.x, batch.pattern), torch.cat([layer(g.x, g.pattern) for g in graphs]))


def test_transforms_that_differ_are_written_differently():
    # PyG tells by this text whether processed files are of another transform.
    sequences = [{}, {"causal": True}, {"radius": 2}, {"radius": 2, "dilation": 2}, {"radius": 2, "global_tokens": [0]}]
    images = [{}, {"radius": 2}, {"dilation": 2}, {"causal": True}, {"border": "shift"}, {"patch": 2}, {"attr": "x"}]
    for kind, options in ((SequenceToGraph, sequences), (ImageToGraph, images)):
        assert len({repr(kind(**given)) for given in options}) == len(options)
    assert repr(SequenceToGraph(2)) == "SequenceToGraph(radius=2, causal=False, dilation=1, global_tokens=())"


def test_an_image_is_a_sequence_of_its_pixels():
    both = Compose([ImageToGraph(), SequenceToGraph()])
    assert repr(both(Data(image=image(3, 4))).pattern) == "Full(12)"


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (Data(y=torch.zeros(3)), ValueError, r"data must have 'x', got Data\(y=\[3\]\)\. Use Data\(x=\.\.\.\)"),
        (Data(x=["I", "saw"]), TypeError, "x must be a tensor, got list"),
        (Data(x=torch.tensor(1.0)), ValueError, r"x must have shape \[n, \.\.\.\], got \[\]"),
    ],
)
def test_data_without_a_sequence_is_refused(data, error, text):
    with pytest.raises(error, match=f"SequenceToGraph: {text}"):
        SequenceToGraph()(data)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"radius": -1}, ValueError, "Window: radius must be at least 0"),
        ({"causal": 1}, TypeError, "Full: causal must be"),
        (
            {"dilation": 2},
            ValueError,
            r"SequenceToGraph: dilation must be 1 with radius=None, .*, got 2\. Use a radius",
        ),
        ({"global_tokens": [0]}, ValueError, r"SequenceToGraph: global_tokens must be \(\) with radius=None"),
    ],
)
def test_options_of_sequences_are_checked_at_once(options, error, text):
    with pytest.raises(error, match=text):
        SequenceToGraph(**options)

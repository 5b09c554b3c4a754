"""Pictures show what they are given, and refuse what doesn't fit."""

from __future__ import annotations

import itertools

import networkx
import pytest
import torch
from matplotlib import pyplot
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb

from graphattn import Edges, Full, Grid, Window, attention, random_edges
from graphattn.patterns import receptive_field
from graphattn.plot import (
    draw_arcs,
    draw_graph,
    draw_graph_weights,
    draw_heads,
    draw_neighborhood,
    draw_pattern,
    draw_pixel_weights,
    draw_receptive_field,
    draw_weights,
    explore,
    layout,
    mark_node,
)
from graphattn.plot.style import COLORS, MARK, SHADES, shade

WORDS = ["I", "saw", "a", "saw"]


@pytest.fixture
def axes():
    pyplot.switch_backend("Agg")
    figure, axes = pyplot.subplots()
    yield axes
    figure.canvas.draw()
    pyplot.close(figure)


def weights_of(pattern, heads=1):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(pattern.num_targets, heads, 4, generator=generator)
    key = torch.randn(pattern.num_sources, heads, 4, generator=generator)
    return attention(query, key, key, pattern, return_weights=True)[1]


CHAIN = torch.tensor([[0, 1], [1, 2]])


def draw_uniform(axes, pattern, **options):
    return draw_weights(axes, pattern, torch.full((pattern.num_edges,), 0.25), **options)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_drawn_graph_has_every_node_and_edge(axes):
    pattern = Edges(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), 3)
    position = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    assert (
        draw_graph(axes, pattern, position, torch.tensor([0, 0, 1]), wrong=torch.tensor([False, True, False])) is axes
    )
    lines, nodes, rings = axes.collections
    assert len(lines.get_segments()) == 2
    assert len(nodes.get_offsets()) == 3 and len(rings.get_offsets()) == 1
    assert [text.get_text() for text in axes.texts] == ["0", "1"]
    mark_node(axes, position[2], "A", away_from=position[0])
    assert axes.texts[-1].get_text() == "A"


def test_a_graph_is_drawn_from_its_edge_index_too(axes):
    draw_graph(axes, CHAIN, torch.rand(3, 2), torch.tensor([0, 1, 1]), names=["a", "b"])
    assert len(axes.collections[0].get_segments()) == 2 and texts(axes) == ["a", "b"]


def test_drawn_neighborhood_shows_the_weights(axes):
    source, weight = torch.tensor([4, 1, 2, 3]), torch.tensor([0.4, 0.3, 0.2, 0.1])
    label = torch.zeros(5, dtype=torch.int64)
    draw_neighborhood(axes, 4, source, weight, list("abcde"), label=label, images=torch.rand(5, 8, 8), most=2)
    texts = {text.get_text() for text in axes.texts}
    assert {"30%", "20%", "itself 40%, 1 more 10%", "b", "c", "e"} == texts
    widths = sorted(line.get_linewidth() for line in axes.lines)
    assert len(axes.images) == 3 and widths[0] < widths[1]


def test_uniform_weights_stay_visible(axes):
    label = torch.zeros(4, dtype=torch.int64)
    draw_neighborhood(axes, 0, torch.arange(1, 4), torch.full((3,), 1 / 3), list("abcd"), label=label)
    assert all(line.get_linewidth() > 2 for line in axes.lines) and len(axes.lines) == 3


def test_pictures_of_other_sizes_are_refused(axes):
    with pytest.raises(ValueError, match=r"draw_graph: position must have shape \[3, 2\], got \[4, 2\]"):
        draw_graph(axes, Edges(torch.tensor([[0], [2]])), torch.zeros(4, 2), torch.zeros(3))


def test_shades_darken_steadily_in_grey():
    grey = [
        0.3 * red + 0.59 * green + 0.11 * blue for red, green, blue in map(shade, torch.linspace(0, 1, 50).tolist())
    ]
    assert all(earlier > later for earlier, later in itertools.pairwise(grey))
    assert shade(0) == pytest.approx(to_rgb(SHADES[0])) and shade(1) == pytest.approx(to_rgb(SHADES[-1]))


@pytest.mark.parametrize("pattern", [Window(5, 1), Full([2, 3], causal=True), Grid((3, 4), 1), Full(3, 5)])
def test_a_drawn_pattern_has_a_dot_per_edge(axes, pattern):
    assert draw_pattern(axes, pattern, target=1) is axes
    dots = {(int(column), int(row)) for column, row in axes.collections[0].get_offsets()}
    assert dots == {tuple(edge) for edge in pattern.edge_index.t().tolist()}


def test_components_have_frames_and_large_patterns_are_densities(axes):
    draw_pattern(axes, Window([300, 600, 100], radius=2))
    frames = axes.collections[-1].get_paths()
    assert [tuple(frame.get_extents().p0) for frame in frames] == [(-0.5, -0.5), (299.5, 299.5), (899.5, 899.5)]
    image = axes.images[0].get_array()
    assert image.shape == (400, 400) and image.mask[0, 399] and image[10, 10] > 0.25


def test_names_stand_beside_rows_and_columns(axes):
    draw_weights(axes, Full(2, 3), weights_of(Full(2, 3))[:, 0], source_names=["a", "b", "$"], target_names=["c", "d"])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b", "$"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["c", "d"]


@pytest.mark.parametrize("draw", [draw_pattern, draw_uniform])
def test_axes_can_be_drawn_into_again_with_and_without_names(axes, draw):
    pattern = Full(4)
    draw(axes, pattern, names=["a word too long to lie", *WORDS[1:]])
    axes.figure.canvas.draw()
    draw(axes, pattern)
    axes.figure.canvas.draw()
    shown = [label for label in axes.get_xticklabels() if label.get_text() in "0123"]
    assert [label.get_text() for label in shown] == list("0123") and {label.get_rotation() for label in shown} == {0}
    draw(axes, pattern, names=WORDS)
    assert [label.get_text() for label in axes.get_yticklabels()] == WORDS


def test_a_weight_of_zero_differs_from_no_edge(axes):
    pattern = Edges(torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1]]), 2)
    draw_weights(axes, pattern, torch.tensor([0.0, 1.0, 0.25, 0.25]))
    (image,) = axes.images
    alpha = image.get_array()[..., 3]
    assert alpha.tolist() == [[1, 1], [0, 1]] and axes.patch.get_hatch()
    assert texts(axes) == ["0", "1", ".50"]


def test_negative_weights_without_numbers_have_dots(axes):
    pattern = Window(20, radius=1)
    weight = torch.where(pattern.edge_index[0] > pattern.edge_index[1], -0.5, 1.0)
    draw_weights(axes, pattern, weight)
    (dots,) = axes.collections
    assert dots.get_offsets().tolist() == [[row + 1, row] for row in range(19)] and texts(axes) == []


def test_arcs_lie_above_from_earlier_words_and_below_from_later_ones(axes):
    pattern = Edges(torch.tensor([[0, 3, 2], [2, 2, 2]]), 4)
    draw_arcs(axes, pattern, torch.tensor([0.5, 0.3, 0.2]), names=WORDS, target=2)
    assert texts(axes) == WORDS and len(axes.patches) == 3
    widths = [patch.get_linewidth() for patch in axes.patches]
    assert widths == sorted(widths)
    _, later, earlier = axes.patches
    # The first three points of an arrow are its curve.
    assert later.get_path().vertices[:3, 1].max() < 0 < earlier.get_path().vertices[:3, 1].min()
    assert axes.texts[2].get_color() == MARK


def test_words_fit_into_their_frames_and_touch_no_other():
    figure = pyplot.figure(figsize=(12, 5))
    words = ["WWWWWWWWWW", "$il", "illicitly", "MW", ""]
    panels = draw_heads(figure, draw_arcs, Full(5), torch.ones(25, 4), names=words, target=0, columns=4)
    draw_arcs(panels[3], Window(5, radius=0), names=words)
    boxes = [text.get_window_extent() for text in panels[3].texts[:4]]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    frames = [patch.get_window_extent() for patch in panels[3].patches[-5:]]
    assert all(frame.x0 < box.x0 and box.x1 < frame.x1 for frame, box in zip(frames, boxes, strict=False))
    pyplot.close(figure)


@pytest.mark.parametrize("target", [None, 0])
def test_arrows_are_as_many_as_edges_and_uniform_ones_alike(axes, target):
    pattern = Edges(networkx.star_graph(4)).with_self_loops()
    weight = torch.full((pattern.num_edges,), 0.2)
    draw_graph_weights(axes, pattern, weight, target=target, names=list("abcde"))
    _, arrows, rings, nodes = axes.collections
    assert len(arrows.get_paths()) == (8 if target is None else 4)
    assert len(rings.get_offsets()) == (5 if target is None else 1) and len(nodes.get_offsets()) == 5
    assert {tuple(color) for color in arrows.get_facecolors()} == {(*to_rgb(SHADES[-1]), 1)}
    assert texts(axes) == list("abcde")


def test_nodes_have_the_colors_of_their_classes_and_a_legend_names_them(axes):
    label = torch.tensor([2, 0, 0])
    draw_graph_weights(axes, CHAIN, torch.ones(2), target=2, label=label, label_names=["a", "b", "c"])
    nodes = axes.collections[-1]
    assert [tuple(color[:3]) for color in nodes.get_facecolors()] == [to_rgb(COLORS[x]) for x in label.tolist()]
    assert [tuple(color[:3]) == to_rgb(MARK) for color in nodes.get_edgecolors()] == [False, False, True]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "c"]
    draw_graph_weights(axes, CHAIN, torch.ones(2), label=label + 10)
    assert [tuple(color) for color in axes.collections[-1].get_facecolors()] == [
        tuple(x) for x in nodes.get_facecolors()
    ]


@pytest.mark.parametrize("draw", [draw_pattern, draw_uniform], ids=["draw_pattern", "draw_weights"])
def test_matrices_say_which_side_is_which(axes, draw):
    draw(axes, Full(2, 3))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("source", "target")


def test_long_names_stand_on_the_outer_side_and_short_ones_inside(axes):
    place = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    for names, expected in ((["a", "Bertram"], [-1, 1]), (["a", "b"], [0, 0])):
        draw_graph_weights(axes, Full(2), torch.ones(4), names=names, position=place)
        heights = [text.get_position()[1] for text in axes.texts[-2:]]
        assert [(height > y) - (height < y) for height, y in zip(heights, (0, 1), strict=True)] == expected


def test_layouts_repeat_and_hold_nodes_apart():
    pattern = random_edges(40, 3, generator=torch.Generator().manual_seed(0))
    for name in ("spring", "kamada_kawai", "spectral", "circular"):
        place = layout(pattern, name)
        assert torch.equal(place, layout(pattern, name))
        assert float(place.min()) >= 0 and float(place.max()) <= 1
    place = layout(pattern)
    assert float(torch.cdist(place, place).fill_diagonal_(9).min()) > 0.03


def test_squares_of_pixels_have_the_area_of_their_weights(axes):
    grid = Grid((4, 5), radius=1)
    weight = torch.zeros(grid.num_edges)
    (into,) = (grid.edge_index[1] == 7).nonzero(as_tuple=True)
    weight[into[:3]] = torch.tensor([1.0, 0.25, 0.5])
    draw_pixel_weights(axes, grid, weight, pixel=(1, 2), image=torch.rand(4, 5))
    sides = [path.get_extents().width for path in axes.collections[0].get_paths()]
    assert len(sides) == 9
    assert [side**2 / sides[0] ** 2 for side in sides[:3]] == pytest.approx([1, 0.25, 0.5])
    assert max(sides[3:]) == pytest.approx(0.1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_colors_in_bytes_are_those_in_unit_range(axes, tmp_path, dtype):
    grid = Grid((2, 2), radius=1)
    weight = torch.ones(grid.num_edges)
    image = torch.tensor([[[0, 51, 255], [255, 0, 0]], [[102, 102, 102], [0, 0, 0]]])
    pages = []
    for colors in (image / 255, image.to(dtype)):
        draw_pixel_weights(axes, grid, weight, pixel=(0, 0), image=colors)
        pages.append(explore(tmp_path / "page.html", grid, weight, image=colors).read_text(encoding="utf-8"))
    unit, in_bytes = (drawn.get_array() for drawn in axes.images)
    assert abs(in_bytes - unit).max() < 1e-6
    assert pages[0] == pages[1]


def test_every_head_has_its_panel():
    pattern = Window(4, 1)
    weights = weights_of(pattern, heads=3)
    figure = pyplot.figure()
    panels = draw_heads(figure, draw_weights, pattern, weights, names=WORDS, strongest=1.0)
    assert [axes.get_title() for axes in panels] == ["head 0", "head 1", "head 2"] and figure.axes == panels
    for head, axes in enumerate(panels):
        assert float(texts(axes)[0]) == pytest.approx(float(weights[0, head]), abs=0.0051)
    pyplot.close(figure)


@pytest.mark.parametrize(
    ("draw", "options", "ends"),
    [
        (draw_weights, {}, [".90", "-.80"]),
        (draw_arcs, {"target": 1}, [".40", ".70"]),
        (draw_pixel_weights, {"pixel": (0, 1), "image": torch.rand(1, 2)}, [".40", ".70"]),
        (draw_weights, {"strongest": 1.0}, None),
    ],
)
def test_titles_of_heads_say_where_their_scales_end(draw, options, ends):
    weights = torch.tensor([[0.9, 0.3], [0.1, -0.8], [0.4, 0.7], [0.2, 0.1]])
    figure = pyplot.figure()
    panels = draw_heads(figure, draw, Edges(torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1]])), weights, **options)
    expected = ["head 0", "head 1"] if ends is None else [f"head {head}, up to {end}" for head, end in enumerate(ends)]
    assert [axes.get_title() for axes in panels] == expected
    pyplot.close(figure)


@pytest.mark.parametrize("pattern", [Window(9, 1, causal=True), Grid((3, 3), 1), random_edges(9, 2), Full([4, 5])])
def test_receptive_fields_are_powers_of_the_pattern(pattern):
    step = (pattern.mask() | torch.eye(9, dtype=torch.bool)).double()
    for node in (0, 4, 8):
        reached = receptive_field(pattern, node, 3)
        assert int(reached[node]) == 0
        for layers in range(4):
            seen = torch.linalg.matrix_power(step, layers)[node] > 0
            assert torch.equal((reached >= 0) & (reached <= layers), seen)


@pytest.mark.parametrize("pattern", [Window(9, 1), Grid((3, 3), 1), Edges(networkx.path_graph(9))])
def test_receptive_fields_are_drawn(axes, pattern):
    assert draw_receptive_field(axes, pattern, 4, 2) is axes
    if isinstance(pattern, Window):
        dots = [drawn for drawn in axes.collections if isinstance(drawn, PathCollection)]
        assert [sum(to_rgb(color) != (1, 1, 1) for color in row.get_facecolors()) for row in dots] == [5, 3, 1]
    else:
        expected = [str(int(layer)) if layer >= 0 else "" for layer in receptive_field(pattern, 4, 2)]
        assert texts(axes) == expected


def test_nearer_dots_are_darker_and_sequences_stand_apart(axes):
    draw_receptive_field(axes, Window([5, 4], 1), 2, 2)
    lowest = next(drawn for drawn in axes.collections if isinstance(drawn, PathCollection))
    assert lowest.get_offsets()[:, 0].tolist() == axes.get_xticks().tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    lightness = [sum(color[:3]) for color in lowest.get_facecolors().tolist()]
    assert lightness[2] == lightness[1] == lightness[3] < lightness[0] == lightness[4] < lightness[5] == 3


def test_arrows_of_a_receptive_field_are_the_edges_that_lead_to_the_node(axes):
    draw_receptive_field(axes, torch.tensor([[1, 2, 3, 0, 4], [0, 1, 2, 4, 0]]), 0, 2, position="circular")
    faint, arrows, _ = axes.collections
    # 1 -> 0, 2 -> 1, 4 -> 0, and 0 -> 4 back to itself; 3 -> 2 takes a layer more.
    assert len(arrows.get_paths()) == 4 and len(faint.get_segments()) == 1


BAD = (
    (
        lambda axes: draw_weights(axes, Full(2), torch.ones(4, 1)),
        ValueError,
        r"draw_weights: weight must have shape \[4\].*weight\[:, head\]",
    ),
    (lambda axes: draw_weights(axes, Full(2), [1.0]), TypeError, "draw_weights: weight must be a tensor, got list"),
    (lambda axes: draw_weights(axes, Full(1), torch.tensor([torch.nan])), ValueError, "weight must be finite, got nan"),
    (
        lambda axes: draw_weights(axes, Full(2), torch.ones(4), strongest=0),
        ValueError,
        "strongest must be finite and more than 0",
    ),
    (
        lambda axes: draw_weights(axes, Full(1, 2), torch.ones(2), names=["a"]),
        ValueError,
        "Use source_names and target_names",
    ),
    (
        lambda axes: draw_pattern(axes, Full(4), names=["a"]),
        ValueError,
        "draw_pattern: names must be 4 texts, one per node, got 1",
    ),
    (
        lambda axes: draw_pattern(axes, Full(4), target=4),
        ValueError,
        "target must be less than the number of nodes, 4, got 4",
    ),
    (lambda axes: draw_arcs(axes, Full(4, 3)), ValueError, "draw_arcs: pattern must have as many sources as targets"),
    (
        lambda axes: draw_graph_weights(axes, Full(2), torch.ones(4), label=[0, 1]),
        TypeError,
        "draw_graph_weights: label must be a tensor, got list",
    ),
    (
        lambda axes: draw_graph_weights(axes, Full(2), torch.ones(4), label=torch.arange(2), label_names=["a"]),
        ValueError,
        r"draw_graph_weights: label must lie in \[0, 1\) because there are 1 label_names, got 1",
    ),
    (
        lambda axes: explore("x", Full(2), torch.ones(4), label=torch.arange(3)),
        ValueError,
        r"explore: label must have shape \[2\], got \[3\]",
    ),
    (
        lambda axes: explore("x", Full(2, 3), torch.ones(6), label=torch.arange(2)),
        ValueError,
        "explore: label needs the same nodes as sources and targets, got 3 sources and 2 targets",
    ),
    (
        lambda axes: draw_graph_weights(axes, Full(2), torch.ones(4), position="sprng"),
        ValueError,
        "Did you mean 'spring'",
    ),
    (
        lambda axes: draw_graph_weights(axes, Full(2), torch.ones(4), position=torch.ones(3, 2)),
        ValueError,
        r"position must have shape \[2, 2\]",
    ),
    (lambda axes: draw_pixel_weights(axes, Full(4), torch.ones(16), pixel=(0, 0)), ValueError, "Give an image"),
    (
        lambda axes: draw_pixel_weights(axes, Grid((2, 2), 1), torch.ones(16), pixel=(0, 2)),
        ValueError,
        r"pixel\[1\] must be less",
    ),
    (
        lambda axes: draw_heads(axes.figure, draw_weights, Full(2), torch.ones(4)),
        ValueError,
        r"draw_heads: weights must be \[4, H\]",
    ),
    (
        lambda axes: draw_heads(axes, draw_weights, Full(2), torch.ones(4, 1)),
        TypeError,
        "draw_heads: figure must be a Matplotlib figure, got Axes. Use plt.figure",
    ),
    (
        lambda axes: draw_pixel_weights(axes, Grid((2, 3), 1), torch.ones(Grid((2, 3), 1).num_edges), pixel=5),
        TypeError,
        r"draw_pixel_weights: pixel must be a row and a column, got 5. Use pixel=divmod\(node, 3\)",
    ),
    (
        lambda axes: draw_graph(axes, CHAIN, torch.zeros(4, 2), torch.zeros(4)),
        ValueError,
        r"draw_graph: position must have shape \[3, 2\], got \[4, 2\]. Use Edges\(edge_index, num_nodes\)",
    ),
    (
        lambda axes: draw_graph(axes, CHAIN, torch.zeros(3, 2), torch.zeros(3)),
        TypeError,
        r"draw_graph: label must be integers, got torch.float32. Use label.long\(\).",
    ),
    (
        lambda axes: draw_graph(axes, CHAIN, torch.zeros(3, 2), torch.arange(3), names=["a", "b"]),
        ValueError,
        r"draw_graph: label must lie in \[0, 2\) because there are 2 names, got 2",
    ),
    (lambda axes: draw_receptive_field(axes, Full(2), 0, 0), ValueError, "layers must be at least 1"),
    (lambda axes: receptive_field(Full(2, 3), 0, 1), ValueError, "receptive_field: pattern must have as many sources"),
    (lambda axes: receptive_field(Full(2), 2, 1), ValueError, "node must be less than the number of nodes, 2"),
    (
        lambda axes: explore("x", Full(2), torch.ones(3, 1)),
        ValueError,
        r"explore: weights of layer 0 must have shape \[4, H\]",
    ),
    (
        lambda axes: explore("x", Full(2), [torch.ones(4, 1), torch.full((4, 1), torch.inf)]),
        ValueError,
        "weights of layer 1 must be finite",
    ),
    (lambda axes: explore("x", Full(2), []), TypeError, "weights must be a tensor"),
    (
        lambda axes: explore("x", Full(2, 3), torch.ones(6, 1), names=["a", "b"]),
        ValueError,
        "Use names=\\(source_names, target_names\\)",
    ),
    (
        lambda axes: explore("x", Full(2, 3), torch.ones(6, 1), layout="nodes"),
        ValueError,
        "layout must be 'words' unless",
    ),
    (
        lambda axes: explore("x", Full(2), torch.ones(4, 1), layer_names=["a", "b"]),
        ValueError,
        "layer_names must be 1 texts, one per layer, got 2",
    ),
)


@pytest.mark.parametrize(("call", "error", "text"), BAD)
def test_what_does_not_fit_is_refused(axes, call, error, text):
    with pytest.raises(error, match=text):
        call(axes)


@pytest.mark.parametrize(
    "pattern", [Edges(torch.zeros(2, 0, dtype=torch.int64), 0), Edges(torch.zeros(2, 0, dtype=torch.int64), 3), Full(1)]
)
def test_empty_patterns_are_drawn(axes, pattern, tmp_path):
    weight = torch.ones(pattern.num_edges)
    draw_pattern(axes, pattern)
    draw_weights(axes, pattern, weight)
    draw_arcs(axes, pattern, weight)
    draw_graph_weights(axes, pattern, weight)
    assert explore(tmp_path / "page.html", pattern, weight).exists()

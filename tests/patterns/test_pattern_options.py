"""Dilation, causality, borders and global tokens: every variant against its statement in plain loops."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphattn import Full, Grid, OffsetBias, Pattern, Window, attention, random_edges, random_regular
from graphattn.patterns.grid import BORDERS


def window_pairs(sizes, radius, dilation, causal, tokens):
    """The window's pairs (target, source) and the row of each in an offset table."""
    pairs, begin = {}, 0
    for size in sizes:
        for target, source in itertools.product(range(size), repeat=2):
            steps = [k for k in range(-radius, (0 if causal else radius) + 1) if source == target + k * dilation]
            is_token = (target in tokens or source in tokens) and (not causal or source <= target)
            if steps:
                pairs[begin + target, begin + source] = steps[0] + radius
            elif is_token:
                pairs[begin + target, begin + source] = (radius if causal else 2 * radius) + 1
        begin += size
    return pairs


def sources_along(position, extent, radius, dilation, causal, border):
    """Sources of a pixel along one axis: {coordinate: steps of the dilation from the target}."""
    back_and_forth = range(-radius, (0 if causal else radius) + 1)
    if border == "wrap":
        return {(position + k * dilation) % extent: k for k in back_and_forth}
    if border == "clip" or causal:
        return {position + k * dilation: k for k in back_and_forth if 0 <= position + k * dilation < extent}
    # Of all whole windows in the image that hold the pixel, the one whose center is nearest.
    starts = [s for s in range(extent) if (s - position) % dilation == 0 and s + 2 * radius * dilation < extent]
    start = min(starts, key=lambda s: abs(s + radius * dilation - position))
    return {
        source: (source - position) // dilation for source in range(start, start + 2 * radius * dilation + 1, dilation)
    }


def grid_pairs(shapes, radius, dilation, causal, border):
    """The grid's pairs (target, source) and the offset of each in steps of the dilation."""
    pairs, begin = {}, 0
    for shape in shapes:
        pixels = list(itertools.product(*map(range, shape)))
        number = {pixel: begin + place for place, pixel in enumerate(pixels)}
        for pixel in pixels:
            along = [sources_along(*axis, border) for axis in zip(pixel, shape, radius, dilation, causal, strict=True)]
            for chosen in itertools.product(*(axis.items() for axis in along)):
                source, steps = zip(*chosen, strict=True)
                pairs[number[pixel], number[source]] = steps
        begin += len(pixels)
    return pairs


def assert_is(pattern, pairs):
    """Definition, mask, listing, count and compressed forms say that these are the pairs."""
    listed = torch.tensor(sorted(pairs), dtype=torch.int64).view(-1, 2)
    assert pattern.num_edges == len(pairs)
    assert not pattern.has_kept("edge_index")
    assert torch.equal(pattern.mask().nonzero(), listed)
    assert torch.equal(pattern.edge_index, listed.t().flip(0))
    assert pattern.csr().perm is None and pattern.occurrence() is None
    assert pattern.with_self_loops() is pattern
    assert bool(pattern.mask().diagonal().all())


sizes = st.lists(st.integers(0, 9), min_size=1, max_size=3)
radii = st.integers(0, 3)
dilations = st.integers(1, 3)


@given(sizes, radii, dilations, st.booleans(), st.lists(st.integers(0, 4), unique=True, max_size=3))
def test_windows_are_what_the_loops_say(sizes, radius, dilation, causal, tokens):
    options = dict(dilation=dilation, causal=causal, global_tokens=tuple(tokens))
    pattern = Window(sizes, radius, **options)
    pairs = window_pairs(sizes, radius, dilation, causal, tokens)
    assert_is(pattern, pairs)
    assert pattern.offset_index().tolist() == [pairs[pair] for pair in sorted(pairs)]
    assert pattern.num_offsets == (radius if causal else 2 * radius) + 1 + bool(tokens)
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    assert torch.equal(Window.from_batch(batch, radius, **options).mask(), pattern.mask())


@st.composite
def grids(draw):
    """Arguments of a grid that fit together."""
    axes, border = draw(st.integers(1, 3)), draw(st.sampled_from(BORDERS))
    radius = tuple(draw(st.integers(0, 2 if axes < 3 else 1)) for _ in range(axes))
    dilation = tuple(draw(st.integers(1, 3 if axes < 3 else 2)) for _ in range(axes))
    causal = tuple(border != "wrap" and draw(st.booleans()) for _ in range(axes))
    least = []
    for r, d, is_causal in zip(radius, dilation, causal, strict=True):
        whole = {"shift": (2 * r + 1) * d, "wrap": 2 * r * d + 1}.get(border, 0)
        least.append(1 if border == "clip" or is_causal else whole)
    widest = {1: 6, 2: 3, 3: 1}[axes]
    shapes = [tuple(draw(st.integers(low, low + widest)) for low in least) for _ in range(draw(st.integers(1, 2)))]
    assume(max(torch.tensor(shapes).prod(1).tolist()) <= 300)
    if draw(st.booleans()):
        shapes.insert(draw(st.integers(0, len(shapes))), (0,) * axes)
    return shapes, radius, dilation, causal, border


@given(grids())
@settings(max_examples=150)
def test_grids_are_what_the_loops_say(arguments):
    shapes, radius, dilation, causal, border = arguments
    pattern = Grid(shapes, radius, dilation=dilation, causal=causal, border=border)
    pairs = grid_pairs(*arguments)
    assert_is(pattern, pairs)
    steps = torch.tensor([pairs[pair] for pair in sorted(pairs)], dtype=torch.int64).view(-1, len(radius))
    assert torch.equal(pattern.offsets(), steps * torch.tensor(dilation))
    reach = [(2 if border == "shift" and not c else 1) * r for r, c in zip(radius, causal, strict=True)]
    table = [range(-r, (0 if c else r) + 1) for r, c in zip(reach, causal, strict=True)]
    row = {offset: place for place, offset in enumerate(itertools.product(*table))}
    assert pattern.num_offsets == len(row)
    assert pattern.offset_index().tolist() == [row[tuple(step)] for step in steps.tolist()]


def test_one_value_stands_for_every_axis():
    every = Grid((5, 6), (1, 1), dilation=(2, 2), causal=(True, True))
    one = Grid((5, 6), 1, dilation=2, causal=True)
    assert torch.equal(every.mask(), one.mask()) and repr(every) == repr(one)
    assert (one.radius, one.dilation, one.causal, one.border) == ((1, 1), (2, 2), (True, True), "clip")


def test_shift_by_hand():
    # With dilation 2 the even and the odd pixels are two images of their own.
    windows = Grid((7,), 1, dilation=2, border="shift").edge_index[0].view(7, 3).tolist()
    assert windows == [[0, 2, 4], [1, 3, 5], [0, 2, 4], [1, 3, 5], [2, 4, 6], [1, 3, 5], [2, 4, 6]]
    table = OffsetBias(torch.arange(5.0)[:, None])
    rows = table.of_edges(Grid((4,), 1, border="shift")).view(4, 3).tolist()
    assert rows == [[2, 3, 4], [1, 2, 3], [1, 2, 3], [0, 1, 2]]


def test_a_large_window_with_global_tokens_counts_without_listing():
    window = Window(100_000, radius=64, dilation=3, global_tokens=(0, 70_000))
    near = 100_000 * 129 - 3 * 64 * 65
    # Of each token's row and column, the window has its own reach; the two tokens see each other once each way.
    rows = 2 * (2 * 100_000 - 1) - 2
    assert window.num_edges == near + rows - (2 * 64 + 1) - (4 * 64 + 1)
    assert not window.has_kept("edge_index")


VARIANTS = [
    Window([5, 3], 1, dilation=2),
    Window([5, 3], 1, dilation=2, causal=True, global_tokens=(0, 4)),
    Window(9, 2, global_tokens=[3]),
    Grid((4, 5), (1, 2)),
    Grid((4, 5), 1, dilation=(1, 2), causal=(False, True)),
    Grid([(4, 6), (6, 7)], (0, 1), dilation=2, border="shift"),
    Grid([(5,), (7,)], 1, dilation=2, border="wrap"),
    Grid((4, 5), 1, causal=True, border="shift"),
]


@pytest.mark.parametrize("pattern", VARIANTS, ids=repr)
def test_repr_can_be_evaluated(pattern):
    again = eval(repr(pattern), {"Window": Window, "Grid": Grid})
    assert repr(again) == repr(pattern) and torch.equal(again.mask(), pattern.mask())


def test_repr_shows_only_what_differs_from_the_defaults():
    assert repr(Window(9, 2, dilation=1, global_tokens=[])) == "Window(9, radius=2)"
    assert repr(VARIANTS[1]) == "Window([5, 3], radius=1, dilation=2, causal=True, global_tokens=(0, 4))"
    assert repr(Grid((4, 5), (1, 1), border="clip")) == "Grid((4, 5), radius=1)"
    assert repr(VARIANTS[5]) == "Grid([(4, 6), (6, 7)], radius=(0, 1), dilation=2, border='shift')"


@pytest.mark.parametrize("pattern", VARIANTS, ids=repr)
def test_joined_variants_are_the_disjoint_union(pattern):
    joined = Pattern.join([pattern, pattern])
    assert torch.equal(joined.mask(), torch.block_diag(pattern.mask(), pattern.mask()).bool())
    assert joined.num_edges == 2 * pattern.num_edges


@pytest.mark.parametrize("pattern", VARIANTS, ids=repr)
def test_variants_move_with_all_they_have(pattern):
    pattern.csr(), pattern.csc(), pattern.num_edges
    moved = pattern.to("meta")
    assert {moved.device.type, moved.edge_index.device.type, moved.csc().index.device.type} == {"meta"}
    assert moved.num_edges == pattern.num_edges


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("dilation", [Window(5, 1), Window(5, 1, dilation=2)]),
        ("global_tokens", [Window(5, 1), Window(5, 1, global_tokens=(0,))]),
        ("causal", [Window(5, 1), Window(5, 1, causal=True)]),
        ("dilation", [Grid((5, 5), 1), Grid((5, 5), 1, dilation=(1, 2))]),
        ("causal", [Grid((5, 5), 1), Grid((5, 5), 1, causal=(True, False))]),
        ("border", [Grid((5,), 1), Grid((5,), 1, border="wrap")]),
    ],
)
def test_patterns_that_differ_in_an_option_dont_join(option, parts):
    with pytest.raises(ValueError, match=f"join: patterns' {option} must be the same for all, got"):
        Pattern.join(parts)


def test_boxes_whose_sources_are_other_components_gain_the_loops_they_lack():
    # As many sources as targets in all, but target 1 and source 1 are in different components.
    pattern = Full([2, 1], [1, 2])
    looped = pattern.with_self_loops()
    assert looped.edge_index.tolist() == [[0, 0, 1, 2, 1], [0, 1, 2, 2, 1]]


def is_accepted(make, sizes):
    try:
        make(sizes)
    except ValueError:
        return False
    return True


def assert_rules_are_those_of_items(make, sizes):
    """A batch is accepted exactly where each of its items is."""
    assert is_accepted(make, sizes) == all(is_accepted(make, [size]) for size in sizes)


few = st.lists(st.integers(0, 12), min_size=1, max_size=3)


@given(few, st.integers(-1, 3), st.integers(0, 14), st.booleans(), st.lists(st.integers(-1, 14), max_size=3))
@settings(max_examples=300)
def test_a_sequence_is_accepted_where_a_batch_of_it_is(sizes, radius, dilation, causal, tokens):
    options = dict(dilation=dilation, causal=causal, global_tokens=tokens)
    assert_rules_are_those_of_items(lambda sizes: Window(sizes, radius, **options), sizes)
    assert_rules_are_those_of_items(lambda sizes: Full(sizes, sizes[::-1], causal=causal), sizes)
    assert_rules_are_those_of_items(lambda sizes: random_edges(sizes, radius), sizes)
    assert_rules_are_those_of_items(lambda sizes: random_regular(sizes, radius), sizes)


@given(st.data(), st.integers(1, 3), st.sampled_from(BORDERS))
@settings(max_examples=300)
def test_an_array_is_accepted_where_a_batch_of_it_is(data, axes, border):
    per_axis = lambda values: tuple(data.draw(values) for _ in range(axes))
    shapes = [per_axis(st.integers(0, 12)) for _ in range(data.draw(st.integers(1, 3)))]
    radius, dilation = per_axis(st.integers(-1, 2)), per_axis(st.integers(0, 14))
    options = dict(dilation=dilation, causal=per_axis(st.booleans()), border=border)
    assert_rules_are_those_of_items(lambda shapes: Grid(shapes, radius, **options), shapes)


def test_steps_longer_than_a_sequence_leave_each_position_itself():
    assert torch.equal(Window(3, 2, dilation=3, causal=True).mask(), torch.eye(3).bool())
    assert Grid((3, 2), 1, dilation=2).mask().int().tolist() == [
        *([1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0]),
        *([0, 0, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1]),
    ]
    assert Window(3, 1, global_tokens=(7,)).edge_index.tolist() == Window(3, 1).edge_index.tolist()


@pytest.mark.parametrize("radius", [0, 1])
def test_a_dilation_beyond_all_sizes_costs_nothing(radius):
    x = torch.randn(6, 1, 4)
    for pattern in (Window([4, 2], radius, dilation=10**12), Grid((2, 3), radius, dilation=10**12)):
        for backend in ("auto", "tiles"):
            assert torch.equal(attention(x, x, x, pattern, backend=backend), x)


def test_nothing_is_wrong_where_there_is_nothing():
    assert Window([], 1, dilation=9, global_tokens=(3,)).num_edges == 0
    assert Window([0, 0], 1, dilation=9, global_tokens=(3,)).edge_index.shape == (2, 0)
    for border in BORDERS:
        assert Grid([(0, 9), (9, 0)], 4, dilation=5, border=border).edge_index.shape == (2, 0)


BAD = {
    "negative radius": (lambda: Grid((4,), -1), "Grid: radius must be at least 0, got -1."),
    "no dilation": (lambda: Window(4, 1, dilation=0), "Window: dilation must be at least 1, got 0."),
    "negative dilation": (lambda: Grid((4, 4), 1, dilation=(1, -2)), "Grid: dilation must be at least 1, got -2."),
    "shift into too little room": (
        lambda: Grid([(9, 9), (9, 5)], 1, dilation=2, border="shift"),
        "Grid: radius must have (2 * radius + 1) * dilation <= 5, the shortest extent of axis 1, with border='shift', "
        "got radius 1 and dilation 2. Use radius=0 there, or border='clip'.",
    ),
    "shift into no room": (
        lambda: Grid((2,), 0, dilation=3, border="shift"),
        "Grid: radius must have (2 * radius + 1) * dilation <= 2, the shortest extent of axis 0, with border='shift', "
        "got radius 0 and dilation 3. Use border='clip'.",
    ),
    "wrap that repeats": (
        lambda: Grid((4, 9), 2, border="wrap"),
        "Grid: radius must have 2 * radius * dilation + 1 <= 4, the shortest extent of axis 0, with border='wrap', "
        "got radius 2 and dilation 1. Use radius=1 there, or border='clip'.",
    ),
    "causal on a torus": (
        lambda: Grid((5, 5), 1, causal=(False, True), border="wrap"),
        "Grid: causal must be False with border='wrap', which has no first position, got (False, True). "
        "Use border='clip'.",
    ),
    "unknown border": (
        lambda: Grid((5,), 1, border="warp"),
        "Grid: border must be one of 'clip', 'shift', 'wrap', got 'warp'. Did you mean 'wrap'?",
    ),
    "dilation of other axes": (
        lambda: Grid((4, 4), 1, dilation=[1]),
        "Grid: dilation must be one integer or 2, one per axis, got [1].",
    ),
    "causal of other axes": (
        lambda: Grid((4, 4), 1, causal=(True,) * 3),
        "Grid: causal must be one bool or 2, one per axis, got (True, True, True).",
    ),
    "negative token": (
        lambda: Window(4, 1, global_tokens=(0, -1)),
        "Window: global_tokens must be at least 0, got -1.",
    ),
    "token named twice": (
        lambda: Window(4, 1, global_tokens=(0, 2, 0)),
        "Window: global_tokens must be distinct, got (0, 2, 0). Use (0, 2).",
    ),
    "dilation beyond integers": (
        lambda: Grid((5, 5), 0, dilation=(1, 2**62)),
        f"Grid: dilation must be less than 2^62, got {2**62}. Use the longest extent: no offset is longer.",
    ),
    "token beyond integers": (
        lambda: Window(5, 1, global_tokens=(0, 2**64)),
        f"Window: global_tokens must be less than 2^62, got {2**64}.",
    ),
    "radius beyond integers": (
        lambda: Window(5, 10**30),
        f"Window: radius times dilation must be less than 2^62, got {10**30}. Use the longest extent: no offset "
        "is longer.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_options_that_make_no_sense(name):
    function, text = BAD[name]
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        function()


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda: Window(4, 1, causal="no"), r"Window: causal must be a bool, got 'no'\."),
        (lambda: Full(4, causal=1), r"Full: causal must be a bool, got 1\."),
        (lambda: random_edges(4, 1, generator=3), r"random_edges: generator must be a torch.Generator, got 3\."),
        (lambda: Window(4, 1, global_tokens=0), r"must be a tuple of positions, got 0. Use global_tokens=\(0,\)."),
        (lambda: Window(4, 1, global_tokens=(0.5,)), "Window: global_tokens must be an integer, got 0.5"),
        (lambda: Window(4, 1, dilation=1.0), "Window: dilation must be an integer, got 1.0"),
        (lambda: Grid((4,), 1, dilation=True), "Grid: dilation must be an integer, got True"),
        (lambda: Grid((4,), 1, causal=1), "Grid: causal must be a bool, or one per axis, got 1."),
        (lambda: Grid((4,), 1, causal="left"), "Grid: causal must be a bool, or one per axis, got 'left'."),
    ],
)
def test_options_of_another_type(function, text):
    with pytest.raises(TypeError, match=text):
        function()

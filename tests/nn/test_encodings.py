"""Positional encodings: formulas, invariances, both routes and the dense twin, graphs with corners, errors."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from covering import few
from hypothesis import given, settings
from hypothesis import strategies as st

from graphattn import Full, Grid, OffsetBias, Window
from graphattn.nn import (
    ALiBi,
    DenseGraphAttention,
    Encoding,
    GraphAttention,
    GraphTransformer,
    LaplacianPosition,
    LearnedPosition,
    RandomWalkPosition,
    RelativeBias,
    Rotary,
    Sinusoidal,
    TransformerBlock,
)
from graphattn.nn.encodings import ENCODINGS
from graphattn.testing import graph_zoo

C, H, D = 8, 2, 4

# For layers of 8 channels and 2 heads, by the number of dimensions; graph encodings need none.
ON_SEQUENCES = {
    "sinusoidal": lambda: Sinusoidal(C),
    "learned": lambda: LearnedPosition(C, 12),
    "rotary": lambda: Rotary(D),
    "alibi": lambda: ALiBi(H),
    "relative": lambda: RelativeBias(H, 2),
}
ON_PIXELS = {
    "sinusoidal": lambda: Sinusoidal(C, dims=2),
    "learned": lambda: LearnedPosition(C, (3, 5)),
    "rotary": lambda: Rotary(D, dims=2),
    "relative": lambda: RelativeBias(H, (1, 1)),
}
ON_GRAPHS = {"laplacian": lambda: LaplacianPosition(C, 3), "random walk": lambda: RandomWalkPosition(C, 3)}
RELATIVE = ("rotary", "alibi", "relative")

SEQUENCES = {
    "full": lambda: Full(6),
    "full causal": lambda: Full([4, 3], causal=True),
    "window ragged": lambda: Window([5, 0, 1, 4], radius=2),
}
PIXELS = {"grid": lambda: Grid((3, 4), radius=1), "grid ragged": lambda: Grid([(2, 3), (1, 5)], radius=1)}
CASES = [
    *(
        (kind, make, name, pattern)
        for kind, make in (ON_SEQUENCES | ON_GRAPHS).items()
        for name, pattern in SEQUENCES.items()
    ),
    *(
        (kind, make, name, pattern)
        for kind, make in (ON_PIXELS | ON_GRAPHS).items()
        for name, pattern in PIXELS.items()
    ),
]


def layer_with(encoding: Encoding | None, cls: type = GraphAttention, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    if encoding is not None:
        # Large enough to be seen.
        for parameter in encoding.parameters():
            torch.nn.init.normal_(parameter)
    return cls(C, C, heads=H, encoding=encoding, **options).double()


def draw(rows: int, *batch: int) -> torch.Tensor:
    return torch.randn(*batch, rows, C, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))


def test_every_encoding_is_tested():
    assert {type(make()) for make in (ON_SEQUENCES | ON_PIXELS | ON_GRAPHS).values()} == set(ENCODINGS)


@pytest.mark.parametrize(
    ("make", "pattern"), [(m, p) for _, m, _, p in CASES], ids=[f"{k}-{n}" for k, _, n, _ in CASES]
)
def test_sparse_equals_messages_and_the_dense_twin(make, pattern):
    pattern = pattern()
    layer = layer_with(make(), kv_heads=1)
    layer.backend = "scatter"
    watched = copy.deepcopy(layer)
    watched.register_message_forward_hook(lambda module, inputs, output: None)
    twin = layer_with(make(), DenseGraphAttention, kv_heads=1)
    twin.load_state_dict(layer.state_dict())
    x = draw(pattern.num_targets, 2).requires_grad_()
    direction = torch.randn_like(x)
    results = []
    for each in (layer, watched, twin):
        torch.manual_seed(1)
        out = each(x, pattern)
        results.append((out, *torch.autograd.grad((out * direction).sum(), [x, *each.parameters()])))
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert all(gradient.abs().sum() > 0 for gradient in results[0][1 + len(list(GraphAttention(C, C).parameters())) :])


@pytest.mark.parametrize("kind", RELATIVE)
def test_two_sets_with_heads_that_share_keys_equal_the_twin(kind):
    pattern = Full([3, 0, 2], [1, 2, 4])
    layers = [layer_with(ON_SEQUENCES[kind](), cls, kv_heads=1) for cls in (GraphAttention, DenseGraphAttention)]
    layers[1].load_state_dict(layers[0].state_dict())
    pair = (draw(7, 3), draw(5, 3))
    torch.testing.assert_close(layers[0](pair, pattern), layers[1](pair, pattern), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [None, *ON_SEQUENCES], ids=str)
def test_the_full_pattern_can_tell_word_order_with_an_encoding_alone(kind):
    layer = layer_with(None if kind is None else ON_SEQUENCES[kind]())
    x, perm = draw(6), torch.tensor([3, 0, 5, 1, 4, 2])
    out, shuffled = layer(x, Full(6)), layer(x[perm], Full(6))
    difference = (out[perm] - shuffled).abs().max()
    of_means = (out.mean(0) - shuffled.mean(0)).abs().max()
    if kind is None:
        assert difference < 1e-12 and of_means < 1e-12
    else:
        assert difference > 1e-3 and of_means > 1e-4


@pytest.mark.parametrize("kind", ON_SEQUENCES)
def test_relative_encodings_see_no_shift_and_absolute_ones_do(kind):
    layer = layer_with(ON_SEQUENCES[kind]()) if kind != "learned" else layer_with(LearnedPosition(C, 40))
    window = Window(40, radius=2)
    _, (_, alpha) = layer(draw(1).expand(40, C), window, return_attention_weights=True)
    inner = (window.edge_index[1] >= 2) & (window.edge_index[1] < 38)
    by_target = alpha[inner].view(36, 5, H)
    spread = (by_target - by_target[0]).abs().max()
    assert spread < 1e-12 if kind in RELATIVE else spread > 1e-3
    assert (by_target[:, 0] - by_target[:, 2]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ON_SEQUENCES | ON_GRAPHS)
@pytest.mark.parametrize("make_pattern", [Full, lambda sizes: Window(sizes, radius=2)], ids=["full", "window"])
def test_components_are_encoded_as_if_alone(kind, make_pattern):
    layer = layer_with((ON_SEQUENCES | ON_GRAPHS)[kind]()).eval()
    parts = [draw(4), draw(7), draw(1)]
    separately = torch.cat([layer(part, make_pattern(len(part))) for part in parts])
    torch.testing.assert_close(layer(torch.cat(parts), make_pattern([4, 7, 1])), separately)


@pytest.mark.parametrize(("shape", "base"), [((9,), 10000.0), ((3, 4), 100.0), ((2, 1, 3), 10.0)], ids=str)
def test_waves_by_hand(shape, base):
    dims, width = len(shape), 12 // len(shape)
    out = Sinusoidal(12, dims, base).input(torch.zeros(math.prod(shape), 12, dtype=torch.float64), Grid(shape, 1))
    for node, position in enumerate(torch.cartesian_prod(*map(torch.arange, shape)).view(-1, dims).tolist()):
        for axis in range(dims):
            for m in range(width // 2):
                angle = position[axis] / base ** (2 * m / width)
                assert out[node, axis * width + 2 * m] == pytest.approx(math.sin(angle), abs=1e-14)
                assert out[node, axis * width + 2 * m + 1] == pytest.approx(math.cos(angle), abs=1e-14)


def test_products_of_waves_depend_on_the_offset_alone():
    waves = Sinusoidal(C).input(torch.zeros(30, C, dtype=torch.float64), Full(30))
    products = waves @ waves.t()
    torch.testing.assert_close(products[1:, 1:], products[:-1, :-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(9,), (3, 4)], ids=str)
def test_rotary_turns_complex_numbers(shape):
    pattern, dims = Grid(shape, 1), len(shape)
    query = torch.randn(2, pattern.num_targets, 3, 8, dtype=torch.float64)
    key = torch.randn(2, pattern.num_targets, 1, 8, dtype=torch.float64)
    turned = Rotary(8, dims, base=50.0).rotate(query, key, pattern)
    pairs = 4 // dims
    frequency = torch.tensor([50.0 ** (-m / pairs) for m in range(pairs)], dtype=torch.float64)
    position = torch.cartesian_prod(*map(torch.arange, shape)).view(-1, dims)
    angle = torch.cat([position[:, axis, None] * frequency for axis in range(dims)], 1).unsqueeze(1)
    for x, ours in zip((query, key), turned, strict=True):
        as_complex = torch.view_as_complex(x.unflatten(-1, (4, 2)).contiguous()) * torch.polar(angle * 0 + 1, angle)
        torch.testing.assert_close(ours, torch.view_as_real(as_complex).flatten(-2))
        torch.testing.assert_close(ours.norm(dim=-1), x.norm(dim=-1))


@settings(max_examples=20)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 60))
def test_rotary_products_depend_on_the_offset_alone(i, j, shift):
    query, key = torch.randn(1, 1, D, dtype=torch.float64), torch.randn(1, 1, D, dtype=torch.float64)
    turned_query, turned_key = Rotary(D).rotate(query.expand(100, 1, D), key.expand(100, 1, D), ROW)
    before, after = (turned_query[i + s, 0] @ turned_key[j + s, 0] for s in (0, shift))
    assert abs(before - after) < 1e-12


ROW = Window(100, radius=0)


def test_rotary_positions_of_sources_are_their_own():
    query, key = torch.randn(3, 1, D), torch.randn(5, 1, D)
    by_pair = Rotary(D).rotate(query, key, Full([1, 2], [4, 1]))
    assert torch.equal(by_pair[0], Rotary(D).rotate(query, query, Full([1, 2]))[0])
    assert torch.equal(by_pair[1], Rotary(D).rotate(key, key, Full([4, 1]))[1])


def test_alibi_by_hand():
    published = {
        1: [2.0**-8],
        4: [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8],
        8: [2.0**-h for h in range(1, 9)],
        6: [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3],
        12: [2.0**-h for h in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5],
    }
    for heads, slopes in published.items():
        torch.testing.assert_close(ALiBi(heads).slopes, torch.tensor(slopes))
    for pattern in (Full([3, 2], [4, 1]), Full(4, causal=True), Window(6, radius=2)):
        distance = pattern.offsets()[:, 0].abs()
        expected = -distance[:, None] * ALiBi(4).slopes
        torch.testing.assert_close(ALiBi(4).bias(pattern).of_edges(pattern), expected)


@pytest.mark.parametrize(
    "pattern", [Full([3, 9]), Full([2, 1], [5, 3]), Full(5, causal=True), Window(9, radius=4)], ids=str
)
def test_relative_bias_by_hand(pattern):
    encoding = RelativeBias(H, 2)
    bias = encoding.bias(pattern)
    assert isinstance(bias, OffsetBias) and list(bias.table.shape) == [pattern.num_offsets, H]
    expected = [encoding.weight[max(-2, min(2, offset)) + 2] for offset in pattern.offsets()[:, 0].tolist()]
    assert torch.equal(bias.of_edges(pattern), torch.stack(expected))


def test_relative_bias_of_the_windows_radius_is_its_table():
    encoding = RelativeBias(H, (1, 2))
    assert torch.equal(encoding.bias(Grid((4, 5), (1, 2))).table, encoding.weight)
    encoding = RelativeBias(H, 3)
    assert torch.equal(encoding.bias(Window([9, 2], 3)).table[1:], encoding.weight[1:])


def test_learned_positions_by_hand():
    encoding = LearnedPosition(C, (3, 5))
    out = encoding.input(torch.zeros(10, C), Grid([(2, 3), (1, 4)], 1))
    table = encoding.weight.view(3, 5, C)
    assert torch.equal(out, torch.cat([table[:2, :3].flatten(0, 1), table[0, :4]]))


@pytest.mark.parametrize(
    "pattern", [Full([3, 2], [1, 4]), Window([2, 0, 3], 1), Grid([(2, 2), (1, 3)], 1), Full([])], ids=str
)
def test_positions_explain_offsets(pattern):
    target, source = pattern.positions()
    assert target.shape[0] == pattern.num_targets and source.shape[0] == pattern.num_sources
    assert torch.equal(source[pattern.edge_index[0]] - target[pattern.edge_index[1]], pattern.offsets())
    assert (target >= 0).all() and (source >= 0).all()


@pytest.mark.parametrize("kind", ON_SEQUENCES | ON_GRAPHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_dtypes_stay(kind, dtype):
    encoding = (ON_SEQUENCES | ON_GRAPHS)[kind]()
    window, x = Window(9, radius=2), draw(9).to(dtype)
    assert encoding.to(dtype).input(x, window).dtype == dtype
    assert all(y.dtype == dtype for y in encoding.rotate(x.view(9, H, D), x.view(9, H, D), window))


@pytest.mark.parametrize("kind", ON_SEQUENCES | ON_GRAPHS)
def test_layers_in_bfloat16_and_under_autocast(kind):
    layer = layer_with((ON_SEQUENCES | ON_GRAPHS)[kind](), backend="scatter").float().eval()
    window, x = Window(9, radius=2), draw(9).float()
    expected = layer(x, window)
    with torch.autocast("cpu", torch.bfloat16):
        by_autocast = layer(x, window)
    in_bfloat16 = layer.bfloat16()(x.bfloat16(), window)
    for out in (by_autocast, in_bfloat16):
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1)


def test_half_types_are_turned_by_exact_angles():
    x = torch.randn(3000, 1, 64, dtype=torch.float64).to(torch.bfloat16)
    turned, _ = Rotary(64).rotate(x, x, Window(3000, radius=0))
    exact, _ = Rotary(64).rotate(x.double(), x.double(), Window(3000, radius=0))
    torch.testing.assert_close(turned, exact.to(torch.bfloat16), rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("kind", few(reversed(ON_SEQUENCES | ON_GRAPHS), 2))
def test_layers_with_warm_patterns_compile_into_one_graph(kind):
    torch._dynamo.reset()
    layer, window = layer_with((ON_SEQUENCES | ON_GRAPHS)[kind]()).eval(), Window([5, 4], radius=2)
    x = draw(9).requires_grad_()
    expected = layer(x, window)
    out = torch.compile(layer, backend="aot_eager", fullgraph=True)(x, window)
    torch.testing.assert_close(out, expected)
    both = (torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]) for y in (out, expected))
    torch.testing.assert_close(*both)
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ON_SEQUENCES | ON_GRAPHS)
def test_the_layer_draws_its_encodings_parameters_anew(kind):
    encoding = (ON_SEQUENCES | ON_GRAPHS)[kind]()
    before = {name: x.clone() for name, x in encoding.state_dict().items()}
    layer = GraphAttention(C, C, heads=H, encoding=encoding)
    assert all(torch.equal(x, before[name]) for name, x in encoding.state_dict().items())
    layer.reset_parameters()
    assert not any(torch.equal(x, before[name]) for name, x in encoding.state_dict().items())


@pytest.mark.parametrize("kind", ON_SEQUENCES | ON_GRAPHS)
@pytest.mark.parametrize("cls", [GraphAttention, DenseGraphAttention])
def test_an_encoding_that_fits_no_call_is_refused_with_the_layer(kind, cls):
    encoding = (ON_SEQUENCES | ON_GRAPHS)[kind]()
    options = dict(heads=H, encoding=encoding)
    name = type(encoding).__name__
    with pytest.raises(ValueError, match=rf"{cls.__name__}: encoding must have the layer's \w+, \d+, got {name}\("):
        cls(2 * C, 2 * C, **options) if kind not in ("alibi", "relative") else cls(C, C, **{**options, "heads": 1})
    # Channels that aren't known yet, and a pair of which neither is the nodes', are left to the call.
    for in_channels in (-1, (C, -1)):
        cls(in_channels, C, **options)


def test_parameter_names_and_repr_are_pinned():
    names = {kind: list(make().state_dict()) for kind, make in (ON_SEQUENCES | ON_GRAPHS).items()}
    learned = {
        "learned": ["weight"],
        "relative": ["weight"],
        "laplacian": ["lin.weight"],
        "random walk": ["lin.weight"],
    }
    assert names == {"sinusoidal": [], "rotary": [], "alibi": []} | learned
    written = [repr(encoding) for encoding in (Sinusoidal(8, 2), LearnedPosition(8, 5), Rotary(4), ALiBi(2))]
    assert written == [
        "Sinusoidal(8, dims=2, base=10000)",
        "LearnedPosition(8, shape=(5,))",
        "Rotary(4, dims=1, base=10000)",
        "ALiBi(2)",
    ]
    assert repr(RelativeBias(2, (1, 2))) == "RelativeBias(2, radius=(1, 2))"


def of_features(encoding, pattern):
    return lambda: encoding.input(torch.zeros(pattern.num_targets, C), pattern)


def of_scores(encoding, pattern):
    def turn():
        encoding.rotate(torch.zeros(pattern.num_targets, 1, D), torch.zeros(pattern.num_sources, 1, D), pattern)
        encoding.bias(pattern)

    return turn


GRID, EDGES = Grid((2, 3), 1), graph_zoo()["chain"]
ERRORS = {
    "sinusoidal, two dimensions on one": (
        of_features(Sinusoidal(C, dims=2), Window(5, 1)),
        "Sinusoidal: pattern must have as many dimensions as the encoding, 2, got 1 in Window(5, radius=1). "
        "Use Sinusoidal(..., dims=1).",
    ),
    "rotary, one dimension on two": (
        of_scores(Rotary(D), GRID),
        "Rotary: pattern must have as many dimensions as the encoding, 1, got 2 in Grid((2, 3), radius=1). "
        "Use Rotary(..., dims=2).",
    ),
    "learned, one dimension on two": (of_features(LearnedPosition(C, 9), GRID), "Give shape one extent for each of 2."),
    "relative, one dimension on two": (of_scores(RelativeBias(H, 1), GRID), "Give radius one reach for each of 2."),
    "alibi on two": (
        of_scores(ALiBi(H), GRID),
        "as the encoding, 1, got 2 in Grid((2, 3), radius=1). Use RelativeBias.",
    ),
    "learned, too long": (
        of_features(LearnedPosition(C, 4), Full([2, 5])),
        "LearnedPosition: pattern must fit in (4,), got Full([2, 5]). Use LearnedPosition(8, 5).",
    ),
    "learned, too high": (
        of_features(LearnedPosition(C, (1, 9)), GRID),
        "LearnedPosition: pattern must fit in (1, 9), got Grid((2, 3), radius=1). Use LearnedPosition(8, (2, 9)).",
    ),
    "odd channels": (
        lambda: Sinusoidal(9),
        "Sinusoidal: channels must be a multiple of 2 * dims = 2, a pair per axis and frequency, got 9. "
        "Use channels=10.",
    ),
    "odd width": (
        lambda: Rotary(6, dims=2),
        "must be a multiple of 2 * dims = 4, a pair per axis and frequency, got 6. Use width=8.",
    ),
    "no dimensions": (lambda: Rotary(6, dims=0), "Rotary: dims must be at least 1, got 0."),
    "negative base": (lambda: Rotary(6, base=-1.0), "Rotary: base must be positive, got -1.0. Use base=10000."),
    "no extents": (lambda: LearnedPosition(C, ()), "LearnedPosition: shape must name at least one dimension, got ()."),
    "negative radius": (lambda: RelativeBias(H, -1), "RelativeBias: radius must be at least 0, got -1."),
    "no heads": (lambda: ALiBi(0), "ALiBi: heads must be at least 1, got 0."),
    "no eigenvectors": (lambda: LaplacianPosition(C, 0), "LaplacianPosition: k must be at least 1, got 0."),
    "no steps": (lambda: RandomWalkPosition(C, 0), "RandomWalkPosition: walk_length must be at least 1, got 0."),
    "another width": (
        of_scores(Rotary(6), Full(3)),
        "Rotary: query must have shape [*B, 3, heads, 6], got [3, 1, 4]. "
        "Use Rotary(4): out_channels / heads of the layer.",
    ),
    "other rows": (
        lambda: Rotary(D).rotate(torch.zeros(3, 1, D), torch.zeros(2, 1, D), Full(3)),
        "Rotary: key must have shape [*B, 3, heads, 4], got [2, 1, 4].",
    ),
    "other channels": (
        of_features(Sinusoidal(6), Full(3)),
        "Sinusoidal: x must have shape [*B, 3, 6], got [3, 8]. Use channels=8.",
    ),
    "one row for all": (
        lambda: Sinusoidal(C).input(torch.zeros(1, C), Full(3)),
        "Sinusoidal: x must have shape [*B, 3, 8], got [1, 8].",
    ),
    "two sets": (
        of_features(RandomWalkPosition(C, 2), graph_zoo()["bipartite"]),
        "pattern must have the same nodes as sources and targets, got 7 sources and 4 targets.",
    ),
    "two sets of one size": (
        of_features(Sinusoidal(C), Full([2, 3], [3, 2])),
        "Sinusoidal: pattern must have its sources at its targets' positions, got Full([2, 3], source_sizes=[3, 2]).",
    ),
    "a pair of features": (
        lambda: layer_with(Sinusoidal(C))((draw(4), draw(3)), Full(3, 4)),
        "GraphAttention: x must be one tensor because Sinusoidal changes the features of nodes, got a pair. "
        "Call encoding.input(x, Full(sizes)) on each side before the layer.",
    ),
    "other heads": (
        lambda: GraphAttention(C, C, heads=H, encoding=ALiBi(4)),
        "GraphAttention: encoding must have the layer's heads, 2, got ALiBi(4). Use ALiBi(2).",
    ),
    "other heads in the twin": (
        lambda: DenseGraphAttention(C, C, heads=H, encoding=RelativeBias(8, 3)),
        "DenseGraphAttention: encoding must have the layer's heads, 2, got RelativeBias(8, radius=(3,)). "
        "Use RelativeBias(2, radius=(3,)).",
    ),
    "other heads in a block": (
        lambda: TransformerBlock(C, H, encoding=RelativeBias(4, (1, 2))),
        "GraphAttention: encoding must have the layer's heads, 2, got RelativeBias(4, radius=(1, 2)). "
        "Use RelativeBias(2, radius=(1, 2)).",
    ),
    "heads of another width": (
        lambda: GraphAttention(C, C, heads=H, head_channels=6, encoding=Rotary(4)),
        "GraphAttention: encoding must have the layer's width, 6, got Rotary(4, dims=1, base=10000). "
        "Use Rotary(6, dims=1, base=10000).",
    ),
    "other channels in the layer": (
        lambda: GraphAttention(16, C, heads=H, encoding=LearnedPosition(C, 12)),
        "GraphAttention: encoding must have the layer's channels, 16, got LearnedPosition(8, shape=(12,)). "
        "Use LearnedPosition(16, shape=(12,)).",
    ),
    "other channels in a stack": (
        lambda: GraphTransformer(3, C, None, 2, encoding=Sinusoidal(4)),
        "GraphTransformer: encoding must have the layer's channels, 8, got Sinusoidal(4, dims=1, base=10000). "
        "Use Sinusoidal(8, dims=1, base=10000).",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_named(name):
    call, text = ERRORS[name]
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


@pytest.mark.parametrize("kind", ON_SEQUENCES)
def test_an_edge_list_has_no_coordinates(kind):
    encoding = ON_SEQUENCES[kind]()
    text = (
        r": pattern must have coordinates, as Full, Window and Grid have, got Edges\(num_nodes=6, num_edges=5\). Use "
    )
    with pytest.raises(ValueError, match=type(encoding).__name__ + text + "LaplacianPosition or RandomWalkPosition"):
        layer_with(encoding)(draw(6), EDGES)


def test_features_must_be_floats():
    with pytest.raises(TypeError, match=r"Sinusoidal: x must have a floating-point dtype, got torch.int64"):
        Sinusoidal(C).input(torch.zeros(3, C, dtype=torch.int64), Full(3))

"""Exact links: attention of other libraries, neighborhood attention and convolutions are attention on a pattern."""

from __future__ import annotations

import itertools
import math
import pickle

import pytest
import torch
from conftest import CPU_KERNELS, kernels_for
from hypothesis import given, settings
from hypothesis import strategies as st

from graphattn import Edges, Full, Grid, OffsetBias, Window, attention
from graphattn.nn import DenseGraphAttention, GraphAttention, conv_as_attention
from graphattn.testing import pattern_zoo, random_call

BACKENDS = [kernel.name for kernel in CPU_KERNELS]


def gradients(out, inputs):
    """Of the sum of squares, so that every entry of the output counts."""
    return torch.autograd.grad(out.square().sum(), list(inputs))


def sdpa(tensors, mask=None, **options):
    """The same by torch itself, which keeps heads first."""
    heads_first = (tensors[name].transpose(-2, -3) for name in ("query", "key", "value"))
    out = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask, **options)
    return out.transpose(-2, -3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_the_full_pattern_is_scaled_dot_product_attention(batch, backend):
    pattern = Full(6, 5)
    tensors = random_call(pattern, batch=batch, value_width=3)
    tensors = {name: x if batch else x.unsqueeze(0) for name, x in tensors.items()}
    torch.testing.assert_close(attention(**tensors, pattern=pattern, backend=backend), sdpa(tensors))


LINKED = ["window ragged", "window causal", "grid 2-D", "full causal", "unsorted edges"]


@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, kernel.name) for name in LINKED for kernel in kernels_for(pattern_zoo()[name])],
)
def test_a_pattern_is_scaled_dot_product_attention_with_its_mask(name, backend):
    pattern = pattern_zoo()[name]
    pattern = Edges.from_mask(pattern.mask()) if pattern.occurrence() is not None else pattern
    tensors = {name: x.unsqueeze(0) for name, x in random_call(pattern).items()}
    expected = sdpa(tensors, pattern.mask())
    has_edges = pattern.mask().any(1)
    out = attention(**tensors, pattern=pattern, backend=backend)
    torch.testing.assert_close(out[:, has_edges], expected[:, has_edges])
    assert bool((out[:, ~has_edges] == 0).all())


@pytest.mark.parametrize("sizes", [(5, 5), (3, 6), (6, 3)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_causal_is_torchs_causal(backend, sizes):
    pattern = Full(*sizes, causal=True)
    tensors = random_call(pattern, batch=(2,), value_width=3)
    out, expected = attention(**tensors, pattern=pattern, backend=backend), sdpa(tensors, is_causal=True)
    torch.testing.assert_close(out, expected)
    for ours, theirs in zip(*(gradients(x, tensors.values()) for x in (out, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_window_is_a_band_of_the_matrix(dilation):
    pattern = Window(9, radius=2, dilation=dilation)
    offset = torch.arange(9) - torch.arange(9).unsqueeze(1)
    band = (offset.abs() <= 2 * dilation) & (offset % dilation == 0)
    tensors = random_call(pattern, batch=(2,))
    torch.testing.assert_close(attention(**tensors, pattern=pattern), sdpa(tensors, band))


def test_grouped_query_heads_are_torchs():
    pattern = Full(5)
    tensors = {name: x.unsqueeze(0) for name, x in random_call(pattern, heads=6, kv_heads=2).items()}
    torch.testing.assert_close(attention(**tensors, pattern=pattern), sdpa(tensors, enable_gqa=True))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kdim", [None, 12])
def test_full_pattern_equals_multihead_attention(bias, kdim):
    reference = torch.nn.MultiheadAttention(8, 2, bias=bias, kdim=kdim, vdim=kdim, batch_first=True).double()
    if bias:
        torch.nn.init.normal_(reference.in_proj_bias)
        torch.nn.init.normal_(reference.out_proj.bias)
    target = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    source = torch.randn(3, 6, kdim or 8, dtype=torch.float64, requires_grad=True)
    expected, weights = reference(target, source, source, average_attn_weights=False)
    sparse = GraphAttention.from_multihead_attention(reference)
    dense = DenseGraphAttention.from_multihead_attention(reference)
    pattern = Full(5, 6)
    out, (_, alpha) = sparse((source, target), pattern, return_attention_weights=True)
    twin, matrix = dense((source, target), torch.ones(5, 6, dtype=torch.bool), return_attention_weights=True)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(twin, expected)
    torch.testing.assert_close(matrix, weights)
    torch.testing.assert_close(alpha.view(3, 5, 6, 2).movedim(-1, 1), weights)
    for ours, theirs in zip(
        torch.autograd.grad(out.square().sum(), [source, target]),
        torch.autograd.grad(expected.square().sum(), [source, target]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_ragged_full_pattern_is_multihead_attention_with_padding():
    sizes = [3, 1, 6]
    reference = torch.nn.MultiheadAttention(8, 4, batch_first=True).double()
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    valid = torch.arange(6) < torch.tensor(sizes).unsqueeze(1)
    expected, matrix = reference(x, x, x, key_padding_mask=~valid, average_attn_weights=False)
    layer = GraphAttention.from_multihead_attention(reference)
    out, (_, weights) = layer(x[valid], Full(sizes), return_attention_weights=True)
    torch.testing.assert_close(out, expected[valid])
    pairs = (valid.unsqueeze(2) & valid.unsqueeze(1)).nonzero(as_tuple=True)
    torch.testing.assert_close(weights, matrix.movedim(1, -1)[pairs])


def test_a_causal_full_pattern_is_causal_multihead_attention():
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected, _ = reference(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)
    layer = GraphAttention.from_multihead_attention(reference)
    torch.testing.assert_close(layer(x, Full(5, causal=True)), expected)


def neighbors(position, extent, radius, dilation, is_causal):
    """On one axis, those pixels whole steps away that are nearest; on a causal one, those in reach and not after it."""
    members = [other for other in range(extent) if (other - position) % dilation == 0]
    if is_causal:
        return [other for other in members if position - radius * dilation <= other <= position]
    nearest = sorted(members, key=lambda other: abs(other - position))[: 2 * radius + 1]
    assert len(nearest) == 2 * radius + 1
    return sorted(nearest)


SHIFTED = {
    "1-D": ((7,), dict(radius=2)),
    "1-D, dilated": ((11,), dict(radius=1, dilation=3)),
    "1-D, as large as the window": ((5,), dict(radius=2)),
    "1-D, causal": ((7,), dict(radius=2, dilation=2, causal=True)),
    "2-D": ((5, 4), dict(radius=1)),
    "2-D, dilated": ((7, 6), dict(radius=(1, 2), dilation=(2, 1))),
    "2-D, causal rows": ((4, 5), dict(radius=1, causal=(True, False))),
    "3-D": ((3, 4, 3), dict(radius=1)),
    "3-D, dilated": ((6, 3, 4), dict(radius=(1, 0, 1), dilation=(2, 1, 1))),
}


@pytest.mark.parametrize("name", SHIFTED)
def test_a_shifted_grid_is_neighborhood_attention(name):
    shape, options = SHIFTED[name]
    pattern = Grid(shape, **options, border="shift")
    axes = list(zip(shape, pattern.radius, pattern.dilation, pattern.causal, strict=True))
    # A moved window reaches up to twice its radius to one side: hence the rows of the table.
    lowest = [-radius * (1 if is_causal else 2) for _, radius, _, is_causal in axes]
    counts = [1 - low if is_causal else 1 - 2 * low for low, (*_, is_causal) in zip(lowest, axes, strict=True)]
    tensors = random_call(pattern, offset_table=True)
    table = tensors["edge_bias.table"]
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    edges, rows, expected = [], [], torch.zeros_like(value)
    for target in itertools.product(*map(range, shape)):
        boxes = [neighbors(position, *axis) for position, axis in zip(target, axes, strict=True)]
        node, others, places = flat(target, shape), [], []
        for source in itertools.product(*boxes):
            steps = [(s - t) // step for s, t, (_, _, step, _) in zip(source, target, axes, strict=True)]
            others.append(flat(source, shape))
            places.append(flat([step - low for step, low in zip(steps, lowest, strict=True)], counts))
        score = (query[node] * key[others]).sum(-1) / math.sqrt(query.size(-1)) + table[places]
        expected[node] = (score.softmax(0).unsqueeze(-1) * value[others]).sum(0)
        edges += [[other, node] for other in others]
        rows += places
    assert pattern.edge_index.t().tolist() == edges
    assert pattern.num_offsets == math.prod(counts) and pattern.offset_index().tolist() == rows
    out = attention(query, key, value, pattern, edge_bias=OffsetBias(table))
    torch.testing.assert_close(out, expected)
    for ours, theirs in zip(*(gradients(x, tensors.values()) for x in (out, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def flat(place, shape):
    """Row-major number of a place in an array."""
    number = 0
    for coordinate, extent in zip(place, shape, strict=True):
        number = number * extent + coordinate
    return number


CONVOLUTIONS = {
    "1-D": (lambda: torch.nn.Conv1d(3, 5, 3, padding=1), (9,)),
    "1-D, narrowing": (lambda: torch.nn.Conv1d(5, 2, 5, padding="same", bias=False), (9,)),
    "1-D, dilated": (lambda: torch.nn.Conv1d(2, 2, 3, dilation=3, padding=3), (8,)),
    "1-D, dilated beyond the image": (lambda: torch.nn.Conv1d(2, 3, 5, dilation=7, padding="same"), (4,)),
    "2-D": (lambda: torch.nn.Conv2d(3, 4, 3, padding=1), (5, 6)),
    "2-D, narrowing": (lambda: torch.nn.Conv2d(4, 1, 3, padding=1), (5, 6)),
    "2-D, kernel of one pixel": (lambda: torch.nn.Conv2d(3, 2, 1), (4, 3)),
    "2-D, kernel of one row": (lambda: torch.nn.Conv2d(2, 3, (1, 5), padding="same"), (3, 6)),
    "2-D, no padding": (lambda: torch.nn.Conv2d(2, 3, (3, 5), padding="valid"), (5, 6)),
    "2-D, wide padding": (lambda: torch.nn.Conv2d(2, 2, 3, padding=(3, 2)), (3, 4)),
    "2-D, wide, narrow and dilated": (lambda: torch.nn.Conv2d(3, 2, (3, 5), dilation=(1, 2), padding=(2, 1)), (4, 9)),
    "2-D, one pixel": (lambda: torch.nn.Conv2d(2, 2, 3, dilation=2, padding=2), (1, 1)),
    "3-D": (lambda: torch.nn.Conv3d(2, 3, (1, 3, 3), dilation=(1, 1, 2), padding=(0, 1, 1)), (2, 3, 5)),
}


def assert_is_convolution(conv, x, tolerance, backend="auto"):
    """Compare outputs and the gradients of input, kernel and bias."""
    layer = conv_as_attention(conv)
    layer.layer.backend = backend
    x = x.clone().requires_grad_()
    expected, out = conv(x), layer(x)
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
    inside = layer.layer
    is_widening = conv.in_channels <= conv.out_channels
    kernel = inside.lin_out.weight if is_widening else inside.lin_value.weight
    biases = ([conv.bias], [inside.lin_out.bias]) if conv.bias is not None else ([], [])
    of_x, of_kernel, *of_bias = gradients(expected, [x, conv.weight, *biases[0]])
    # [out, in, offset] as the layer has it: [out, offset and in] or [offset and out, in].
    of_kernel = of_kernel.flatten(2).permute((0, 2, 1) if is_widening else (2, 0, 1)).reshape(kernel.shape)
    for mine, other in zip(gradients(out, [x, kernel, *biases[1]]), [of_x, of_kernel, *of_bias], strict=True):
        torch.testing.assert_close(mine, other, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_self_attention(name, backend, dtype, tolerance):
    build, shape = CONVOLUTIONS[name]
    torch.manual_seed(0)
    conv = build().to(dtype)
    assert_is_convolution(conv, torch.randn(2, conv.in_channels, *shape, dtype=dtype), tolerance, backend)


@st.composite
def convolutions(draw):
    axes = draw(st.integers(1, 2))
    per_axis = lambda numbers: tuple(draw(st.lists(st.sampled_from(numbers), min_size=axes, max_size=axes)))
    kernel_size, dilation, shape = per_axis([1, 3, 5]), per_axis([1, 2, 4]), per_axis(range(1, 8))
    # The least padding that lets the kernel fit in, and more.
    least = [max(0, d * (k - 1) + 1 - n) for k, d, n in zip(kernel_size, dilation, shape, strict=True)]
    padding = tuple((x + 1) // 2 + draw(st.integers(0, 5)) for x in least)
    options = dict(kernel_size=kernel_size, dilation=dilation, padding=padding, bias=draw(st.booleans()))
    conv = (torch.nn.Conv1d, torch.nn.Conv2d)[axes - 1](draw(st.integers(1, 4)), draw(st.integers(1, 4)), **options)
    return conv.double(), shape


@given(convolutions(), st.sampled_from([(), (1,), (3,)]))
@settings(max_examples=40)
def test_any_convolution_is_self_attention(convolution, batch):
    conv, shape = convolution
    assert_is_convolution(conv, torch.randn(*batch, conv.in_channels, *shape, dtype=torch.float64), 1e-10)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_each_head_attends_to_its_own_offset_alone(name):
    build, shape = CONVOLUTIONS[name]
    layer = conv_as_attention(build())
    x = torch.randn(2, layer.layer.in_channels, *shape)
    out, (edge_index, weights) = layer(x, return_attention_weights=True)
    assert torch.equal(out, layer(x))
    pattern = layer.pattern(shape)
    assert torch.equal(edge_index, pattern.edge_index)
    steps = pattern.offsets() // torch.tensor(layer.dilation)
    offsets = list(itertools.product(*(range(-radius, radius + 1) for radius in layer.radius)))
    assert weights.size(-1) == len(offsets)
    for head, offset in enumerate(offsets):
        is_there = (steps == torch.tensor(offset)).all(1)
        assert torch.equal(weights[..., head], is_there.to(weights).expand(2, -1))


def test_padding_that_keeps_the_size_adds_no_pixels():
    layer = conv_as_attention(torch.nn.Conv2d(1, 1, (3, 5), padding="same"))
    assert repr(layer.pattern((4, 6))) == "Grid((4, 6), radius=(1, 2))"
    assert "radius=(1, 2), dilation=(1, 1), padding=(1, 2)" in repr(layer)


def test_one_layer_takes_images_of_any_shape_in_turn():
    conv = torch.nn.Conv2d(2, 3, 3, padding=1)
    layer = conv_as_attention(conv)
    for shape in ((4, 6), (6, 4), (4, 6), (1, 2)):
        x = torch.randn(2, *shape)
        torch.testing.assert_close(layer(x), conv(x), rtol=1e-5, atol=1e-5)


def test_a_trained_layer_is_still_a_convolution():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(2, 3, 3, padding=1)
    layer = conv_as_attention(conv)
    x, wanted = torch.randn(4, 2, 5, 5), torch.randn(4, 3, 5, 5)
    inside = layer.layer
    torch.nn.init.normal_(inside.lin_query.weight)
    torch.nn.init.normal_(inside.lin_key.weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = (layer(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert bool((inside.lin_query.weight.grad == 0).all() & (inside.lin_key.weight.grad == 0).all())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    # A kernel slice is the product of a head's two matrices.
    slices = inside.lin_out.weight.view(3, 9, 2).transpose(0, 1) @ inside.lin_value.weight.view(9, 2, 2)
    kernel = slices.permute(1, 2, 0).unflatten(-1, (3, 3))
    expected = torch.nn.functional.conv2d(x, kernel, inside.lin_out.bias, padding=1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_matrices_and_messages_convolve_too():
    conv = torch.nn.Conv2d(2, 3, 3, padding=1, bias=False).double()
    layer = conv_as_attention(conv)
    inside = layer.layer
    twin = DenseGraphAttention(2, 3, 9, head_channels=2, bias=False, encoding=inside.encoding).double()
    twin.load_state_dict(inside.state_dict())
    x, pattern = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True), layer.pattern((4, 5))
    expected = conv(x)
    inside.register_message_forward_hook(lambda module, inputs, output: None)
    for out in (twin(x.flatten(1).t(), pattern).t().view(3, 4, 5), layer(x)):
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(gradients(out, [x]), torch.autograd.grad((expected**2).sum(), x, retain_graph=True))


def test_the_copy_has_the_convolutions_mode_and_type_and_travels():
    conv = torch.nn.Conv1d(2, 3, 3).double().eval()
    layer = conv_as_attention(conv)
    assert not layer.training and not layer.layer.training
    x = torch.randn(2, 2, 2, 8, dtype=torch.float64)
    out = layer(x)
    torch.testing.assert_close(out, conv(x.flatten(0, 1)).unflatten(0, (2, 2)))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), out)
    fresh = conv_as_attention(torch.nn.Conv1d(2, 3, 3).double())
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), out)
    with torch.no_grad():
        conv.weight.zero_()
    assert torch.equal(layer(x), out)
    assert layer(x[:0]).shape == (0, 2, 3, 6)
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


BAD_CONVOLUTIONS = {
    "a linear layer": (
        lambda: conv_as_attention(torch.nn.Linear(3, 3)),
        TypeError,
        "conv_as_attention: conv must be a Conv1d, Conv2d or Conv3d, got Linear.",
    ),
    "transposed": (
        lambda: conv_as_attention(torch.nn.ConvTranspose2d(3, 3, 3)),
        TypeError,
        "conv_as_attention: conv must be a Conv1d, Conv2d or Conv3d, got ConvTranspose2d.",
    ),
    "lazy": (
        lambda: conv_as_attention(torch.nn.LazyConv1d(4, 3)),
        ValueError,
        "conv_as_attention: conv must have its parameters, got LazyConv1d. Call it once before.",
    ),
    "complex": (
        lambda: conv_as_attention(torch.nn.Conv1d(1, 1, 3, dtype=torch.complex64)),
        TypeError,
        "conv_as_attention: conv.weight must have a floating-point dtype, got torch.complex64.",
    ),
    "stride": (
        lambda: conv_as_attention(torch.nn.Conv2d(1, 1, 3, stride=(1, 2))),
        ValueError,
        "conv_as_attention: conv.stride must be 1, got (1, 2).",
    ),
    "groups": (
        lambda: conv_as_attention(torch.nn.Conv1d(2, 2, 3, groups=2)),
        ValueError,
        "conv_as_attention: conv.groups must be 1, got 2.",
    ),
    "even kernel": (
        lambda: conv_as_attention(torch.nn.Conv2d(1, 1, (3, 2))),
        ValueError,
        "conv_as_attention: conv.kernel_size must be odd, got (3, 2).",
    ),
    "circular": (
        lambda: conv_as_attention(torch.nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular")),
        ValueError,
        "conv_as_attention: conv.padding_mode must be 'zeros', got 'circular'.",
    ),
    "negative padding": (
        lambda: conv_as_attention(torch.nn.Conv1d(1, 1, 3, padding=-1)),
        ValueError,
        "conv_as_attention: conv.padding must be at least 0, got (-1,).",
    ),
    "channels": (
        lambda: conv_as_attention(torch.nn.Conv2d(3, 1, 3))(torch.randn(2, 4, 5, 5)),
        ValueError,
        "ConvAttention: x must have shape [*B, 3, H, W], got [2, 4, 5, 5].",
    ),
    "no channels": (
        lambda: conv_as_attention(torch.nn.Conv1d(3, 1, 3))(torch.randn(5)),
        ValueError,
        "ConvAttention: x must have shape [*B, 3, W], got [5].",
    ),
    "small image": (
        lambda: conv_as_attention(torch.nn.Conv2d(3, 1, (3, 5), padding=(0, 1)))(torch.randn(3, 2, 9)),
        ValueError,
        "ConvAttention: x must be at least 3 x 3 pixels large, so that the kernel fits in, got [3, 2, 9].",
    ),
    "integers": (
        lambda: conv_as_attention(torch.nn.Conv1d(1, 1, 3))(torch.ones(1, 5, dtype=torch.int64)),
        TypeError,
        "ConvAttention: x must have a floating-point dtype, got torch.int64. Use x.float().",
    ),
    "another type": (
        lambda: conv_as_attention(torch.nn.Conv1d(1, 1, 3))(torch.ones(1, 5).double()),
        TypeError,
        "GraphAttention: x must have the layer's dtype, torch.float32, got torch.float64. "
        "Use x.to(torch.float32), or layer.to(torch.float64).",
    ),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", BAD_CONVOLUTIONS)
def test_bad_convolutions(name):
    function, error, text = BAD_CONVOLUTIONS[name]
    with pytest.raises(error) as caught:
        function()
    assert str(caught.value) == text

"""Random calls over the whole space of arguments: each equals the oracle, or is refused in one line.

A few of them here, the same each time, so that what they compile is kept from one run to the next; thousands by
`make fuzz`, which sets GRAPHATTN_FUZZ to their number.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphattn import Additive, DotProduct, Edges, Full, Grid, OffsetBias, Window, attention, dense_attention
from graphattn.datasets import AmbiguousWords
from graphattn.datasets.universal_dependencies import read_conllu
from graphattn.nn import DenseGraphAttention, GraphAttention
from graphattn.testing import assert_matches_dense, random_call

EXAMPLES = int(os.environ.get("GRAPHATTN_FUZZ", 6))
# Each dtype with each set of edge tensors is compiled apart, which takes seconds: a few of them for a few calls.
DTYPES, OF_EDGES = [torch.float64, torch.bfloat16], st.sampled_from([(), ("edge_bias", "edge_key", "edge_value")])
if "GRAPHATTN_FUZZ" in os.environ:
    DTYPES, OF_EDGES = (
        [*DTYPES, torch.float32, torch.float16],
        st.sets(st.sampled_from(["edge_bias", "edge_key", "edge_value"])),
    )
fuzz = settings(
    max_examples=EXAMPLES,
    derandomize="GRAPHATTN_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)

# One line that begins with who complains, as errors.message writes it.
NAMED = re.compile(r"\A[A-Za-z_.]+: [^\n]+\Z")
REFUSALS = (TypeError, ValueError, IndexError, NotImplementedError)

sizes = st.lists(st.integers(0, 6), min_size=1, max_size=3)
small = st.integers(0, 3)


@st.composite
def pairs(draw, sources, targets):
    """[2, E] with parallel edges, self-loops and nodes without any."""
    if not sources or not targets:
        return torch.empty(2, 0, dtype=torch.int64)
    pair = st.tuples(st.integers(0, sources - 1), st.integers(0, targets - 1))
    return torch.tensor(draw(st.lists(pair, max_size=25)), dtype=torch.int64).view(-1, 2).t()


@st.composite
def edges(draw):
    sources, targets = draw(st.integers(0, 8)), draw(st.integers(0, 8))
    edge_index = draw(pairs(sources, targets)).to(draw(st.sampled_from([torch.int64, torch.int32])))
    return Edges(edge_index, num_sources=sources, num_targets=targets)


@st.composite
def windows(draw):
    tokens = st.lists(st.integers(0, 6), max_size=2, unique=True)
    options = {"causal": draw(st.booleans()), "global_tokens": draw(tokens)}
    return Window(draw(sizes), draw(small), dilation=draw(st.integers(1, 8)), **options)


@st.composite
def fulls(draw):
    given, causal = draw(sizes), draw(st.booleans())
    return Full(given, None if causal else [draw(st.integers(0, 5)) for _ in given], causal=causal)


@st.composite
def grids(draw):
    axes = draw(st.integers(1, 3))
    shapes = draw(st.lists(st.tuples(*[st.integers(1, 4)] * axes), min_size=1, max_size=2))
    radius = tuple(draw(st.integers(0, 1)) for _ in range(axes))
    border = draw(st.sampled_from(["clip", "shift", "wrap"]))
    causal = draw(st.booleans()) and border == "clip"
    try:
        return Grid(shapes, radius, dilation=draw(st.integers(1, 2)), border=border, causal=causal)
    except ValueError as error:
        # A shifted or wrapped neighborhood must fit into the array.
        assert NAMED.match(str(error)), error
        return Grid(shapes, radius)


@st.composite
def unions(draw):
    window = draw(windows())
    return window | Edges(draw(pairs(window.num_sources, window.num_targets)), window.num_targets)


patterns = st.one_of(edges(), windows(), fulls(), grids(), unions())


class Cosine:
    """A user's normalizer: squares that sum to 1, within a target."""

    def edgewise(self, score, target, num_targets):
        total = score.new_zeros(*score.shape[:-2], num_targets, score.size(-1))
        total = total.index_add(-2, target, score.square())
        return score / (total[..., target, :] + 1).sqrt()

    def dense(self, score, mask):
        mask = mask.unsqueeze(-3) if score.dim() > mask.dim() else mask
        score = score.where(mask, 0)
        return score / (score.square().sum(-1, keepdim=True) + 1).sqrt()


def laid_out(x, kind):
    """The same numbers in another layout in memory."""
    x = x.detach()
    if kind == "strided":
        x = torch.stack([x, x + 1], -1)[..., 0]
    elif kind == "transposed" and x.dim() > 1:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    return x.requires_grad_()


@st.composite
def calls(draw):
    """A pattern, the tensors of a call and its options: all of them valid."""
    pattern = draw(patterns)
    kv_heads, groups, width = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 5, 8, 17]))
    heads = kv_heads * groups
    has_table = isinstance(pattern, Window | Full | Grid) and draw(st.booleans())
    drawn = random_call(
        pattern,
        batch=draw(st.sampled_from([(), (1,), (2,), (2, 2)])),
        heads=heads,
        kv_heads=kv_heads,
        width=width,
        value_width=draw(st.sampled_from([None, 1, 4, 9])),
        edge_tensors=True,
        offset_table=has_table,
        dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 2**16)),
    )
    kept = draw(OF_EDGES)
    layout = st.sampled_from(["plain", "plain", "strided", "transposed"])
    tensors = {
        name: laid_out(x, draw(layout)) for name, x in drawn.items() if not name.startswith("edge_") or name in kept
    }
    if has_table:
        tensors["edge_bias.table"] = drawn["edge_bias.table"]
    options = {"dropout_p": draw(st.sampled_from([0.0, 0.0, 0.4, 1.0])), "return_weights": draw(st.booleans())}
    named = ["softmax", "relu", "sigmoid", "identity", "sparsemax", "entmax15"]
    options["normalizer"] = draw(st.sampled_from([*named, Cosine()]))
    options["return_lse"] = options["normalizer"] == "softmax" and draw(st.booleans())
    options["backend"] = draw(st.sampled_from(["auto", "auto", "scatter", "numba", "tiles"]))
    vector = torch.randn(heads, width, generator=torch.Generator().manual_seed(0)).to(tensors["query"].dtype)
    score = st.sampled_from([DotProduct(), DotProduct(0.3), Additive(vector), Additive(vector, "leaky_relu", 0.1)])
    return pattern, tensors, draw(score), options


@given(calls())
@fuzz
def test_every_call_equals_the_oracle(call):
    pattern, tensors, score, options = call
    try:
        assert_matches_dense(tensors, pattern, score=score, **options)
    except NotImplementedError as error:
        assert options["backend"] not in ("auto", "scatter") and NAMED.match(str(error)), error


@st.composite
def tied_calls(draw):
    """Calls whose scores are whole numbers, most of them drawn more than once, and products with a power of two."""
    pattern, tensors, _, options = draw(calls())
    # The range of float16 is too small.
    tensors = {name: x.bfloat16() if x.dtype == torch.float16 else x for name, x in tensors.items()}
    draw_whole = lambda x: torch.randint(-2, 3, x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    tensors = {name: x for name, x in tensors.items() if name not in ("edge_bias", "edge_bias.table")}
    for name in ("query", "key", "edge_key"):
        if name in tensors:
            # A few rows alone: parallel edges and equal keys have equal scores.
            whole = draw_whole(tensors[name])
            tensors[name] = whole[..., torch.arange(whole.size(-3)) % 3, :, :]
    vector = draw_whole(tensors["query"][..., :1, :, :].flatten(0, -3)[:1].squeeze(0)) if pattern.num_targets else None
    scores = [DotProduct(0.5), *([] if vector is None else [Additive(vector, "leaky_relu", 0.5)])]
    options |= {"normalizer": "softmax", "return_weights": True, "return_lse": False}
    return pattern, tensors, draw(st.sampled_from(scores)), options


@given(tied_calls(), st.integers(13, 49))
@settings(fuzz, max_examples=(EXAMPLES + 1) // 2)
def test_scores_of_any_size_leave_the_same_weights_and_slopes(call, exponent):
    """Times a power of two, differences of whole scores stay 0 or stay beyond any weight: nothing else may change."""
    pattern, tensors, score, options = call
    # The least at which no weight but those of the largest score is a number.
    least = 12 if tensors["query"].dtype == torch.float64 else 8
    names = [name for name in tensors if name in ("query", "key", "edge_key")]
    found = []
    for power in (least, exponent):
        leaves = {
            name: (x.detach() * (2.0**power if name in names else 1)).requires_grad_() for name, x in tensors.items()
        }
        torch.manual_seed(0)
        try:
            results = attention(**leaves, pattern=pattern, score=score, **options)
        except NotImplementedError as error:
            assert options["backend"] not in ("auto", "scatter") and NAMED.match(str(error)), error
            return
        directions = [torch.arange(x.numel()).view(x.shape).remainder(7).to(x.dtype) - 3 for x in results]
        gradients = torch.autograd.grad(results, list(leaves.values()), directions, allow_unused=True)
        slopes = {name: g for name, g in zip(leaves, gradients, strict=True) if g is not None}
        # Of a dot product these grow with the other side, of an additive score with neither.
        grown = {name: power if name in names and isinstance(score, DotProduct) else 0 for name in slopes}
        found.append([*results, *(g.double() * 2.0 ** -grown[name] for name, g in slopes.items())])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def _other_dtype(x):
    return x.detach().to(torch.float32 if x.dtype == torch.float64 else torch.float64)


DAMAGES = {
    "another dtype": _other_dtype,
    "integers": lambda x: x.detach().long(),
    "booleans": lambda x: x.detach() > 0,
    "complex": lambda x: x.detach().to(torch.complex64),
    "a list": lambda x: x.tolist(),
    "nothing": lambda x: None,
    "a row more": lambda x: torch.cat([x, x.new_ones(1, *x.shape[1:])]),
    "no rows": lambda x: x[:0],
    "no width": lambda x: x[..., :0],
    "one column": lambda x: x[..., :1],
    "no heads": lambda x: x[..., :0, :],
    "a dimension more": lambda x: x[None, None],
    "a dimension less": lambda x: x.flatten(0, 1),
    "sparse": lambda x: x.detach().to_sparse(),
    "on meta": lambda x: x.detach().to("meta"),
}
OPTIONS = {
    "dropout_p": [-0.1, 1.5, float("nan"), None, "0.5", True, torch.tensor(0.1)],
    "normalizer": ["softmix", None, 3, torch.softmax, ""],
    "score": ["dot", None, 7, lambda q, k, e: q, lambda q: q, lambda q, k, e: None],
    "backend": ["cuda", None, "", "Numba", 1],
    "pattern": [None, "full", [], [1, 2], torch.ones(2, 3), torch.tensor([[0], [-1]]), torch.tensor([[99], [0]]), 5],
    "edge_bias": [1.0, OffsetBias(torch.zeros(1, 1)), torch.zeros(3), "bias"],
    "return_lse": [True],
}


@given(calls(), st.data())
@fuzz
def test_every_damaged_call_is_refused_in_one_line_or_equals_the_oracle(call, data):
    pattern, tensors, score, options = call
    arguments = {name: x for name, x in tensors.items() if "." not in name} | {"pattern": pattern, "score": score}
    arguments |= options
    if "edge_bias.table" in tensors:
        arguments["edge_bias"] = OffsetBias(tensors["edge_bias.table"])
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from([name for name, x in arguments.items() if isinstance(x, torch.Tensor)]))
        try:
            arguments[name] = DAMAGES[data.draw(st.sampled_from(sorted(DAMAGES)))](arguments[name])
        except (RuntimeError, IndexError):  # It has no such dimension to lose.
            arguments[name] = None
    else:
        name = data.draw(st.sampled_from(sorted(OPTIONS)))
        arguments[name] = data.draw(st.sampled_from(OPTIONS[name]))

    def run(function, **more):
        torch.manual_seed(0)
        try:
            return function(**more)
        except REFUSALS as error:
            assert NAMED.match(str(error)), f"{type(error).__name__}: {error}"
            return error

    ours = run(attention, **arguments)
    backend = arguments.pop("backend")
    theirs = run(dense_attention, **arguments)
    if isinstance(ours, Exception):
        is_backends = backend != "auto" and (isinstance(ours, NotImplementedError) or "backend" in str(ours))
        assert is_backends or isinstance(theirs, type(ours)), (ours, theirs)
    else:
        assert not isinstance(theirs, Exception), theirs
        for one, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (ours, theirs)), strict=True):
            assert one.shape == other.shape and one.dtype == other.dtype


@given(st.data())
@fuzz
def test_every_layer_equals_its_dense_twin_or_is_refused(data):
    draw = data.draw
    pattern = draw(st.one_of(windows(), grids(), edges()))
    channels, is_square = draw(st.integers(1, 6)), pattern.num_sources == pattern.num_targets
    looped = is_square and isinstance(pattern, Edges) and draw(st.booleans())
    options = {
        "heads": draw(st.integers(1, 4)),
        "head_channels": draw(st.sampled_from([None, 3])),
        "score": draw(st.sampled_from(["dot_product", "additive", "gatv2", "dot"])),
        "normalizer": draw(st.sampled_from(["softmax", "relu", "entmax15"])),
        "dropout": draw(st.sampled_from([0.0, 0.5])),
        "edge_dim": draw(st.sampled_from([None, 3])),
        "bias": draw(st.booleans()),
    }
    torch.manual_seed(draw(st.integers(0, 99)))
    try:
        layer = GraphAttention(channels, draw(st.integers(1, 8)), add_self_loops=looped, **options).double()
    except ValueError as error:
        assert NAMED.match(str(error)), error
        return
    twin = DenseGraphAttention(layer.in_channels, layer.out_channels, **options).double()
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(pattern.num_targets, channels, dtype=torch.float64, requires_grad=True)
    x = x if is_square else (torch.randn(pattern.num_sources, channels, dtype=torch.float64), x)
    features = None if options["edge_dim"] is None else torch.randn(pattern.num_edges, 3, dtype=torch.float64)
    if pattern.occurrence() is not None:
        # A matrix of weights has one place for both.
        with pytest.raises(ValueError, match=r"^DenseGraphAttention: mask must not have parallel edges, got"):
            twin(x, pattern, edge_attr=features)
        return
    results = []
    for module, own in ((layer, pattern), (twin, pattern.with_self_loops() if looped else pattern)):
        torch.manual_seed(1)
        # Added loops have features of zero.
        padded = None if features is None else F.pad(features, (0, 0, 0, own.num_edges - pattern.num_edges))
        out = module(x, own, edge_attr=features if own is pattern else padded)
        gradients = torch.autograd.grad(out.square().sum(), list(module.parameters()), allow_unused=True)
        results.append((out, *(gradient for gradient in gradients if gradient is not None)))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-10)


CONLLU = b"# text = I saw\n1\tI\tI\tPRON\tPRP\t_\t2\tnsubj\t_\t_\n2\tsaw\tsee\tVERB\tVBD\t_\t0\troot\t_\t_\n\n"


@st.composite
def damaged(draw, content):
    """Bytes that were cut, doubled, swapped or written over."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        begin, end = sorted(draw(st.integers(0, len(content))) for _ in range(2))
        piece = content[begin:end]
        content[begin:end] = draw(
            st.sampled_from(
                [b"", piece + piece, piece[::-1], piece.replace(b"\t", b" "), b"\xff\x00", b"\t-1\t", b"\n\n"]
            )
        )
    return bytes(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@given(st.one_of(st.binary(max_size=200), damaged(CONLLU)))
@fuzz
def test_any_bytes_are_sentences_or_refused_as_a_treebank(folder, content):
    path = Path(folder) / "sentences.conllu"
    path.write_bytes(content)
    try:
        sentences = list(read_conllu(path))
    except ValueError as error:
        assert NAMED.match(str(error)) or str(path) in str(error), error
        return
    for sentence in sentences:
        assert len(sentence.words) == len(sentence.tags) == len(sentence.heads) > 0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    AmbiguousWords(root, split="test")
    return root


@given(content=st.one_of(st.binary(max_size=200), st.just(None)), split=st.sampled_from(["train", "dev", "test"]))
@fuzz
def test_any_bytes_but_the_published_ones_are_refused_as_a_corpus(corpus, content, split):
    path = corpus / "AmbiguousWords" / "raw" / f"{split}.txt"
    published = path.read_bytes()
    path.write_bytes(published[:-1] if content is None else content)
    try:
        with pytest.raises(ValueError, match=re.escape(str(path))):
            AmbiguousWords(corpus, split="test", force_reload=True)
    finally:
        path.write_bytes(published)

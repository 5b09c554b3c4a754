"""torch.compile around the fused kernel, and raw edges that are recognized, in compiled graphs and outside."""

from __future__ import annotations

import gc

import pytest
import torch
from covering import in_turn
from torch._dynamo.testing import CompileCounterWithBackend

from graphattn import Edges, Full, Grid, Window, attention
from graphattn.nn import GraphAttention
from graphattn.patterns import base, lookup
from graphattn.testing import graph_zoo, random_call

SIZES = [(10, 30), (17, 50), (30, 100), (35, 111), (60, 130), (70, 400)]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def sorts(monkeypatch):
    """A list that grows by one at each sort of edges."""
    done = []
    build_csr = base.build_csr
    monkeypatch.setattr(base, "build_csr", lambda *rest: done.append(1) or build_csr(*rest))
    return done


def draw(nodes: int, edges: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(nodes)
    inputs = [torch.randn(nodes, 2, 8, generator=generator, requires_grad=True) for _ in range(3)]
    return inputs, torch.randint(nodes, (2, edges), generator=generator)


@pytest.mark.parametrize(
    ("as_pattern", "backend"), in_turn([lambda edge_index, nodes: edge_index, Edges], ["inductor", "aot_eager"])
)
def test_six_graph_sizes_compile_twice_into_one_graph_each(as_pattern, backend):
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(lambda *inputs: attention(*inputs), backend=counter, fullgraph=True)
    for nodes, edges in SIZES:
        inputs, edge_index = draw(nodes, edges)
        out = compiled(*inputs, as_pattern(edge_index, nodes))
        expected = attention(*inputs, Edges(edge_index, nodes))
        assert torch.equal(out, expected)
        both = (torch.autograd.grad(x.square().sum(), inputs) for x in (out, expected))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*both, strict=True))
    assert counter.frame_count <= 2


@pytest.mark.parametrize(
    "pattern",
    [
        lambda n: Window(n, radius=2),
        lambda n: Window([n, 7, n // 2], radius=2),
        lambda n: Full([n, 3, n + 1]),
        lambda n: Grid((n, 3), radius=1),
    ],
    ids=["window", "windows", "full", "grid"],
)
def test_sizes_of_structured_patterns_settle_in_a_few_graphs(pattern):
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(lambda *inputs: attention(*inputs), backend=counter, fullgraph=True)
    for size in range(10, 100, 7):
        sized = pattern(size)
        inputs, _ = draw(sized.num_targets, 1)
        expected = attention(*inputs, sized)
        torch.testing.assert_close(compiled(*inputs, sized), expected)
    # Beyond eight, the compiler gives up.
    assert counter.frame_count <= 5


def test_compiled_layer_takes_raw_edges_in_one_graph():
    layer = GraphAttention(8, 8, heads=2)
    compiled = torch.compile(layer, fullgraph=True)
    for nodes, edges in SIZES[:3]:
        edge_index = torch.randint(nodes, (2, edges))
        x = torch.randn(nodes, 8)
        torch.testing.assert_close(compiled(x, edge_index), layer(x, edge_index))


def test_compiled_graphs_take_weights_dropout_and_no_gradients():
    inputs, edge_index = draw(*SIZES[0])
    options = dict(return_weights=True, return_lse=True, dropout_p=0.4)
    compiled = torch.compile(lambda *inputs: attention(*inputs, **options), fullgraph=True)
    with torch.no_grad():
        results = []
        for function in (compiled, lambda *inputs: attention(*inputs, **options)):
            torch.manual_seed(0)
            results.append(function(*inputs, edge_index))
        assert [x.shape for x in results[0]] == [x.shape for x in results[1]]
        # Compiled code may draw its seed from another stream; weights are those of before dropout.
        _, weights, lse = zip(*results, strict=True)
        assert torch.equal(*weights)
        torch.testing.assert_close(*lse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_graphs_are_exact_at_large_scores(dtype):
    """A hub in pieces among them, whose gradient starts from the output before it is rounded."""
    edge_index = torch.stack([torch.arange(600) % 150, torch.randint(150, (600,))])
    edge_index[1, :300] = 0
    inputs = [(torch.randint(-2, 3, (150, 2, 8)) * by).to(dtype).requires_grad_() for by in (1e4, 1e4, 1)]
    call = lambda *inputs: attention(*inputs, edge_index, return_weights=True, return_lse="split", backend="numba")
    results = []
    for function in (call, torch.compile(call, fullgraph=True)):
        out, weights, lse = function(*inputs)
        gradients = torch.autograd.grad(out.square().sum() + weights.square().sum() + lse[..., 1].sum(), inputs)
        results.append([out, weights, lse, *gradients])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_raw_edges_are_sorted_once(compiled, sorts):
    function = torch.compile(attention, backend="aot_eager", fullgraph=True) if compiled else attention
    inputs, edge_index = draw(*SIZES[1])
    for _ in range(4):
        torch.autograd.grad(function(*inputs, edge_index).sum(), inputs)
    assert len(sorts) == 2


def test_writes_to_raw_edges_are_noticed():
    inputs, edge_index = draw(*SIZES[1])
    before = attention(*inputs, edge_index)
    edge_index[:, 0] = torch.tensor([3, 3])
    after = attention(*inputs, edge_index)
    assert not torch.equal(before, after)
    assert torch.equal(after, attention(*inputs, Edges(edge_index.clone(), 17)))


def test_raw_edges_between_other_rows_are_read_anew():
    inputs, edge_index = draw(*SIZES[1])
    assert attention(*inputs, edge_index).shape == inputs[0].shape
    more = [torch.randn(20, 2, 8) for _ in range(3)]
    assert attention(*more, edge_index).shape == (20, 2, 8)
    with pytest.raises(ValueError, match=r"must lie in \[0, 5\) because key has 5 rows"):
        attention(*(x[:5] for x in more), edge_index)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_known_edges_go_with_their_tensor(compiled):
    function = torch.compile(attention, backend="aot_eager", fullgraph=True) if compiled else attention
    table = lookup._compared if compiled else lookup._known
    gc.collect()
    before = len(table)
    for nodes, edges in SIZES[:3]:
        inputs, edge_index = draw(nodes, edges)
        function(*inputs, edge_index).sum().backward()
        assert id(edge_index) in table
    del edge_index, inputs
    gc.collect()
    assert len(table) == before


def test_tensors_of_inference_mode_are_compared(sorts):
    with torch.inference_mode():
        edge_index = torch.tensor([[0, 1], [1, 0]])
        x = torch.randn(2, 1, 4)
        out = attention(x, x, x, edge_index)
        assert torch.equal(attention(x, x, x, edge_index), out) and len(sorts) == 1
        edge_index[:, 0] = 1
        assert id(edge_index) not in lookup._known
        assert not torch.equal(attention(x, x, x, edge_index), out) and len(sorts) == 2


def test_bad_raw_edges_are_refused_in_a_compiled_graph():
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    inputs, edge_index = draw(*SIZES[0])
    compiled(*inputs, edge_index)
    with pytest.raises(ValueError, match=r"edge_index\[0\] must lie in \[0, 10\) because key has 10 rows, got 12"):
        compiled(*inputs, torch.tensor([[0, 12], [1, 1]]))
    with pytest.raises(ValueError, match=r"edge_index\[1\] must lie in \[0, 10\) because query has 10 rows, got -1"):
        torch.compile(lambda *rest: attention(*rest, backend="scatter"))(*inputs, torch.tensor([[0, 2], [-1, 1]]))


def test_edges_in_memory_that_compiled_code_uses_again_are_read_again():
    x, edge_index = torch.randn(30, 2, 8), torch.randint(30, (2, 100))

    def rewire(x, edge_index):
        first = attention(x, x, x, (edge_index * 3 + 1) % 30)
        return attention(first, first, first, (edge_index + (first.abs().max() * 100).long()) % 30)

    with torch.no_grad():
        torch.testing.assert_close(torch.compile(rewire, fullgraph=True)(x, edge_index), rewire(x, edge_index))


def test_a_write_at_the_end_of_a_compiled_graph_is_noticed_outside():
    x, edge_index = torch.randn(30, 2, 8), torch.randint(30, (2, 100))

    def read_and_write(x, edge_index):
        out = attention(x, x, x, edge_index)
        edge_index.add_(1).remainder_(30)
        return out

    with torch.no_grad():
        for _ in range(2):
            torch.compile(read_and_write)(x, edge_index)
            assert torch.equal(attention(x, x, x, edge_index), attention(x, x, x, edge_index.clone()))


@pytest.mark.parametrize("make", [lambda: Edges(torch.randint(9, (2, 30)), 9), lambda: Window(9, radius=2)])
def test_a_pattern_that_ran_without_gradients_compiles_with_them(make):
    pattern, x = make(), torch.randn(9, 2, 8)
    with torch.no_grad():
        attention(x, x, x, pattern)
    x.requires_grad_()
    out = torch.compile(lambda x: attention(x, x, x, pattern), fullgraph=True)(x)
    both = (torch.autograd.grad(y.square().sum(), x)[0] for y in (out, attention(x, x, x, pattern)))
    torch.testing.assert_close(*both)


# torch looks at the .grad of tensors in the middle of a graph that it continues after a break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_raw_edges_of_calls_that_scatter_runs_are_sorted_once(sorts):
    inputs, edge_index = draw(*SIZES[1])
    call = lambda *rest: attention(*rest, score=lambda q, k, _: (q - k).sum(-1))
    compiled = torch.compile(call, backend="aot_eager")
    layer = torch.compile(GraphAttention(16, 16, heads=2, add_self_loops=True), backend="aot_eager")
    for _ in range(3):
        compiled(*inputs, edge_index).sum().backward()
        layer(inputs[0].flatten(1), edge_index).sum().backward()
    # Rows and columns, of the edges and of those with loops.
    assert len(sorts) == 4


def test_patterns_with_coordinates_compile_once_they_were_run():
    pattern = graph_zoo()["complete"]
    tensors = random_call(pattern)
    expected = attention(**tensors, pattern=pattern)
    compiled = torch.compile(lambda **tensors: attention(**tensors, pattern=pattern), fullgraph=True)
    assert torch.equal(compiled(**tensors), expected)


def test_layers_of_several_widths_compile_one_after_another():
    for channels in (6, 8):
        layer = GraphAttention(channels, 8, heads=2)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for nodes in (5, 9):
            x, edge_index = torch.randn(nodes, channels), torch.randint(nodes, (2, 4 * nodes))
            torch.testing.assert_close(compiled(x, edge_index), layer(x, edge_index))

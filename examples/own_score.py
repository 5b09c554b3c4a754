"""Your own score and your own normalizer: written, checked against the dense reference, and trained in a layer.

    python examples/own_score.py

A score is any function of the query of an edge's target, the key of its source and, optionally, edge features. On the
CPU it is traced and compiled, with its derivatives. Expected: both scores equal the dense reference in outputs and all
gradients, on both kernels; a layer learns the widths of its kernels; and the compiled loops are some times as fast as
plain torch on 5,000 nodes (about 5 on two cores).
"""

import copy
import time

import torch

from graphattn import (
    Normalized,
    Window,
    attention,
    dense_attention,
    explain_backend,
    explain_score,
    random_edges,
)
from graphattn.nn import GraphAttention
from graphattn.testing import assert_matches_dense, random_call


class Gaussian(torch.nn.Module):
    """The log of a Gaussian kernel, -|q_i - k_j|^2 / (2 width^2), with a learned width for each head."""

    def __init__(self, heads):
        super().__init__()
        self.log_width = torch.nn.Parameter(torch.zeros(heads))

    def forward(self, query_i, key_j, edge_key):
        return -(query_i - key_j).square().sum(-1) / (2 * self.log_width.exp().square())


def nearby(query_i, key_j, edge_key):
    """A dot product minus a distance, given as edge features [E, 1]; any shape [E, ...] is valid."""
    return (query_i * key_j).sum(-1) - edge_key


def squared_relu(score):
    """max(s, 0)^2; scores below 0 get weight zero."""
    return score.relu().square()


torch.manual_seed(0)
gaussian, normalizer = Gaussian(2).double(), Normalized(squared_relu)
window, graph = Window([7, 4], radius=2), random_edges(30, 5)

# Random float64 tensors [rows, 2 heads, 4 numbers]; an AssertionError gives the tensor, its error and the budget.
tensors = random_call(window)
for backend in ("numba", "scatter"):
    assert_matches_dense(tensors, window, score=gaussian, backend=backend)
with_distance = {**random_call(graph), "edge_key": torch.rand(graph.num_edges, 1, dtype=torch.float64)}
assert_matches_dense(with_distance, graph, score=nearby, normalizer=normalizer)
squares = (call(**tensors, pattern=window, score=gaussian).square().sum() for call in (attention, dense_attention))
gradients = [torch.autograd.grad(total, gaussian.log_width)[0] for total in squares]
torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
print("Both scores and the normalizer equal the dense reference: outputs, weights and every gradient.")

# A layer with head widths 0.5 and 2 generates the data; a copy with widths of 1 learns them from it.
teacher = GraphAttention(8, 8, heads=2, score=Gaussian(2))
student = copy.deepcopy(teacher)
teacher.score.log_width.data = torch.tensor([0.5, 2.0]).log()
x, pattern = torch.randn(500, 8), Window(500, radius=4)
wanted = teacher(x, pattern).detach()
optimizer = torch.optim.Adam(student.score.parameters(), lr=0.05)
for _ in range(150):
    loss = (student(x, pattern) - wanted).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"Widths 0.5 and 2, learned: {', '.join(f'{width:.3f}' for width in student.score.log_width.exp().tolist())}")

# What is made of it: the expression of one edge and head, and the reason why a function can't be compiled.
x = torch.randn(5_000, 4, 32, requires_grad=True)
print(explain_score(Gaussian(4), x, x))
report = explain_backend(**tensors, pattern=window, score=lambda query_i, key_j, edge_key: (query_i * key_j).amax(-1))
print(f"Not compiled: {report.answers['numba'][0]}")

# And its speed, on a graph of 5,000 nodes and 75,000 edges, forward and backward.
edges, seconds = random_edges(5_000, 15), {}
for backend in ("scatter", "numba"):
    for _ in range(3):
        start = time.perf_counter()
        attention(x, x, x, edges, score=Gaussian(4), backend=backend).sum().backward()
        seconds[backend] = min(seconds.get(backend, 9e9), time.perf_counter() - start)
times = seconds["scatter"] / seconds["numba"]
print(f"Compiled, it is {times:.1f} times as fast as plain torch")
print("Your own score: equal to the dense reference, learned in a layer, compiled for the CPU")

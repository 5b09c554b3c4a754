"""Your own score and your own normalizer: written, checked against the dense reference, and trained in a layer.

    python examples/own_score.py

A score is any function of the query of an edge's target, the key of its source and, optionally, edge features. A
normalizer has two forms, over edges and over the rows of a matrix, which check each other. Expected: both scores equal
the dense reference in outputs and all gradients, a layer learns the widths of its kernels, and "scatter" runs it.
"""

import copy

import torch

from graphattn import Window, attention, dense_attention, explain_backend, random_edges
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


class SquaredRelu:
    """max(s, 0)^2, divided by its sum for each target; scores below 0 get weight zero."""

    def edgewise(self, score, target, num_targets):
        power = score.relu().square()
        total = power.new_zeros(*power.shape[:-2], num_targets, power.size(-1)).index_add(-2, target, power)
        return power / total.clamp(min=1e-12).index_select(-2, target)

    def dense(self, score, mask):
        power = torch.where(mask, score, -torch.inf).relu().square()
        return power / power.sum(-1, keepdim=True).clamp(min=1e-12)


torch.manual_seed(0)
gaussian, normalizer = Gaussian(2).double(), SquaredRelu()
window, graph = Window([7, 4], radius=2), random_edges(30, 5)

# Random float64 tensors [rows, 2 heads, 4 numbers]; an AssertionError gives the tensor, its error and the budget.
tensors = random_call(window)
assert_matches_dense(tensors, window, score=gaussian)
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

# Fused kernels support the library's own scores; anything else runs in plain torch, exact on every device.
report = explain_backend(**tensors, pattern=window, score=gaussian)
print(report)
print(f"Your own score: equal to the dense reference, learned in a layer, run by {report.chosen!r}")

"""What judges kernels must be able to condemn one."""

from __future__ import annotations

import pytest
import torch

from graphattn import Additive, Window
from graphattn.kernels import KERNELS, Call, Result
from graphattn.kernels.scatter import Scatter
from graphattn.testing import assert_matches_dense, error_budget, graph_zoo, random_call

WINDOW = Window(6, radius=1)


class Wrong(Scatter):
    """A kernel with one defect."""

    name = "wrong"

    def __init__(self, spoil) -> None:
        self.spoil = spoil

    def run(self, call: Call) -> Result:
        return self.spoil(super().run(call))


class DoubleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


DEFECTS = {
    "out is off by": lambda result: result._replace(out=result.out + 1e-9),
    "weights is off by": lambda result: result._replace(weights=result.weights.flip(0)),
    "lse is off by": lambda result: result._replace(lse=result.lse / 0.6931471805599453),
    "gradient of query is off by": lambda result: result._replace(weights=DoubleGradient.apply(result.weights)),
    "out isnan in 1 places, the oracle in 0": lambda result: result._replace(
        out=result.out.index_fill(0, torch.tensor([2]), torch.nan).where(
            torch.arange(result.out.numel()).view_as(result.out) == result.out[:2].numel(), result.out
        )
    ),
    "lse isneginf in 2 places": lambda result: result._replace(
        lse=result.lse.index_fill(0, torch.tensor([0]), -torch.inf)
    ),
    "weights is torch.float32": lambda result: result._replace(weights=result.weights.float()),
    "out is torch.float64 [5, 2, 4]": lambda result: result._replace(out=result.out[1:]),
}


@pytest.mark.parametrize("verdict", DEFECTS)
def test_every_defect_is_found_and_named(verdict, monkeypatch):
    monkeypatch.setattr("graphattn.functional.KERNELS", (*KERNELS, Wrong(DEFECTS[verdict])))
    with pytest.raises(AssertionError) as caught:
        assert_matches_dense(random_call(WINDOW), WINDOW, backend="wrong")
    assert str(caught.value).startswith("wrong on Window(6, radius=1): ")
    assert verdict in str(caught.value)


def test_a_detached_vector_is_found(monkeypatch):
    class Detached(Scatter):
        name = "wrong"

        def run(self, call: Call) -> Result:
            score = Additive(call.score.vector.detach())
            return super().run(call._replace(score=score))

    monkeypatch.setattr("graphattn.functional.KERNELS", (*KERNELS, Detached()))
    score = Additive(torch.ones(2, 4, dtype=torch.float64))
    with pytest.raises(AssertionError, match=r"gradient of score.vector is off by"):
        assert_matches_dense(random_call(WINDOW), WINDOW, score=score, backend="wrong")


def test_the_budget_is_small_and_grows_with_the_oracles_own_error():
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert error_budget(exact, exact) < 1e-12
    assert error_budget(exact, exact.float()) < 1e-5
    assert error_budget(exact, exact.float() + 1e-3) == pytest.approx(8e-3, rel=1e-2)


def test_the_same_seed_draws_the_same_numbers_for_every_dtype():
    low, high = random_call(WINDOW, dtype=torch.float32), random_call(WINDOW)
    assert all(torch.equal(low[name], high[name].float()) for name in high)


def test_the_zoo_has_every_corner():
    zoo = graph_zoo()
    degree = {name: torch.bincount(g.edge_index[1], minlength=g.num_targets) for name, g in zoo.items()}
    assert zoo["empty graph"].num_targets == 0 and zoo["no edges"].num_edges == 0 and zoo["one edge"].num_edges == 1
    assert int(degree["hub"].max()) == 1000
    assert zoo["bipartite"].num_sources != zoo["bipartite"].num_targets
    assert zoo["parallel edges"].occurrence() is not None
    assert zoo["unsorted edges"].csr().perm is not None
    assert any(bool((d == 0).any()) for d in degree.values())

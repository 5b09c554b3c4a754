"""Constants of cost models from measured seconds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ..costs import Costs
from ..kernels import KERNELS
from .probes import Timing

# How strongly constants are drawn to where they were, so that those stay on which calls hardly depend: a factor of e
# counts as an estimate that is off by this part.
PULL = 0.05
# Of two kernels whose times are nearer than a factor of e^NEAR, the ratio counts this often. It counts less, the
# farther they are: there a wrong estimate of either still chooses right.
NEAR, WEIGHT = 0.2, 3.0
# Where a constant that is nothing starts.
TINY = 1e-12


def fit_costs(start: Costs, timings: Sequence[Timing]) -> Costs:
    """The costs whose estimates are nearest to what was measured, by ratio; those that nothing depends on stay.

        sum over calls of log(estimate / seconds)^2 + sum over constants of (PULL log(constant / start))^2

    in which the first sum forgives a few calls that are far off. Of two kernels on one call, the ratio of estimates
    counts like other calls, as by it "auto" chooses: most where the two are near each other.
    """
    from scipy.optimize import least_squares

    kernels = {kernel.name: kernel for kernel in KERNELS}
    calls = [(kernels[x.kernel], x.probe.call(x.is_trained), x.seconds) for x in timings]
    numbers = {name: number or TINY for name, number in start.numbers().items()}
    estimates = lambda costs: np.array([kernel.cost(call, costs) for kernel, call, _ in calls])
    first = estimates(start)
    matters = [name for name in numbers if (estimates(start.having({name: 2 * numbers[name]})) != first).any()]
    of_probe: dict[tuple[int, bool], list[int]] = {}
    for place, timing in enumerate(timings):
        of_probe.setdefault((id(timing.probe), timing.is_trained), []).append(place)
    pairs = [pair for places in of_probe.values() for pair in itertools.combinations(places, 2)]
    one, other = np.array(pairs, int).reshape(-1, 2).T
    origin = np.log([numbers[name] for name in matters])
    measured = np.log([seconds for _, _, seconds in calls])
    weight = WEIGHT / np.maximum(1, np.abs(measured[one] - measured[other]) / NEAR)
    # What was nothing is drawn nowhere.
    pull = np.array([PULL if getattr(start, name) else 0.0 for name in matters])

    def costs_at(logs: np.ndarray) -> Costs:
        return start.having(dict(zip(matters, np.exp(logs).tolist(), strict=True)))

    def residuals(logs: np.ndarray) -> np.ndarray:
        off = np.log(estimates(costs_at(logs))) - measured
        return np.concatenate([off, weight * (off[one] - off[other]), pull * (logs - origin)])

    bounds = (origin - 12, origin + 12)
    found = least_squares(residuals, origin, loss="soft_l1", f_scale=0.1, bounds=bounds)
    return costs_at(found.x)

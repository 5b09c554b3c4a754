"""Which of a model's layers take longer as ours, measured with what they get when the model runs."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ...errors import message

# Of each layer: at most so many rounds, and so many seconds once there were two.
ROUNDS, SECONDS = 9, 2.0
# A round repeats short calls for as long as this.
ROUND_SECONDS = 5e-3


class Timing(NamedTuple):
    """Median seconds per call of PyG's layer and of ours, and how many times as fast ours was, by rounds."""

    theirs: float
    ours: float
    speedup: float


def time_layers(
    model: torch.nn.Module, names: Iterable[str], change: Callable[[Any], object], args: Any, kwargs: Any
) -> dict[str, Timing]:
    """Time each named layer before and after `change`, forward and backward if the model is in training mode.

    All of this happens to a copy of the model, and random numbers go on where they were. Edges are new each time to the
    first of our layers that gets them, as those of a loader are. Layers that don't run have no timing.

    Raises:
        TypeError: the model can't be copied.
    """
    devices = {x.device for x in (*model.parameters(), *model.buffers())}
    on_gpu = [device for device in devices if device.type == "cuda"]
    with torch.random.fork_rng(on_gpu), torch.set_grad_enabled(model.training):
        try:
            model = copy.deepcopy(model)
        except Exception as error:
            rule, fix = "must be copied to be measured", "Use accelerate(model) without its inputs."
            got = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise TypeError(message("accelerate", "model", rule, got, fix)) from error
        layers = dict(model.named_modules())
        calls: dict[str, _Recorded] = {}

        def record(name: str, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name not in calls:
                calls[name] = _Recorded(args, kwargs)

        # Ahead of the layer's own hooks, which run again when it is timed.
        options = {"with_kwargs": True, "prepend": True}
        hooks = [layers[name].register_forward_pre_hook(partial(record, name), **options) for name in names]
        model(*args, **kwargs)
        for hook in hooks:
            hook.remove()
        found: dict[str, Timing] = {}
        read: list[Tensor] = []
        for name, recorded in calls.items():
            ours, new = copy.deepcopy(layers[name]), recorded.edges_beyond(read)
            change(ours)
            found[name] = _race(*(recorded.step(layer, new, on_gpu) for layer in (layers[name], ours)))
            # The next layer would be the first to read edges if this one stays PyG's.
            read += new if found[name].speedup >= 1 else []
        return found


class _Recorded:
    """What a layer was called with."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._leaves, self._form = tree_flatten((args, kwargs))

    def edges_beyond(self, read: list[Tensor]) -> list[Tensor]:
        """The tensors of integers, which are edges and types, that aren't among those."""
        edges = [x for x in self._leaves if type(x) is Tensor and not (x.is_floating_point() or x.dtype == torch.bool)]
        return [x for x in edges if not any(x is y for y in read)]

    def step(self, layer: torch.nn.Module, new: list[Tensor], on_gpu: list[torch.device]) -> Callable[[], None]:
        """One call of a layer, with its backward pass where gradients are on; some of its edges are new to it."""
        # Layers recognize edges that aren't new by the tensor itself.
        given = [x.detach().requires_grad_() if isinstance(x, Tensor) and x.requires_grad else x for x in self._leaves]
        inputs = [x for x in (*given, *layer.parameters()) if isinstance(x, Tensor) and x.requires_grad]
        places = [i for i, x in enumerate(self._leaves) if any(x is y for y in new)]

        def call() -> None:
            leaves = list(given)
            for i in places:
                leaves[i] = leaves[i].clone()
            args, kwargs = tree_unflatten(leaves, self._form)
            outs = [x for x in tree_leaves(layer(*args, **kwargs)) if isinstance(x, Tensor) and x.requires_grad]
            if inputs and outs:
                torch.autograd.grad([x.sum() for x in outs], inputs, allow_unused=True)
            for device in on_gpu:
                torch.cuda.synchronize(device)

        return call


def _race(theirs: Callable[[], None], ours: Callable[[], None]) -> Timing:
    """Run both in turns."""
    for step in (theirs, ours):
        step()
    once = max(_seconds(step, 1) for step in (theirs, ours))
    repeats = max(int(ROUND_SECONDS / max(once, 1e-6)), 1)
    taken: list[list[float]] = []
    start = time.perf_counter()
    while len(taken) < ROUNDS and (len(taken) < 2 or time.perf_counter() - start < SECONDS):
        taken.append([_seconds(step, repeats) for step in (theirs, ours)])
    first, second = (statistics.median(side) for side in zip(*taken, strict=True))
    return Timing(first, second, statistics.median(a / b for a, b in taken))


def _seconds(step: Callable[[], None], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats

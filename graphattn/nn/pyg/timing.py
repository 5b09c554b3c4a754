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
    model: torch.nn.Module, names: Iterable[str], change: Callable[[Any], None], args: Any, kwargs: Any
) -> dict[str, Timing]:
    """Time each named layer before and after `change`, forward and backward if the model is in training mode.

    All of this happens to a copy of the model, and random numbers go on where they were. Edges are new each time to the
    first of our layers that gets them, as those of a loader are. Layers that don't run have no timing.
    """
    devices = {x.device for x in (*model.parameters(), *model.buffers())}
    on_gpu = [device for device in devices if device.type == "cuda"]
    with torch.random.fork_rng(on_gpu), torch.set_grad_enabled(model.training):
        model = copy.deepcopy(model)
        layers = dict(model.named_modules())
        calls: dict[str, _Recorded] = {}

        def record(name: str, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name not in calls:
                calls[name] = _Recorded(args, kwargs)

        hooks = [layers[name].register_forward_pre_hook(partial(record, name), with_kwargs=True) for name in names]
        model(*args, **kwargs)
        for hook in hooks:
            hook.remove()
        found: dict[str, Timing] = {}
        read: list[Any] = []
        for name, recorded in calls.items():
            ours, is_new = copy.deepcopy(layers[name]), not any(recorded.edges is x for x in read)
            change(ours)
            found[name] = _race(*(recorded.step(layer, is_new, on_gpu) for layer in (layers[name], ours)))
            # The next layer would be the first to read edges if this one stays PyG's.
            read += [recorded.edges] if found[name].speedup >= 1 else []
        return found


class _Recorded:
    """What a layer was called with."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Layers of PyG take features and edges first, by name or not.
        given = dict(zip(("x", "edge_index"), args, strict=False)) | kwargs
        self._more = [_detached(x) for x in args[2:]]
        self._given = {name: _detached(x) for name, x in given.items()}
        self.edges = given.get("edge_index")

    def step(self, layer: torch.nn.Module, is_new: bool, on_gpu: list[torch.device]) -> Callable[[], None]:
        """One call of a layer, with its backward pass where gradients are on, on edges that are new to it or not."""
        given = [part for x in (*self._more, *self._given.values()) for part in (x if type(x) is tuple else (x,))]
        leaves = [x for x in (*given, *layer.parameters()) if isinstance(x, Tensor) and x.requires_grad]

        def call() -> None:
            given = dict(self._given)
            if is_new and type(self.edges) is Tensor:
                given["edge_index"] = self.edges.clone()
            first = [given.pop("x"), given.pop("edge_index")] if self._more else []
            out = layer(*first, *self._more, **given)
            out = out[0] if isinstance(out, tuple) else out
            if leaves and out.requires_grad:
                torch.autograd.grad(out.sum(), leaves, allow_unused=True)
            for device in on_gpu:
                torch.cuda.synchronize(device)

        return call


def _detached(x: Any) -> Any:
    if type(x) is tuple:
        return tuple(map(_detached, x))
    return x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x


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

"""Whether a GPU's fused kernels compute what they should, before `backend="auto"` may take them there.

A case has one feature of each group, see `kernels.rows.gpu.features`, so that each two features meet in one of some
fifteen cases at least: a fault nearly always shows by one of them, or by two together. Each case is run on graphs with
hubs that are cut and merged, short rows, long ones, empty ones and parallel edges, against the oracle in float64 with
all gradients, and twice for the same bits, with guards around all memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import message
from ..functional import attention
from ..kernels.rows.gpu.buffers import between_guards, guards
from ..kernels.rows.gpu.features import DTYPES, NORMALIZERS, OPTIONS, SCORES, WIDTHS
from ..patterns import Edges
from ..scores import Additive, DotProduct, Score, ScoreFunction
from ..testing import assert_matches_dense, random_call

# A feature of each group; where a group is an option, a case may be without. The first of each is the plainest.
GROUPS: tuple[tuple[str | None, ...], ...] = (
    tuple(DTYPES.values()),
    SCORES,
    NORMALIZERS,
    tuple(WIDTHS),
    *((None, x) for x in OPTIONS),
)
# Widths of query and value, even and odd.
SIZES = {"narrow heads": (16, 5), "middle heads": (64, 64), "wide heads": (80, 200)}
# Edges of a hub, more than twice what one piece of a row has.
HUB = 300
Case = tuple[str | None, ...]
Pair = tuple[tuple[int, str | None], tuple[int, str | None]]


class Refusal(NamedTuple):
    """Features that gave a wrong result together, or didn't compile, and what was wrong.

    Attributes:
        features: by name; none if every call fails.
        reason: in words.
    """

    features: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        named = " + ".join(self.features) or "every call"
        return f"Stays off: {named}. {self.reason}"


def check_kernel(device: torch.device, progress: bool) -> tuple[tuple[str, ...], tuple[Refusal, ...]]:
    """Check the Triton kernels on a device: the features that some right case has, and those that fail.

    Raises:
        RuntimeError: the device stopped working.
    """
    missing = dict.fromkeys(
        pair for a, b in itertools.combinations(range(len(GROUPS)), 2) for pair in _between(a, GROUPS[a], b, GROUPS[b])
    )
    refusals: list[Refusal] = []
    passed: set[str] = set()
    patterns = [pattern.to(device) for pattern in graphs()]
    with tqdm(total=len(missing), desc="check", unit="pair", disable=not progress, leave=False) as bar:
        while missing:
            first = next(iter(missing))
            case = _next(first, missing, [refusal.features for refusal in refusals])
            if case is None:
                # It stands only in cases that fail.
                done = {first}
            elif (reason := _failure(case, patterns, device)) is None:
                done = missing.keys() & set(_pairs(case))
                passed |= _features(case)
            else:
                refusals.append(_culprit(case, reason, patterns, device))
                if not refusals[-1].features:
                    return (), (refusals[-1],)
                continue
            for pair in done:
                del missing[pair]
            bar.update(len(done))
    return tuple(sorted(passed)), tuple(refusals)


def graphs() -> list[Edges]:
    """One graph of everything: a hub of each direction, short and long rows, parallel edges, nodes without edges; and
    another with fewer targets than sources.
    """
    generator = torch.Generator().manual_seed(0)
    spokes, hub = torch.arange(2, HUB + 2), torch.zeros(HUB, dtype=torch.int64)
    random = torch.randint(10, (2, 60), generator=generator)
    parts = [torch.stack([spokes, hub]), torch.stack([hub + 1, spokes]), random + 2, random[:, :5] + 2]
    edges = torch.cat(parts, 1)
    return [
        Edges(edges[:, torch.randperm(edges.size(1), generator=generator)], HUB + 15),
        Edges(torch.tensor([[0, 3, 3, 6, 1], [0, 0, 1, 1, 3]]), num_sources=7, num_targets=5),
    ]


def _next(first: Pair, missing: Iterable[Pair], refused: Sequence[Sequence[str]]) -> Case | None:
    """A case with this pair and as many other missing ones as a greedy choice finds; None if all of them fail."""
    wanted, chosen = set(missing), dict(first)

    def is_refused(values: Iterable[str | None]) -> bool:
        named = {value for value in values if value is not None}
        return any(named.issuperset(some) for some in refused)

    for place, group in enumerate(GROUPS):
        if place in chosen:
            continue
        valid = [value for value in group if not is_refused([*chosen.values(), value])]
        if not valid:
            return None
        gain = lambda value, at=place: sum(_pair(at, value, *other) in wanted for other in chosen.items())
        chosen[place] = max(valid, key=gain)
    case = tuple(chosen[place] for place in range(len(GROUPS)))
    return None if is_refused(case) else case


def _culprit(case: Case, reason: str, patterns: Sequence[Edges], device: torch.device) -> Refusal:
    """The features without which a case that fails would pass."""
    needed = set()
    for place, group in enumerate(GROUPS):
        other = next((value for value in group if value != case[place]), case[place])
        changed = (*case[:place], other, *case[place + 1 :])
        found = reason if changed == case else _failure(changed, patterns, device)
        if found is None:
            needed.add(case[place])
        else:
            case, reason = changed, found
    return Refusal(tuple(sorted(feature for feature in needed if feature is not None)), reason)


def _failure(case: Case, patterns: Sequence[Edges], device: torch.device) -> str | None:
    """What is wrong with a case; None if nothing is."""
    try:
        for pattern in patterns:
            _check(case, pattern, device)
    except AssertionError as error:
        return str(error)
    # What Triton's compiler or the device raises.
    except Exception as error:
        _check_alive(case, device)
        return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
    return None


def _check_alive(case: Case, device: torch.device) -> None:
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError as error:
        named = " + ".join(sorted(_features(case)))
        fix = "No file was written, and backend='auto' takes what it took before. Please report this line."
        raise RuntimeError(
            message("calibrate", "GPU", f"stopped working in the check of {named}", error, fix)
        ) from None


def _check(case: Case, pattern: Edges, device: torch.device) -> None:
    """Raise AssertionError unless the kernel is right."""
    dtype, score, normalizer, size, *options = case
    width, value_width = SIZES[str(size)]
    drawn = random_call(
        pattern,
        batch=(2,) if "batch" in options else (),
        heads=4,
        kv_heads=2 if "grouped heads" in options else 4,
        width=width,
        value_width=value_width,
        edge_tensors=True,
        dtype=getattr(torch, str(dtype)),
        device=device,
    )
    named: dict[str, Any] = {"normalizer": normalizer, "score": _score(score, width, device), "backend": "triton"}
    named["dropout_p"] = 0.3 if "dropout" in options else 0.0
    with guards() as listed:
        tensors: dict[str, Tensor] = {}
        for name, x in drawn.items():
            if name in ("query", "key", "value") or name in options:
                tensors[name] = between_guards(x.shape, x.dtype, device).copy_(x.detach()).requires_grad_()
        assert_matches_dense(tensors, pattern, **named)
        assert_matches_dense(tensors, pattern, return_weights=False, return_lse=False, **named)
        one, other = (_results(tensors, pattern, named) for _ in range(2))
    if not all(torch.equal(x, y) for x, y in zip(one, other, strict=True)):
        raise AssertionError(f"triton on {pattern}: two runs differ in their bits")
    if not all(bool(guard.isnan().all()) for guard in listed):
        raise AssertionError(f"triton on {pattern}: something was written outside of the results")


def _results(tensors: dict[str, Any], pattern: Edges, options: dict[str, Any]) -> list[Tensor]:
    torch.manual_seed(0)
    out: Tensor = attention(**tensors, pattern=pattern, **options)
    return [out, *torch.autograd.grad(out, list(tensors.values()), torch.ones_like(out), allow_unused=True)]


def _score(name: str | None, width: int, device: torch.device) -> Score | ScoreFunction:
    if name == "dot_product":
        return DotProduct(0.3)
    if name == "scores ahead":
        return _own_score
    vector = torch.randn(4, width, generator=torch.Generator().manual_seed(0)) / width**0.5
    return Additive(vector.to(device), str(name))


def _own_score(query_i: Tensor, key_j: Tensor, edge_key: Tensor | None) -> Tensor:
    key_j = key_j if edge_key is None else key_j + edge_key
    return -(query_i - key_j).square().sum(-1) / query_i.size(-1)


def _features(case: Case) -> frozenset[str]:
    return frozenset(feature for feature in case if feature is not None)


def _pairs(case: Case) -> list[Pair]:
    return [_pair(*one, *other) for one, other in itertools.combinations(enumerate(case), 2)]


def _pair(a: int, value: str | None, b: int, other: str | None) -> Pair:
    return ((a, value), (b, other)) if a < b else ((b, other), (a, value))


def _between(a: int, group: tuple[str | None, ...], b: int, other: tuple[str | None, ...]) -> list[Pair]:
    return [_pair(a, x, b, y) for x, y in itertools.product(group, other)]

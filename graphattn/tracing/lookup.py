"""Traces of functions that are passed repeatedly, each made and checked once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .captures import Captures, Unsupported
from .trace import EDGES, SIDES, Trace, first_line

# Of how many functions and shapes traces are kept.
MOST_TRACES = 256
OTHER_NUMBERS = """a trace of it gives other numbers: its result for an edge depends on other edges, or it has \
derivatives or hooks of its own, or a block without any"""


class _Known(NamedTuple):
    trace: Trace | None
    reason: str


_traces: OrderedDict[tuple[Any, ...], _Known] = OrderedDict()
# What traces changes torch for all threads.
_lock = threading.RLock()


def traced(
    function: Any,
    query: Tensor,
    key: Tensor,
    edge_key: Tensor | None,
    dtype: torch.dtype,
    captured: Captures | None = None,
) -> tuple[Trace, Captures]:
    """The trace of a score function for a call's shapes, and what it captures now.

    An earlier trace is used again while code, captured numbers and shapes are the same; the numbers of captured tensors
    are read at each call.

    Args:
        function: `(query_i, key_j, edge_key) -> [*B, E, H]`.
        query: [*B, T, H, D].
        key: [*B, S, H, D].
        edge_key: [*B or ones, E, ...] or None.
        dtype: what scores are computed in.
        captured: what the function reads besides these, where that is known already.

    Raises:
        Unsupported: it can't be fused.
    """
    captured = Captures(function) if captured is None else captured
    batch = query.dim() - 3
    shapes = tuple(None if x is None else (*x.shape[:batch], *x.shape[batch + 1 :]) for x in (query, key, edge_key))
    known = (*captured.key, *shapes, batch, dtype, query.device, None if edge_key is None else edge_key.dtype)
    if known not in _traces:
        with _lock:
            if known not in _traces:
                _traces[known] = _make(function, (query, key, edge_key), dtype, captured)
                if len(_traces) > MOST_TRACES:
                    _traces.popitem(last=False)
    trace_or_none, reason = _traces[known]
    if trace_or_none is None:
        raise Unsupported(reason)
    return trace_or_none, captured


def _make(function: Any, rows: tuple[Tensor, Tensor, Tensor | None], dtype: torch.dtype, captured: Captures) -> _Known:
    """Trace a function and check the trace, whatever mode torch is in, and leave what it captures as it was."""
    query, batch = rows[0], rows[0].dim() - 3
    restore = captured.keep()
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(query.device.type, enabled=False):
            given = [None if x is None else _of_edges(x, batch, dtype) for x in rows]
            trace = Trace(function, given, batch, captured, query.device)
            try:
                check(trace, function, given, captured, query.device)
            except Unsupported:
                raise
            except Exception as error:
                raise Unsupported(f"it can't be checked ({first_line(error)})") from None
            restore()
            return _Known(trace, "")
    except Unsupported as error:
        try:
            restore()
        except Unsupported as changed:
            return _Known(None, str(changed))
        return _Known(None, str(error))


def _of_edges(x: Tensor, batch: int, dtype: torch.dtype) -> Tensor:
    """A tensor without memory, of the shape of these rows edge by edge."""
    shape = (*x.shape[:batch], EDGES, *x.shape[batch + 1 :])
    return torch.empty(shape, dtype=dtype if x.is_floating_point() else x.dtype, device="meta")


def check(
    trace: Trace, function: Any, given: Sequence[Tensor | None], captured: Captures, device: torch.device
) -> None:
    """Compare a trace with the function on a few edges between a few nodes, gradients included.

    A trace doesn't see everything: a derivative of the user's own, a block without gradients, rows that depend on each
    other.

    Raises:
        Unsupported: they differ.
    """
    batch, tensors = trace.batch, list(captured.tensors.values())
    generator = torch.Generator().manual_seed(0)

    def draw(x: Tensor | None, rows: int) -> Tensor | None:
        if x is None:
            return None
        shape = (*x.shape[:batch], rows, *x.shape[batch + 1 :])
        if not x.is_floating_point():
            # Zero is the number of a row of any table.
            return torch.zeros(shape, dtype=x.dtype, device=device)
        return torch.randn(shape, dtype=x.dtype, generator=generator).to(device).requires_grad_()

    ends = [torch.randint(3, (6,), generator=generator), torch.randint(4, (6,), generator=generator), torch.arange(6)]
    index = [x.to(device) for x in ends]
    nodes = [draw(x, rows) for x, rows in zip(given, (3, 4, 6), strict=True)]
    leaves = [x for x in (*nodes, *tensors) if x is not None and x.requires_grad]
    with torch.enable_grad():
        expected = function(
            *(None if x is None else x.index_select(batch, i) for x, i in zip(nodes, index, strict=True))
        )
        slope = torch.randn(expected.shape, dtype=expected.dtype, generator=generator).to(device)
        rows = []
        for x, kind in zip(trace.read(nodes, tensors), trace.inputs, strict=True):
            of_edges = x if kind.side == "parameter" else x.index_select(1, index[SIDES.index(kind.side)])
            rows.append(of_edges.expand(expected.shape[:batch].numel(), 6, trace.heads, kind.width))
        flat = slope.reshape(-1, 6, trace.heads, 1)
        (found,) = trace.expression.evaluate([*rows, flat], [trace.score])
        found = found.expand(flat.shape)
        pairs = [(found.reshape(expected.shape), expected)]
        pairs += zip(_grads(found, leaves, flat), _grads(expected, leaves, slope), strict=True)
        trained = [n for n, x in enumerate(rows) if x.requires_grad]
        slopes = trace.expression.evaluate([*(x.detach() for x in rows), flat], [trace.slopes[n] for n in trained])
        by_rows = _grads(found, [rows[n] for n in trained], flat)
        pairs += [(x, y.expand(x.shape)) for x, y in zip(by_rows, slopes, strict=True)]
    if not all(_is_close(x.detach(), y.detach()) for x, y in pairs):
        raise Unsupported(OTHER_NUMBERS)


def _grads(y: Tensor, leaves: Sequence[Tensor], slope: Tensor) -> list[Tensor]:
    """Gradients by leaves, zeros where there is none."""
    if not y.requires_grad or not leaves:
        return [torch.zeros_like(x) for x in leaves]
    found = torch.autograd.grad(y, leaves, slope, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(leaves, found, strict=True)]


def _is_close(x: Tensor, y: Tensor) -> bool:
    size = y.abs().nan_to_num(0, 0, 0).max().item() if y.numel() else 0.0
    # Gradients of parameters of half types are rounded.
    step = 1e-3 if x.dtype.itemsize > 2 else 5e-2
    return torch.allclose(x, y, rtol=step, atol=0.1 * step * max(size, 1.0), equal_nan=True)

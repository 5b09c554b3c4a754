"""The constants of all cost models: those that come with the package, or one's own machine's, see `calibrated`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, eq=False)
class Costs:
    """Seconds, or something per second, forward and backward together; the defaults were measured on two cores.

    A name begins with the kernel whose model it belongs to; "panels" are those tiles that Numba compiles. Compared by
    identity, so that costs can be part of a key.

    Attributes:
        source: where they are from, in words.
        features: of calls, those with which the GPU's fused kernels were checked; None stands for all.
        refused: sets of features that gave a wrong result together.
    """

    source: str = "of the package, measured on two cores"
    features: tuple[str, ...] | None = None
    refused: tuple[tuple[str, ...], ...] = ()

    # Of a call, and bytes per second that its passes move.
    scatter_call: float = 2e-3
    scatter_bytes: float = 5e9
    # Of a call and of a group of components, and FLOP per second of its narrow products.
    linear_call: float = 4e-4
    linear_flop: float = 5e10
    # Of a call, a head of a row, each of its numbers, a head of an edge, and each of its numbers.
    numba_call: float = 3e-4
    numba_row: float = 7.2e-9
    numba_row_number: float = 9.4e-10
    numba_edge: float = 1.02e-8
    numba_edge_number: float = 3.7e-11
    # More for a number of an edge whose row isn't in the caches, and how many bytes of rows these hold: of edges alone,
    # as windows and grids read neighbors.
    numba_far_number: float = 0.0
    numba_cache_bytes: float = 3.2e7
    # A score of one's own is compiled: that takes seconds, which some hundred calls share.
    numba_own: float = 2e-2
    # Of a call, a head of a panel, each number read or written, each score, and each number of its product.
    panels_call: float = 2.6e-4
    panels_panel: float = 2.4e-6
    panels_number: float = 2.2e-9
    panels_score: float = 1.7e-9
    panels_product: float = 9.9e-12
    # Of a call; FLOP per second; of each pair of a tile; bytes per second. More for a pair: dropout hashes 64-bit
    # integers, biases and weights are looked up pair by pair, sparse normalizers sort.
    tiles_call: float = 2e-3
    tiles_flop: float = 1.2e11
    tiles_pair: float = 0.6e-9
    tiles_bytes: float = 2e10
    tiles_dropout: float = 4e-8
    tiles_by_edge: float = 1e-8
    tiles_sorted: float = 4e-8
    # FLOP per second of the compiled kernel on an H200, in half and in single precision, masked pairs included: of one
    # profile, and the latter a guess. Of a call, which its Python code takes.
    flex_call: float = 1.4e-3
    flex_half: float = 1.5e14
    flex_single: float = 2e13
    # Published H200 figures, not measured here: bytes per second of its memory, and of its cache while what is gathered
    # fits into that many bytes; instructions of a warp per second, half of which such loops reach. And the call on
    # thirty nodes, which its Python code takes, as one profile had it.
    triton_memory: float = 4.2e12
    triton_cache: float = 5.5e12
    triton_cache_bytes: float = 4e7
    triton_instructions: float = 0.5 * 132 * 4 * 1.755e9
    triton_call: float = 1e-3

    def numbers(self) -> dict[str, float]:
        """All constants by name."""
        return {name: getattr(self, name) for name in _names(self)}

    def having(self, numbers: Mapping[str, float]) -> Costs:
        """The same with other constants, by name."""
        changed: Any = numbers
        return replace(self, **changed)


# Functions, as torch.compile traces no methods of what it takes for a constant.
def allows(costs: Costs, features: Sequence[str]) -> bool:
    """Whether calls with these features were checked, and found right."""
    is_checked = costs.features is None or all(name in costs.features for name in features)
    return is_checked and not any(all(name in features for name in some) for some in costs.refused)


def allows_any(costs: Costs) -> bool:
    """Whether some calls were checked, and found right."""
    return costs.features is None or len(costs.features) > 0


def _names(costs: Costs) -> Iterator[str]:
    return (field.name for field in fields(costs) if isinstance(getattr(costs, field.name), float))


CPU = Costs()
# On a GPU, tiles are a guess: nothing but their launches was measured.
CUDA = replace(
    CPU,
    source="of the package, measured on an H200",
    scatter_bytes=1e12,
    linear_flop=2e13,
    tiles_flop=1.2e13,
    tiles_pair=0.6e-11,
    tiles_bytes=2e12,
    tiles_dropout=4e-10,
    tiles_by_edge=1e-10,
    tiles_sorted=4e-10,
)

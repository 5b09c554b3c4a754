"""What travels from a call to the loops, with names: one definition for all devices.

The schemas of torch.library are flat, and follow from the definitions here: `schema` writes them, `pack` and `unpack`
convert between the two forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar, get_type_hints

from torch import Tensor

from ...csr import CSR
from ..base import join_batch

# The codes of scores and normalizers, as the compiled loops compare them.
DOT_PRODUCT, TANH, LEAKY_RELU = range(3)
SOFTMAX, RELU, SIGMOID, IDENTITY = range(4)
# Heads of one number that loops on the CPU take at a time.
LANES = 16


class Tensors(NamedTuple):
    """A call's tensors, with exactly one batch dimension; edge tensors have it of the batch's size or 1.

    They may all have none where a device's `Functions` take that: to add one takes as long as a small loop.

    Attributes:
        query: [B, T, H, D].
        key: [B, S, H_kv, D].
        value: [B, S, H_kv, V].
        vector: [H, D] of an additive score, or [T, H, D], one for each target.
        edge_bias: [B or 1, E, H].
        edge_key: [B or 1, E, H_kv, D].
        edge_value: [B or 1, E, H_kv, V].
        seed: [] int64, where there is dropout.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    vector: Tensor | None
    edge_bias: Tensor | None
    edge_key: Tensor | None
    edge_value: Tensor | None
    seed: Tensor | None

    def with_one_batch(self) -> Tensors:
        """Return them with one batch dimension in place of all."""
        dims = self.query.dim() - 3
        if dims == 1:
            return self
        query, key, value, vector, *of_edges, seed = self
        bias, edge_key, edge_value = (None if x is None else join_batch(x, dims) for x in of_edges)
        query, key, value = (join_batch(x, dims) for x in (query, key, value))
        return Tensors(query, key, value, vector, bias, edge_key, edge_value, seed)

    def contiguous(self) -> Tensors:
        """Return them without gaps."""
        return Tensors._make(x if x is None else x.contiguous() for x in self)

    def in_rows(self) -> Tensors:
        """Return them without gaps but those between rows of query, key and value, which `pitch_of` measures."""
        rows = (x if pitch_of(x) else x.contiguous() for x in self[:3])
        return Tensors(*rows, *(x if x is None else x.contiguous() for x in self[3:]))


class Needs(NamedTuple):
    """Which gradients are asked for, by the names of `Tensors`."""

    query: bool
    key: bool
    value: bool
    vector: bool
    edge_bias: bool
    edge_key: bool
    edge_value: bool

    def of_edges(self) -> dict[str, bool]:
        """Those of edge tensors, by name."""
        return {name: getattr(self, name) for name in ("edge_bias", "edge_key", "edge_value")}


class EdgeLists(NamedTuple):
    """The edges, as a kernel has planned them; or, in a graph of torch.compile, as an edge_index that it looks up.

    Attributes:
        edge_index: [2, E] where nothing is planned.
        loops: [N, 0] where, after that, the self-loops of N nodes are renewed. A shape, so that torch.compile keeps
            one graph for all N.
        rows: a plan of the edges sorted by target; its first three tensors are ptr, index and perm (empty where the
            caller's order is the sorted one). The kernel's own named tuple, or a list where an operator was called.
        columns: a plan of the edges sorted by source, where gradients are needed.
    """

    edge_index: Tensor | None
    loops: Tensor | None
    rows: Sequence[Tensor]
    columns: Sequence[Tensor]

    @property
    def num_edges(self) -> int:
        """E."""
        return CSR(*self.rows[:3]).index.size(0) if self.edge_index is None else self.edge_index.size(1)


class Mode(NamedTuple):
    """What is computed from the tensors: codes of score and normalizer, and their numbers."""

    score: int
    normalizer: int
    scale: float
    slope: float
    dropout_p: float


class Forward(NamedTuple):
    """Operands of `csr_forward`."""

    tensors: Tensors
    edges: EdgeLists
    is_exact: bool
    mode: Mode


class Weights(NamedTuple):
    """Operands of `csr_weights`."""

    tensors: Tensors
    sums: Tensor
    edges: EdgeLists
    mode: Mode


class Backward(NamedTuple):
    """Operands of `csr_backward`."""

    grad_out: Tensor
    grad_lse: Tensor | None
    grad_weights: Tensor | None
    tensors: Tensors
    out: Tensor
    sums: Tensor
    edges: EdgeLists
    needs: Needs
    mode: Mode


class Attend(NamedTuple):
    """Arguments of the autograd function."""

    tensors: Tensors
    edges: EdgeLists
    is_exact: bool
    return_weights: bool
    return_lse: bool
    mode: Mode


# The numbers of a shape that are the same for graphs of any size.
FIXED = ("heads", "kv_heads", "width", "value_width", "query_pitch", "key_pitch", "value_pitch")


class Shape(NamedTuple):
    """Sizes of a call, and how many numbers after a row the next one begins, as the loops take them.

    The vector's pitch is 0 where all targets have one.
    """

    batches: int
    targets: int
    sources: int
    heads: int
    kv_heads: int
    width: int
    value_width: int
    edges: int
    query_pitch: int
    key_pitch: int
    value_pitch: int
    vector_pitch: int

    @property
    def fixed(self) -> dict[str, int]:
        """Those that loops may be compiled for."""
        return {name: getattr(self, name) for name in FIXED}

    @staticmethod
    def of(tensors: Tensors, edges: int) -> Shape:
        """Read the sizes off the tensors."""
        (*batch, targets, heads, width), (*_, sources, kv_heads, value_width) = tensors.query.shape, tensors.value.shape
        batches = batch[0] if batch else 1
        pitches = [pitch_of(x) for x in tensors[:3]]
        is_of_targets = tensors.vector is not None and tensors.vector.dim() == 3
        pitches.append(heads * width if is_of_targets else 0)
        return Shape(batches, targets, sources, heads, kv_heads, width, value_width, edges, *pitches)


class SortedEdges(NamedTuple):
    """Arrays of a CSR; perm is empty where the caller's order is the sorted one."""

    ptr: Any
    index: Any
    perm: Any


class Arrays(NamedTuple):
    """Flat arrays of a call's rows; a dot product has no vector."""

    query: Any
    key: Any
    value: Any
    vector: Any


class EdgeArrays(NamedTuple):
    """Flat arrays of edge tensors or None, each with the edges from one batch element to the next: 0 or E."""

    bias: Any
    bias_stride: int
    key: Any
    key_stride: int
    value: Any
    value_stride: int


class Dropout(NamedTuple):
    """A weight is kept where its hash reaches the threshold, which is 0 without dropout."""

    seed: int
    threshold: Any
    keep_scale: Any


class Loops(NamedTuple):
    """What every loop over edges takes on the CPU."""

    edges: SortedEdges
    shape: Shape
    rows: Arrays
    of_edges: EdgeArrays
    mode: Mode
    dropout: Dropout


class Outputs(NamedTuple):
    """What the forward loop writes: output and sums of whole rows, and of the pieces of cut ones."""

    out: Any
    sums: Any
    part_out: Any
    part_top: Any
    part_sum: Any


# Where a call could have an array but this one hasn't, the backward loops take an empty one rather than None: whatever
# differs in type is compiled apart.
class Slopes(NamedTuple):
    """What both backward loops read, and what the first one leaves for the second.

    Attributes:
        out: gradient by the output.
        weights: gradient by the returned weights, or empty.
        edges: [B, E, 2, H], of each edge, in the order of rows, its weights, after dropout, and its gradients by the
            scores; empty if there is no second loop.
    """

    out: Any
    weights: Any
    edges: Any


class RowSums(NamedTuple):
    """What the first backward loop reads of rows.

    Attributes:
        sums: what the forward pass kept.
        out: the output, as it was before it was rounded; empty unless there are cut rows.
        more: [B, T, H] or empty: minus the gradient by lse, and for cut rows what the returned weights add to delta.
    """

    sums: Any
    out: Any
    more: Any


class TargetGradients(NamedTuple):
    """What the backward loop over targets writes; empty where it isn't asked for, None for tensors a call hasn't."""

    query: Any
    part_query: Any
    part_vector: Any
    edge_bias: Any
    edge_key: Any
    edge_value: Any


class SourceGradients(NamedTuple):
    """What the backward loop over sources writes."""

    key: Any
    value: Any
    part_key: Any
    part_value: Any


# What lies flat among the arguments of an operator. `Needs` is one list there.
GROUPS = (Tensors, EdgeLists, Mode)
Operands = TypeVar("Operands", Forward, Weights, Backward, Attend)
_LAYOUTS = {kind: tuple(get_type_hints(kind).values()) for kind in (Forward, Weights, Backward, Attend)}
_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    Sequence[Tensor]: "Tensor[]",
    Needs: "bool[]",
    bool: "bool",
    int: "int",
    float: "float",
}


def schema(kind: type[NamedTuple]) -> str:
    """Arguments of an operator, as torch.library writes them."""
    written = []
    for name, hint in get_type_hints(kind).items():
        written.append(schema(hint) if hint in GROUPS else f"{_TYPES[hint]} {name}")
    return ", ".join(written)


def flatten(operands: Forward | Weights | Backward | Attend) -> list[Any]:
    """Return the operands one after another, without their groups."""
    # Some versions of torch.compile know no other way to take a named tuple apart.
    return [x for group in operands for x in (group if isinstance(group, GROUPS) else (group,))]


def pack(operands: Forward | Weights | Backward) -> list[Any]:
    """Return the arguments that an operator with this schema takes."""
    return [list(x) if isinstance(x, tuple) else x for x in flatten(operands)]


def unpack(kind: type[Operands], flat: tuple[Any, ...]) -> Operands:
    """Return the operands whose `flatten` or `pack` is `flat`."""
    found: list[Any] = []
    at = 0
    for hint in _LAYOUTS[kind]:
        size = len(hint._fields) if hint in GROUPS else 1
        given = flat[at : at + size]
        found.append(hint(*given) if hint in GROUPS else Needs(*given[0]) if hint is Needs else given[0])
        at += size
    return kind(*found)


def pitch_of(x: Tensor) -> int:
    """How many numbers after a row of [B, N, H, D] or [N, H, D] the next one begins; 0 where that isn't the same for
    all rows, or the numbers of a row don't follow one another.
    """
    rows, heads, width = x.shape[-3:]
    if x.is_contiguous():
        return heads * width
    *of_batch, pitch, of_head, of_number = x.stride()
    is_row = (of_number == 1 or width == 1) and (of_head == width or heads == 1)
    return pitch if is_row and (not of_batch or x.size(0) == 1 or of_batch[0] == rows * pitch) else 0


def sums_shape(query: Tensor, normalizer: int) -> tuple[int, ...]:
    """Shape of what a normalizer keeps of each row."""
    *batch, targets, heads, _ = query.shape
    return (batch[0] if batch else 1, targets, 2, heads) if normalizer == SOFTMAX else (0,)


def gradients(found: dict[str, Tensor], tensors: Tensors, needs: Needs) -> list[Tensor | None]:
    """Return what `csr_backward` finds: gradients in the dtypes of their tensors, None where none is asked for."""
    return [
        _like(found[name], getattr(tensors, name)) if need else None
        for name, need in zip(Needs._fields, needs, strict=True)
    ]


def _like(x: Tensor, tensor: Tensor) -> Tensor:
    return x if x.dtype == tensor.dtype else x.to(tensor.dtype)

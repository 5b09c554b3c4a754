"""PyG's attention in linear time: modules that take padded batches [B, N, C], on the sums that kernels compute."""

from __future__ import annotations

from typing import Any

import torch
import torch_geometric.nn.attention as attention
from torch import Tensor
from torch.nn.modules import activation

from ...patterns import Full
from ..feature_maps import attend_by_features, sums_by_features
from .fused import FusedModule, has_hooks, is_traced

# Activations that compute each number from itself, so that rows may have any order and padding be left out.
ELEMENTWISE = (
    activation.ELU,
    activation.GELU,
    activation.LeakyReLU,
    activation.ReLU,
    activation.Sigmoid,
    activation.SiLU,
    activation.Softplus,
    activation.Tanh,
)


class _LinearAttention(FusedModule):
    """One whose weights are products of features."""

    def _is_plain(self, x: Any, mask: Any) -> bool:
        """Whether a call is one that PyG would compute without an error, and isn't recorded."""
        is_plain = isinstance(x, Tensor) and x.dim() == 3 and x.is_floating_point() and not is_traced()
        if mask is None or not is_plain:
            return is_plain
        return isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == x.shape[:2]


def rows_of(inner: Any, x: Tensor) -> list[Tensor]:
    """Queries, keys and values [*, N, H, D] of rows [*, N, C]."""
    return [project(x).unflatten(-1, (inner.heads, inner.head_channels)) for project in (inner.q, inner.k, inner.v)]


def without_padding(value: Tensor, mask: Tensor | None) -> Tensor:
    """Values [B, N, H, D] that are 0 where the mask [B, N] is False."""
    return value if mask is None else value.masked_fill(~mask[:, :, None, None], 0.0)


def performer_features(inner: Any, rows: Tensor) -> Tensor:
    """PyG's `generalized_kernel` of rows [*, N, H, D]: [*, N, H, F]."""
    projected = rows @ inner.fast_attn.projection_matrix.t()
    # The activation sees heads ahead of nodes, as in PyG.
    return inner.fast_attn.kernel(projected.transpose(-3, -2)).transpose(-3, -2) + 0.001


def why_not_performer(inner: Any) -> str | None:
    """Why PyG's `PerformerAttention` can't run without padding."""
    kernel = inner.fast_attn.kernel
    return None if type(kernel) in ELEMENTWISE else f"{kernel!r} may mix rows, those of padding included"


def attend_in_graphs(inner: Any, x: Tensor, pattern: Full, backend: str) -> Tensor:
    """PyG's `PerformerAttention` within the graphs of a batch, [N, C].

    PyG pads each graph to the largest, and its sums of weights count padding: rows of zeros, whose keys are the bias.
    """
    query, key, value = rows_of(inner, x)
    query, key = performer_features(inner, query), performer_features(inner, key)
    out, total = sums_by_features(query, key, value, pattern, backend)
    sizes = pattern.shape[:, 0]
    if len(sizes) > 1:
        padding = (sizes.max() - sizes).repeat_interleave(sizes).to(query)
        of_padding = inner.k(x.new_zeros(1, x.size(1))).view(1, inner.heads, -1)
        counted = (query * performer_features(inner, of_padding)).sum(-1, keepdim=True)
        total = total + padding[:, None, None] * counted
    projected: Tensor = inner.dropout(inner.attn_out((out / total).to(value.dtype).flatten(1)))
    return projected


class PerformerAttention(_LinearAttention, attention.PerformerAttention):
    """`torch_geometric.nn.attention.PerformerAttention`: see there for arguments, shapes and references."""

    theirs = attention.PerformerAttention

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See PyG."""
        if not self._is_plain(x, mask) or has_hooks(self.fast_attn):
            return attention.PerformerAttention.forward(self, x, mask)
        query, key, value = rows_of(self, x)
        query, key = performer_features(self, query), performer_features(self, key)
        out = attend_by_features(query, key, without_padding(value, mask), Full(x.size(1)), self.backend)
        projected: Tensor = self.dropout(self.attn_out(out.flatten(2)))
        return projected


class PolynormerAttention(_LinearAttention, attention.PolynormerAttention):
    """`torch_geometric.nn.attention.PolynormerAttention`: see there for arguments, shapes and references."""

    theirs = attention.PolynormerAttention

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See PyG."""
        if not self._is_plain(x, mask):
            return attention.PolynormerAttention.forward(self, x, mask)
        # Here a head's channels are not side by side.
        split = lambda rows: rows.unflatten(-1, (self.head_channels, self.heads)).transpose(-1, -2)
        key = split(self.k(x).sigmoid())
        query = key if self.qk_shared else split(self.q(x).sigmoid())
        value = without_padding(split(self.v(x)), mask)
        out, total = sums_by_features(query, key, value, Full(x.size(1)), self.backend)
        out = (out / (total + 1e-6)).to(value.dtype).transpose(-1, -2).flatten(2)
        gated: Tensor = self.dropout(torch.relu(self.lin_out(self.lns(out) * (self.h_lins(x) + self.beta))))
        return gated


class SGFormerAttention(_LinearAttention, attention.SGFormerAttention):
    """`torch_geometric.nn.attention.SGFormerAttention`: see there for arguments, shapes and references."""

    theirs = attention.SGFormerAttention

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See PyG."""
        if not self._is_plain(x, mask):
            return attention.SGFormerAttention.forward(self, x, mask)
        query, key, value = rows_of(self, x)
        value, nodes = without_padding(value, mask), x.size(1)
        query, key = (torch.where(rows == 0, 1e-6, rows) for rows in (query, key))
        query, key = (rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True) for rows in (query, key))
        out, total = sums_by_features(query, key, value, Full(nodes), self.backend)
        mean: Tensor = ((out + nodes * value) / (total + nodes)).to(value.dtype).mean(2)
        return mean

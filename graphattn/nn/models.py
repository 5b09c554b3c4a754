"""Networks for node classification whose settings reach published results: a tuned GAT, SGFormer, Polynormer.

GPS, Exphormer and the models of Platonov et al. are settings of `GraphTransformer`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import BatchNorm1d, Dropout, Identity, LayerNorm, ModuleList
from torch_geometric.nn.dense.linear import Linear

from ..call import Options
from ..errors import check_choice, check_int, check_probability
from ..functional import attention
from ..patterns import Full, PatternLike
from ..scores import DotProduct
from .block import check_features, everywhere
from .feature_maps import attend_by_features
from .projections import check_heads
from .pyg.layers import GATConv

__all__ = ["GAT", "Polynormer", "SGFormer"]

NORMS: dict[str, Any] = {"batch": BatchNorm1d, "layer": LayerNorm, "none": Identity}


class GAT(torch.nn.Module):
    """Layers of attention along the edges with what makes a deep GAT train: residuals, normalization, dropout.

        h_0 = dropout(x),    h_l = dropout(relu(norm(attend(h_{l-1}) + W_l h_{l-1}))),    out = W_out h_L

    With `jump`, the output reads the sum of all h_l (jumping knowledge). With `gate`, a number b, each layer ends in a
    product with its own input: h_l := (1 - b) norm(h_l * relu(G_l h_{l-1})) + b h_l, the local part of Polynormer.

    Args:
        in_channels: features per node.
        hidden_channels: features per node between the layers, split over the heads.
        out_channels: features of the output.
        num_layers: L.
        heads: H; must divide `hidden_channels`.
        dropout: probability with which a feature is dropped in training, after each layer.
        in_dropout: the same for features of the input.
        attention_dropout: the same for a weight.
        norm: "batch", "layer" or "none".
        residual: add W_l h_{l-1} to each layer.
        jump: read the sum of all layers, not the last one.
        gate: b, from 0 to 1, or None.
        layer: makes a layer as `layer(channels, width of a head, heads=, dropout=, **options)`; `GATConv`, `GATv2Conv`
            and `TransformerConv` do, and PyG's of these names.
        options: for all layers.

    Raises:
        TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.

    Example:
        >>> model = GAT(8, 16, 3, num_layers=4, heads=2, dropout=0.2, add_self_loops=False)
        >>> model(torch.randn(5, 8), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])).shape
        torch.Size([5, 3])

    References:
        Velickovic et al., "Graph Attention Networks", 2018; Luo et al., "Classic GNNs Are Strong Baselines:
        Reassessing GNNs for Node Classification", 2024; Xu et al., "Representation Learning on Graphs with Jumping
        Knowledge Networks", 2018.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        heads: int = 1,
        *,
        dropout: float = 0.0,
        in_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        norm: str = "batch",
        residual: bool = True,
        jump: bool = False,
        gate: float | None = None,
        layer: Any = GATConv,
        **options: Any,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        self.in_channels = check_int(where, "in_channels", in_channels, 1)
        self.hidden_channels = check_int(where, "hidden_channels", hidden_channels, 1)
        self.out_channels = check_int(where, "out_channels", out_channels, 1)
        self.num_layers = check_int(where, "num_layers", num_layers, 1)
        check_heads(where, "hidden_channels", hidden_channels, heads, None)
        for name, value in (("dropout", dropout), ("in_dropout", in_dropout), ("attention_dropout", attention_dropout)):
            check_probability(where, name, value)
        check_choice(where, "norm", norm, NORMS)
        if gate is not None:
            check_probability(where, "gate", gate)
        self.jump, self.gate = jump, gate
        self.drop_in, self.drop = Dropout(in_dropout), Dropout(dropout)
        widths = [in_channels] + [hidden_channels] * (num_layers - 1)
        options |= {"heads": heads, "dropout": attention_dropout}
        self.convs = ModuleList(layer(width, hidden_channels // heads, **options) for width in widths)
        self.lins = ModuleList(Linear(width, hidden_channels) for width in widths if residual)
        self.norms = ModuleList(NORMS[norm](hidden_channels) for _ in widths)
        self.gates = ModuleList(Linear(width, hidden_channels) for width in widths if gate is not None)
        self.gate_norms = ModuleList(LayerNorm(hidden_channels) for _ in self.gates)
        self.lin_out = Linear(hidden_channels, out_channels)

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        for module in (*self.convs, *self.lins, *self.norms, *self.gates, *self.gate_norms, self.lin_out):
            if not isinstance(module, Identity):
                module.reset_parameters()

    def embed(self, x: Tensor, edge_index: PatternLike) -> Tensor:
        """Features [N, hidden_channels] before the last linear map; see `forward`."""
        check_features(type(self).__name__, "x", x, self.in_channels, "in_channels")
        x = self.drop_in(x)
        total: Any = 0
        for step, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            before, x = x, conv(x, edge_index)
            if self.lins:
                x = x + self.lins[step](before)
            x = self.drop(torch.relu(norm(x)))
            if self.gate is not None:
                product = self.gate_norms[step](x * torch.relu(self.gates[step](before)))
                x = torch.lerp(product, x, self.gate)
            if self.jump:
                total = total + x
        return total if self.jump else x

    def forward(self, x: Tensor, edge_index: PatternLike) -> Tensor:
        """Run the network.

        Args:
            x: [N, in_channels].
            edge_index: a `Pattern`, or what the layers take.

        Returns:
            [N, out_channels].

        Raises:
            TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.
        """
        return self.lin_out(self.embed(x, edge_index))


class Polynormer(GAT):
    """Gated attention along the edges, then attention to all nodes of a graph, in linear time.

        z = norm(sum of all h_l of a gated GAT)
        z := dropout(relu(W (norm(attend(z)) * (H z + b)))),    weight_ij = s(q_i) . s(k_j) / sum over j, s the sigmoid
        out = W_out z

    While `is_local` is true, the part of all nodes is left out and the output is another linear map of the sum. In the
    paper this comes first, for some epochs.

    Args:
        in_channels, hidden_channels, out_channels, num_layers, heads: as in `GAT`.
        num_global_layers: layers of attention to all nodes.
        global_dropout: probability with which a feature is dropped after each of these.
        gate: b of both parts.
        options: as in `GAT`.

    Raises:
        TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.

    Example:
        >>> model = Polynormer(8, 16, 3, num_layers=4, heads=2, add_self_loops=False)
        >>> model(torch.randn(5, 8), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])).shape
        torch.Size([5, 3])

    References:
        Deng et al., "Polynormer: Polynomial-Expressive Graph Transformer in Linear Time", 2024.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        heads: int = 1,
        *,
        num_global_layers: int = 2,
        global_dropout: float = 0.0,
        gate: float = 0.9,
        **options: Any,
    ) -> None:
        options = {"jump": True} | options
        super().__init__(in_channels, hidden_channels, out_channels, num_layers, heads, gate=gate, **options)
        check_int("Polynormer", "num_global_layers", num_global_layers, 1)
        check_probability("Polynormer", "global_dropout", global_dropout)
        self.is_local = False
        self.lin_local = Linear(hidden_channels, out_channels)
        self.global_norm = LayerNorm(hidden_channels)
        sizes = (hidden_channels, heads, gate, global_dropout)
        self.global_layers = ModuleList(GatedGlobalAttention(*sizes) for _ in range(num_global_layers))

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        super().reset_parameters()
        for module in (self.lin_local, self.global_norm, *self.global_layers):
            module.reset_parameters()

    def forward(self, x: Tensor, edge_index: PatternLike, batch: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            x, edge_index: as in `GAT`.
            batch: [N], the graph of each node; one graph if omitted.

        Returns:
            [N, out_channels].

        Raises:
            TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.
        """
        x = self.embed(x, edge_index)
        if self.is_local:
            return self.lin_local(x)
        x, nodes = self.global_norm(x), everywhere(x, edge_index, batch)
        for layer in self.global_layers:
            x = layer(x, nodes)
        return self.lin_out(x)


class GatedGlobalAttention(torch.nn.Module):
    """One global layer of `Polynormer`; see there."""

    def __init__(self, channels: int, heads: int, gate: float, dropout: float) -> None:
        super().__init__()
        self.heads, self.gate = heads, gate
        self.lin_query, self.lin_key, self.lin_value = (Linear(channels, channels, bias=False) for _ in range(3))
        self.lin_gate, self.lin_out = Linear(channels, channels), Linear(channels, channels)
        self.norm, self.drop = LayerNorm(channels), Dropout(dropout)

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        for module in (self.lin_query, self.lin_key, self.lin_value, self.lin_gate, self.lin_out, self.norm):
            module.reset_parameters()

    def forward(self, x: Tensor, nodes: Full) -> Tensor:
        """Map [N, channels] to as many."""
        query, key, value = (
            linear(x).unflatten(-1, (self.heads, -1)) for linear in (self.lin_query, self.lin_key, self.lin_value)
        )
        out = attend_by_features(query.sigmoid(), key.sigmoid(), value, nodes)
        return self.drop(torch.relu(self.lin_out(self.norm(out.flatten(-2)) * (self.lin_gate(x) + self.gate))))


class SGFormer(GAT):
    """A GAT along the edges beside attention to all nodes of a graph, in linear time.

        z_0 = dropout(relu(norm(W x))),    z_l = dropout(relu(norm((attend(z_{l-1}) + z_{l-1}) / 2)))
        attend(z)_i = (n v_i + sum over j of (q_i . k_j) v_j) / (n + sum over j of q_i . k_j),    |q_i| = |k_j| = 1
        out = W_out (a z + (1 - a) h_L)

    with n nodes in the graph of i, and h_L of the GAT.

    Args:
        in_channels, hidden_channels, out_channels, num_layers, heads: as in `GAT`; attention to all nodes has one head.
        num_global_layers: layers of attention to all nodes.
        global_weight: a, the share of these.
        options: as in `GAT`.

    Raises:
        TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.

    Example:
        >>> model = SGFormer(8, 16, 3, num_layers=2, add_self_loops=False)
        >>> model(torch.randn(5, 8), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])).shape
        torch.Size([5, 3])

    References:
        Wu et al., "SGFormer: Simplifying and Empowering Transformers for Large-Graph Representations", 2023, whose
        layers along the edges are a GCN's.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int,
        heads: int = 1,
        *,
        num_global_layers: int = 1,
        global_weight: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, hidden_channels, out_channels, num_layers, heads, **options)
        check_int("SGFormer", "num_global_layers", num_global_layers, 1)
        check_probability("SGFormer", "global_weight", global_weight)
        self.global_weight = global_weight
        self.lin_in = Linear(in_channels, hidden_channels)
        self.norm_in = LayerNorm(hidden_channels)
        self.global_layers = ModuleList(NormalizedGlobalAttention(hidden_channels) for _ in range(num_global_layers))
        self.global_norms = ModuleList(LayerNorm(hidden_channels) for _ in self.global_layers)

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        super().reset_parameters()
        for module in (self.lin_in, self.norm_in, *self.global_layers, *self.global_norms):
            module.reset_parameters()

    def forward(self, x: Tensor, edge_index: PatternLike, batch: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            x, edge_index: as in `GAT`.
            batch: [N], the graph of each node; one graph if omitted.

        Returns:
            [N, out_channels].

        Raises:
            TypeError, ValueError: an argument doesn't fit; the message gives the value and a fix.
        """
        local, nodes = self.embed(x, edge_index), everywhere(x, edge_index, batch)
        x = self.drop(torch.relu(self.norm_in(self.lin_in(x))))
        for layer, norm in zip(self.global_layers, self.global_norms, strict=True):
            x = self.drop(torch.relu(norm((layer(x, nodes) + x) / 2)))
        return self.lin_out(torch.lerp(local, x, self.global_weight))


class NormalizedGlobalAttention(torch.nn.Module):
    """One global layer of `SGFormer`; see there."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lin_query, self.lin_key, self.lin_value = (Linear(channels, channels, bias=False) for _ in range(3))

    def reset_parameters(self) -> None:
        """Initialize all parameters again."""
        for module in (self.lin_query, self.lin_key, self.lin_value):
            module.reset_parameters()

    def forward(self, x: Tensor, nodes: Full) -> Tensor:
        """Map [N, channels] to as many."""
        query, key = (torch.nn.functional.normalize(linear(x), dim=-1) for linear in (self.lin_query, self.lin_key))
        value = self.lin_value(x)
        extended = torch.cat([value, value.new_ones(len(value), 1)], 1)[:, None]
        options: Options = {"score": DotProduct(1.0), "normalizer": "identity"}
        sums = attention(query[:, None], key[:, None], extended, nodes, **options).squeeze(1)
        # A node's own value counts as much as all others together, which keeps the denominator from zero.
        count = nodes.shape.prod(1).to(x.device)
        count = count.repeat_interleave(count).to(x.dtype).unsqueeze(1)
        return (count * value + sums[:, :-1]) / (count + sums[:, -1:])

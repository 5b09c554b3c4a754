"""PyG's layers that attend and have no version here, each with the reason: `accelerate` and the docs say it."""

from __future__ import annotations

# Name of PyG's class -> why.
UNFUSED = {
    "ASAPooling": "its weights belong to pairs of a node and a cluster; the convolution inside is changed",
    "CuGraphGATConv": "needs cuGraph and a GPU; GATConv computes the same",
    "DenseGATConv": "takes a dense matrix, which GATConv doesn't",
    "FeaStConv": "its softmax is over heads, not over neighbors",
    "FusedGATConv": "needs dgNN and a GPU; GATConv computes the same",
    "LPAttLayer": "its features of pairs are computed by PyG's code, edge by edge",
    "MemPooling": "its softmax is over clusters",
    "MultiHead": "of DNAConv: attends to the layers before, a handful for each edge",
    "ViS_MP": "makes vectors of each edge's message, which must exist for that",
    "ViS_MP_Vertex": "makes vectors of each edge's message, which must exist for that",
}

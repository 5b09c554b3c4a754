"""The handwritten digits that ship with scikit-learn, joined to a graph of nearest neighbors."""

from __future__ import annotations

import torch
from torch_geometric.data import Data

from ..errors import check_int, message
from ..patterns import Edges


def digits_graph(neighbors: int = 8) -> Data:
    """1,797 images of 8 x 8 pixels; each is linked, in both directions, to those nearest to it in pixel space, and to
    itself.

    Args:
        neighbors: number of nearest images of each one, itself not counted; the first among equally near ones.

    Returns:
        `Data` with x [1797, 64] float in [0, 1], the pixels row by row; y [1797] long, the digit; edge_index [2, E].

    Raises:
        ImportError: scikit-learn is missing.

    Example:
        >>> digits_graph(neighbors=8)
        Data(x=[1797, 64], edge_index=[2, 21655], y=[1797])

    References:
        E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998 (its test set).
    """
    if check_int("digits_graph", "neighbors", neighbors, 1) > 1796:
        raise ValueError(
            message("digits_graph", "neighbors", "must be at most 1,796, the number of other images", neighbors)
        )
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        fix = "Use pip install 'graphattn[examples]'."
        raise ImportError(message("digits_graph", "scikit-learn", "must be installed", fix=fix)) from error
    pixels, digit = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels)
    # Integers, so that the distances are exact, and ties are the same on any machine.
    square = x.square().sum(1)
    distance = square[:, None] + square - 2 * x @ x.T
    # Each image is among its own nearest ones: hence one more.
    nearest = distance.argsort(stable=True)[:, : neighbors + 1]
    mask = torch.zeros_like(distance, dtype=torch.bool).scatter_(1, nearest, True)
    edges = Edges.from_mask(mask | mask.T)
    return Data(
        x=(x / 16).to(torch.float32),
        y=torch.from_numpy(digit).to(torch.int64),
        edge_index=edges.edge_index,
    )

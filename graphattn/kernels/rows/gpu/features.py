"""What of a call decides which code of the GPU's kernels runs: a check passes for calls with these features."""

from __future__ import annotations

import torch

from ....call import Call
from ....scores import Additive
from ..own import needs_scores
from .plan import WIDEST

# Features of one call exclude each other within a group; the first of a group is the plainest.
DTYPES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float64: "float64",
}
SCORES = ("dot_product", "tanh", "leaky_relu", "scores ahead")
NORMALIZERS = ("softmax", "relu", "sigmoid", "identity")
# Numbers of a head: tiles of programs depend on it.
WIDTHS = {"narrow heads": 16, "middle heads": 64, "wide heads": WIDEST}
# Those that a call has or hasn't.
OPTIONS = ("edge_bias", "edge_key", "edge_value", "dropout", "grouped heads", "batch")


def features_of(call: Call) -> list[str]:
    """The features of a call, one of each group, and options: in code that torch.compile can trace."""
    is_ahead = needs_scores(call)
    found = [DTYPES[call.query.dtype]]
    # What has no loop is computed ahead: scores, or the weights.
    found.append("scores ahead" if is_ahead else _score_of(call))
    found.append("identity" if is_ahead and call.normalizer.name not in NORMALIZERS else call.normalizer.name)
    widest = max(call.query.size(-1), call.value.size(-1))
    for name, most in WIDTHS.items():
        if widest <= most:
            found.append(name)
            break
    for name, has in (
        ("edge_bias", call.edge_bias is not None),
        ("edge_key", call.edge_key is not None),
        ("edge_value", call.edge_value is not None),
        ("dropout", call.dropout_p > 0),
        ("grouped heads", call.heads != call.key.size(-2)),
        ("batch", call.batch_shape.numel() > 1),
    ):
        if has:
            found.append(name)
    return found


def _score_of(call: Call) -> str:
    return call.score.activation if isinstance(call.score, Additive) else "dot_product"

"""What of a call decides which code of the GPU's kernels runs: a check passes for calls with these features."""

from __future__ import annotations

from ....call import Call
from ....scores import Additive
from ..own import needs_scores
from .plan import WIDEST

# Features of one call exclude each other within a group; the first of a group is the plainest.
DTYPES = ("float32", "float16", "bfloat16", "float64")
SCORES = ("dot_product", "tanh", "leaky_relu", "scores ahead")
NORMALIZERS = ("softmax", "relu", "sigmoid", "identity")
# Numbers of a head: tiles of programs depend on it.
WIDTHS = {"narrow heads": 16, "middle heads": 64, "wide heads": WIDEST}
# Those that a call has or hasn't.
OPTIONS = ("edge_bias", "edge_key", "edge_value", "dropout", "grouped heads", "batch")


def features_of(call: Call) -> frozenset[str]:
    """The features of a call, one of each group, and options."""
    widest = max(call.query.size(-1), call.value.size(-1))
    score = call.score.activation if isinstance(call.score, Additive) else "dot_product"
    is_ahead = needs_scores(call)
    given = {
        "edge_bias": call.edge_bias is not None,
        "edge_key": call.edge_key is not None,
        "edge_value": call.edge_value is not None,
        "dropout": call.dropout_p > 0,
        "grouped heads": call.heads != call.key.size(-2),
        "batch": call.batch_shape.numel() > 1,
    }
    return frozenset(
        [
            str(call.query.dtype).removeprefix("torch."),
            "scores ahead" if is_ahead else score,
            # What has no loop is computed ahead, too.
            call.normalizer.name if call.normalizer.name in NORMALIZERS else "scores ahead",
            next(name for name, most in WIDTHS.items() if widest <= most or most == WIDEST),
            *(name for name, has in given.items() if has),
        ]
    )

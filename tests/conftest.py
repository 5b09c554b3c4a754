from __future__ import annotations

import os

import hypothesis
import torch

from graphattn.kernels import KERNELS
from graphattn.kernels.csr_op import NORMALIZER_CODES
from graphattn.normalizers import NORMALIZERS

# Each kernel with each normalizer that it has; another test says what the fused ones have not.
KERNELS_WITH_NORMALIZERS = [
    (kernel, cls) for kernel in KERNELS for cls in NORMALIZERS if kernel.name == "scatter" or cls in NORMALIZER_CODES
]

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core to itself.
    torch.set_num_threads(1)

# The first example of a kind compiles a kernel, which takes seconds.
hypothesis.settings.register_profile("graphattn", deadline=None)
hypothesis.settings.load_profile("graphattn")

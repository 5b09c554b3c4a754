from __future__ import annotations

import os

import hypothesis
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core to itself.
    torch.set_num_threads(1)

# The first example of a kind compiles a kernel, which takes seconds.
hypothesis.settings.register_profile("graphattn", deadline=None)
hypothesis.settings.load_profile("graphattn")

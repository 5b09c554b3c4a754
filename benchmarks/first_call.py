"""Seconds of the first forward and backward in a process: dot product, softmax, float32.

python benchmarks/first_call.py
"""

import time

import torch

from graphattn import attention

if __name__ == "__main__":
    inputs = [torch.randn(1000, 4, 32, requires_grad=True) for _ in range(3)]
    edge_index = torch.randint(1000, (2, 20_000))
    start = time.perf_counter()
    attention(*inputs, edge_index).sum().backward()
    print(time.perf_counter() - start)

"""Rows on the GPU, compiled by Triton."""

"""Rows on the CPU, compiled by Numba."""

"""Vector instructions for what Numba compiles."""

"""Tiles of a window, grid or full pattern in compiled code, on the CPU."""

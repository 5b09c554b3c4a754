"""Attention of windows, grids and full patterns as small dense tiles."""

"""Attention over compressed rows: one operator, a kernel for each kind of device."""

"""PyG's attention layers on the kernels of this package, and models made of them."""

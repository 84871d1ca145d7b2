"""Triton kernels, one stem per op: ``dense_kd``, and ``scale`` for every backward pass."""

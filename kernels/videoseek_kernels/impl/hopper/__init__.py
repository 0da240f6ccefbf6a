"""Gluon kernels with specialised warps, only for Hopper."""

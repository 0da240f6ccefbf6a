"""Gluon kernels with specialised warps, for Hopper alone."""

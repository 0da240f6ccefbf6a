"""Triton kernels, for sm_80 and later, and for the CPU through Triton's interpreter."""

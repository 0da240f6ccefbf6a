"""Checks and measures `videoseek_kernels`; no part of the wheel.

`compile_gate` compiles every kernel without a GPU. The rest compares the kernels with what one would use instead:
parity first, then time and memory.
"""

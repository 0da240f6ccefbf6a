"""Measuring the kernels against what one would use instead: parity first, then time and memory."""

"""Implementations on Triton. A call imports only the chosen implementation."""

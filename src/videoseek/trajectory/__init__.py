"""Trajectories: grammar, wording, the template of token sequences, and the role of every token."""

"""Trajectories: their grammar, the role of every token, and the attention masks that follow from roles."""

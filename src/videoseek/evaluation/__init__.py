"""Evaluation: scores of a model on held-out questions."""

"""Held-out questions answered by the same episode loop as training, and what the answers are worth."""

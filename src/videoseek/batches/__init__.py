"""Batches: the samples of a step, and episodes packed into rows for the model."""

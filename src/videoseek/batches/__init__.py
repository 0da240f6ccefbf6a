"""Batches: which samples a step sees, and how episodes become one packed row for the model."""

"""Tools that a model can call while it looks for evidence."""

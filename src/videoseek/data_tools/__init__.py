"""The verbs of `python -m videoseek.data`, one module each, for work on data before training."""

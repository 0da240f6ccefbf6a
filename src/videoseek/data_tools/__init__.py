"""The verbs of `python -m videoseek.data`, a module each, for work on data before training."""

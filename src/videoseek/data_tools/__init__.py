"""The verbs of `python -m videoseek.data`, one module each: what a person does with data before training."""

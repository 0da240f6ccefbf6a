"""Weights and tokenizer of the tiny base model that `model=tiny` starts from, made by `recipe=clue_base`."""

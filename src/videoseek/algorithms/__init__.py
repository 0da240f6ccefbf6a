"""Pure functions of tensors: advantages and losses, independent of models, tokens and video."""

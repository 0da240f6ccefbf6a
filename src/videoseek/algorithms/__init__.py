"""Pure functions of tensors: advantages and losses. Nothing here knows of models, tokens or video."""

"""Pure functions of tensors: advantages and losses. This room knows no models, tokens or video."""

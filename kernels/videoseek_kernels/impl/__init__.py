"""The implementations that need Triton; `dispatch` imports them when they are chosen, never before."""

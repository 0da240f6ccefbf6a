"""Seconds, frames and tokens of local video files: index, decode, sample, budget."""

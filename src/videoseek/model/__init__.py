"""The real Qwen2.5-VL class behind one seam: loading, positions, attention, log-probabilities."""

"""The real Qwen2.5-VL class behind one interface: loading, positions, attention, log-probabilities."""

"""Rewards: pure functions of an episode's texts and calls."""

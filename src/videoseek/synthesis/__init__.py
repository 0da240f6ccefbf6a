"""Synthesises tool trajectories from raw videos with a vision language model behind an OpenAI-compatible endpoint.

An item passes through the stages (`stages`). Each stage sends one or more requests (`client`), checks the replies
(`rules`) and returns the item with new fields, or rejects it with a code. `client` caches each reply under the digest
of its request, so a run that was killed continues where it stopped. All output files are functions of the items, sorted
by id (`outputs`).
"""

"""Synthesises tool trajectories from raw videos with a vision language model behind an OpenAI-compatible endpoint.

An item passes through the stages (`stages`). Each stage sends requests (`client`), checks the replies (`rules`) and
returns the item with new fields, or rejects the item with a code. `client` caches each reply under the digest of the
request, so a killed run continues at the same place. All output files are functions of the items, sorted by id
(`outputs`).
"""

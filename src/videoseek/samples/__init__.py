"""Samples on disk: the JSONL schema, its checks, packing, and the generated clue world."""

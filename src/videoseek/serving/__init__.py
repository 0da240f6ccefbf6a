"""Serving: worker processes that sample with vLLM, and the connection to them."""

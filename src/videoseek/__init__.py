"""videoseek: teach a video language model to seek clues in long video with a tool."""

__version__ = "0.1.0"

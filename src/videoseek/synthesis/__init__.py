"""From raw videos to tool trajectories, by way of a vision language model behind an OpenAI-compatible endpoint.

An item walks through the stages (`stages`), each of which asks (`asking`), gates the reply and hands the item on or
rejects it with a code. Replies are cached by the content of their request (`cache`), so a run that was killed goes on
where it stood. Everything that is written follows from the items alone (`outcome`), in the order of their ids.
"""

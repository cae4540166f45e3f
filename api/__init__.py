"""Translates between wire formats and the engine. Knows Litestar."""

"""Checks of a text or a picture on its own, regardless of what it is paired with."""

"""Checks of a text or an image on its own, regardless of what it is paired with."""

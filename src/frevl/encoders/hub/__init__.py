"""Encoders from the Hugging Face hub and open_clip."""

"""Frozen pretrained networks that turn images and texts into embeddings.

One interface, one registry; packaged weights, the Hugging Face hub and open_clip behind it. Knows no store.
"""

"""Frozen pretrained networks that turn images and texts into embeddings.

One interface and one registry, backed by packaged weights, the Hugging Face hub and open_clip. Independent of stores.
"""

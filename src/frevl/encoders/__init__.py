"""Frozen pretrained networks that turn images and texts into embeddings.

The package has one interface and one registry, backed by packaged weights, the Hugging Face hub and open_clip, and does
not depend on stores.
"""

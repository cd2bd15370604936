"""Embeddings on disk with their identity: extraction, import, reading, verification.

Built on Lance tables; loads no torch, so that opening a store is quick.
"""

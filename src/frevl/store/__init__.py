"""Embeddings on disk with their identity: extraction, import, reading, verification.

The store is built on Lance tables and does not load torch, so opening one is fast.
"""

import os

# Lance prints warnings on standard error about normal events (a first commit creates its table). It reads this
# variable when imported, which only files of this package do.
os.environ.setdefault("LANCE_LOG", "error")

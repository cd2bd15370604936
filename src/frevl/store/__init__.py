"""Embeddings on disk with their identity: extraction, import, reading, verification.

Built on Lance tables; does not load torch, so opening a store is fast.
"""

import os

# Lance prints warnings on standard error about normal events (a first commit creates its table). It reads this
# variable when imported, which only files of this package do.
os.environ.setdefault("LANCE_LOG", "error")

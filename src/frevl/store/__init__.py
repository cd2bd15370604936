"""Embeddings on disk with their identity: extraction, import, reading, verification.

Built on Lance tables; does not load torch, so opening a store is fast.
"""

import os

# Lance warns on standard error of what is normal here (a first commit makes its table). It reads this when it is
# imported, which only files of this package do.
os.environ.setdefault("LANCE_LOG", "error")

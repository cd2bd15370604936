"""What a test with a vector database gets: the made world of the other tests.

Not part of plain ``pytest``, because it wants the extra ``vectordb`` (lancedb, qdrant-client): ``pytest vectordb``.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
from made import made

__all__ = ["made"]

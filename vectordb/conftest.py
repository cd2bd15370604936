"""What a test with a vector database gets: the made world of the other tests.

Not part of plain ``pytest``, because it wants the extra ``vectordb`` (lancedb, qdrant-client): ``pytest vectordb``.
"""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from made import made

__all__ = ["made"]

"""Vision-language understanding on frozen embeddings (FrEVL, arXiv 2508.04469)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frevl.benchmarks import load_benchmark
    from frevl.diagnosis import diagnose
    from frevl.encoders import load_encoder
    from frevl.errors import FrevlError
    from frevl.evaluation import evaluate
    from frevl.extraction import extract
    from frevl.fusion import Fusion
    from frevl.scorer import Scorer
    from frevl.searching import search
    from frevl.store import Store
    from frevl.training import train

__version__ = "0.1.0"

__all__ = [
    "FrevlError",
    "Fusion",
    "Scorer",
    "Store",
    "diagnose",
    "evaluate",
    "extract",
    "load_benchmark",
    "load_encoder",
    "search",
    "train",
]

# Names are imported on first use, so that `import frevl` and `frevl --help` load no torch.
_HOMES = {
    "FrevlError": "frevl.errors",
    "Fusion": "frevl.fusion",
    "Scorer": "frevl.scorer",
    "Store": "frevl.store",
    "diagnose": "frevl.diagnosis",
    "evaluate": "frevl.evaluation",
    "extract": "frevl.extraction",
    "load_benchmark": "frevl.benchmarks",
    "load_encoder": "frevl.encoders",
    "search": "frevl.searching",
    "train": "frevl.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'frevl' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

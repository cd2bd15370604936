"""Vision-language understanding on frozen embeddings (FrEVL, arXiv 2508.04469)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from frevl.version import __version__ as __version__

if TYPE_CHECKING:
    from frevl.data.benchmarks.load import load_benchmark
    from frevl.diagnosis.curation.curate import curate
    from frevl.diagnosis.diagnosis import diagnose
    from frevl.encoders.registry import load_encoder
    from frevl.errors import FrevlError
    from frevl.evaluation.evaluation import evaluate
    from frevl.models.fusion import Fusion
    from frevl.runs.scorer import Scorer
    from frevl.runs.search.searching import search
    from frevl.store.extraction.extract import extract
    from frevl.store.reader import Store
    from frevl.training.classification.classify import classify
    from frevl.training.training import train

__all__ = [
    "FrevlError",
    "Fusion",
    "Scorer",
    "Store",
    "classify",
    "curate",
    "diagnose",
    "evaluate",
    "extract",
    "load_benchmark",
    "load_encoder",
    "search",
    "train",
]

# Names are imported on first use, so `import frevl` and `frevl --help` do not load torch.
_HOMES = {
    "FrevlError": "frevl.errors",
    "Fusion": "frevl.models.fusion",
    "Scorer": "frevl.runs.scorer",
    "Store": "frevl.store.reader",
    "classify": "frevl.training.classification.classify",
    "curate": "frevl.diagnosis.curation.curate",
    "diagnose": "frevl.diagnosis.diagnosis",
    "evaluate": "frevl.evaluation.evaluation",
    "extract": "frevl.store.extraction.extract",
    "load_benchmark": "frevl.data.benchmarks.load",
    "load_encoder": "frevl.encoders.registry",
    "search": "frevl.runs.search.searching",
    "train": "frevl.training.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'frevl' has no attribute '{name}'")
    importlib.import_module("frevl.machine").share_processors()  # before anything loads torch
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

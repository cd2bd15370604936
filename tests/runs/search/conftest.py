"""What a test of searches gets: a run with a first stage, and a store of its own with that run."""

import shutil

import pytest

from frevl.runs.scorer import Scorer
from frevl.training.training import train


@pytest.fixture(scope="module")
def dual(made, tmp_path_factory):
    """A run with a first stage on the made world. Read only."""
    folder = tmp_path_factory.mktemp("dual") / "run"
    train(made.store.path, made.captions_file, run=folder, task="matching", model="dual", options={"epochs": 2})
    return folder


@pytest.fixture
def world(made, dual, tmp_path):
    """A store of one's own with the run: ``(scorer, store path, run)``."""
    store = tmp_path / "store"
    shutil.copytree(made.store.path, store, ignore=shutil.ignore_patterns("vectors"))
    return Scorer.open(dual, store=store), store, dual

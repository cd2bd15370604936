"""What searches of a large store read: never a column of all its rows, never a list of all ids."""

import shutil

import pytest

from frevl.runs.scorer import Scorer
from frevl.runs.search.searching import index_store, search
from frevl.store import lance_tables
from frevl.store.extraction.extract import extract
from frevl.training.training import train


@pytest.fixture(scope="module")
def searched(made, tmp_path_factory):
    """A store with a copy of one image, whose vectors were computed by a first search, and its run. Read only."""
    folder = tmp_path_factory.mktemp("searched")
    shutil.copytree(made.store.path, folder / "store", ignore=shutil.ignore_patterns("vectors"))
    shutil.copytree(made.images, folder / "images")
    shutil.copy(made.images / "5.png", folder / "images/copy of 5.png")
    extract(images=folder / "images", store=folder / "store", encoder="toy")
    settings = {"task": "matching", "model": "dual", "options": {"epochs": 1}}
    train(made.store.path, made.captions_file, run=folder / "run", **settings)
    search(Scorer.open(folder / "run", store=folder / "store"), "a red square")
    return folder


@pytest.fixture
def counted(monkeypatch):
    """A store counts as one of many rows; returns the columns of items that are read as a whole."""
    whole = []
    scan = lance_tables.Snapshot.scan

    def counting(self, name, columns=None):
        if name in ("images", "texts"):
            whole.append((name, columns))
        return scan(self, name, columns)

    monkeypatch.setattr(lance_tables, "_MOST_IN_MEMORY", 0)
    monkeypatch.setattr(lance_tables.Snapshot, "scan", counting)
    return whole


@pytest.mark.slow
def test_a_search_whose_vectors_are_there_reads_no_column_of_all_rows(searched, counted):
    found = search(Scorer.open(searched / "run", store=searched / "store"), "a red square", k=3)
    assert len(found.hits) == 3
    assert counted == []


def test_copies_are_told_by_what_is_known_of_the_hits(searched, counted):
    scorer = Scorer.open(searched / "run", store=searched / "store")
    hits = search(scorer, "a red square", k=121).hits
    together = {(hit.id, *hit.copies) for hit in hits if hit.copies}
    assert together == {("5.png", "copy of 5.png")}
    assert len(hits) == 120
    # What was searched with is no hit, and neither is its copy.
    others = {hit.id for hit in search(scorer, image="5.png", k=121).hits}
    assert len(others) == 119
    assert others.isdisjoint(("5.png", "copy of 5.png"))
    assert len(search(scorer, "a red square", k=121, copies=True).hits) == 121
    assert counted == []


def test_an_index_is_measured_without_a_list_of_all_ids(searched, counted, tmp_path):
    shutil.copytree(searched / "store", tmp_path / "store")
    report, _ = index_store(Scorer.open(searched / "run", store=tmp_path / "store"))
    assert report.queries > 0
    assert report.queries_of == "text"
    assert counted == []

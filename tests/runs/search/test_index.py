"""The neighbour index: it finds what exact search finds, even after the store has changed; its recall."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from frevl.runs.scorer import Scorer
from frevl.runs.search.index import NeighbourIndex
from frevl.runs.search.searching import index_store, search
from frevl.runs.search.vectors import Shortlist
from frevl.store.extraction.extract import extract
from frevl.store.importing.vectors import import_embeddings
from frevl.store.upkeep.removal import remove
from frevl.training.training import train

# ---- the index


@pytest.mark.slow
def test_an_index_of_which_the_nearest_were_removed_still_finds_enough(tmp_path):
    """Nine of ten neighbours of a query may be gone, far more than a graph is asked for."""
    rng = np.random.default_rng(2)
    near = np.array([1.0, 0, 0, 0]) + 0.01 * rng.normal(size=(900, 4))
    far = np.array([0.0, 1, 0, 0]) + 0.3 * rng.normal(size=(20_000, 4))
    vectors = np.concatenate([near, far]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(tmp_path / "images.npy", vectors)
    np.save(tmp_path / "texts.npy", np.concatenate([near[:1], far[:40]]).astype(np.float32))
    (tmp_path / "images.txt").write_text("".join(f"{n}\n" for n in range(len(vectors))))
    (tmp_path / "texts.txt").write_text("".join(f"text {n}\n" for n in range(41)))
    for of in ("images", "texts"):
        import_embeddings(
            tmp_path / f"{of}.npy", store=tmp_path / "s", encoder="e", of=of, ids=tmp_path / f"{of}.txt",
            common_space=True,
        )  # fmt: skip
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"image": str(n), "text": f"text {n}"}) + "\n" for n in range(41)))
    run = train(tmp_path / "s", pairs, run=tmp_path / "run", task="matching", model="cosine")
    index_store(Scorer.open(run.path, store=tmp_path / "s"))
    remove(tmp_path / "s", ids=[str(n) for n in range(895)])
    scorer = Scorer.open(run.path, store=tmp_path / "s")
    found, exact = search(scorer, "text 0", k=20), search(scorer, "text 0", k=20, exact=True)
    assert not found.exact
    assert len(found.hits) == 20
    left = {str(n) for n in range(895, 900)}
    assert {hit.id for hit in exact.hits[:5]} == left
    assert len(left.intersection(hit.id for hit in found.hits)) >= 4


@pytest.mark.slow
def test_an_index_finds_what_exact_search_finds(world):
    scorer = world[0]
    report, notes = index_store(scorer)
    assert (report.rows, report.recall, report.queries_of, notes) == (120, 1.0, "text", [])
    assert re.fullmatch(
        r"Indexed 120 rows in [\d.]+ s: recall@10 against exact search 100.0 % on 6 text queries of the store, "
        r"[\d.]+ ms per query instead of [\d.]+ ms.",
        report.sentence(),
    )
    for text in ("a red square", "the blue thing"):
        indexed, exact = search(scorer, text), search(scorer, text, exact=True)
        assert (indexed.exact, exact.exact) == (False, True)
        assert [hit.id for hit in indexed.hits] == [hit.id for hit in exact.hits]
    assert search(scorer, "a red square", where="id LIKE '1%'").exact
    texts, _ = index_store(scorer, find="texts")
    assert (texts.queries_of, texts.recall) == ("image", 1.0)
    assert not search(scorer, image="3.png", find="texts").exact


@pytest.mark.slow
def test_an_index_older_than_the_store_finds_new_images(world, draw, tmp_path):
    scorer, store, run = world
    index_store(scorer)
    folder = draw(tmp_path / "more", [500, 501])
    Image.new("RGB", (40, 40), (230, 30, 30)).save(folder / "7.png")
    extract(store, images=folder, encoder=["toy"])
    scorer = Scorer.open(run, store=store)
    for text in ("a red square", "the yellow thing"):
        indexed, exact = search(scorer, text, k=122), search(scorer, text, k=122, exact=True)
        assert not indexed.exact
        assert {"500.png", "501.png", "7.png"} < {hit.id for hit in indexed.hits}
        assert [hit.id for hit in indexed.hits] == [hit.id for hit in exact.hits]
    report, _ = index_store(scorer)  # adds the new ones
    assert report.rows == 123  # the former 7.png keeps its number, and is never found
    assert report.recall == 1.0
    assert len(list(Shortlist(scorer, "image").folder.glob("*.usearch"))) == 1
    assert len(search(scorer, "a red square", k=130).hits) == 122


@pytest.mark.slow
def test_an_index_that_does_not_fit_is_not_used(world, draw, tmp_path):
    scorer, store, run = world
    index_store(scorer)
    shortlist = Shortlist(scorer, "image")
    assert NeighbourIndex.open(shortlist) is not None
    extract(store, images=draw(tmp_path / "other", range(60)), encoder=["toy"])  # rows get other numbers
    found = search(Scorer.open(run, store=store), "a red square")
    assert found.exact
    index_store(Scorer.open(run, store=store))
    next(shortlist.folder.glob("*.usearch")).write_bytes(b"no index")
    damaged = search(Scorer.open(run, store=store), "a red square")
    assert damaged.exact
    assert damaged.hits == found.hits
    assert "the index is damaged" in damaged.notes[0]


def test_the_recall_that_was_asked_for_is_measured_and_missed_aloud(world, monkeypatch):
    import frevl.runs.search.index

    monkeypatch.setattr(frevl.runs.search.index, "_recall", lambda *_: 0.5)
    report, notes = index_store(world[0], recall=0.9)
    assert report.expansion == 4096  # the greatest effort
    assert notes == [
        "The index finds 50.0 % of the exact neighbours, fewer than the requested 90.0 %; use --exact if that matters."
    ]

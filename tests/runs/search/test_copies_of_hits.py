"""How many copies stand behind a hit does not depend on how many hits were asked for."""

import json

import numpy as np
import pytest

from frevl.runs.scorer import Scorer
from frevl.runs.search.copies import copies_note
from frevl.runs.search.searching import index_store, search
from frevl.store.importing.vectors import import_embeddings
from frevl.training.training import train

COPIES = 20


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A scorer for 80 imported images, of which 21 are one and the same, the nearest to "zero"."""
    folder = tmp_path_factory.mktemp("copied")
    vectors = np.random.default_rng(0).standard_normal((80, 16)).astype(np.float32)
    vectors[40 : 40 + COPIES] = vectors[0]
    for of, own, ids in (("images", vectors, [f"{n}.png" for n in range(80)]), ("texts", vectors[:2], ["zero", "one"])):
        np.save(folder / f"{of}.npy", own)
        (folder / f"{of}.json").write_text(json.dumps(ids))
        import_embeddings(
            folder / f"{of}.npy", of=of, ids=folder / f"{of}.json", encoder="clip", common_space=True,
            store=folder / "store",
        )  # fmt: skip
    rows = [{"image": f"{n}.png", "text": ("zero", "one")[n % 2]} for n in range(30)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(folder / "store", folder / "pairs.jsonl", run=folder / "run", task="matching", model="cosine")
    return Scorer.open(folder / "run", store=folder / "store")


@pytest.mark.parametrize("k", [1, 2, 5, 80])
def test_all_copies_of_a_hit_are_counted_whatever_k(copied, k):
    found = search(copied, "zero", k=k, exact=True)
    same = {"0.png", *(f"{n}.png" for n in range(40, 40 + COPIES))}
    assert {found.hits[0].id, *found.hits[0].copies} == same
    assert len(found.hits) == min(k, 80 - COPIES)
    assert "20 images with the same content as a hit are not shown; --all shows them." in found.notes
    assert len(search(copied, "zero", k=k, exact=True, copies=True).hits) == k


def test_copies_of_the_query_are_left_out_and_counted(copied):
    found = search(copied, image="0.png", k=3, exact=True)
    assert not {hit.id for hit in found.hits} & {"0.png", *(f"{n}.png" for n in range(40, 40 + COPIES))}
    assert found.notes == ["20 images with the same content as the query are not shown; --all shows them."]
    assert search(copied, image="0.png", k=3, exact=True, copies=True).notes == []
    assert search(copied, image="1.png", k=3, exact=True).notes == []


def test_an_index_says_that_there_may_be_more(copied):
    index_store(copied)
    found = search(copied, "zero", k=5)
    assert not found.exact
    assert any(note.startswith("At least ") and "same content as a hit" in note for note in found.notes)


def test_one_copy_is_singular():
    assert copies_note(1, "image", "a hit", exact=True) == [
        "1 image with the same content as a hit is not shown; --all shows it."
    ]
    assert copies_note(0, "text", "a hit", exact=False) == []

"""Searches among imported embeddings."""

import json

import numpy as np
import pytest

from frevl.runs.scorer import Scorer
from frevl.runs.search.searching import search
from frevl.store.importing.vectors import import_embeddings
from frevl.training.training import train

# ---- imported embeddings


@pytest.mark.slow
def test_imported_embeddings_of_a_common_space_are_searched(tmp_path, frevl, monkeypatch):
    from clip_folders import clip_retrieval

    monkeypatch.chdir(tmp_path)
    images, texts = clip_retrieval(tmp_path / "clip", sizes=(30, 30))
    made = frevl("import", "clip", "--store", "s", "--encoder", "ViT", "--common-space", "--write-pairs", "p.jsonl",
                 "--quiet")  # fmt: skip
    assert "Wrote 60 pairs to p.jsonl." in made.out
    trained = frevl("train", "--store", "s", "--pairs", "p.jsonl", "--task", "matching", "--model", "cosine",
                    "--run", "r", "--quiet")  # fmt: skip
    assert trained.code == 0, trained.err
    said = frevl("search", "--store", "s", "--run", "r", "caption 7", "-k", 3, "--json", "out.json", "--quiet")
    assert said.code == 0, said.err
    found = json.loads((tmp_path / "out.json").read_text())
    best = np.argsort(-images @ texts[7])[:3]
    assert [hit["id"] for hit in found["hits"]] == [f"/data/pictures/dir/{row}.jpg" for row in best]
    assert found["hits"][0]["metadata"]["width"] == 640 + best[0]
    assert frevl("evaluate", "--store", "s", "--run", "r", "--pairs", "p.jsonl").code == 0
    assert frevl("score", "--store", "s", "--run", "r", "--pairs", "p.jsonl", "--out", "scores.jsonl").code == 0

    blanks = frevl("search", "--store", "s", "--run", "r", " caption 7 \n", "-k", 3, "--json", "again.json", "--quiet")
    assert blanks.code == 0, blanks.err
    assert json.loads((tmp_path / "again.json").read_text())["hits"] == found["hits"]
    unknown = frevl("search", "--store", "s", "--run", "r", "no caption of the store")
    assert unknown.code == 1
    assert unknown.err == (
        "frevl: s: the vectors of 'ViT-text' were imported, so texts outside the store cannot be embedded in the "
        "same way; use its own texts, or import more vectors\n"
    )


@pytest.mark.slow
def test_new_texts_are_found_where_only_the_images_were_imported(made, tmp_path, frevl):
    ids, texts = made.store.image_ids, made.store.texts
    for of, vectors, names, encoder, dtype in (
        ("images", made.store.read_images(ids), ids, "bought", "float16"),
        ("texts", made.store.read_texts(texts), texts, "toy", "float32"),
    ):
        np.save(tmp_path / "v.npy", vectors)
        (tmp_path / "ids.json").write_text(json.dumps(names))
        import_embeddings(
            tmp_path / "v.npy", store=tmp_path / "s", encoder=encoder, of=of, ids=tmp_path / "ids.json", dtype=dtype
        )
    train(tmp_path / "s", made.captions_file, run=tmp_path / "r", task="matching", model="dual", options={"epochs": 1})
    scorer = Scorer.open(tmp_path / "r", store=tmp_path / "s")
    assert len(search(scorer, "a red square that no caption names", k=3).hits) == 3
    said = frevl("search", "--store", tmp_path / "s", "--run", tmp_path / "r", "--image", made.images / "3.png")
    assert said.code == 1
    assert "the vectors of 'bought-image' were imported, so images outside the store cannot be" in said.err

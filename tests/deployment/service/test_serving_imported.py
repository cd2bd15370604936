"""A store with imported vectors is served as far as its own items go; anything to be embedded is refused."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frevl.runs.scorer import Scorer
from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store
from frevl.training.training import train
from served import based, client_of, refused


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Twenty images and their captions in a common space, as a clip-retrieval folder; the run is ``cosine``."""
    folder = tmp_path_factory.mktemp("imported")
    vectors = np.random.default_rng(0).standard_normal((2, 23, 8))
    vectors[1] = vectors[0] + 0.1 * vectors[1]
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / "clip" / name).mkdir(parents=True)
    np.save(folder / "clip/img_emb/img_emb_0.npy", vectors[0].astype(np.float16))
    np.save(folder / "clip/text_emb/text_emb_0.npy", vectors[1].astype(np.float16))
    rows = {"image_path": [f"{i}.jpg" for i in range(23)], "caption": [f"caption {i}" for i in range(23)]}
    pq.write_table(pa.table(rows), folder / "clip/metadata/metadata_0.parquet")
    import_embeddings(folder / "clip", store=folder / "store", encoder="ViT-B-32", common_space=True)
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(f'{{"image": "{i}.jpg", "text": "caption {i}"}}\n' for i in range(23)))
    store = Store.open(folder / "store")
    train(store, pairs, run=folder / "cosine", task="matching", model="cosine")

    with client_of(SimpleNamespace(store=store), folder, names=("cosine",)) as client:
        client.scorer = Scorer.open(folder / "cosine", store=store.path)
        yield client


@pytest.mark.slow
def test_items_of_the_store_are_scored_searched_and_embedded(client):
    pairs = [{"image": "3.jpg", "text": f"caption {i}"} for i in range(23)]
    said = client.http.post("/v1/score", json={"pairs": pairs}).json()["scores"]
    expected = client.scorer.score([("3.jpg", pair["text"]) for pair in pairs])
    assert [one["score"] for one in said] == pytest.approx(expected.tolist(), abs=1e-5)
    found = client.http.post("/v1/search", json={"text": "caption 7", "k": 1}).json()["hits"]
    assert found[0]["id"] == "7.jpg"
    assert client.http.post("/v1/search", json={"image": "7.jpg", "find": "texts", "k": 1}).json()["hits"][0]["id"] == (
        "caption 7"
    )
    embedded = client.http.post("/v1/embed", json={"texts": ["caption 2"], "images": ["2.jpg"]}).json()
    assert embedded["texts"][0] == pytest.approx(client.scorer.store.read_texts(["caption 2"])[0].tolist())


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("score", {"pairs": [{"image": "3.jpg", "text": "something new"}]}),
        ("search", {"text": "something new"}),
        ("embed", {"texts": ["something new"]}),
    ],
)
def test_a_new_text_is_refused_in_words(client, route, body):
    response = client.http.post(f"/v1/{route}", json=body)
    refused(response, 409, "cannot_embed", "The text vectors were imported, so a text outside the store")


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("score", {"pairs": [{"upload": "mine", "text": "caption 1"}]}),
        ("search", {"upload": "mine"}),
        ("embed", {}),
    ],
)
def test_a_picture_that_is_sent_along_is_refused_in_words(client, route, body):
    response = client.http.post(f"/v1/{route}", json={**body, "uploads": {"mine": based(b"any")}})
    refused(response, 409, "cannot_embed", "The image vectors were imported, so uploaded images")

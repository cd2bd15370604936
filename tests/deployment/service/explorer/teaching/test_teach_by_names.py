"""Teaching with the names of the classes, if the encoder has a common space."""

import json

import numpy as np
import pytest
from test_teach_routes import listed, settled

from explored import explored
from frevl.store.importing.vectors import import_embeddings
from frevl.training.classification.teaching import teach

NAMES = ("cat", "dog", "owl")


@pytest.fixture
def store(tmp_path):
    """60 images around three names, as an encoder of one space would embed them."""
    rng = np.random.default_rng(0)
    names = rng.standard_normal((3, 19))
    pictures = names[np.arange(60) % 3] + 0.5 * rng.standard_normal((60, 19))
    ids = [f"{NAMES[row % 3]}-{row}.png" for row in range(60)]
    texts = ["a photo of a cat.", "a photo of a dog.", "owl"]  # the third as a bare word
    for of, vectors, named in (("images", pictures, ids), ("texts", names, texts)):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        np.save(tmp_path / "v.npy", unit.astype(np.float16))
        (tmp_path / "ids.json").write_text(json.dumps(named))
        import_embeddings(
            tmp_path / "v.npy", store=tmp_path / "store", encoder="clip", of=of, ids=tmp_path / "ids.json",
            common_space=True,
        )  # fmt: skip
    return tmp_path / "store"


def define(here, *names):
    assert here.http.post("/explore/classes", json={"by": "ada", "names": list(names)}).status_code == 200


def right(here):
    found = listed(here)
    return np.mean([one["guess"]["label"] == one["id"].partition("-")[0] for one in found])


@pytest.mark.slow
def test_two_names_are_enough_to_guess_and_labels_are_learned_on_top(store):
    with explored(store, fit=teach) as here:
        assert "Name at least two classes" in settled(here)["problem"]
        define(here, *NAMES)
        state = settled(here)
        assert (state["ready"], state["pictures"], state["method"]) == (True, 0, "names alone")
        assert set(state["classes"]) == set(NAMES)
        assert right(here) > 0.9
        assert len(listed(here, order="next")) == 60
        assert listed(here, order="class", of="owl")[0]["id"].startswith("owl")
        labels = [{"image": one["id"], "label": one["id"].partition("-")[0]} for one in listed(here)[:30]]
        here.http.post("/explore/label", json={"by": "ada", "labels": labels})
        state = settled(here)
        assert (state["pictures"], state["accuracy"]["pictures"]) == (30, 30)
        assert right(here) > 0.9


@pytest.mark.slow
def test_a_name_that_the_store_does_not_know_is_said_and_labels_alone_are_learned(store):
    with explored(store, fit=teach) as here:
        define(here, "cat", "<b>unknown</b>")
        assert not settled(here)["ready"]
        labels = [{"image": f"{name}-{row}.png", "label": label} for name, row, label in
                  (("cat", 0, "cat"), ("dog", 1, "<b>unknown</b>"))]  # fmt: skip
        here.http.post("/explore/label", json={"by": "ada", "labels": labels})
        state = settled(here)
        assert state["ready"]
        assert any("'<b>unknown</b>' is not among its texts" in note for note in state["notes"])


@pytest.mark.slow
def test_many_classes_are_taught_by_labels_alone(store):
    with explored(store, fit=teach) as here:
        define(here, *(f"class {number}" for number in range(10_000)))
        assert not settled(here)["ready"]

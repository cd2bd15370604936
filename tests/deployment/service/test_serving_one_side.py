"""Runs of images only and of texts only answer over HTTP; the other side is neither needed nor read."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from frevl.deployment.service.http.limits import Limits
from frevl.deployment.service.models import Service
from frevl.runs.scorer import Scorer
from frevl.training.classification.classify import classify
from frevl.training.training import train
from served import based, client_of, refused, runs

__all__ = ["runs"]  # a fixture

NAMES = ("ask", "look", "read")


@pytest.fixture(scope="module")
def client(made, runs):
    with client_of(made, runs, names=NAMES) as client:
        yield client


def asked(client, model, pairs, route="score", **more):
    return client.http.post(f"/v1/{route}", json={"model": model, "pairs": pairs, **more})


def test_the_models_say_what_they_read(client):
    models = client.http.get("/v1/models").json()["models"]
    assert [(one["name"], one["reads"]) for one in models] == [
        ("ask", ["image", "text"]),
        ("look", ["image"]),
        ("read", ["text"]),
    ]


def test_images_alone_by_id_and_sent_along(client, made):
    content = based((made.images / "0.png").read_bytes())
    answer = asked(client, "look", [{"image": "0.png"}, {"upload": "u"}], uploads={"u": content}).json()["scores"]
    expected = client.scorers["look"].predict(["0.png"])[0]
    for one in answer:
        assert one["label"] == expected.label
        assert one["probability"] == pytest.approx(expected.probability, abs=1e-4)
    said = asked(client, "look", [{"image": "0.png"}], "answer", threshold=0.0).json()["answers"]
    assert said[0]["answer"] == expected.label


@pytest.mark.slow
def test_a_picture_of_no_class_is_unknown_over_http_too(made, tmp_path):
    colours = dict(zip(made.captions.images, (text.split()[1] for text in made.captions.texts), strict=True))
    rows = [{"image": image, "target": colour} for image, colour in colours.items()]
    known = [row for row in rows if row["target"] != "yellow"]
    classify(made.store, run=tmp_path / "three", examples=known, unknown=0.9)
    other = next(row["image"] for row in rows if row["target"] == "yellow")
    with client_of(made, tmp_path, names=("three",)) as client:
        inside = client.scorers["three"].label([row["image"] for row in known])
        image = next(row["image"] for row, one in zip(known, inside, strict=True) if not one.unknown)
        pairs = [{"image": image}, {"image": other}]
        assert [one["unknown"] for one in asked(client, "three", pairs).json()["scores"]] == [False, True]
        answers = asked(client, "three", pairs, "answer", threshold=0.0).json()["answers"]
    assert [one["answer"] for one in answers] == [colours[image], None]
    assert [one["abstained"] for one in answers] == [False, True]


def test_texts_alone_also_new_ones(client):
    texts = ["is the square red?", "is the square mauve?"]
    answer = asked(client, "read", [{"text": text} for text in texts]).json()["scores"]
    assert [one["label"] for one in answer] == [one.label for one in client.scorers["read"].predict(texts)]


def test_what_a_model_does_not_read_is_left_out(client):
    alone = asked(client, "look", [{"image": "0.png"}]).json()["scores"]
    assert asked(client, "look", [{"image": "0.png", "text": "anything"}]).json()["scores"] == alone
    alone = asked(client, "read", [{"text": "is it red?"}]).json()["scores"]
    assert asked(client, "read", [{"text": "is it red?", "image": "no such"}]).json()["scores"] == alone
    uploads = {"u": based(b"no picture at all")}
    pairs = [{"text": "is it red?", "upload": "u"}]
    assert asked(client, "read", pairs, uploads=uploads).json()["scores"] == alone


@pytest.mark.parametrize(
    ("model", "pair", "sentence"),
    [
        ("ask", {"image": "0.png"}, "The model 'ask' reads images and texts: a pair needs a 'text'."),
        ("ask", {"text": "x"}, "The model 'ask' reads images and texts: a pair names either 'image'"),
        ("look", {"text": "x"}, "The model 'look' reads images: a pair names either 'image'"),
        ("read", {"image": "0.png"}, "The model 'read' reads texts: a pair needs a 'text'."),
        ("look", {}, "a pair needs an image, a text, or both, found neither"),
        ("look", {"image": "0.png", "upload": "u"}, "either 'image' (an id in the store) or 'upload'"),
        ("read", {"text": None}, "null is not allowed here"),
    ],
)
def test_what_is_missing_is_said(client, model, pair, sentence):
    refused(asked(client, model, [pair]), 422, "invalid", sentence)


def test_a_side_that_a_model_does_not_read_cannot_be_embedded(client):
    body = {"model": "look", "texts": ["a dog"]}
    refused(client.http.post("/v1/embed", json=body), 409, "cannot_embed", "'look' reads only images")
    for more in ({"images": ["0.png"]}, {"uploads": {"u": based(b"x")}}):
        response = client.http.post("/v1/embed", json={"model": "read", **more})
        refused(response, 409, "cannot_embed", "'read' reads only texts, so it has no image encoder")
    embedded = client.http.post("/v1/embed", json={"model": "look", "images": ["0.png"]}).json()
    assert (embedded["text_dim"], len(embedded["images"][0])) == (0, embedded["image_dim"])


@pytest.mark.slow
def test_a_store_of_one_side_is_served(one_side, tmp_path):
    arguments = {"task": "classification", "model": "linear", "run": tmp_path / "run"}
    train(one_side.store, one_side.train_file, dev=one_side.dev_file, **arguments)
    with client_of(SimpleNamespace(store=one_side.store), tmp_path, names=("run",)) as client:
        pairs = [{one_side.side: item} for item in one_side.items]
        answer = client.http.post("/v1/score", json={"pairs": pairs}).json()["scores"]
        expected = [one.label for one in client.scorers["run"].predict(one_side.items)]
        assert [one["label"] for one in answer] == expected
        body = {
            "text": {"pairs": [{"text": "a new one"}]},
            "image": {"pairs": [{"upload": "u"}], "uploads": {"u": "eA=="}},
        }
        refused(client.http.post("/v1/score", json=body[one_side.side]), 409, "cannot_embed", "were imported")


def test_an_empty_id_is_no_image(made, runs):
    service = Service({"look": Scorer.open(runs / "look", store=made.store)}, limits=Limits())
    model = service.model("look")
    rows, _ = made.store.read("image", ["0.png"], model.towers["image"])
    said = asyncio.run(service.score(model, [(rows[0], ""), ("0.png", "")]))
    assert said[0].label == said[1].label
    np.testing.assert_allclose(said[0].probability, said[1].probability, atol=1e-6)
    service.close()

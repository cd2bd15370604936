"""The answers of the service: the numbers of `Scorer`, whoever else asks at the same time."""

import asyncio
import base64
import json
import logging
import random
import threading

import httpx2 as httpx
import numpy as np
import pytest

from frevl.deployment.service.http.log import JsonLines
from frevl.encoders.toy import ToyTextTower
from frevl.runs.search.searching import search
from served import based, client_of, runs, served

__all__ = ["runs", "served"]  # fixtures

TOLERANCE = 1e-5  # of a logit, as `Scorer` promises across batch sizes


def picture(made, name):
    return (made.images / name).read_bytes()


@pytest.mark.slow
def test_scores_of_matching_are_those_of_the_scorer(made, served):
    pairs = [(image, text) for image in ("0.png", "7.png") for text in ("a red square", "never seen before")]
    body = {"model": "match", "pairs": [{"image": image, "text": text} for image, text in pairs]}
    answer = served.http.post("/v1/score", json=body).json()
    assert (answer["model"], answer["task"]) == ("match", "matching")
    scores = served.scorers["match"].score(pairs)
    np.testing.assert_allclose([one["score"] for one in answer["scores"]], scores, atol=TOLERANCE)
    probabilities = served.scorers["match"].probabilities(scores)
    np.testing.assert_allclose([one["probability"] for one in answer["scores"]], probabilities, atol=TOLERANCE)


def test_scores_of_classification_are_those_of_the_scorer(made, served):
    pairs = list(zip(made.test.images[:11], made.test.texts[:11], strict=True))
    body = {"pairs": [{"image": image, "text": text} for image, text in pairs]}
    answer = served.http.post("/v1/score", json=body).json()
    assert (answer["model"], answer["task"]) == ("ask", "classification")
    for said, expected in zip(answer["scores"], served.scorers["ask"].predict(pairs), strict=True):
        assert said["label"] == expected.label
        assert said["probability"] == pytest.approx(expected.probability, abs=TOLERANCE)
        assert [(one["label"], pytest.approx(one["probability"], abs=TOLERANCE)) for one in said["top"]] == expected.top


def test_texts_that_the_encoder_cannot_read_are_named(served, monkeypatch):
    monkeypatch.setattr(
        ToyTextTower, "unread", lambda _, texts: np.array([float("ก" <= text[0] <= "๛") for text in texts], np.float32)
    )
    asked = [{"image": "0.png", "text": text} for text in ("is it red?", "สีแดง", "ein Café")]
    for route, model in (("score", "match"), ("score", "ask"), ("answer", "ask")):
        said = served.http.post(f"/v1/{route}", json={"model": model, "pairs": asked}).json()
        (note,) = said["notes"]
        assert note.startswith("1 of 3 texts are mostly unread: the tokenizer of toy-text does not know"), route
        said = served.http.post(f"/v1/{route}", json={"model": model, "pairs": [asked[0], asked[2]]}).json()
        assert said["notes"] == []
    (note,) = served.http.post("/v1/search", json={"model": "find", "text": "สีแดง"}).json()["notes"]
    assert note.startswith("The encoder does not know most of the query")


def test_an_image_that_is_sent_along_scores_like_the_same_image_in_the_store(made, served):
    names = ["3.png", "4.png"]
    stored = {"pairs": [{"image": name, "text": "is the square red?"} for name in names]}
    expected = served.http.post("/v1/score", json=stored).json()["scores"]
    sent = {
        "pairs": [{"upload": name, "text": "is the square red?"} for name in names],
        "uploads": {name: based(picture(made, name)) for name in names},
    }
    assert served.http.post("/v1/score", json=sent).json()["scores"] == expected
    sent["uploads"] = {name: "data:image/png;base64," + based(picture(made, name)) for name in names}
    assert served.http.post("/v1/score", json=sent).json()["scores"] == expected
    # As the programs ``base64`` and ``openssl``, mail and PEM files write it, and as an editor indents it.
    for lines in (base64.encodebytes, lambda content: base64.b64encode(content).replace(b"A", b" \tA\r\n")):
        sent["uploads"] = {name: lines(picture(made, name)).decode() for name in names}
        assert served.http.post("/v1/score", json=sent).json()["scores"] == expected
    form = {"request": json.dumps({"pairs": sent["pairs"]})}
    files = [(name, ("../../etc/passwd", picture(made, name), "text/plain")) for name in names]
    assert served.http.post("/v1/score", data=form, files=files).json()["scores"] == expected
    mixed = {
        "pairs": [stored["pairs"][0], sent["pairs"][1], sent["pairs"][0], stored["pairs"][1]],
        "uploads": {name: based(picture(made, name)) for name in names},
    }
    said = [one["probability"] for one in served.http.post("/v1/score", json=mixed).json()["scores"]]
    wanted = [expected[row]["probability"] for row in (0, 1, 0, 1)]
    np.testing.assert_allclose(said, wanted, atol=TOLERANCE)


def test_answers_come_with_a_threshold_below_which_they_abstain(made, served):
    pair = {"image": "0.png", "text": "is the square red?"}
    expected = served.scorers["ask"].predict([("0.png", "is the square red?")])[0]
    sure = served.http.post("/v1/answer", json={"pairs": [pair], "threshold": 0.0, "top": 1}).json()["answers"][0]
    assert sure["answer"] == expected.label
    assert not sure["abstained"]
    assert len(sure["top"]) == 1
    unsure = served.http.post("/v1/answer", json={"pairs": [pair], "threshold": 1.0}).json()["answers"][0]
    assert unsure["answer"] is None
    assert unsure["abstained"]
    assert unsure["probability"] == pytest.approx(expected.probability, abs=TOLERANCE)
    assert [one["label"] for one in unsure["top"]] == [label for label, _ in expected.top]


def test_searches_are_those_of_the_searcher(made, served):
    expected = search(served.scorers["find"], "a red square", k=5)
    answer = served.http.post("/v1/search", json={"text": "a red square", "k": 5}).json()
    assert (answer["model"], answer["find"], answer["searched"], answer["exact"]) == ("find", "images", 120, True)
    assert [(hit["rank"], hit["id"]) for hit in answer["hits"]] == [(hit.rank, hit.id) for hit in expected.hits]
    for said, hit in zip(answer["hits"], expected.hits, strict=True):
        assert said["score"] == pytest.approx(hit.score, abs=TOLERANCE)
        assert said["probability"] == pytest.approx(hit.probability, abs=TOLERANCE)
        assert said["similarity"] == pytest.approx(hit.similarity, abs=TOLERANCE)
        assert said.keys() == {"rank", "id", "score", "probability", "similarity", "metadata"}
    body = {"text": "a red square", "k": 3, "where": "id LIKE '1%.png'", "rerank": False}
    some = served.http.post("/v1/search", json=body).json()
    assert (some["searched"], some["reranked"]) == (31, 0)  # 1, 10 to 19 and 100 to 119
    assert all(hit["id"].startswith("1") for hit in some["hits"])


def test_searches_for_an_image_of_the_store_or_one_sent_along(made, served):
    stored = served.http.post("/v1/search", json={"image": "3.png", "k": 3}).json()["hits"]
    assert "3.png" not in [hit["id"] for hit in stored]
    assert all(hit["probability"] is None for hit in stored)
    body = {"upload": "u", "uploads": {"u": based(picture(made, "3.png"))}, "k": 4}
    sent = served.http.post("/v1/search", json=body).json()["hits"]
    assert sent[0]["id"] == "3.png"  # it is not known to be the same, and is the most similar
    assert [hit["id"] for hit in sent[1:]] == [hit["id"] for hit in stored]
    texts = served.http.post("/v1/search", json={**body, "find": "texts"}).json()
    assert texts["find"] == "texts"
    best = served.scorers["find"]
    pairs = [("3.png", text) for text in made.store.texts]
    assert texts["hits"][0]["id"] == made.store.texts[int(np.argmax(best.score(pairs)))]


def test_embeddings_are_those_of_the_store(made, served):
    texts = made.store.texts[:2]
    body = {
        "texts": [*texts, "words that the store does not have"],
        "images": ["5.png", "6.png"],
        "uploads": {"same": based(picture(made, "5.png"))},
    }
    answer = served.http.post("/v1/embed", json=body).json()
    assert (answer["text_dim"], answer["image_dim"]) == (48, 64)
    np.testing.assert_array_equal(np.float32(answer["texts"][:2]), made.store.read_texts(texts))
    assert np.linalg.norm(answer["texts"][2]) == pytest.approx(1, abs=1e-3)
    np.testing.assert_array_equal(np.float32(answer["images"]), made.store.read_images(["5.png", "6.png"]))
    assert answer["uploads"]["same"] == answer["images"][0]


@pytest.mark.slow
def test_embeddings_of_tokens_are_pooled_as_the_store_pools_them(made_tokens, tmp_path):
    from frevl.training.training import train

    train(
        made_tokens.store,
        made_tokens.train_file,
        run=tmp_path / "run",
        task="classification",
        options={"epochs": 1, "layers": 1},
    )
    with client_of(made_tokens, tmp_path, names=["run"]) as client:
        text = made_tokens.store.texts[0]
        answer = client.http.post("/v1/embed", json={"images": ["1.png"], "texts": [text]}).json()
        images = made_tokens.store.read_images(["1.png"])
        np.testing.assert_allclose(np.float32(answer["images"]), images, atol=1e-6)
        np.testing.assert_allclose(np.float32(answer["texts"]), made_tokens.store.read_texts([text]), atol=1e-6)


@pytest.mark.slow
def test_concurrent_requests_get_their_own_answers_with_the_scores_of_the_scorer(made, served):
    """A thousand pairs in 200 requests at once: of two models, of every size, some with images sent along."""
    rng = random.Random(1)
    ids, texts = made.store.image_ids, made.store.texts
    requests = []
    for number in range(200):
        name = rng.choice(["ask", "match"])
        pairs = [(rng.choice(ids), rng.choice(texts)) for _ in range(rng.randint(1, 13))]
        body = {"model": name, "pairs": [{"image": image, "text": text} for image, text in pairs]}
        if number % 10 == 0:
            body["pairs"][0] = {"upload": "u", "text": pairs[0][1]}
            body["uploads"] = {"u": based(picture(made, pairs[0][0]))}
        requests.append((name, pairs, body))
    sizes = []

    async def ask_all():
        # The same application, without its start and stop: they belong to the fixture's client.
        transport = httpx.ASGITransport(served.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await asyncio.gather(*(http.post("/v1/score", json=body) for _, _, body in requests))

    served.service.queue._observe = lambda *seen: sizes.append(seen[1])
    responses = asyncio.run(ask_all())
    served.service.queue._observe = None
    assert max(sizes) > 50  # they did run together
    assert sum(len(pairs) for _, pairs, _ in requests) > 1000
    for (name, pairs, _), response in zip(requests, responses, strict=True):
        assert response.status_code == 200
        answer = response.json()
        assert answer["model"] == name
        scorer = served.scorers[name]
        said = [one["probability"] for one in answer["scores"]]
        if name == "match":
            expected = scorer.probabilities(scorer.score(pairs))
            np.testing.assert_allclose([one["score"] for one in answer["scores"]], scorer.score(pairs), atol=TOLERANCE)
        else:
            expected = [one.probability for one in scorer.predict(pairs)]
        np.testing.assert_allclose(said, expected, atol=TOLERANCE)


def test_a_client_that_hangs_up_leaves_the_queue(made, runs):
    with client_of(made, runs, names=["ask"]) as client:
        door, entered = threading.Event(), threading.Event()
        model = client.service.models["ask"]
        score = model.score

        def slow(jobs):
            entered.set()
            door.wait(10)
            return score(jobs)

        model.score = slow
        body = json.dumps({"pairs": [{"image": "0.png", "text": "is the square red?"}]}).encode()

        async def ask(leaves):
            """One request by hand; ``leaves`` says when the client hangs up."""
            sent, read = [], False

            async def receive():
                nonlocal read
                if not read:
                    read = True
                    return {"type": "http.request", "body": body, "more_body": False}
                await leaves.wait()
                return {"type": "http.disconnect"}

            async def send(message):
                sent.append(message)

            headers = [(b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": "/v1/score", "headers": headers, "query_string": b""}
            await client.app({**scope, "raw_path": b"/v1/score", "server": ("test", 80)}, receive, send)
            return sent[0]["status"]

        async def run():
            never, soon = asyncio.Event(), asyncio.Event()
            staying = asyncio.create_task(ask(never))
            await asyncio.to_thread(entered.wait, 10)
            leaving = asyncio.create_task(ask(soon))
            while client.service.queue.waiting != 1:
                await asyncio.sleep(0.001)
            soon.set()
            assert await leaving == 499
            assert client.service.queue.waiting == 0
            door.set()
            assert await staying == 200

        asyncio.run(run())


@pytest.mark.parametrize(
    ("kind", "begun"), [("application/json", b'{"pairs"'), ("multipart/form-data; boundary=x", b"--x\r\n")]
)
def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_failure(served, caplog, kind, begun):
    before = counted(served, 'frevl_refused_total{code="internal"}')
    sent = []
    messages = [{"type": "http.request", "body": begun, "more_body": True}, {"type": "http.disconnect"}]

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", kind.encode()), (b"content-length", b"500")]
    scope = {"type": "http", "method": "POST", "path": "/v1/score", "headers": headers, "query_string": b""}
    caplog.clear()
    caplog.set_level(logging.INFO, logger="frevl.service")
    asyncio.run(served.app({**scope, "raw_path": b"/v1/score", "server": ("test", 80)}, receive, send))
    assert sent == []
    assert [(record.levelname, record.fields["status"]) for record in caplog.records] == [("INFO", 499)]
    assert counted(served, 'frevl_refused_total{code="internal"}') == before


def counted(served, name):
    lines = served.http.get("/metrics").text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)


def test_state_routes_and_counters(made, served):
    assert served.http.get("/healthz").json() == {"status": "alive"}
    assert served.http.get("/readyz").json() == {"status": "ready"}
    said = served.http.get("/v1/models").json()
    assert [(one["name"], one["task"], one["labels"]) for one in said["models"]] == [
        ("ask", "classification", 2),
        ("match", "matching", 0),
        ("find", "matching", 0),
    ]
    assert [one["searches"] for one in said["models"]] == [False, False, True]
    assert (said["images"], said["limits"]["items"]) == (120, 1024)
    served.http.post("/v1/score", json={"pairs": [{"image": "no", "text": "x"}]})
    served.http.get("/nowhere/at/all")
    text = served.http.get("/metrics").text
    assert 'frevl_requests_total{method="POST",route="/v1/score",status="404"}' in text
    assert 'route="other",status="404"' in text
    assert "nowhere" not in text
    assert 'frevl_refused_total{code="unknown_image"}' in text
    for name in ("frevl_request_seconds_bucket", "frevl_queue_items", "frevl_requests_under_way"):
        assert name in text


def test_requests_carry_an_id_into_the_log(served, caplog):
    with caplog.at_level(logging.INFO, "frevl.service"):
        mine = served.http.get("/healthz", headers={"x-request-id": "mine-1"})
        other = served.http.get("/healthz", headers={"x-request-id": 'evil"\n{}'.replace("\n", "")})
    assert mine.headers["x-request-id"] == "mine-1"
    assert len(other.headers["x-request-id"]) == 32
    first, second = (json.loads(JsonLines().format(record)) for record in caplog.records)
    assert (first["request_id"], first["path"], first["status"], first["level"]) == ("mine-1", "/healthz", 200, "info")
    assert second["request_id"] == other.headers["x-request-id"]


def test_a_failure_inside_is_logged_and_says_nothing_of_the_inside(made, runs, caplog, monkeypatch):
    with client_of(made, runs, names=["ask"]) as client:

        async def broken(ids):
            raise KeyError("secret of the server")

        monkeypatch.setattr(client.service, "check_images", broken)
        with caplog.at_level(logging.ERROR, "frevl.service"):
            response = client.http.post("/v1/score", json={"pairs": [{"image": "0.png", "text": "x"}]})
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "The service failed here; see its log under the request id."
    line = json.loads(JsonLines().format(caplog.records[0]))
    assert line["request_id"] == response.headers["x-request-id"] == response.json()["error"]["request_id"]
    assert "secret of the server" in line["exception"]


def test_the_documents_are_served_without_any_other_host(served):
    page = served.http.get("/docs")
    assert page.status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert f"/docs/assets/{asset}" in page.text
        assert served.http.get(f"/docs/assets/{asset}").status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    document = served.http.get("/openapi.json").json()
    assert set(document["paths"]) >= {"/v1/score", "/v1/answer", "/v1/embed", "/v1/models", "/healthz", "/readyz"}
    for name in ("ScoreRequest", "AnswerRequest", "SearchRequest", "EmbedRequest"):
        assert document["components"]["schemas"][name]["examples"]


def test_every_example_of_the_document_is_answered(made, served):
    document = served.http.get("/openapi.json").json()
    count = 0
    for path, methods in document["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        if not content:
            continue
        name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for example in document["components"]["schemas"][name]["examples"]:
            response = served.http.post(path, json=example)
            assert response.status_code == 200, (path, example, response.text)
            count += 1
    assert count >= 9


@pytest.mark.slow
def test_the_report_is_shown(made, runs, tmp_path):
    (tmp_path / "report.html").write_text("<p>The verdict</p>")
    with client_of(made, runs, names=["ask"], report=tmp_path / "report.html") as client:
        response = client.http.get("/report")
        assert response.text == "<p>The verdict</p>"
        assert "sandbox" in response.headers["content-security-policy"]
    with client_of(made, runs, names=["ask"]) as client:
        assert client.http.get("/report").status_code == 404

"""What the service refuses: hostile images, wrong bodies, too much at once, and clients without a key."""

import asyncio
import io
import json
import struct
import zlib
from types import SimpleNamespace

import pytest
from PIL import Image

from frevl.deployment.service.http import body
from frevl.deployment.service.http.limits import KEYS_VARIABLE, Keys, Limits
from frevl.errors import UsageError
from frevl.store.reader import Store
from served import based, client_of, refused, runs, served

__all__ = ["runs", "served"]  # fixtures

KEY, OTHER = "a-key-of-this-test-1", "a-key-of-this-test-2"
RIGHT = {"pairs": [{"image": "0.png", "text": "is the square red?"}]}


def png(width, height, *, rows=b""):
    """A PNG whose header says what one likes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def whole_png():
    stream = io.BytesIO()
    Image.new("RGB", (50, 40), "red").save(stream, "PNG")
    return stream.getvalue()


IMAGES = {
    "bomb": (png(60_000, 60_000), "pixels"),
    "too many pixels": (png(6_000, 5_000), "it has 6000 x 5000 pixels, more than the limit of 25000000; resize it"),
    "no pixels": (png(0, 7), "cannot be read"),
    "truncated": (whole_png()[:60], "it is damaged"),
    "no rows": (png(50, 40), "it is damaged or cut short"),
    "text": (b"#!/bin/sh\nrm -rf /\n", "it is not an image in a format that Pillow can read"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is not an image in a format that Pillow can read"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "PostScript"),
    "zeros": (bytes(100), "it is not an image"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_hostile_images_are_refused_with_their_reason(served, name):
    content, reason = IMAGES[name]
    body = {"pairs": [{"upload": "mine", "text": "x"}], "uploads": {"mine": based(content)}}
    refused(served.http.post("/v1/score", json=body), 422, "bad_image", reason)
    assert "The upload 'mine' cannot be read: " in served.http.post("/v1/score", json=body).text
    refused(
        served.http.post("/v1/search", json={"upload": "mine", "uploads": body["uploads"]}), 422, "bad_image", reason
    )
    form = {"request": json.dumps({"uploads": {}})}
    refused(served.http.post("/v1/embed", data=form, files={"mine": content}), 422, "bad_image", reason)


def test_an_empty_upload_is_refused(served):
    files = {"mine": ("a.png", b"", "image/png")}
    response = served.http.post("/v1/embed", data={"request": "{}"}, files=files)
    refused(response, 422, "bad_image", "it is empty (0 bytes)")
    assert served.http.post("/v1/embed", json={"uploads": {"mine": ""}}).status_code == 422


def test_one_bad_image_does_not_harm_others(made, served):
    good = based((made.images / "0.png").read_bytes())

    def body(content):
        return {"pairs": [{"upload": "u", "text": "is the square red?"}], "uploads": {"u": content}}

    assert served.http.post("/v1/score", json=body(good)).status_code == 200
    refused(served.http.post("/v1/score", json=body("not base64!")), 422, "bad_image", "'u' is not base64; encode")
    assert served.http.post("/v1/score", json=body(good)).status_code == 200


BODIES = {
    "empty": ("/v1/score", "", 400, "not_json", "The request is not valid JSON"),
    "cut": ("/v1/score", '{"pairs": [', 400, "not_json", "EOF while parsing"),
    "deep": ("/v1/score", "[" * 100_000, 400, "not_json", "The request is not valid JSON"),
    "half a surrogate": ("/v1/score", '{"pairs":[{"image":"\\ud800","text":"x"}]}', 400, "not_json", "not valid JSON"),
    "a list": ("/v1/score", "[]", 422, "invalid", "Field 'body': "),
    "no pairs": ("/v1/score", '{"pairs": []}', 422, "invalid", "Field 'pairs': "),
    "unknown field": ("/v1/score", '{"pears": 1}', 422, "invalid", "Field required (1 more problem"),
    "a key twice": (
        "/v1/score",
        '{"pairs": [{"image": "0.png", "text": "a"}], "pairs": [{"image": "0.png", "text": "b"}]}',
        422,
        "invalid",
        "The key 'pairs' appears twice in one object of the request; leave one out.",
    ),
    "a key twice inside": (
        "/v1/score",
        '{"pairs": [{"image": "0.png", "text": "a", "text" : "a"}]}',
        422,
        "invalid",
        "The key 'text' appears twice",
    ),
    "a key twice beside a text with colons": (
        "/v1/score",
        '{"pairs": [{"image": "0.png", "text": "a: b: c", "text": "a"}]}',
        422,
        "invalid",
        "The key 'text' appears twice",
    ),
    "null": ("/v1/score", '{"pairs": [{"image": "0.png", "text": null}]}', 422, "invalid", "[0].text': null is not"),
    "null as an image": (
        "/v1/score",
        '{"pairs": [{"image": null, "text": "a"}]}',
        422,
        "invalid",
        "[0].image': null is not allowed here; omit the field, or give a string.",
    ),
    "an upload twice": (
        "/v1/embed",
        '{"uploads": {"a": "AAAA", "\\u0061": "AAAA"}}',
        422,
        "invalid",
        "The key 'a' appears twice",
    ),
    "nan": ("/v1/answer", json.dumps({**RIGHT, "threshold": float("nan")}), 422, "invalid", "Field 'threshold': "),
    "infinite": ("/v1/answer", json.dumps({**RIGHT, "threshold": float("inf")}), 422, "invalid", "Field 'threshold': "),
    "giant": ("/v1/answer", json.dumps({**RIGHT, "top": 10**300}), 422, "invalid", "Field 'top': "),
    "giant float": ("/v1/answer", '{"pairs": [], "threshold": 1e999}', 422, "invalid", "Field 'pairs': "),
    "a word": ("/v1/answer", json.dumps({**RIGHT, "top": "five"}), 422, "invalid", "Field 'top': "),
    "blank text": ("/v1/score", '{"pairs":[{"image":"0.png","text":" \\u001c\\n"}]}', 422, "invalid", "blank"),
    "no image": ("/v1/score", '{"pairs":[{"text":"x"}]}', 422, "invalid", "either 'image'"),
    "two images": ("/v1/score", '{"pairs":[{"image":"a","upload":"b","text":"x"}]}', 422, "invalid", "either 'image'"),
    "unknown image": ("/v1/score", '{"pairs":[{"image":"../x","text":"x"}]}', 404, "unknown_image", "'../x'"),
    "unknown upload": ("/v1/score", '{"pairs":[{"upload":"u","text":"x"}]}', 404, "unknown_upload", "'u'"),
    "unknown model": ("/v1/score", json.dumps({**RIGHT, "model": "aks"}), 404, "unknown_model", "Did you mean 'ask'"),
    "other task": ("/v1/answer", json.dumps({**RIGHT, "model": "match"}), 409, "wrong_task", "does matching"),
    "no search": (
        "/v1/search",
        '{"text": "x", "model": "match"}',
        409,
        "wrong_task",
        "needs a matching run with a first",
    ),
    "no query": ("/v1/search", "{}", 422, "invalid", "a search needs exactly one of 'text', 'image'"),
    "two queries": ("/v1/search", '{"text": "x", "image": "0.png"}', 422, "invalid", "a search needs exactly one of"),
    "texts for a text": ("/v1/search", '{"text": "x", "find": "texts"}', 422, "invalid", "a text finds images"),
    "a file": ("/v1/search", '{"image": "/etc/hostname"}', 404, "unknown_image", "'/etc/hostname'"),
    "no upload": ("/v1/search", '{"upload": "u"}', 404, "unknown_upload", "is not in the request"),
    "no hits": ("/v1/search", '{"text": "x", "k": 0}', 422, "invalid", "Field 'k'"),
    "failing condition": (
        "/v1/search",
        '{"text": "x", "where": "1/0 = 1"}',
        422,
        "invalid",
        "fails on a row (Divide by",
    ),
    "empty query": ("/v1/search", '{"text": ""}', 422, "invalid", "Field 'text': String should have at least 1"),
    "bad condition": ("/v1/search", '{"text": "x", "where": "id ="}', 422, "invalid", "cannot be understood"),
    "nothing": ("/v1/embed", "{}", 422, "invalid", "Nothing to embed"),
    "null in a text": ("/v1/embed", '{"images": ["\\u0000"]}', 404, "unknown_image", "The store has no image"),
    "long text": (
        "/v1/embed",
        json.dumps({"texts": ["x" * 2001]}),
        422,
        "text_too_long",
        "may have at most 2000 characters",
    ),
    "many texts": ("/v1/embed", json.dumps({"texts": ["x"] * 1025}), 413, "too_many_items", "1024 items, found 1025"),
    "many uploads": (
        "/v1/embed",
        json.dumps({"uploads": {str(n): "AAAA" for n in range(17)}}),
        413,
        "too_many_uploads",
        "may contain at most 16 images",
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_wrong_bodies_are_refused_in_one_sentence(served, name):
    path, content, status, code, sentence = BODIES[name]
    response = served.http.post(path, content=content, headers={"content-type": "application/json"})
    refused(response, status, code, sentence)


@pytest.mark.parametrize(
    "where",
    [
        "1=1; DROP TABLE images",
        "id IN (SELECT id FROM texts)",
        "id = read_text('/etc/hostname')",
        "regexp_like(id, '(((((a*)*)*)*)*)*b')",
        "(" * 400,
        "'",
    ],
)
def test_a_condition_is_no_command(made, served, where):
    response = served.http.post("/v1/search", json={"text": "a red square", "where": where})
    assert response.status_code in (200, 422)  # what follows a condition is ignored
    assert "hostname" not in response.text.replace(where, "")
    assert len(Store.open(made.store.path).image_ids) == 120


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/xml; charset=x"])
def test_other_content_types_are_refused(served, kind):
    response = served.http.post("/v1/score", content=json.dumps(RIGHT), headers={"content-type": kind})
    refused(response, 415, "wrong_type", "must be application/json or multipart/form-data, found ")


def test_forms_that_are_none_are_refused(served):
    for headers in ({"content-type": "multipart/form-data"}, {"content-type": "multipart/form-data; boundary=x"}):
        response = served.http.post("/v1/score", content=b"--y\r\nhello", headers=headers)
        assert response.status_code in (400, 422)
        assert response.json()["error"]["message"]
    refused(served.http.post("/v1/score", files={"mine": b"x"}), 422, "invalid", "needs a field 'request'")
    twice = [("u", b"x"), ("u", b"y")]
    response = served.http.post("/v1/score", data={"request": json.dumps(RIGHT)}, files=twice)
    refused(response, 422, "invalid", "a unique name")
    form = {"request": '{"texts": ["a"], "texts": ["b"]}'}
    refused(served.http.post("/v1/embed", data=form, files={"u": b"x"}), 422, "invalid", "'texts' appears twice")


def test_a_request_is_parsed_once_more_only_where_a_key_could_stand_twice(served, monkeypatch):
    parsed = []
    whole = body._KEYS_ONCE
    monkeypatch.setattr(body, "_KEYS_ONCE", SimpleNamespace(decode=lambda text: parsed.append(whole.decode(text))))
    assert served.http.post("/v1/score", json=RIGHT).status_code == 200
    uploads = {"pairs": [{**RIGHT["pairs"][0]}, {**RIGHT["pairs"][0]}], "uploads": {}}
    assert served.http.post("/v1/score", json=uploads).status_code == 200
    assert parsed == []
    colons = {"pairs": [{"image": "0.png", "text": "which colour: red?"}]}
    assert served.http.post("/v1/score", json=colons).status_code == 200
    assert len(parsed) == 1


def test_unknown_routes_and_methods(served):
    refused(served.http.get("/v1/nothing"), 404, "no_such_route", "the routes are listed at /docs")
    response = served.http.get("/v1/score")
    refused(response, 405, "wrong_method", "GET /v1/score")
    assert response.headers["allow"] == "POST"
    for path in ("/docs/assets/../../../etc/passwd", "/docs/assets/%2e%2e/%2e%2e/etc/passwd", "/%2e%2e/etc/passwd"):
        assert served.http.get(path).status_code == 404


def test_bodies_that_are_too_large_are_refused_before_they_are_read(made, runs):
    with client_of(made, runs, names=["ask"], limits=Limits(body_bytes=1000)) as client:
        large = json.dumps({"texts": ["x" * 2000]})
        headers = {"content-type": "application/json"}
        response = client.http.post("/v1/embed", content=large, headers=headers)
        refused(response, 413, "too_large", "may have at most 1,000 bytes; send smaller images")
        # Without a length, the bytes are counted as they come.
        pieces = (large[start : start + 100].encode() for start in range(0, len(large), 100))
        refused(client.http.post("/v1/embed", content=pieces, headers=headers), 413, "too_large", "1,000 bytes")
        for length in ("-1", "x", "9" * 400):
            response = client.http.post("/v1/embed", content=b"{}", headers={**headers, "content-length": length})
            assert response.status_code == 413
        assert client.http.post("/v1/embed", json={"texts": ["x"]}).status_code == 200


@pytest.mark.slow
def test_a_full_service_says_when_to_come_back(made, runs):
    with client_of(made, runs, names=["ask"], limits=Limits(waiting_items=1)) as client:
        response = client.http.post("/v1/score", json={"pairs": RIGHT["pairs"] * 2})
        refused(response, 503, "overloaded", "0 of at most 1 items are waiting for the model; try again later")
        assert response.headers["retry-after"] == "1"
        assert client.http.post("/v1/score", json=RIGHT).status_code == 200
    with client_of(made, runs, names=["ask"], limits=Limits(requests=0)) as client:
        refused(client.http.get("/v1/models"), 503, "overloaded", "0 requests are in progress")
        # Whoever keeps the service alive must not take it for dead because it is busy.
        assert client.http.get("/healthz").status_code == client.http.get("/readyz").status_code == 200
    with client_of(made, runs, names=["ask"], limits=Limits(held_bytes=10)) as client:
        refused(client.http.post("/v1/score", json=RIGHT), 503, "overloaded", "Too many large requests")
        assert client.app._middleware.share.bytes == 0


def test_a_slow_client_is_not_waited_for(made, runs):
    with client_of(made, runs, names=["ask"], limits=Limits(body_seconds=0.05)) as client:

        async def ask():
            sent = []

            async def receive():
                await asyncio.sleep(0.03)
                return {"type": "http.request", "body": b" ", "more_body": True}

            async def send(message):
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": "/v1/score", "raw_path": b"/v1/score"}
            headers = [(b"content-type", b"application/json")]
            await client.app({**scope, "headers": headers, "query_string": b""}, receive, send)
            return sent

        start, body = asyncio.run(ask())
    assert start["status"] == 408
    assert (b"connection", b"close") in start["headers"]
    message = json.loads(body["body"])["error"]["message"]
    assert message == "The request took more than 0.05 s to arrive."


def test_whoever_has_no_key_is_refused_everywhere_but_at_the_state_routes(made, runs):
    with client_of(made, runs, names=["ask"], keys=[KEY, OTHER]) as client:
        paths = ("/v1/models", "/metrics", "/docs", "/openapi.json", "/docs/assets/swagger-ui.css", "/")
        wrong = (None, "Bearer ", "Bearer x", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", KEY, "Basic !", "Basic eDp5")
        for path in paths:
            for value in wrong:
                response = client.http.get(path, headers={"authorization": value} if value else {})
                refused(response, 401, "no_key", "needs an API key; send it in the header 'Authorization: Bearer KEY'")
                assert response.headers["www-authenticate"].startswith("Bearer")
        right = [f"Bearer {KEY}", f"bearer {OTHER}", f"Basic {based(f'anybody:{KEY}'.encode())}"]
        for value in right:
            assert client.http.get("/v1/models", headers={"authorization": value}).status_code == 200
        assert client.http.get("/healthz").status_code == client.http.get("/readyz").status_code == 200
        assert client.http.post("/v1/score", json=RIGHT).status_code == 401
        document = client.http.get("/openapi.json", headers={"authorization": right[0]}).json()
        assert document["security"] == [{"key": []}]


def test_keys_come_from_the_environment(monkeypatch):
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    assert not Keys.of_environment()
    monkeypatch.setenv(KEYS_VARIABLE, f" {KEY} , {OTHER},")
    keys = Keys.of_environment()
    assert keys.admit(KEY)
    assert keys.admit(OTHER)
    assert not keys.admit(f"{KEY},{OTHER}")
    assert not keys.admit("")
    assert KEY not in repr(vars(keys))
    monkeypatch.setenv(KEYS_VARIABLE, "short")
    with pytest.raises(UsageError, match="expected keys of at least 16 characters, found one of 5"):
        Keys.of_environment()
    monkeypatch.setenv(KEYS_VARIABLE, " , ")
    with pytest.raises(UsageError, match="is set but contains no key"):
        Keys.of_environment()

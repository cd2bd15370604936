"""What the page's library may be asked: no path and no address that a client chose."""

import json
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from frevl.deployment.service.http import page_uploads
from frevl.deployment.service.http.fair_share import ASKING
from frevl.deployment.service.http.limits import Limits
from frevl.deployment.service.http.page_guard import PageGuard

UPLOADS = "/uploads"
EVENTS = "/gradio_api/queue/join"


@pytest.fixture(scope="module")
def guarded():
    """A page that answers everything with what it got."""

    async def echo(request):
        return JSONResponse({"got": (await request.body()).decode()})

    app = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST", "PUT", "DELETE"])])
    with TestClient(PageGuard(app, UPLOADS, Limits())) as client:
        yield client


def event(**file):
    return {"data": ["a text", 0.5, None, {"meta": {"_type": "gradio.FileData"}, **file}], "fn_index": 0}


@pytest.mark.parametrize(
    "file",
    [
        {"path": "/etc/passwd"},
        {"path": "/uploads"},
        {"path": "/uploads/../etc/passwd"},
        {"path": "/uploads-of-others/x.png"},
        {"path": "uploads/x.png"},
        {"path": "http://example.org/x.png"},
        {"path": "file:///uploads/x.png"},
        {"path": ["/uploads/x.png"]},
        {"path": {"path": "/etc/passwd"}},
        {"path": "/uploads/x.png", "url": "http://example.org/x.png"},
        {"path": "/uploads/x.png", "other": [{"path": "/etc/passwd"}]},
    ],
)
def test_files_that_were_not_uploaded_are_refused(guarded, file):
    response = guarded.post(EVENTS, json=event(**file))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid"
    assert response.json()["error"]["message"].startswith("This names a file that was not uploaded here;")


def test_uploads_and_plain_data_reach_the_page_unchanged(guarded):
    uploaded = event(path="/uploads/ab/x.png", url="http://127.0.0.1:8000/gradio_api/file=/uploads/ab/x.png", size=3)
    for body in (uploaded, event(), {"data": ["path", "/etc/passwd"]}, {"data": [{"path": None}]}):
        response = guarded.post(EVENTS, json=body)
        assert response.status_code == 200
        assert json.loads(response.json()["got"]) == body


def test_what_is_no_json_is_refused(guarded):
    for content in (b"", b"{", b"[" * 100_000, b"\xff"):
        assert guarded.post(EVENTS, content=content).status_code == 400


def test_only_known_routes_are_let_through(guarded):
    for path in ("/", "/config", "/assets/x.js", "/gradio_api/queue/data?session_hash=x", "/theme.css"):
        assert guarded.get(path).status_code == 200
    for path in (
        "/gradio_api/heartbeat/x",
        "/gradio_api/file=/etc/passwd",
        "/file=x",
        "/gradio_api/proxy=http://example.org",
        "/gradio_api/info",
    ):
        assert guarded.get(path).status_code == 404
    for path in (
        "/",
        EVENTS + "/",
        "/gradio_api/run/x",
        "/gradio_api/call/x",
        "/gradio_api/component_server",
        "/config",
    ):
        assert guarded.post(path, json=event(path="/etc/passwd")).status_code == 404
    assert guarded.put(EVENTS, json={}).status_code == 404


def test_errors_of_the_pages_library_have_the_shape_of_all_others_and_none_of_its_words():
    async def fail(request):
        return JSONResponse({"detail": "File not found: /etc/passwd"}, int(request.path_params["status"]))

    app = Starlette(routes=[Route("/static/{status}", fail), Route(EVENTS, fail, methods=["POST"])])
    with TestClient(PageGuard(app, UPLOADS, Limits())) as client:
        for status, code in ((403, "invalid"), (404, "no_such_route"), (413, "too_large"), (500, "internal")):
            response = client.get(f"/static/{status}")
            assert response.status_code == status
            assert response.json()["error"]["code"] == code
            assert response.json()["error"].keys() == {"code", "message", "request_id"}
            assert "passwd" not in response.text
        elsewhere = client.get("/nowhere").json()["error"]
        assert elsewhere["code"] == "no_such_route"
        assert "GET /nowhere: Not part of the page" in elsewhere["message"]


def kept_in(folder):
    """Return what the files hold that the page keeps."""
    return sorted(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_uploads_are_kept_below_the_folder_under_names_of_our_own(tmp_path):
    with TestClient(PageGuard(Starlette(), str(tmp_path), Limits())) as client:
        sent = [("files", ("../../etc/passwd.png", b"one")), ("files", ("x" * 300, b"two")), ("other", ("y", b"three"))]
        response = client.post("/gradio_api/upload?upload_id=u", files=sent)
        assert response.status_code == 200
        first, second = (Path(path) for path in response.json())
        assert (first.name, first.read_bytes(), second.name, second.read_bytes()) == (
            "picture.png", b"one", "picture", b"two",
        )  # fmt: skip
        assert tmp_path in first.parents
        assert kept_in(tmp_path) == [b"one", b"two"]
        # The page's library waits for this stream before it goes on.
        assert '"done"' in client.get("/gradio_api/upload_progress?upload_id=u").text
        broken = {"content-type": "multipart/form-data"}
        response = client.post("/gradio_api/upload", content=b"no form", headers=broken)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "not_multipart")
        many = [("files", (f"{number}.png", b"x")) for number in range(17)]
        response = client.post("/gradio_api/upload", files=many)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "not_multipart")
        assert kept_in(tmp_path) == [b"one", b"two"]


def test_all_uploads_together_have_a_limit_and_a_client_pays_for_its_own(tmp_path):
    guard = PageGuard(Starlette(), str(tmp_path), Limits(page_upload_bytes=100))

    async def as_client(scope, receive, send):
        if scope["type"] == "http":
            ASKING.set(dict(scope["headers"])[b"x-client"].decode())
        await guard(scope, receive, send)

    def send(client_name, content):
        sent = {"files": ("x.png", content)}
        (path,) = client.post("/gradio_api/upload", files=sent, headers={"x-client": client_name}).json()
        return Path(path)

    with TestClient(as_client) as client:
        modest = send("modest", b"m" * 20)
        greedy = [send("greedy", bytes([number]) * 30) for number in range(10)]
        assert [path.is_file() for path in greedy] == [False] * 8 + [True] * 2
        assert modest.is_file()
        assert sum(map(len, kept_in(tmp_path))) == 80


def test_uploads_are_deleted_after_an_hour(tmp_path, monkeypatch):
    with TestClient(PageGuard(Starlette(), str(tmp_path), Limits())) as client:
        client.post("/gradio_api/upload", files={"files": b"old"})
        monkeypatch.setattr(page_uploads, "_KEPT_SECONDS", 0.0)
        client.post("/gradio_api/upload", files={"files": b"new"})
    assert kept_in(tmp_path) == [b"new"]

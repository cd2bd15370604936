"""What the page's library may be asked: no path and no address that a client chose."""

import json

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from frevl.deployment.service.http.page_guard import PageGuard

UPLOADS = "/uploads"
EVENTS = "/gradio_api/queue/join"


@pytest.fixture(scope="module")
def guarded():
    """A page that answers everything with what it got."""

    async def echo(request):
        return JSONResponse({"got": (await request.body()).decode()})

    app = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST", "PUT", "DELETE"])])
    with TestClient(PageGuard(app, UPLOADS)) as client:
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
    assert guarded.post("/gradio_api/upload", content=b"x").status_code == 200
    for path in ("/gradio_api/file=/etc/passwd", "/file=x", "/gradio_api/proxy=http://example.org", "/gradio_api/info"):
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
    with TestClient(PageGuard(app, UPLOADS)) as client:
        for status, code in ((403, "invalid"), (404, "no_such_route"), (413, "too_large"), (500, "internal")):
            response = client.get(f"/static/{status}")
            assert response.status_code == status
            assert response.json()["error"]["code"] == code
            assert response.json()["error"].keys() == {"code", "message", "request_id"}
            assert "passwd" not in response.text
        elsewhere = client.get("/nowhere").json()["error"]
        assert elsewhere["code"] == "no_such_route"
        assert "GET /nowhere: Not part of the page" in elsewhere["message"]

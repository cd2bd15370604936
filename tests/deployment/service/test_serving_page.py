"""What the page is told: which parts work for the served runs, and on which one it opens."""

import shutil

import pytest
from starlette.testclient import TestClient

from frevl.deployment.service.app import Application
from frevl.deployment.service.explorer.explorer import Explorer
from frevl.deployment.service.http.limits import Keys, Limits
from frevl.deployment.service.models import Service
from frevl.runs.scorer import Scorer
from frevl.store.reader import Store
from served import client_of, refused, runs, served

pytestmark = pytest.mark.slow

__all__ = ["runs", "served"]  # fixtures


def parts_of(made, runs, *names, explorer=True, **options):
    service = Service({name: Scorer.open(runs / name, store=made.store) for name in names}, limits=Limits())
    shown = Explorer(service, images=made.images, writable=False) if explorer else None
    with TestClient(Application(service, explorer=shown, **options)) as http:
        return http.get("/explore/parts").json()


def test_it_opens_on_the_runs_and_where_pictures_are_explored_on_these(made, runs):
    found = parts_of(made, runs, "ask", "find")
    assert (found["opens"], found["explorer"], found["pictures"], found["reports"]) == ("ask", True, True, 0)
    assert found["name"] == made.store.path.name
    assert parts_of(made, runs, "ask", opens_explorer=True)["opens"] == "pictures"


def test_a_store_without_pictures_has_a_page_too(made, runs):
    found = parts_of(made, runs, "read", explorer=False)
    assert (found["opens"], found["explorer"], found["pictures"]) == ("ask", False, False)
    (run,) = found["models"]
    assert (run["name"], run["reads"], run["embeds"]) == ("read", ["text"], ["text"])


def test_what_a_run_reads_and_embeds_is_said(served):
    listed = {one["name"]: one for one in served.http.get("/v1/models").json()["models"]}
    assert {name: one["embeds"] for name, one in listed.items()} == {name: ["image", "text"] for name in listed}
    assert served.http.get("/explore/parts").json()["models"] == list(listed.values())


def test_the_page_stands_at_the_root_and_a_service_may_leave_it_out(served, made, runs):
    page = served.http.get("/")
    assert page.status_code == 200
    assert page.text == served.http.get("/explore/").text
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'")
    assert "unsafe" not in policy
    service = Service({"ask": Scorer.open(runs / "ask", store=made.store)}, limits=Limits())
    with TestClient(Application(service, page=False)) as http:
        for path in ("/", "/explore/", "/explore/page/index.js"):
            refused(http.get(path), 404, "no_such_route", "the routes are listed at /docs")


def test_keys_hold_for_the_page_and_all_it_asks(made, runs):
    key = "k" * 16
    with client_of(made, runs, keys=[key], names=["ask"]) as client:
        for path in ("/", "/explore/", "/explore/parts", "/explore/reports", "/explore/report", "/report"):
            refused(client.http.get(path), 401, "no_key", "This service needs an API key")
            assert client.http.get(path, auth=("any", key)).status_code in (200, 404)


def test_without_keys_no_name_of_another_site_leads_to_the_parts_and_the_reports(made, runs):
    service = Service({"ask": Scorer.open(runs / "ask", store=made.store)}, limits=Limits())
    with TestClient(Application(service, keys=Keys(), is_local=True), base_url="http://evil.example") as http:
        for path in ("/explore/parts", "/explore/reports", "/explore/report"):
            refused(http.get(path), 403, "other_host", "'evil.example'")


def test_the_page_needs_no_stream_that_stays_open_and_nothing_of_the_former_one_is_left(served):
    assert "event-stream" not in served.http.get("/openapi.json").text
    for path in ("/config", "/gradio_api/queue/data?session_hash=x", "/gradio_api/file=/etc/passwd", "/theme.css"):
        refused(served.http.get(path), 404, "no_such_route", "the routes are listed at /docs")
    sent = served.http.post("/gradio_api/upload", files={"files": ("x.png", b"x")})
    refused(sent, 404, "no_such_route", "the routes are listed at /docs")


def test_a_picture_that_is_sent_is_kept_nowhere(made, runs, tmp_path, monkeypatch):
    """The page sends it with every question, so that nothing has to be kept, counted or deleted."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    shutil.copytree(made.store.path, tmp_path / "store")
    before = sorted((tmp_path / "store").rglob("*"))
    service = Service({"ask": Scorer.open(runs / "ask", store=Store.open(tmp_path / "store"))}, limits=Limits())
    content = (made.images / "3.png").read_bytes()
    request = '{"pairs": [{"upload": "picture", "text": "is the square red?"}], "sets": 0.9}'
    with TestClient(Application(service)) as http:
        said = http.post("/v1/score", data={"request": request}, files={"picture": ("../../x.png", content)})
    assert said.status_code == 200
    assert sorted((tmp_path / "store").rglob("*")) == before
    assert list((tmp_path / "temporary").rglob("*")) == []


@pytest.mark.parametrize("rerank", [True, False])
def test_both_orders_of_a_search_come_in_one_answer(served, rerank):
    asked = {"text": "a red square", "k": 5, "rerank": rerank}
    plain = served.http.post("/v1/search", json=asked).json()
    both = served.http.post("/v1/search", json={**asked, "stages": True}).json()
    first = served.http.post("/v1/search", json={**asked, "rerank": False}).json()
    assert "first_stage" not in plain
    assert both.pop("first_stage") == first["hits"]
    assert both == plain

"""Reports in the page: found in the folders of runs, shown, and never executed."""

import os

import pytest
from starlette.testclient import TestClient

from frevl.deployment.service.app import Application
from frevl.deployment.service.explorer.asking import reports as module
from frevl.deployment.service.explorer.asking.reports import Reports
from frevl.deployment.service.http.limits import Limits
from frevl.deployment.service.models import Service
from served import refused


@pytest.fixture
def place(tmp_path, made):
    """Two runs, ``a`` with two reports, and one that was named."""
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
    (tmp_path / "a" / "fairness.html").write_text("<title>Fair &amp; square</title>")
    (tmp_path / "a" / "report.html").write_text("<p>The verdict</p>")
    (tmp_path / "a" / "run.json").write_text("{}")
    (tmp_path / "other.html").write_text("<title>  <b>other\n page </title>")
    service = Service({}, store=made.store, limits=Limits())
    reports = Reports({"a": tmp_path / "a", "b": tmp_path / "b"}, [tmp_path / "other.html"])
    with TestClient(Application(service, reports=reports)) as http:
        yield tmp_path, http


def listed(http):
    return [(one["id"], one["run"], one["title"]) for one in http.get("/explore/reports").json()["reports"]]


def test_they_are_listed_the_named_one_first_and_the_diagnosis_before_others(place):
    folder, http = place
    assert listed(http) == [
        ("other.html", "", "<b>other page"),
        ("a/report.html", "a", "report.html"),
        ("a/fairness.html", "a", "Fair & square"),
    ]
    assert http.get("/explore/parts").json()["reports"] == 3
    (folder / "b" / "report.html").write_text("later")  # written while the service runs
    assert listed(http)[-1] == ("b/report.html", "b", "report.html")


def test_a_browser_runs_nothing_of_a_report_and_asks_nobody(place):
    _, http = place
    shown = http.get("/explore/report", params={"of": "a/report.html"})
    assert shown.text == "<p>The verdict</p>"
    policy = shown.headers["content-security-policy"].split("; ")
    assert policy[:2] == ["sandbox", "default-src 'none'"]  # a bare sandbox: no scripts, forms, windows
    assert "frame-ancestors 'self'" in policy
    assert not any(source in part for part in policy for source in ("script", "'self'", "http") if "frame" not in part)
    assert http.get("/report").headers["content-security-policy"] == shown.headers["content-security-policy"]
    assert http.get("/report").text == http.get("/explore/report").text == "<title>  <b>other\n page </title>"


def test_a_report_that_is_gone_and_names_that_lead_elsewhere(place):
    folder, http = place
    (folder / "a" / "report.html").unlink()
    for of in ("a/report.html", "a/run.json", "../a/fairness.html", str(folder / "other.html"), "a/../b/x.html", "<b>"):
        said = http.get("/explore/report", params={"of": of})
        refused(said, 404, "unknown_report", "create one with frevl diagnose --html RUN/report.html")
        assert str(folder) not in said.text.replace(of[:80], "")  # what was asked for may be repeated, cut
    for name in ("a", "b"):
        for path in (folder / name).iterdir():
            path.unlink()
        (folder / name).rmdir()
    assert listed(http) == [("other.html", "", "<b>other page")]
    (folder / "other.html").unlink()
    assert listed(http) == []
    refused(http.get("/report"), 404, "unknown_report", "There is no report;")


def test_files_of_one_name_have_ids_of_their_own(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "report.html").write_text(folder)
    found = Reports(files=[tmp_path / "x" / "report.html", tmp_path / "y" / "report.html"])
    assert [one.id for one in found.all()] == ["report.html", "report.html (2)"]
    assert found.answer("report.html (2)").body == b"y"


def test_a_folder_a_dead_link_and_a_report_that_is_too_large(tmp_path, monkeypatch):
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "dead.html").symlink_to(tmp_path / "none.html")
    os.mkfifo(tmp_path / "pipe.html")
    (tmp_path / "large.html").write_bytes(b"x" * 100)
    monkeypatch.setattr(module, "_LARGEST", 99)
    found = Reports({"run": tmp_path})
    assert [one.id for one in found.all()] == ["run/large.html"]
    with pytest.raises(module.RefusedError, match="has 100 bytes, and at most 99 can be shown here"):
        found.answer("run/large.html")


def test_a_name_that_is_no_text_is_listed_with_escapes_and_shown(place):
    folder, http = place
    (folder / "b" / os.fsdecode(b"\xff.html")).write_text("of b")
    assert listed(http)[-1] == ("b/\\udcff.html", "b", "\\udcff.html")
    assert http.get("/explore/report", params={"of": "b/\\udcff.html"}).text == "of b"

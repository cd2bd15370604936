"""A run trained from the page is served on demand, alongside the others and their reports."""

import shutil
import time

import pytest

from explored import copied, explored
from frevl.deployment.service.explorer.background.job import Job
from frevl.runs.scorer import Scorer
from frevl.store.extraction.extract import extract
from served import refused, runs

pytestmark = pytest.mark.slow

__all__ = ["runs"]  # a fixture


def finished(place, runs, name, of):
    """Put a run where the page trains them, as one that is done."""
    folder = place.store / "runs"
    folder.mkdir(exist_ok=True)
    shutil.copytree(runs / of, folder / name)
    job = Job(folder, name, (), "classification", "linear", "ada", 10, True, time.time(), time.time(), code=0)
    job.keep()
    return folder / name


@pytest.fixture
def place(made, tmp_path):
    return copied(made, tmp_path)


def use(http, name, **more):
    return http.post("/explore/training/ask", json={"name": name}, **more)


def test_it_answers_as_the_run_does_stands_beside_others_and_shows_its_report(place, runs):
    run = finished(place, runs, "taught", "look")
    (run / "report.html").write_text("<title>Of the taught one</title>")
    expected = Scorer.open(run, store=place.store).label(["0.png"])[0]
    with explored(place.store, place.images) as here:
        refused(here.http.post("/v1/score", json={"pairs": [{"image": "0.png"}]}), 409, "no_model", "--run RUN")
        said = use(here.http, "taught").json()
        assert (said["name"], said["reads"]) == ("taught", ["image"])
        assert use(here.http, "taught").json() == said  # again does no harm
        assert [one["name"] for one in here.http.get("/explore/parts").json()["models"]] == ["taught"]
        asked = {"model": "taught", "pairs": [{"image": "0.png"}]}
        (score,) = here.http.post("/v1/score", json=asked).json()["scores"]
        assert (score["label"], score["probability"]) == (expected.label, pytest.approx(expected.probability, abs=1e-5))
        (report,) = here.http.get("/explore/reports").json()["reports"]
        assert (report["id"], report["title"]) == ("taught/report.html", "Of the taught one")


def test_it_knows_pictures_that_are_added_later(place, runs, made):
    finished(place, runs, "taught", "look")
    with explored(place.store, place.images) as here:
        use(here.http, "taught")
        (place.images / "new.png").write_bytes((made.images / "3.png").read_bytes())
        extract(place.store, images=place.images, encoder=["toy"])
        time.sleep(2.1)  # at most every two seconds somebody looks for a newer store
        asked = {"pairs": [{"image": "new.png"}, {"image": "3.png"}]}
        new, old = here.http.post("/v1/score", json=asked).json()["scores"]
        assert new["probability"] == pytest.approx(old["probability"], abs=1e-5)


def test_what_cannot_be_served_is_refused_in_words(place, runs, made):
    refused_run = finished(place, runs, "broken", "look")
    (refused_run / "weights.safetensors").write_bytes(b"none")
    finished(place, runs, "gone", "look")
    shutil.rmtree(place.store / "runs" / "gone")
    finished(place, runs, "ask", "look")
    scorers = {"ask": Scorer.open(runs / "ask", store=made.store)}
    with explored(place.store, place.images, scorers=scorers) as here:
        refused(use(here.http, "away"), 404, "no_run", "There is no run 'away' here")
        refused(use(here.http, "gone"), 409, "not_done", "its training is deleted")
        refused(use(here.http, "ask"), 409, "name_taken", "Another run is served as 'ask'")
        broken = use(here.http, "broken")
        refused(broken, 409, "wrong_run", "")
        assert str(place.store) not in broken.text
        other = {"origin": "http://evil.example", "sec-fetch-site": "cross-site"}
        refused(use(here.http, "broken", headers=other), 403, "other_site", "only from this service's own page")
    with explored(place.store, place.images, writable=False) as here:
        refused(use(here.http, "broken"), 403, "read_only", "This service does not accept labels")


def test_a_run_that_was_trained_anew_under_its_name_answers_in_place_of_the_former(place, runs):
    finished(place, runs, "again", "look")
    with explored(place.store, place.images) as here:
        assert use(here.http, "again").json()["reads"] == ["image"]
        for path in (place.store / "runs").iterdir():  # as the page says how to delete it
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        finished(place, runs, "again", "read")
        assert use(here.http, "again").json()["reads"] == ["text"]
        (score,) = here.http.post("/v1/score", json={"model": "again", "pairs": [{"text": "red"}]}).json()["scores"]
        former = here.http.post("/v1/score", json={"model": "again", "pairs": [{"image": "0.png"}]})
        assert (score["label"] in Scorer.open(runs / "read", store=place.store).run.labels, former.status_code) == (
            True,
            422,
        )
        (served,) = here.http.get("/explore/parts").json()["models"]
        assert served["reads"] == ["text"]

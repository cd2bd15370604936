"""Trainings in the background over HTTP: started on labels or pairs, watched, cancelled, resumed, failed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from explored import copied, explored
from frevl.deployment.service.explorer.background import trainings as started
from frevl.deployment.service.explorer.background.job import Job
from frevl.store.labels.labels_file import LabelsFile
from served import refused

# In place of `frevl`, for the ways in which a training can end.
_SLOW = "import time; print('half', flush=True); time.sleep(60)"
_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('no', flush=True); time.sleep(60)"
)


@pytest.fixture
def place(made, tmp_path):
    found = copied(made, tmp_path)
    ids = made.store.ids("image")
    LabelsFile(found.store).label("ada", [(id_, "odd" if row % 2 else "even") for row, id_ in enumerate(ids[:40])])
    return found


@pytest.fixture
def here(place):
    with explored(place.store, place.images) as found:
        found.place = place
        yield found


@pytest.fixture
def instead(monkeypatch):
    """Run a few lines of Python instead of a training."""
    kept = subprocess.Popen

    def use(code):
        monkeypatch.setattr(started.subprocess, "Popen", lambda _, **given: kept([sys.executable, "-c", code], **given))

    return use


def train(here, **asked):
    return here.http.post("/explore/train", json={"by": "ada", **asked})


def listed(here):
    return {one["name"]: one for one in here.http.get("/explore/trainings").json()["trainings"]}


def until(here, name, *states, seconds=60):
    end = time.monotonic() + seconds
    while (one := listed(here)[name])["state"] not in states:
        assert time.monotonic() < end, one
        time.sleep(0.05)
    return one


@pytest.mark.slow
def test_a_run_is_trained_on_the_labels_and_appears_in_the_list(here):
    begun = train(here, model="mlp").json()
    assert (begun["name"], begun["state"], begun["pairs"], begun["of_labels"]) == ("taught-1", "running", 40, True)
    refused(train(here), 409, "busy", "is running")
    done = until(here, "taught-1", "done", "failed")
    assert (done["state"], done["progress"], done["problem"]) == ("done", 1.0, "")
    assert 0 <= done["accuracy"] <= 100
    whole = here.http.get("/explore/training", params={"name": "taught-1"}).json()
    assert whole["labels"] == ["even", "odd"]
    assert whole["folder"] == "runs/taught-1"
    assert str(here.place.store) not in json.dumps(whole)
    assert (here.place.store / "runs" / "taught-1" / "run.json").is_file()
    # Deleted while it is shown: words, and the row stays.
    shutil.rmtree(here.place.store / "runs" / "taught-1")
    gone = here.http.get("/explore/training", params={"name": "taught-1"}).json()
    assert (gone["state"], gone["problem"]) == (
        "deleted",
        "The folder of this run was deleted or moved.",
    )
    for file in (here.place.store / "runs").glob("taught-1.*"):
        file.unlink()
    refused(here.http.get("/explore/training", params={"name": "taught-1"}), 404, "no_run", "it may have been deleted")


@pytest.mark.slow
def test_a_fusion_is_trained_on_pairs_that_are_sent_along_and_a_failure_is_said_in_its_words(here, made):
    asked = {"request": json.dumps({"by": "ada", "name": "own", "model": "tiny", "minutes": 0.05})}
    answer = here.http.post("/explore/train", data=asked, files={"pairs": made.train_file.read_bytes()})
    assert answer.json()["of_labels"] is False
    assert until(here, "own", "done", "failed")["state"] == "done"
    train(here, name="wrong", model="tiny")
    failed = until(here, "wrong", "failed")
    assert failed["problem"].startswith("The model 'tiny' needs images and texts, and the pairs are images only")
    assert here.http.get("/explore/training", params={"name": "wrong"}).json()["said"]


@pytest.mark.slow
def test_a_training_is_cancelled_and_continued(here, instead):
    instead(_SLOW)
    train(here, name="one")
    while "half" not in here.http.get("/explore/training", params={"name": "one"}).json()["said"]:
        time.sleep(0.02)
    assert listed(here)["one"]["step"] == "half"
    assert here.http.post("/explore/training/cancel", json={"name": "one"}).json()["state"] in ("stopping", "cancelled")
    assert until(here, "one", "cancelled")["problem"] == ""
    refused(here.http.post("/explore/training/cancel", json={"name": "one"}), 409, "not_running", "nothing is running")
    instead("print('again')")
    here.http.post("/explore/training/resume", json={"name": "one"})
    assert until(here, "one", "deleted")  # this stand-in writes no run
    assert here.http.get("/explore/training", params={"name": "one"}).json()["said"] == ["half", "again"]
    refused(here.http.post("/explore/training/resume", json={"name": "one"}), 409, "not_stopped", "nothing to resume")


@pytest.mark.slow
def test_the_steps_of_auto_and_the_epochs_of_others_are_a_share_and_the_time_that_is_left(here, instead):
    instead(_SLOW)
    train(here, name="one")
    run = here.place.store / "runs" / "one"
    steps = run / ".unfinished" / "progress.json"
    steps.parent.mkdir(parents=True)
    told = {"done": 3, "of": 10, "doing": "text", "share": 0.25, "left": 100.0, "at_most": 300.0}
    steps.write_text(json.dumps(told))
    one = listed(here)["one"]
    assert (one["progress"], one["step"]) == (0.25, "step 4 of 10: text")
    assert 90 < one["left"] <= 100
    assert 290 < one["at_most"] <= 300
    steps.write_text('{"done": 3, "of"')
    assert listed(here)["one"]["progress"] is None  # half a file is none
    # What was written before this call was continued is of another process.
    steps.write_text(json.dumps(told))
    os.utime(steps, (1, 1))
    assert listed(here)["one"]["progress"] is None
    steps.unlink()
    (run / "settings.json").write_text('{"epochs": 8}')
    (run / "log.jsonl").write_text('{"epoch": 1, "seconds": 3.0}\n{"epoch": 2, "seconds": 4.0}\n')
    one = listed(here)["one"]
    assert (one["progress"], one["step"], one["left"]) == (0.25, "epoch 2 of at most 8", None)
    assert 0 < one["at_most"] <= 12
    here.http.post("/explore/training/cancel", json={"name": "one"})
    until(here, "one", "cancelled")


@pytest.mark.slow
def test_one_that_does_not_end_politely_is_ended(here, instead, monkeypatch):
    monkeypatch.setattr(started, "_PATIENCE", 0.2)
    instead(_STUBBORN)
    train(here, name="one")
    while not here.http.get("/explore/training", params={"name": "one"}).json()["said"]:
        time.sleep(0.02)
    here.http.post("/explore/training/cancel", json={"name": "one"})
    assert until(here, "one", "cancelled")


@pytest.mark.slow
def test_a_killed_training_says_so(here, instead):
    instead(_SLOW)
    train(here, name="one")
    os.kill(Job.read(here.place.store / "runs" / "one.job.json").process, signal.SIGKILL)
    assert until(here, "one", "failed")["problem"] == (
        "The training was killed (SIGKILL), perhaps because memory ran out. Resume it."
    )


@pytest.mark.slow
def test_a_training_outlives_a_service_that_was_killed_and_is_found_again(place, instead):
    instead(_SLOW)
    with explored(place.store) as first:
        train(first, name="one")
        first.explorer.trainings._watched.clear()  # as after kill -9: nobody watches it
        with explored(place.store) as second:
            assert listed(second)["one"]["state"] == "running"
            refused(train(second, name="two"), 409, "busy", "is running")
            second.http.post("/explore/training/cancel", json={"name": "one"})
            until(second, "one", "cancelled")


@pytest.mark.slow
def test_a_training_is_continued_from_another_folder_and_where_the_store_was_moved(place, instead, monkeypatch):
    instead("print('At', __import__('os').getcwd() + '/store/runs', flush=True); " + _SLOW)
    monkeypatch.chdir(place.store.parent)
    with explored(place.store.name) as first:
        assert train(first, name="one").json()["name"] == "one"
        while not (said := first.http.get("/explore/training", params={"name": "one"}).json()["said"]):
            time.sleep(0.02)
        assert said[0] == "At STORE/runs"
    moved = place.store.rename(place.store.with_name("moved"))
    (moved.parent / "elsewhere").mkdir()
    monkeypatch.chdir(moved.parent / "elsewhere")
    with explored(moved) as second:
        assert second.http.post("/explore/training/resume", json={"name": "one"}).json()["state"] == "running"
        asked = Job.read(moved / "runs" / "one.job.json").arguments
    places = [str(moved), str(moved / "runs" / "one.pairs.jsonl"), str(moved / "runs" / "one")]
    assert asked[:9] == ("train", "--store", places[0], "--pairs", places[1], "--run", places[2], "--task",
                         "classification")  # fmt: skip


@pytest.mark.slow
def test_the_service_ends_what_it_has_started(place, instead):
    instead(_SLOW)
    with explored(place.store) as here:
        train(here, name="one")
    job = Job.read(place.store / "runs" / "one.job.json")
    assert (job.lives(), job.state()) == (False, "cancelled")


@pytest.mark.slow
def test_another_process_that_got_the_id_is_not_taken_for_the_training(here, instead):
    instead("pass")
    train(here, name="one")
    until(here, "one", "deleted")
    job = Job.read(here.place.store / "runs" / "one.job.json")
    mine = replace(job, code=None, process=os.getpid(), born="1")
    assert not mine.lives()
    assert mine.state() == "interrupted"
    mine.signal(signal.SIGTERM)  # is not sent
    assert replace(job, code=None).with_process(os.getpid()).lives()


@pytest.mark.slow
def test_what_cannot_be_trained_is_refused_in_words(here, place, instead):
    instead("pass")
    refused(train(here, task="matching"), 422, "invalid", "upload a file of image-text pairs")
    refused(train(here, name="../out"), 422, "invalid", "name")
    refused(train(here, model="--help"), 422, "invalid", "model")
    asked = {"request": json.dumps({"by": "ada"})}
    refused(here.http.post("/explore/train", data=asked, files={"pairs": b"no pairs"}), 422, "invalid", "the file")
    assert not (place.store / "runs" / "taught-1.job.json").exists()
    train(here, name="one")
    until(here, "one", "deleted")
    refused(train(here, name="ONE"), 409, "name_taken", "another name")
    refused(here.http.post("/explore/training/resume", json={"name": "two"}), 404, "no_run", "'two'")
    (place.store / "labels" / "labels.jsonl").unlink()
    refused(train(here), 409, "no_labels", "label some")
    (place.store / "runs" / "odd.job.json").write_text("{}")
    assert list(listed(here)) == ["one"]


@pytest.mark.slow
def test_a_service_that_only_shows_trains_nothing(place):
    with explored(place.store, writable=False) as here:
        refused(train(here), 403, "read_only", "does not accept labels")
        refused(
            here.http.post("/explore/training/cancel", json={"name": "one"}), 403, "read_only", "does not accept labels"
        )
        assert here.http.get("/explore/trainings").json() == {"writable": False, "trainings": []}
        assert not (place.store / "runs").exists()


@pytest.mark.slow
def test_a_place_that_cannot_be_written_is_said(here, place):
    (place.store / "runs").write_text("a file")
    refused(train(here), 503, "store", "cannot be started")
    assert listed(here) == {}

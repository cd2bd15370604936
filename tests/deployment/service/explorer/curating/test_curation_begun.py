"""Curations started from the page: what they resume, who finds and stops them, and how long they took."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from explored import copied, explored
from frevl.deployment.service.explorer.background.processes import birth_of, is_alive
from frevl.deployment.service.explorer.curating import background
from frevl.deployment.service.explorer.curating.curations import Curations
from served import refused

_SLEEPS = "import time; print('learning', flush=True); time.sleep(600)"


@pytest.fixture
def world(made, tmp_path):
    return copied(made, tmp_path)


def opened(world, code=_SLEEPS, pairs=None):
    """Explore with a few lines of Python in place of ``frevl``."""
    command = [] if code is None else [sys.executable, "-c", code]
    curations = Curations(world.store, writable=True, images=world.images, pairs=pairs, command=command)
    return explored(world.store, world.images, curations=curations)


def begin(at, judge="labels"):
    return at.http.post("/explore/curation/start", json={"judge": judge})


def stop(at):
    assert at.http.post("/explore/curation/stop", json={}).json()["job"]["state"] == "stopped"


def label(at, image, name):
    at.http.post("/explore/label", json={"by": "ada", "labels": [{"image": image, "label": name}]})


def judged(world, folder):
    lines = (world.store / "curation" / folder / "labels.jsonl").read_text().splitlines()
    return {one["image"]: one["target"] for one in map(json.loads, lines)}


def states(world, folder):
    place = world.store / "curation" / folder / "kept.jsonl.unfinished" / ".unfinished"
    place.mkdir(parents=True, exist_ok=True)
    (place.parent / "settings.json").write_text("{}")
    return place / "label.safetensors"


@pytest.mark.slow
def test_labels_that_were_corrected_after_the_stop_are_judged(world):
    with opened(world) as at:
        label(at, "0.png", "cat")
        assert begin(at).json()["job"]["name"] == "labels"
        stop(at)
        states(world, "labels")  # nothing is done yet
        label(at, "0.png", "dog")
        assert begin(at).json()["job"]["name"] == "labels"
        stop(at)
        assert judged(world, "labels") == {"0.png": "dog"}
        # Where something is done of the former labels, it is not mixed with the new ones.
        states(world, "labels").touch()
        assert begin(at).json()["job"]["name"] == "labels"
        stop(at)
        label(at, "1.png", "cat")
        assert begin(at).json()["job"]["name"] == "labels-2"
        stop(at)
        assert judged(world, "labels") == {"0.png": "dog"}
        assert judged(world, "labels-2") == {"0.png": "dog", "1.png": "cat"}


@pytest.mark.slow
def test_what_outlives_a_service_that_was_killed_is_found_and_stopped(world, made):
    with opened(world, pairs=made.captions_file) as first:
        begin(first, "pairs")
        id_ = first.explorer.curations.job._call.id
        first.explorer.curations.job._call = None  # as after kill -9: nobody ends it
    assert is_alive(id_, birth_of(id_))
    with opened(world, pairs=made.captions_file) as second:
        job = second.http.get("/explore/curations").json()["job"]
        assert (job["name"], job["state"]) == ("captions", "running")
        refused(begin(second, "pairs"), 409, "busy", "stop it first")
        stop(second)
        assert birth_of(id_) == ""
        assert begin(second, "pairs").json()["job"]["name"] == "captions"


@pytest.mark.slow
def test_what_was_started_by_a_service_that_was_killed_in_that_moment_is_found(world, made, monkeypatch):
    begun = []
    run = background.subprocess.Popen

    def killed(*given, **more):
        begun.append(run(*given, **more))
        raise RuntimeError("killed before the process could be written down")

    monkeypatch.setattr(background.subprocess, "Popen", killed)
    with opened(world, pairs=made.captions_file) as first, pytest.raises(RuntimeError, match="killed before"):
        first.explorer.curations.job.start(None)
    monkeypatch.undo()
    with opened(world, pairs=made.captions_file) as second:
        while (job := second.http.get("/explore/curations").json()["job"]) is None:
            assert begun[0].poll() is None
        assert (job["name"], job["state"]) == ("captions", "running")
        stop(second)
    assert begun[0].wait(10) == -signal.SIGTERM


@pytest.mark.slow
def test_a_service_that_ends_leaves_what_another_has_begun(world, made):
    with opened(world, pairs=made.captions_file) as first:
        begin(first, "pairs")
        with opened(world, pairs=made.captions_file) as second:
            assert second.http.get("/explore/curations").json()["job"]["state"] == "running"
        assert first.http.get("/explore/curations").json()["job"]["state"] == "running"
        with opened(world, pairs=made.captions_file) as third:
            stop(third)
        assert first.http.get("/explore/curations").json()["job"]["state"] == "stopped"


@pytest.mark.slow
def test_a_process_that_has_ended_does_not_run_while_its_watcher_is_yet_to_say_so(world, made):
    with opened(world, pairs=made.captions_file) as at:
        begin(at, "pairs")
        call = at.explorer.curations.job._call
        # As while another thread waits for it: `poll` cannot ask the system then, and knows nothing.
        call.own.poll = lambda: None
        assert call.state() == "running"
        os.kill(call.id, signal.SIGTERM)
        while birth_of(call.id):
            pass
        assert at.http.get("/explore/curations").json()["job"]["state"] == "stopped"


@pytest.mark.slow
def test_a_file_that_names_no_process_of_ours_ends_nothing(world, made, monkeypatch):
    sent = []
    place = world.store / "curation" / "captions"
    place.mkdir(parents=True)
    with opened(world, pairs=made.captions_file) as at:
        monkeypatch.setattr(os, "kill", lambda *given: sent.append(given))
        for record in ({"process": os.getpid(), "born": "1", "begun": 0}, {"process": -1, "born": "", "begun": 0}, {}):
            (place / "process.json").write_text(json.dumps(record))
            answer = at.http.post("/explore/curation/stop", json={}).json()
            assert answer["job"] is None
    assert [one for one in sent if one[1] in (signal.SIGTERM, signal.SIGKILL)] == []


@pytest.mark.slow
def test_seconds_are_right_where_nobody_asked_meanwhile(world, made):
    with opened(world, "import time; time.sleep(0.3)", made.captions_file) as at:
        for _ in range(2):
            begin(at, "pairs")
            at.explorer.curations.job._call.own.wait()
            assert at.http.get("/explore/curations").json()["job"]["seconds"] >= 0.3


@pytest.mark.slow
def test_what_cannot_be_begun_says_what_is_missing(world, made):
    with opened(world, None) as at:
        label(at, "0.png", "cat")
        refused(begin(at), 422, "invalid", "frevl explore can")
    with opened(world) as at:
        refused(begin(at, "pairs"), 422, "invalid", "with --pairs FILE")
        at.http.post("/explore/label", json={"by": "ada", "labels": [{"image": "0.png", "label": None}]})
        refused(begin(at), 422, "invalid", "label images first")


@pytest.mark.slow
def test_a_file_whose_name_is_not_utf_8_can_be_judged_and_asked_for(world, made, tmp_path):
    pairs = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    shutil.copy(made.captions_file, pairs)
    with opened(world, pairs=pairs) as at:
        begun = begin(at, "pairs").json()
        assert (begun["pairs"], begun["job"]["name"]) == ("caf\\udce9.jsonl", "caf\\udce9")
        stop(at)
    given = pairs.with_suffix(".json")
    given.write_text(json.dumps({"task": "matching", "lines": 0, "kept": 0, "filters": {}, "out": None}))
    curations = Curations(world.store, writable=True, given=given)
    with explored(world.store, world.images, curations=curations) as at:
        assert at.http.get("/explore/curations").json()["curations"] == ["caf\\udce9"]
        assert at.http.get("/explore/curation", params={"of": "caf\\udce9"}).json()["name"] == "caf\\udce9"

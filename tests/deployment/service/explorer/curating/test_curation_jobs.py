"""Curations started from the page, with a stand-in for the command: done, failed and stopped."""

import os
import shutil
import sys
import time

import pytest

from explored import copied, explored
from frevl.deployment.service.explorer.curating.curations import Curations
from judged import write_result


def opened(world, result=None, *, writable=True, **more):
    curations = Curations(world.store, writable=writable, given=result, images=world.images, **more)
    return explored(world.store, world.images, writable=writable, curations=curations)


def decide(http, by="ada", **decision):
    return http.post("/explore/curation/decide", json={"by": by, "decisions": [decision]})


def job(http):
    return http.get("/explore/curations").json()["job"]


def until(http, state):
    for _ in range(600):
        if job(http)["state"] == state:
            return job(http)
        time.sleep(0.05)
    raise AssertionError(job(http))


def stand_in(folder, words):
    """Return a command that stands where ``frevl`` would."""
    script = folder / "stand_in.py"
    script.write_text(words)
    return [sys.executable, str(script)]


WRITES = """
import pathlib, shutil, sys
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
assert sys.argv[1] == "curate", sys.argv
for name in ("kept.jsonl", "dropped.jsonl", "result.json"):
    shutil.copy(pathlib.Path(FROM) / name, pathlib.Path(given["--out"]).parent / name)
print(pathlib.Path(given["--pairs"]).read_text().count("\\n"), "lines", given.get("--task"))
"""


@pytest.mark.slow
def test_a_pairs_file_and_labels_are_judged_from_the_page(made, tmp_path):
    world = copied(made, tmp_path)
    source = write_result(tmp_path / "source")
    command = stand_in(tmp_path, WRITES.replace("FROM", repr(str(source.parent))))
    with opened(world, pairs=made.captions_file, command=command) as at:
        assert at.http.get("/explore/curations").json()["judges"] == ["pairs"]
        begun = at.http.post("/explore/curation/start", json={"judge": "pairs"})
        assert begun.status_code == 200, begun.text
        assert until(at.http, "done")["said"] == "240 lines None"
        assert at.http.get("/explore/curations").json()["curations"] == ["captions"]
        assert decide(at.http, picture="4.png", say="keep").json()["kept"] == 5
        assert at.http.post("/explore/curation/start", json={"judge": "labels"}).status_code == 422
        at.http.post("/explore/label", json={"by": "ada", "labels": [{"image": "0.png", "label": "cat"}]})
        assert at.http.get("/explore/curations").json()["judges"] == ["pairs", "labels"]
        at.http.post("/explore/curation/start", json={"judge": "labels"})
        assert until(at.http, "done")["said"] == "1 lines classification"
        # A second result of the same file is next to the first, whose decisions stay.
        at.http.post("/explore/curation/start", json={"judge": "pairs"})
        until(at.http, "done")
        names = at.http.get("/explore/curations").json()["curations"]
        assert sorted(names) == ["captions", "captions-2", "labels"]
        assert at.http.get("/explore/curation", params={"of": "captions"}).json()["kept"] == 5


@pytest.mark.slow
def test_one_that_fails_or_is_stopped_says_so(made, tmp_path):
    world = copied(made, tmp_path)
    fails = stand_in(tmp_path, "import sys; print('Error: no <b>disk</b>'); sys.exit(1)")
    with opened(world, pairs=made.captions_file, command=fails) as at:
        at.http.post("/explore/curation/start", json={"judge": "pairs"})
        assert until(at.http, "failed")["said"] == "Error: no <b>disk</b>"
    sleeps = stand_in(tmp_path, "import time; print('learning', flush=True); time.sleep(600)")
    with opened(world, pairs=made.captions_file, command=sleeps) as at:
        at.http.post("/explore/curation/start", json={"judge": "pairs"})
        refused = at.http.post("/explore/curation/start", json={"judge": "pairs"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "busy")
        at.http.post("/explore/curation/stop", json={})
        assert job(at.http)["state"] == "stopped"
        at.http.post("/explore/curation/start", json={"judge": "pairs"})
        pid = at.explorer.curations.job._call.id
    with pytest.raises(ProcessLookupError):  # the service ends what it began
        os.kill(pid, 0)
    shutil.rmtree(world.store / "curation")

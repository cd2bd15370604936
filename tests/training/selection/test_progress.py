"""The progress of ``auto``, as another process reads it."""

import json
from types import SimpleNamespace

import pytest

from frevl import terminal
from frevl.terminal import STEPS_FILE, Steps
from frevl.training.training import train


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    time = SimpleNamespace(now=0.0)
    monkeypatch.setattr(terminal.time, "monotonic", lambda: time.now)
    return time


@pytest.fixture
def told(monkeypatch):
    """What is written of the steps."""
    found = []
    kept = terminal.write_json

    def write(path, record):
        found.append(record)
        kept(path, record)

    monkeypatch.setattr(terminal, "write_json", write)
    return found


def test_what_is_left_follows_from_the_pace_and_the_limit_by_hand(clock, tmp_path):
    steps = Steps({"cheap": 0.0, "one": 1.0, "two": 3.0}, tmp_path / STEPS_FILE, 100.0)

    def after(seconds, name, part=0.0):
        clock.now = seconds
        steps.begin(name, part)
        return json.loads((tmp_path / STEPS_FILE).read_text())

    first = after(0, "cheap")
    assert first == {"done": 0, "of": 3, "doing": "cheap", "share": 0.0, "left": None, "at_most": 100.0}
    # A quarter of the work took 10 s, so the other three take 30.
    assert after(10, "two") == {"done": 2, "of": 3, "doing": "two", "share": 0.25, "left": 30.0, "at_most": 90.0}
    assert after(80, "two", 0.5)["left"] == 20.0  # 48 by the pace, but the limit comes first


def test_what_an_earlier_process_did_says_nothing_about_the_pace(clock, tmp_path):
    steps = Steps({"one": 2.0, "two": 1.0, "three": 1.0}, tmp_path / STEPS_FILE)
    steps.begin("one")
    steps.recall("one")
    clock.now = 5.0
    steps.begin("three")
    found = json.loads((tmp_path / STEPS_FILE).read_text())
    assert (found["share"], found["left"], found["at_most"]) == (0.75, 5.0, None)


def test_a_full_disk_ends_no_training(tmp_path):
    Steps({"one": 1.0}, tmp_path / "missing" / "folder" / STEPS_FILE).begin("one")


@pytest.mark.slow
@pytest.mark.parametrize(("task", "steps"), [("classification", 10), ("matching", 5)])
def test_auto_tells_its_steps_one_after_the_other(made, tmp_path, told, task, steps):
    pairs = made.train_file if task == "classification" else made.captions_file
    train(made.store, pairs, run=tmp_path / "run", task=task, model="auto", time_limit=6, options={"epochs": 1})
    shares = [one["share"] for one in told]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert {one["of"] for one in told} == {steps}
    assert told[-1]["done"] == steps - 1
    assert all(0 <= one["at_most"] <= 6 for one in told)
    assert not (tmp_path / "run" / ".unfinished").exists()

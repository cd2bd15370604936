"""``kill -9`` in the middle of every training: the next call continues, with the identical result."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from frevl.errors import RunError
from frevl.runs.run import UNFINISHED, Run
from frevl.training.run_folder import Checkpoint, claim_run, claim_seeds
from frevl.training.seeds import train_seeds
from frevl.training.training import train

pytestmark = pytest.mark.slow

# The processes come from a server that has loaded everything (the first optimiser would load torch._dynamo) and started
# nothing, so that each costs milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["frevl.training.training", "torch._dynamo"])

CLASSIFICATION, MATCHING = {"task": "classification"}, {"task": "matching"}
SHORT = {"epochs": 3, "batch_size": 64}
TRAININGS = {
    "tiny": {**CLASSIFICATION, "model": "tiny", "options": {**SHORT, "layers": 1, "standardise": True}},
    "mlp": {**CLASSIFICATION, "model": "mlp", "options": SHORT},
    "linear": {**CLASSIFICATION, "model": "linear"},
    "tiny for matching": {**MATCHING, "model": "tiny", "options": {"epochs": 3, "layers": 0}},
    "dual": {**MATCHING, "model": "dual", "options": {"epochs": 3, "batch_size": 64}},
    "tiny after dual": {
        **MATCHING, "model": "tiny", "first_stage": "dual", "options": {"epochs": 2, "layers": 0, "batch_size": 64},
    },
    "auto": {**CLASSIFICATION, "model": "auto", "options": {"epochs": 2}, "time_limit": 3000},
    "auto for matching": {**MATCHING, "model": "auto", "options": {"epochs": 2}, "time_limit": 3000},
}  # fmt: skip
# When the processes kill themselves: after which share of the states that the whole training saves, and whether right
# after a state is written (``saved``), right before it takes the place of the one before (``save``), or after the first
# step of the epoch that follows (``step``).
KILLS = [(0, "step"), (0.2, "saved"), (0.4, "step"), (0.6, "save"), (0.8, "step"), (1, "saved")]


def doomed(store, pairs, run, arguments, event, number, log):
    """Train in a process that kills itself at an event after so many saved states, of former processes too."""
    torch.set_num_threads(1)
    lines = log.read_text().split() if log.exists() else []
    saved, steps_since = lines.count("saved"), 0

    def note(line):
        with log.open("a") as file:
            file.write(line + "\n")

    def happens(name, now):
        if name == event and now:
            os.kill(os.getpid(), signal.SIGKILL)

    step, save, replace = torch.optim.AdamW.step, Checkpoint.save, Path.replace

    def watched_step(self, *arguments):
        nonlocal steps_since
        step(self, *arguments)
        note("step")
        steps_since += saved >= number
        happens("step", steps_since == 1)

    def watched_save(self, *arguments):
        nonlocal saved
        save(self, *arguments)
        note("saved")
        saved += 1
        happens("saved", saved == number)

    def watched_replace(self, target):
        happens("save", Path(target).parent.name == UNFINISHED and saved == number - 1)
        return replace(self, target)

    torch.optim.AdamW.step, Checkpoint.save, Path.replace = watched_step, watched_save, watched_replace
    train(store, pairs, run=run, **arguments)


def in_a_process(function, *arguments):
    """Return the exit code."""
    process = PROCESSES.Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def untimed(value):
    """Leave out what a clock says, and where the run stands."""
    if isinstance(value, dict):
        return {name: untimed(kept) for name, kept in value.items() if "seconds" not in name and name != "provenance"}
    return [untimed(entry) for entry in value] if isinstance(value, list) else value


def of_run(folder):
    """Return everything that a run says, without times."""
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return {
        "files": sorted(path.name for path in folder.iterdir()),
        "run": untimed(json.loads((folder / "run.json").read_text())),
        "log": [untimed(json.loads(line)) for line in lines],
        "weights": (folder / "weights.safetensors").read_bytes(),
    }


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_that_is_killed_ends_with_the_identical_result(made, tmp_path, name):
    arguments = TRAININGS[name]
    pairs = made.captions_file if arguments["task"] == "matching" else made.train_file
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def trained(run, event="", number=0):
        return in_a_process(doomed, made.store.path, pairs, run, arguments, event, number, run.with_suffix(".log"))

    assert trained(whole) == 0
    events = (tmp_path / "whole.log").read_text().split()
    total = events.count("saved")
    kills = sorted({(max(round(share * total), event != "step"), ("save", "saved", "step").index(event), event)
                    for share, event in KILLS if event != "step" or "step" in events})  # fmt: skip
    for number, _, event in kills:
        assert trained(parts, event, number) == -signal.SIGKILL, (number, event, total)
        if number:
            with pytest.raises(RunError, match="interrupted; run the same frevl train again"):
                Run.load(parts)
    assert trained(parts) == 0

    assert of_run(parts) == of_run(whole)
    assert not (parts / UNFINISHED).exists()
    # What was finished stays finished: a kill costs the epoch under way and no more.
    longest = max(len(epoch.split()) for epoch in " ".join(events).split("saved"))
    assert (tmp_path / "parts.log").read_text().count("step") <= events.count("step") + longest * len(kills)


def held(claim, folder, connection):
    """Hold the folder of a run until the other end of the connection is closed, or until killed."""
    with claim(folder, {"model": "tiny"}):
        connection.send("held")
        connection.poll(None)


@pytest.fixture
def holding():
    """Start a process that holds a folder."""
    ends = []

    def start(claim, folder):
        here, there = PROCESSES.Pipe()
        process = PROCESSES.Process(target=held, args=(claim, folder, there))
        process.start()
        there.close()
        assert here.recv() == "held"
        ends.append((here, process))
        return process

    yield start
    for here, process in ends:
        here.close()
        process.join()


def test_a_second_training_in_one_folder_is_refused(made, tmp_path, holding):
    holding(claim_run, tmp_path / "run")
    with pytest.raises(
        RunError, match=r"run: another process is training .*; wait for it to finish, or choose another --run"
    ):
        train(made.store, made.train_file, run=tmp_path / "run", **CLASSIFICATION)
    # It has not touched anything: the first one still holds the folder.
    with pytest.raises(RunError, match="another process"):
        train(made.store, made.train_file, run=tmp_path / "run", **CLASSIFICATION)


def test_the_lock_of_a_dead_process_does_not_block(made, tmp_path, holding):
    holder = holding(claim_run, tmp_path / "run")
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert (tmp_path / "run" / UNFINISHED / "lock").exists()
    run = train(made.store, made.train_file, run=tmp_path / "run", **CLASSIFICATION, model="majority")
    assert not (run.path / UNFINISHED).exists()


def test_two_trainings_of_several_seeds_in_one_folder(made, tmp_path, holding):
    holder = holding(claim_seeds, tmp_path / "seeds")
    arguments = {"run": tmp_path / "seeds", "seeds": 2, **CLASSIFICATION, "model": "majority"}
    with pytest.raises(RunError, match="another process is training in this folder"):
        train_seeds(made.store, made.train_file, **arguments)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert train_seeds(made.store, made.train_file, **arguments).runs == ["seed0", "seed1"]
    assert not (tmp_path / "seeds" / UNFINISHED).exists()


def test_an_interrupted_seed_is_continued(made, tmp_path):
    arguments = {"model": "mlp", "options": SHORT, **CLASSIFICATION}
    train_seeds(made.store, made.train_file, run=tmp_path / "whole", seeds=2, **arguments)
    code = in_a_process(doomed_seeds, made.store.path, made.train_file, tmp_path / "parts", arguments, 5)
    assert code == -signal.SIGKILL
    assert (tmp_path / "parts" / "seed0" / "run.json").exists()
    train_seeds(made.store, made.train_file, run=tmp_path / "parts", seeds=2, **arguments)
    for seed in ("seed0", "seed1"):
        assert of_run(tmp_path / "parts" / seed) == of_run(tmp_path / "whole" / seed)


def doomed_seeds(store, pairs, run, arguments, number):
    torch.set_num_threads(1)
    save, saved = Checkpoint.save, 0

    def watched(self, *values):
        nonlocal saved
        save(self, *values)
        saved += 1
        if saved == number:
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoint.save = watched
    train_seeds(store, pairs, run=run, seeds=2, **arguments)


def test_other_data_do_not_continue_an_interrupted_training(made, tmp_path):
    """The same names of files, and something else in them."""
    pairs = tmp_path / "pairs.jsonl"
    lines = made.train_file.read_text().splitlines(keepends=True)
    pairs.write_text("".join(lines))
    arguments = {**TRAININGS["mlp"], "dev": made.test_file}
    run = made.store.path, pairs, tmp_path / "run", arguments
    assert in_a_process(doomed, *run, "saved", 1, tmp_path / "log") == -signal.SIGKILL
    pairs.write_text("".join(lines[:-2]))
    with pytest.raises(
        RunError, match=r"an interrupted training is in this folder, and its 'data.pairs' was '\w+', not '\w+'"
    ):
        train(made.store, pairs, run=tmp_path / "run", **arguments)
    with pytest.raises(RunError, match="its 'batch_size' was 64, not 32; use the same settings to continue"):
        train(made.store, pairs, run=tmp_path / "run", **{**arguments, "options": {**SHORT, "batch_size": 32}})
    pairs.write_text("".join(lines))
    assert in_a_process(doomed, *run, "", 0, tmp_path / "log") == 0

"""Several real processes train like one: the same steps, the same end, and one message on failure."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from frevl.errors import MissingExtraError, PairsError, RunError, TrainingError
from frevl.runs.run import UNFINISHED
from frevl.runs.scorer import Scorer
from frevl.training.run_folder import Checkpoint
from frevl.training.training import train
from frevl.training.workers import processes
from frevl.training.workers.joining import working_together
from frevl.training.workers.team import ALONE, current_team
from together import ERRORS, TRAININGS, all_trainings, one_fails, until_the_clock

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(made):
    return {"classification": made.train_file, "matching": made.captions_file}


@pytest.fixture(scope="module")
def trained(made, files, tmp_path_factory):
    """Return a folder with everything trained by one process, and one with everything trained by three."""
    folders = [tmp_path_factory.mktemp(name) for name in ("alone", "three")]
    for folder, workers in zip(folders, (1, 3), strict=True):
        assert all_trainings(made.store.path, files, folder, workers=workers) == workers
    return folders


@pytest.mark.parametrize("name", TRAININGS)
def test_three_workers_train_what_one_process_trains(made, trained, name):
    number = str(list(TRAININGS).index(name))
    alone, three = (load_file(folder / number / "weights.safetensors") for folder in trained)
    assert alone.keys() == three.keys()
    texts = ["a red square", "the blue thing"] if TRAININGS[name]["task"] == "matching" else ["is the square red?"]
    pairs = [(image, text) for image in ("0.png", "1.png", "3.png") for text in texts]
    scored = [Scorer.open(folder / number, store=made.store).score(pairs) for folder in trained]
    assert scored[1] == pytest.approx(scored[0], abs=1e-4)
    for key, weights in alone.items():
        if key.startswith(("first.stored.", "bank_")):
            continue  # vectors that are projected to fewer numbers: their dot products are determined, not their axes
        coarse = weights.dtype == torch.float16  # a step of float16 where two numbers lie on its two sides
        torch.testing.assert_close(three[key], weights, atol=1e-4, rtol=1e-3 if coarse else 1e-4)
    records = [json.loads((folder / number / "run.json").read_text())["results"] for folder in trained]
    fits = [{name: kept for name, kept in record["fit"].items() if name != "seconds"} for record in records]
    assert fits[1] == pytest.approx(fits[0], abs=1e-4)
    assert (records[0].get("workers"), records[1]["workers"]) == (None, 3)
    assert (trained[1] / number / "settings.json").read_text() == (trained[0] / number / "settings.json").read_text()
    logs = [folder / number / "log.jsonl" for folder in trained]
    assert [path.exists() for path in logs] in ([True, True], [False, False])
    if logs[0].exists():
        epochs = [[json.loads(line)["losses"] for line in path.read_text().splitlines()] for path in logs]
        assert len(epochs[0]) == len(epochs[1])
        for one, other in zip(*epochs, strict=True):
            assert other == pytest.approx(one, rel=1e-4)


def test_a_worker_that_is_killed_ends_all_and_the_next_call_goes_on(made, tmp_path, monkeypatch):
    settings = {"task": "classification", "model": "mlp", "options": {"epochs": 4, "hidden": 16, "patience": 9}}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(made.store, made.train_file, run=whole, workers=2, **settings)
    started, save, others = processes._started, Checkpoint.save, []

    def watched(*arguments):
        others.append(started(*arguments))
        return others[-1]

    def saved(self, *arguments):
        save(self, *arguments)
        others[0].kill()  # after the first epoch

    monkeypatch.setattr(processes, "_started", watched)
    monkeypatch.setattr(Checkpoint, "save", saved)
    with pytest.raises(TrainingError, match=r"^Worker 1 of 2 was ended by SIGKILL; every complete epoch is kept: run "):
        train(made.store, made.train_file, run=parts, workers=2, **settings)
    assert others[0].poll() is not None
    assert current_team() is ALONE
    assert len((parts / "log.jsonl").read_text().splitlines()) in (1, 2)
    assert any((parts / UNFINISHED).glob("*.safetensors"))
    monkeypatch.undo()
    train(made.store, made.train_file, run=parts, workers=2, **settings)
    assert (parts / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert not (parts / UNFINISHED).exists()


@pytest.mark.parametrize("error", ERRORS)
def test_what_one_worker_fails_with_ends_all_and_is_said_once(error, capfd):
    told = "Worker 1 failed: ValueError: a mistake of ours" if error == "unknown" else str(ERRORS[error])
    with pytest.raises((PairsError, MissingExtraError, TrainingError)) as caught:
        one_fails(error, workers=2)
    assert str(caught.value) == told
    printed = capfd.readouterr().err
    assert ("Traceback" in printed) == (error == "unknown"), "a known failure is a sentence, of worker 0"
    assert current_team() is ALONE
    assert not torch.distributed.is_initialized()


def test_the_time_limit_ends_all_workers_after_the_same_step(made, files, tmp_path):
    fit = until_the_clock(made.store.path, files, tmp_path / "run", 2.0, workers=2)
    assert fit["stopped"] == "time"


def test_processes_that_somebody_else_started_meet_and_one_of_them_speaks(made, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "frevl", "train", "--store", made.store.path, "--pairs", made.train_file,
        "--task", "classification", "--model", "mlp", "--set", "epochs=1", "--set", "hidden=4", "--seeds", "2",
        "--run", tmp_path / "seeds", "--quiet",
    ]  # fmt: skip

    def started(rank):
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **place}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )

    def ended():
        processes = [started(1), started(0)]
        said = [process.communicate(timeout=300) for process in processes]
        return [process.returncode for process in processes], said

    codes, ((quiet, no_error), (said, _)) = ended()
    assert (codes, quiet, no_error) == ([0, 0], "", "")
    warned, trained = said.split("Trained mlp")
    assert warned.startswith("Chance: "), "one epoch of so few pairs teaches nothing, which is said first"
    assert "standard deviation" in trained
    runs = json.loads((tmp_path / "seeds" / "seeds.json").read_text())["runs"]
    assert [json.loads((tmp_path / "seeds" / run / "run.json").read_text())["results"]["workers"] for run in runs] == [
        2,
        2,
    ]
    (tmp_path / "seeds" / "run.json").write_text("{}")
    codes, ((quiet, no_error), (_, error)) = ended()
    assert codes == [1, 1]
    assert (quiet, no_error) == ("", "")
    assert error.startswith("frevl: ")
    assert "holds a run of one seed" in error


LEAVING = """
import weakref
import torch
from frevl.training.workers.distributed import Together
from frevl.training.workers.team import Place
team = Together(torch.distributed.HashStore(), Place(0, 1, 0, 1), "gloo")
weight = torch.ones(3, requires_grad=True)
weight.sum().backward()
team.summed([weight], weight.sum(), {})
torch.optim.AdamW([weight], fused=True).step()
group = weakref.ref(torch.distributed.group.WORLD)
team.leave(None)
print("kept" if group() else "gone")
"""


def test_nothing_of_a_group_is_left_for_the_end_of_the_process():
    said = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, check=True)
    assert (said.stdout, said.stderr) == ("gone\n", ""), "threads that are left may end the process with SIGABRT"


def test_workers_with_other_data_are_named(made, tmp_path):
    with (
        pytest.raises(RunError, match=r"^Worker 1 of 2: expected the same 'number' as worker 0 has, 0, found 1; "),
        working_together(different, {}, workers=2, device="cpu") as team,
    ):
        team.same({"number": 0})


def different(workers=None, progress=False):
    """What the other worker runs."""
    current_team().same({"number": 1})

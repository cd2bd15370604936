"""Networks trained by workers on the nodes of a cluster: as on one machine, whatever dies."""

import json
import os

import pytest

from frevl.errors import PairsError, UsageError
from frevl.training.run_folder import Checkpoint
from frevl.training.seeds import train_seeds
from frevl.training.training import train
from frevl.training.workers.on_ray import on_ray
from made import make
from trainings import fail, train_and_die_once

MLP = {"task": "classification", "model": "mlp", "options": {"epochs": 3, "hidden": 16, "patience": 9}}
DUAL = {"task": "matching", "model": "dual", "options": {"epochs": 2, "members": 1, "width": 16, "batch_size": 50}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("world"), ["toy"])


@pytest.fixture(scope="module")
def here(world, tmp_path_factory):
    """What two workers of this machine train."""
    run = tmp_path_factory.mktemp("here") / "run"
    train(world.store, world.train_file, run=run, workers=2, **MLP)
    return run


def weights(run):
    return (run / "weights.safetensors").read_bytes()


def test_workers_of_a_cluster_train_what_workers_of_one_machine_train(nodes, world, here, tmp_path):
    run = train(world.store, world.train_file, run=tmp_path / "run", workers=2, ray=nodes.address, **MLP)
    assert run.results["workers"] == 2
    assert weights(tmp_path / "run") == weights(here)
    matched = [tmp_path / name for name in ("here", "there")]
    train(world.store, world.captions_file, run=matched[0], workers=3, **DUAL)
    train(world.store, world.captions_file, run=matched[1], workers=3, ray=nodes.address, **DUAL)
    assert weights(matched[0]) == weights(matched[1])


def test_after_a_worker_was_killed_the_training_goes_on_by_itself(nodes, world, here, tmp_path, caplog):
    named = {"store": world.store.path, "pairs": world.train_file, "run": tmp_path / "run", "settings": MLP}
    marker = tmp_path / "killed"
    on_ray(train_and_die_once, {**named, "marker": marker}, workers=2, address=nodes.address, device="cpu")
    assert marker.exists()
    assert "a worker has ended" in caplog.text
    assert weights(tmp_path / "run") == weights(here)
    assert [json.loads(line)["epoch"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
    ]


def test_relative_paths_are_those_of_the_caller(nodes, world, here, tmp_path, monkeypatch):
    """The nodes were started in another folder."""
    monkeypatch.chdir(tmp_path)
    store, pairs = (os.path.relpath(path) for path in (world.store.path, world.train_file))
    run = train(store, pairs, run="run", workers=2, ray=nodes.address, **MLP)
    assert weights(tmp_path / "run") == weights(here)
    assert run.path == tmp_path / "run"


def test_what_was_begun_here_goes_on_there(nodes, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs, save = os.path.relpath(world.train_file), Checkpoint.save

    def saved(self, *arguments):
        save(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", saved)
        with pytest.raises(KeyboardInterrupt):
            train(world.store, pairs, run="run", **MLP)
    train(world.store, pairs, run="run", workers=2, ray=nodes.address, **MLP)
    assert [json.loads(line)["epoch"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
    ]


def test_seeds_are_trained_there_too(nodes, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {**MLP, "options": {"epochs": 1, "hidden": 4}}
    several = train_seeds(world.store, world.train_file, run="seeds", seeds=2, workers=2, ray=nodes.address, **settings)
    assert several.runs == ["seed0", "seed1"]
    assert (tmp_path / "seeds" / "seeds.json").exists()


def test_what_cannot_be_done_is_said(nodes, world, tmp_path):
    with pytest.raises(PairsError, match=r"^there\.jsonl:3: is broken$"):
        on_ray(fail, {}, workers=2, address=nodes.address, device="cpu")
    with pytest.raises(UsageError, match=r"^--ray needs --workers N"):
        train(world.store, world.train_file, run=tmp_path / "run", ray=nodes.address, **MLP)
    with pytest.raises(UsageError, match=r"found 2, but the cluster has 0 accelerators"):
        train(world.store, world.train_file, run=tmp_path / "run", workers=2, ray=nodes.address, device="cuda", **MLP)
    with pytest.raises(UsageError, match=r"found 9, but the cluster has 4 processors"):
        train(world.store, world.train_file, run=tmp_path / "run", workers=9, ray=nodes.address, **MLP)

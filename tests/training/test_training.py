"""Training: determinism, resumption, refusals, and that models learn what they can and cannot learn."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from frevl.cli.tables import run_sentence
from frevl.data.pairs import Pairs, read_pairs
from frevl.errors import PairsError, RunError, TrainingError, UsageError
from frevl.runs.calibration import calibration_notes
from frevl.runs.run import UNFINISHED, Run
from frevl.store.reader import Store
from frevl.training.options import options_for
from frevl.training.run_folder import Checkpoint
from frevl.training.training import train


def quick(made, run, **changes):
    """Train a small model; changes are arguments of `train`, or options where the model has them."""
    given = {name: value for name, value in changes.items() if name not in inspect.signature(train).parameters}
    known = options_for(changes.get("model", "tiny")).__dataclass_fields__
    options = {"epochs": 3, "batch_size": 64, "layers": 1, **given}
    options = {name: value for name, value in options.items() if name in known}
    arguments = {name: value for name, value in changes.items() if name not in given}
    arguments = {"pairs": made.train, "task": "classification", "model": "tiny", **arguments}
    return train(made.store, run=run, options=options, **arguments)


def weights(run):
    return load_file(run / "weights.safetensors")


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(made, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        quick(made, tmp_path / name, seed=seed)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["head.first.weight"] if "head.first.weight" in a else next(iter(a.values())),
                           c["head.first.weight"] if "head.first.weight" in c else next(iter(c.values())))  # fmt: skip


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_identical_result(made, tmp_path, monkeypatch):
    quick(made, tmp_path / "whole", epochs=4)

    real = Checkpoint.save
    saved = []

    def interrupted(self, tensors, record):
        real(self, tensors, record)
        saved.append(record["epoch"])
        if len(saved) in (1, 3):
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            quick(made, tmp_path / "parts", epochs=4)
    with pytest.raises(RunError, match="interrupted; run the same frevl train again"):
        Run.load(tmp_path / "parts")
    quick(made, tmp_path / "parts", epochs=4)

    assert saved == [1, 2, 3, 4]
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (tmp_path / n / "log.jsonl").read_text().splitlines()
        ]
        for n in ("whole", "parts")
    ]
    assert logs[0] == logs[1]
    assert [entry["epoch"] for entry in logs[0]] == [1, 2, 3, 4]
    assert not (tmp_path / "parts" / UNFINISHED).exists()


@pytest.mark.slow
def test_a_training_process_that_is_killed_goes_on(made, tmp_path):
    command = [
        sys.executable, "-m", "frevl", "train", "--store", str(made.store.path), "--pairs", str(made.train_file),
        "--task", "classification", "--model", "tiny", "--set", "layers=1", "--set", "epochs=6", "--set",
        "batch_size=64", "--set", "patience=6", "--quiet", "--run",
    ]  # fmt: skip
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / UNFINISHED / "tiny.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True)
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_an_interrupted_run_refuses_other_settings(made, tmp_path, monkeypatch):
    real = Checkpoint.save

    def stop(self, *arguments):
        real(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        quick(made, tmp_path / "run")
    with pytest.raises(RunError, match="'seed' was 0, not 1"):
        quick(made, tmp_path / "run", seed=1)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_whatever_way_its_files_are_named(made, tmp_path, monkeypatch):
    former = quick(made, tmp_path / "former", epochs=1, layers=0).path
    arguments = {"pairs": made.train_file, "dev": made.test_file, "initialise_from": former, "epochs": 2, "layers": 0}
    relative = {name: os.path.relpath(arguments[name]) for name in ("pairs", "dev", "initialise_from")}
    real = Checkpoint.save

    def stop(self, *arguments):
        real(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            quick(made, tmp_path / "run", **{**arguments, **relative})
    shutil.copytree(former, tmp_path / "kept")
    other = quick(made, tmp_path / "other", epochs=1, layers=0, seed=5).path
    shutil.copy(other / "weights.safetensors", former)
    with pytest.raises(RunError, match=r"its 'data.former' was '\w+', not '\w+'"):
        quick(made, tmp_path / "run", **arguments)
    quick(made, tmp_path / "run", **{**arguments, "initialise_from": tmp_path / "kept"})
    assert [json.loads(line)["epoch"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()] == [1, 2]


@pytest.mark.slow
def test_a_training_that_failed_before_its_first_state_leaves_the_settings_free(made, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            quick(made, tmp_path / "run")
    assert not (tmp_path / "run" / UNFINISHED).exists()
    with pytest.raises(RunError, match="found a folder without one"):
        Run.load(tmp_path / "run")
    quick(made, tmp_path / "run", seed=1)


def test_a_finished_run_is_not_overwritten(made, tmp_path):
    quick(made, tmp_path / "run", model="majority")
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(RunError, match="holds a finished run; choose another folder"):
        quick(made, tmp_path / "run", model="linear")
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_single_run_is_not_put_among_the_runs_of_several_seeds(made, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "seeds.json").write_text("{}")
    with pytest.raises(RunError, match="holds the runs of several seeds; choose another folder, or use --seeds"):
        quick(made, tmp_path / "run", model="majority")


@pytest.mark.slow
def test_the_fusion_learns_a_conjunction_that_one_modality_cannot_tell(made, tmp_path):
    accuracy = {
        model: quick(made, tmp_path / model, model=model, epochs=30, batch_size=32, patience=30).results["development"][
            "accuracy"
        ]
        for model in ("majority", "text", "image", "tiny")
    }
    assert accuracy["tiny"] > 90
    assert max(accuracy["majority"], accuracy["text"], accuracy["image"]) < 75


def test_a_training_that_has_not_seen_all_pairs_says_so_first(made, tmp_path):
    run = quick(made, tmp_path / "run", epochs=1, batch_size=2, time_limit=1e-9)
    assert run.results["fit"]["passes"] < 0.1
    (said,) = [one for one in run.results["warnings"] if one.startswith("The time limit ended the training when ")]
    assert "% of the training pairs had been seen; raise it" in said
    assert run_sentence(run).splitlines()[: len(run.results["warnings"])] == run.results["warnings"]


@pytest.mark.slow
def test_a_time_limit_ends_the_training_and_keeps_the_best_so_far(made, tmp_path):
    run = quick(made, tmp_path / "run", epochs=100_000, patience=100_000, time_limit=1.5)
    assert run.results["fit"]["stopped"] in ("time", "perfect")
    assert run.results["fit"]["epochs"] < 100_000


def test_a_linear_probe_without_time_for_all_pairs_takes_some_and_says_so(made, tmp_path, monkeypatch):
    monkeypatch.setattr("frevl.training.fitting.linear_probe._TIMED", 40)
    run = quick(made, tmp_path / "short", model="linear", time_limit=1e-9, dev=made.test)
    note = f"linear: fitted on 40 of {run.results['train_pairs']} pairs, as many as the time limit of 1e-09 s allows"
    assert note in run.results["notes"]
    assert weights(tmp_path / "short")["linear.weight"].abs().max() > 0.01, "what it has learnt from them stays"


def test_a_time_limit_that_suffices_leaves_the_linear_probe_as_it_is(made, tmp_path):
    for name, limit in (("limited", 3000), ("free", None)):
        quick(made, tmp_path / name, model="linear", time_limit=limit)
    limited, free = weights(tmp_path / "limited"), weights(tmp_path / "free")
    assert all(torch.equal(limited[name], free[name]) for name in free)


@pytest.mark.slow
def test_the_last_epoch_is_kept_on_request(made, tmp_path):
    changes = {"epochs": 4, "patience": 4, "learning_rate": 0.05, "batch_size": 16, "mixup_share": 0}
    best = quick(made, tmp_path / "best", **changes)
    last = quick(made, tmp_path / "last", keep_last=True, **changes)
    log = [json.loads(line)["dev"] for line in (tmp_path / "last" / "log.jsonl").read_text().splitlines()]
    assert max(log) > log[-1]  # or this test could not fail
    assert best.results["development"]["accuracy"] == pytest.approx(100 * max(log))
    assert last.results["development"]["accuracy"] == pytest.approx(100 * log[-1])
    assert (best.results["fit"]["best_epoch"], last.results["fit"]["best_epoch"]) == (log.index(max(log)) + 1, 4)


def test_a_loss_that_is_not_finite_names_the_batch(made, tmp_path):
    with pytest.raises(TrainingError, match=r"found (nan|inf) in epoch 1, batch \d+ of \d+ .*lower learning_rate"):
        quick(made, tmp_path / "run", learning_rate=1e30, gradient_clip=1e30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "clasification"}, "There is no task 'clasification'. Did you mean 'classification'"),
        ({"model": "tinny"}, "There is no model 'tinny'. Did you mean 'tiny'"),
        ({"encoder": ["toi"]}, "no embeddings by the encoder 'toi'. Did you mean 'toy'"),
    ],
)
def test_unknown_names_suggest_the_nearest(made, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        quick(made, tmp_path / "run", **changes)


def write(path: Path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_that_cannot_be_trained_on_are_refused_with_their_place(made, tmp_path):
    text = made.train.texts[0]
    images = sorted(set(made.train.images))
    unknown = write(tmp_path / "unknown.jsonl", [{"image": "nowhere.png", "text": text, "target": "a"}] * 3)
    with pytest.raises(
        PairsError, match=r"unknown.jsonl:1, field 'image': the store has no image 'nowhere.png' \(3 of 3"
    ):
        quick(made, tmp_path / "run", pairs=unknown)
    missing = write(tmp_path / "missing.jsonl", [{"image": i, "text": text} for i in images[:4]])
    with pytest.raises(PairsError, match=r"missing.jsonl:\d, field 'target': classification expects a target"):
        quick(made, tmp_path / "run", pairs=missing)
    single = write(tmp_path / "single.jsonl", [{"image": i, "text": text, "target": "yes"} for i in images[:9]])
    with pytest.raises(PairsError, match=r"single.jsonl, field 'target': expected at least two classes.*only 'yes'"):
        quick(made, tmp_path / "run", pairs=single)
    targets = ["yes", 1.5, 0.25]  # numbers with a fraction are no classes
    numbers = write(
        tmp_path / "numbers.jsonl",
        [{"image": image, "text": text, "target": targets[n % 3]} for n, image in enumerate(images[:9])],
    )
    with pytest.raises(PairsError, match=r"found only 'yes'\. Left out: 6 pairs .*found float 1\.5"):
        quick(made, tmp_path / "run", pairs=numbers)
    lone = write(tmp_path / "lone.jsonl", [{"image": images[0], "text": text, "target": t} for t in "ab"])
    with pytest.raises(PairsError, match="expected at least two different images"):
        quick(made, tmp_path / "run", pairs=lone)
    wrong = write(tmp_path / "wrong.jsonl", [{"image": i, "text": text, "target": "red"} for i in images[:4]])
    with pytest.raises(PairsError, match=r"wrong.jsonl:\d, field 'target': a matching task expects"):
        quick(made, tmp_path / "run", pairs=wrong, task="matching")


def test_a_dev_class_that_training_never_saw_is_counted_as_wrong_and_said(made, tmp_path):
    images = sorted(set(made.train.images))
    text = made.train.texts[0]
    dev = write(tmp_path / "dev.jsonl", [{"image": i, "text": text, "target": "never"} for i in images[:5]])
    rest = [i for i, image in enumerate(made.train.images) if image not in images[:5]]
    run = quick(made, tmp_path / "run", pairs=made.train.select(rest), dev=dev, model="mlp")
    development = run.results["development"]
    assert (development["n"], development["accuracy"]) == (5, 0.0)
    assert development["interval"] == pytest.approx([0.0, 100 * 1.96**2 / (5 + 1.96**2)], abs=0.01)
    assert run.results["warnings"][-2:] == [
        "Unknown classes: 5 development pairs have only classes that do not occur in training; they count as wrong.",
        'One class: all 5 development pairs have the same target ("never"): the best epoch, the calibration and the '
        "development metric are then meaningless; give development pairs of several classes with --dev.",
    ]


def test_a_development_part_of_a_single_class_is_said(made, tmp_path):
    rows = [i for i, target in enumerate(made.test.targets) if target == "no"]
    dev = made.test.select(rows)
    run = train(
        made.store, made.train, dev=dev, run=tmp_path / "run", task="classification", model="linear", find_groups=False
    )
    assert run.results["notes"] == [
        f'One class: all {len(rows)} development pairs have the same target ("no"): the best epoch, the calibration '
        "and the development metric are then meaningless; give development pairs of several classes with --dev.",
        *calibration_notes(len(rows)),
    ]
    assert run.results["warnings"] == run.results["notes"][:1]


@pytest.mark.slow
def test_soft_and_several_targets_train_and_count(made, tmp_path):
    rows = [made.train.row(i) for i in range(len(made.train))]
    several = write(tmp_path / "several.jsonl", [{**r, "target": [r["target"], "other"]} for r in rows])
    run = quick(made, tmp_path / "several", pairs=several, model="mlp")
    assert "other" in run.labels
    assert run.results["soft_targets"] is False
    soft = write(tmp_path / "soft.jsonl", [{**r, "target": {r["target"]: 1.0, "maybe": 0.3}} for r in rows])
    run = quick(made, tmp_path / "soft", pairs=soft, model="tiny", epochs=2)
    assert run.results["soft_targets"] is True
    assert "maybe" in run.labels


@pytest.mark.slow
def test_rare_answers_can_be_left_out(made, tmp_path):
    rows = [made.train.row(i) for i in range(len(made.train))]
    rows[0]["target"] = "unheard-of"
    pairs = write(tmp_path / "pairs.jsonl", rows)
    assert "unheard-of" in quick(made, tmp_path / "all", pairs=pairs, model="majority").labels
    run = quick(made, tmp_path / "some", pairs=pairs, model="majority", min_answer_count=2)
    assert "unheard-of" not in run.labels


def test_majority_answers_with_the_training_frequencies(made, tmp_path):
    run = quick(made, tmp_path / "run", model="majority", dev=made.test)
    targets = made.train.targets
    shares = np.array([targets.count(label) for label in run.labels]) / len(targets)
    np.testing.assert_allclose(run.network.logits.detach().exp().numpy(), shares, rtol=1e-5)


@pytest.mark.slow
def test_matching_learns_which_text_belongs_to_which_image(made, tmp_path):
    run = quick(made, tmp_path / "run", pairs=made.captions, task="matching", epochs=25, patience=25, batch_size=32)
    assert run.labels == []
    assert run.results["development"]["accuracy"] > 80


def test_the_same_image_in_training_and_development_is_reported(made, tmp_path):
    rows = np.arange(len(made.train))
    run = quick(
        made, tmp_path / "run", pairs=made.train.select(rows), dev=made.train.select(rows[:6]), model="majority"
    )
    assert any(
        note.startswith("Leak: ") and "the same content as a training image" in note for note in run.results["notes"]
    )


def test_two_encoders_are_concatenated_and_the_run_remembers_them(made_twice, tmp_path):
    both = quick(made_twice, tmp_path / "both", model="mlp", epochs=1)
    one = quick(made_twice, tmp_path / "one", model="mlp", epochs=1, encoder=["toy2"])
    store = Store.open(made_twice.store.path)
    widths = [tower.dim for tower in store.select_towers("image")]
    assert both.encoders == ["toy", "toy2"]
    assert both.network.settings["image_dim"] == sum(widths)
    assert one.encoders == ["toy2"]
    assert one.network.settings["image_dim"] == store.towers["toy2-image"].dim
    assert list(one.towers["image"]) == ["toy2-image"]


def test_reading_pairs_in_memory_and_from_a_file_gives_the_same_run(made, tmp_path):
    assert isinstance(made.train, Pairs)
    quick(made, tmp_path / "memory", model="mlp", epochs=2)
    quick(made, tmp_path / "file", model="mlp", epochs=2, pairs=made.train_file)
    a, b = weights(tmp_path / "memory"), weights(tmp_path / "file")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert read_pairs(made.train_file).texts == made.train.texts

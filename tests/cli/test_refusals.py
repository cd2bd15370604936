"""Mistakes of outside users: small matching files, wrong values, damaged state, odd extra keys."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from frevl.data.pairs import read_pairs
from frevl.errors import InputError, PairsError, Reject, TrainingError, UsageError
from frevl.evaluation.evaluation import evaluate
from frevl.runs.run import UNFINISHED
from frevl.runs.score_files import score_file
from frevl.runs.scorer import Scorer
from frevl.store.reader import Store
from frevl.training.run_folder import Checkpoint
from frevl.training.training import train


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 12])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_matching_trains_on_a_handful_of_images(made, tmp_path, count, seed):
    captions = dict(zip(made.captions.images, made.captions.texts, strict=True))
    images = sorted(captions, key=lambda image: (captions[image], image))
    images = images[:: len(images) // count][:count]
    pairs = write(tmp_path / "few.jsonl", [{"image": image, "text": captions[image]} for image in images])
    run = train(made.store, pairs, run=tmp_path / "run", task="matching", model="linear", seed=seed)
    right = run.results["development"]["n"] // 2
    assert run.results["development"]["n"] == 2 * right, "one wrong text beside every right one"


def test_one_text_for_all_images_cannot_be_matched(made, tmp_path):
    rows = [{"image": image, "text": made.captions.texts[0]} for image in made.store.image_ids[:9]]
    with pytest.raises(PairsError, match="at least two images with different texts, found one image or one text"):
        train(made.store, write(tmp_path / "p.jsonl", rows), run=tmp_path / "run", task="matching", model="linear")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("seed", -1, "--seed must be between 0"),
        ("seed", 10**20, "--seed must be between 0"),
        ("device", "foo", "--device: 'foo' cannot be used here"),
        ("learning_rate", -1.0, "The option 'learning_rate' must be a number above 0, found -1.0"),
        ("learning_rate", float("nan"), "The option 'learning_rate' must be a number above 0, found nan"),
        ("weight_decay", -1.0, "The option 'weight_decay' must be a number of at least 0, found -1.0"),
        ("gradient_clip", 0.0, "The option 'gradient_clip' must be a number above 0, found 0.0"),
        ("mixup_alpha", 2.0, "The option 'mixup_alpha' must be a number above 0 and at most 1, found 2.0"),
    ],
)
def test_values_that_no_training_can_work_with(made, tmp_path, option, value, message):
    given = {option: value} if option in ("seed", "device") else {"options": {option: value}}
    with pytest.raises(UsageError, match=message):
        train(made.store, made.train_file, run=tmp_path / "run", task="classification", **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_damaged_state_is_refused(made, tmp_path, monkeypatch):
    real = Checkpoint.save

    def stop(self, *arguments):
        real(self, *arguments)
        raise KeyboardInterrupt

    settings = {"task": "classification", "options": {"epochs": 2, "layers": 1}}
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            train(made.store, made.train_file, run=tmp_path / "run", **settings)
    state = tmp_path / "run" / UNFINISHED / "tiny.safetensors"
    state.write_bytes(state.read_bytes()[:500])
    for _ in range(2):
        with pytest.raises(TrainingError, match="tiny.safetensors: the state of .* is damaged .*; delete this"):
            train(made.store, made.train_file, run=tmp_path / "run", **settings)
    state.unlink()
    train(made.store, made.train_file, run=tmp_path / "run", **settings)


def test_runs_of_two_tasks_are_not_compared(made, tmp_path):
    train(made.store, made.train_file, run=tmp_path / "a", task="classification", model="majority")
    train(made.store, made.captions_file, run=tmp_path / "b", task="matching", model="linear")
    a, b = (Scorer.open(tmp_path / name, store=made.store) for name in "ab")
    with pytest.raises(UsageError, match="expected a 'classification' run to compare"):
        evaluate(a, made.test_file, versus=b)


def test_a_key_named_group_may_mean_something_else(made, tmp_path):
    train(made.store, made.captions_file, run=tmp_path / "run", task="matching", model="linear")
    images, texts = made.store.image_ids[:2], list(dict.fromkeys(made.captions.texts))[:2]
    rows = [
        {"image": image, "text": text, "target": "match" if (i == j) else "no match", "group": 0}
        for i, image in enumerate(images)
        for j, text in enumerate(texts)
    ]
    result = evaluate(Scorer.open(tmp_path / "run", store=made.store), write(tmp_path / "p.jsonl", rows))
    assert "group_score" not in result.metrics
    assert "accuracy" in result.metrics


def test_answers_without_weight_are_no_classes(made, tmp_path):
    rows = [{**made.train.row(i), "target": {"a": 0.0, "b": 0.0}} for i in range(20)]
    with pytest.raises(PairsError, match="No answer occurs in at least"):
        train(made.store, write(tmp_path / "p.jsonl", rows), run=tmp_path / "run", task="classification", model="mlp")


def test_scores_are_strict_json_and_say_where_they_cannot_be_written(made, tmp_path):
    train(made.store, made.train_file, run=tmp_path / "run", task="classification", model="majority")
    scorer = Scorer.open(tmp_path / "run", store=made.store)
    (tmp_path / "p.jsonl").write_text("")
    row = {"image": made.test.images[0], "text": made.test.texts[0], "weight": float("inf")}
    score_file(scorer, read_pairs([row]), tmp_path / "s.jsonl")

    def refuse(constant):
        raise ValueError(constant)

    written = json.loads((tmp_path / "s.jsonl").read_text(), parse_constant=refuse)
    assert written["weight"] is None
    with pytest.raises(InputError, match="the scores cannot be written"):
        score_file(scorer, read_pairs([row]), tmp_path / "p.jsonl" / "s.jsonl")
    assert torch.is_grad_enabled()


def test_a_run_is_not_written_among_other_files(made, tmp_path, frevl):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / ".hidden").touch()
    (folder / "log.jsonl").touch()  # of a training that was interrupted in its first epoch
    (folder / "chapter.md").write_text("words")
    arguments = ["--store", made.store.path, "--pairs", made.train_file, "--task", "classification", "--run", folder]
    done = frevl("train", *arguments, "--model", "majority")
    assert done.code == 1
    assert done.err.strip() == (
        f"frevl: {folder}: expected a new or empty folder for the run, found other files in it (the first is "
        "'chapter.md'); choose another folder"
    )
    done = frevl("train", *arguments, "--model", "majority", "--seeds", 2)
    assert done.code == 1
    assert "found other files in it (the first is 'chapter.md')" in done.err
    assert sorted(path.name for path in folder.iterdir()) == [".hidden", "chapter.md", "log.jsonl"]
    (folder / "chapter.md").unlink()
    assert frevl("train", *arguments, "--model", "majority", "--quiet").code == 0


def test_pairs_of_a_text_that_was_rejected_are_left_out_with_the_reason(made, tmp_path, monkeypatch):
    run = train(made.store, made.train_file, run=tmp_path / "run", task="classification", model="linear")
    text = "what the encoder could not embed"
    reject = Reject("text", text, "its embedding is not finite")
    monkeypatch.setattr(Store, "rejects", lambda _: [reject])
    rows = [made.test.row(0), {"image": made.test.images[1], "text": text, "target": "yes"}, made.test.row(2)]
    pairs = write(tmp_path / "p.jsonl", rows)
    result = evaluate(Scorer(run, made.store), pairs)
    assert result.n == 2
    why = f"{pairs}:2: its text '{text}' was rejected: its embedding is not finite"
    assert result.notes[0] == f"Left out: 1 pair ({why})."
    score_file(Scorer(run, made.store), pairs, tmp_path / "scores.jsonl")
    said = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row.get("reject") for row in said] == [None, why.partition(": ")[2], None]
    # A text that the store holds after all is used, whatever was said of it once.
    reject = Reject("text", made.test.texts[0], "an older failure")
    assert evaluate(Scorer(run, made.store), write(tmp_path / "q.jsonl", rows[::2])).n == 2


def test_matching_with_two_images_and_no_development_part_says_what_to_do(made, tmp_path):
    two = write(tmp_path / "two.jsonl", [made.captions.row(0), made.captions.row(2)])
    with pytest.raises(PairsError) as caught:
        train(made.store, two, run=tmp_path / "run", task="matching", model="linear")
    assert str(caught.value) == (
        f"{two}: matching sets images aside for development and needs two more whose texts are wrong for each other; "
        "expected at least three images, found 2; give more pairs, a development file with --dev, or right and wrong "
        "pairs with target true and false"
    )
    train(made.store, two, dev=two, run=tmp_path / "given", task="matching", model="linear")
    one = write(tmp_path / "one.jsonl", [made.captions.row(0)])
    with pytest.raises(PairsError, match="at least two different images to set some aside for development, found 1"):
        train(made.store, one, run=tmp_path / "run2", task="matching", model="linear")


@pytest.mark.parametrize("flag", ["--pairs", "--dev", "--store"])
def test_an_option_with_one_path_is_refused_if_it_is_given_twice(flag, frevl, tmp_path):
    again = [word for value in ("1", "2") for word in (flag, value)]
    done = frevl("train", "--run", tmp_path / "r", "--task", "matching", *again)
    assert done.code == 2
    assert f"{flag} takes one path and is given 2 times; give it once" in done.err


def test_switches_values_and_options_with_several_values_may_be_given_again(frevl, tmp_path):
    many = ["--encoder", "a", "--encoder", "b", "--quiet", "--quiet", "--seed", "1", "--seed", "2"]
    done = frevl("train", "--store", tmp_path, "--run", tmp_path / "r", "--task", "matching", "--pairs", "1", *many)
    assert "expected a store" in done.err


@pytest.mark.slow
def test_a_full_disk_behind_standard_output_is_one_sentence():
    with Path("/dev/full").open("w") as full:
        said = subprocess.run(
            [sys.executable, "-m", "frevl", "models"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert said.returncode == 1
    assert said.stderr == ("frevl: standard output, or a file: cannot be read or written (No space left on device)\n")

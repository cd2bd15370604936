"""A fusion that learns part of its targets from a kernel: the mix by hand, and what it may not see."""

import pytest
import torch
from safetensors.torch import load_file

import frevl.training.fit_model
from frevl.errors import TrainingError, UsageError
from frevl.runs.batches import EmbeddedPairs
from frevl.runs.targets import Answers
from frevl.training.examples import Examples
from frevl.training.selection.distillation import taught
from frevl.training.training import train


def examples(truth):
    rows = torch.arange(3)
    items, mask = torch.zeros(3, 1, 2), torch.ones(3, 1, dtype=torch.bool)
    return Examples(EmbeddedPairs(items, mask, items, mask, rows, rows), truth, rows)


def test_the_mix_by_hand():
    # One answer; two answers of weight 1; an answer that is no class.
    truth = Answers(torch.tensor([[1, -1], [0, 2], [-1, -1]]), torch.tensor([[1.0, 0], [1, 1], [0, 0]]), soft=False)
    # Equal scores are one third each, whatever the calibration.
    mixed = taught(examples(truth), torch.full((3, 3), 0.7), 0.3).truth
    expected = torch.tensor([[0.1, 0.8, 0.1], [0.45, 0.1, 0.45], [0, 0, 0]])
    torch.testing.assert_close(mixed.dense(torch.arange(3), 3), expected)
    torch.testing.assert_close(mixed.dense(torch.tensor([2, 0]), 3), expected[[2, 0]])
    assert not mixed.soft


def test_soft_targets_are_mixed_class_by_class():
    truth = Answers(torch.tensor([[1], [0], [2]]), torch.tensor([[0.9], [0.3], [0.6]]), soft=True)
    mixed = taught(examples(truth), torch.zeros(3, 3), 0.5).truth
    assert mixed.soft
    # The teacher says the same of every class; Platt's offset makes it about the mean weight, 1.8 / 9.
    said = 2 * (mixed.dense(torch.arange(3), 3) - 0.5 * truth.dense(torch.arange(3), 3))
    torch.testing.assert_close(said, torch.full((3, 3), said[0, 0].item()))
    assert 0.2 < said[0, 0] < 0.3


def test_a_sure_teacher_overrules_a_label_at_a_share_of_one():
    truth = Answers(torch.tensor([[0], [1], [0]]), torch.ones(3, 1), soft=False)
    mixed = taught(examples(truth), torch.tensor([[1.0, 0], [0, 1], [0, 1]]), 1.0).truth
    assert mixed.weights.argmax(dim=1).tolist() == [0, 1, 1]
    torch.testing.assert_close(mixed.weights.sum(dim=1), torch.ones(3))


def test_the_teacher_sees_the_training_part_only_and_changes_what_is_learnt(made, tmp_path, monkeypatch):
    real, seen = frevl.training.fit_model.fit_kernel_on, []

    def recorded(part, outputs, **options):
        seen.append(len(part))
        return real(part, outputs, **options)

    monkeypatch.setattr(frevl.training.fit_model, "fit_kernel_on", recorded)
    runs = {}
    for share in (None, 0.0, 0.5):
        runs[share] = train(
            made.store, made.train, run=tmp_path / str(share), task="classification", epochs=2, batch_size=64, layers=0,
            **({} if share is None else {"kernel_teacher": share}),
        )  # fmt: skip
    assert seen == [runs[0.5].results["train_pairs"]]
    assert seen[0] < len(made.train)
    weights = [load_file(run.path / "weights.safetensors") for run in runs.values()]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["head.inner.weight"], weights[2]["head.inner.weight"])


def test_what_no_kernel_can_teach_is_refused(made, tmp_path, monkeypatch, frevl):
    for changes, message in (
        ({"kernel_teacher": 1.5}, "--kernel-teacher must be from 0 to 1, found 1.5"),
        ({"kernel_teacher": float("nan")}, "--kernel-teacher must be from 0 to 1, found nan"),
        (
            {"kernel_teacher": 0.5, "task": "matching"},
            "--kernel-teacher belongs to --task classification, found --task",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            train(made.store, made.train, run=tmp_path / "run", **{"task": "classification", **changes})
    with pytest.raises(UsageError, match="the kernel does no matching"):
        taught(examples(torch.ones(3)), torch.zeros(3, 1), 0.5)
    said = frevl("train", "--store", made.store.path, "--pairs", made.train_file, "--run", tmp_path / "run", "--task",
                 "classification", "--kernel-teacher", "2")  # fmt: skip
    assert said.code == 2
    monkeypatch.setattr("frevl.training.fit_model.MOST_PAIRS", 11)
    with pytest.raises(
        TrainingError, match=r"--kernel-teacher solves a kernel, which takes at most 11 training pairs, fo"
    ):
        train(made.store, made.train, run=tmp_path / "other", task="classification", kernel_teacher=0.5)

"""Distillation from the kernel: the mix by hand, and what the kernel may not see. Run: ``pytest research``."""

import pytest
import torch

import research.kernel_teacher
from frevl.errors import TrainingError, UsageError
from frevl.runs.batches import EmbeddedPairs
from frevl.runs.targets import Answers
from frevl.training.examples import Examples
from research.kernel_teacher import distil, teach


def examples(truth):
    rows = torch.arange(3)
    items, mask = torch.zeros(3, 1, 2), torch.ones(3, 1, dtype=torch.bool)
    return Examples(EmbeddedPairs(items, mask, items, mask, rows, rows), truth, rows)


def test_the_mix_by_hand():
    # One answer; two answers of weight 1; an answer that is no class.
    truth = Answers(torch.tensor([[1, -1], [0, 2], [-1, -1]]), torch.tensor([[1.0, 0], [1, 1], [0, 0]]), soft=False)
    # Equal scores are one third each, whatever the calibration.
    mixed = distil(examples(truth), torch.full((3, 3), 0.7), 0.3).truth
    expected = torch.tensor([[0.1, 0.8, 0.1], [0.45, 0.1, 0.45], [0, 0, 0]])
    torch.testing.assert_close(mixed.dense(torch.arange(3), 3), expected)
    torch.testing.assert_close(mixed.dense(torch.tensor([2, 0]), 3), expected[[2, 0]])
    assert not mixed.soft


def test_soft_targets_are_mixed_class_by_class():
    truth = Answers(torch.tensor([[1], [0], [2]]), torch.tensor([[0.9], [0.3], [0.6]]), soft=True)
    mixed = distil(examples(truth), torch.zeros(3, 3), 0.5).truth
    assert mixed.soft
    # The teacher says the same of every class; Platt's offset makes it about the mean weight, 1.8 / 9.
    said = 2 * (mixed.dense(torch.arange(3), 3) - 0.5 * truth.dense(torch.arange(3), 3))
    torch.testing.assert_close(said, torch.full((3, 3), said[0, 0].item()))
    assert 0.2 < said[0, 0] < 0.3


def test_a_sure_teacher_overrules_a_label_at_a_share_of_one():
    truth = Answers(torch.tensor([[0], [1], [0]]), torch.ones(3, 1), soft=False)
    mixed = distil(examples(truth), torch.tensor([[1.0, 0], [0, 1], [0, 1]]), 1.0).truth
    assert mixed.weights.argmax(dim=1).tolist() == [0, 1, 1]
    torch.testing.assert_close(mixed.weights.sum(dim=1), torch.ones(3))


def test_a_kernel_predicts_every_pair_without_its_own_image():
    torch.manual_seed(0)
    images, texts = torch.randn(40, 1, 6), torch.randn(5, 1, 3)
    rows = torch.arange(80) // 2
    pairs = EmbeddedPairs(
        images, torch.ones(40, 1, dtype=torch.bool), texts, torch.ones(5, 1, dtype=torch.bool), rows,
        torch.arange(80) % 5,
    )  # fmt: skip
    classes = (images[rows, 0, 0] > 0).long()
    classes[:2] = 1 - classes[:2]  # the first image's labels are wrong
    truth = Answers(classes[:, None], torch.ones(80, 1), soft=False)
    taught = teach(Examples(pairs, truth, rows), 2, 1.0).truth
    predicted = taught.dense(torch.arange(80), 2).argmax(dim=1)
    assert (predicted[:2] != classes[:2]).all(), "a teacher that had seen the image would repeat its wrong labels"
    assert (predicted[2:] == classes[2:]).float().mean() > 0.8
    kept = teach(Examples(pairs, truth, rows), 2, 0.0).truth
    torch.testing.assert_close(kept.dense(torch.arange(80), 2), truth.dense(torch.arange(80), 2))


def test_what_no_kernel_can_teach_is_refused(monkeypatch):
    truth = Answers(torch.tensor([[0], [1], [0]]), torch.ones(3, 1), soft=False)
    for weight in (1.5, float("nan")):
        with pytest.raises(UsageError, match=f"The weight of the kernel must be from 0 to 1, found {weight}"):
            teach(examples(truth), 2, weight)
    with pytest.raises(UsageError, match="A kernel teaches classification only"):
        distil(examples(torch.ones(3)), torch.zeros(3, 1), 0.5)
    monkeypatch.setattr(research.kernel_teacher, "MOST_PAIRS", 2)
    with pytest.raises(TrainingError, match="A kernel takes at most 2 training pairs, found 3"):
        teach(examples(truth), 2, 0.5)

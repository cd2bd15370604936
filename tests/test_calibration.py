"""Calibration recovers what was planted."""

import numpy as np
import pytest
import torch

from frevl.batches import Answers
from frevl.calibration import calibrated, fit_calibration


def test_platt_recovers_scale_and_offset():
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40_000, 1, generator=random)
    truth = (torch.rand(40_000, generator=random) < (0.5 * logits[:, 0] - 1).sigmoid()).float()
    found = fit_calibration(logits, truth)
    assert found["scale"] == pytest.approx(0.5, abs=0.025)
    assert found["offset"] == pytest.approx(-1, abs=0.06)


def test_temperature_recovers_the_scale_and_leaves_the_offset():
    random = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(20_000, 5, generator=random)
    classes = torch.multinomial((2.5 * logits).softmax(dim=1), 1, generator=random)
    found = fit_calibration(logits, Answers(classes, torch.ones(20_000, 1), soft=False))
    assert found["scale"] == pytest.approx(2.5, abs=0.08)
    assert found["offset"] == 0.0


def test_separable_data_gives_a_finite_scale():
    found = fit_calibration(torch.tensor([[-4.0], [4.0]]), torch.tensor([0.0, 1.0]))
    assert 0 < found["scale"] < 100


def test_without_known_answers_nothing_is_changed():
    answers = Answers(torch.tensor([[-1]]), torch.zeros(1, 1), soft=False)
    assert fit_calibration(torch.randn(1, 3), answers) == {"scale": 1.0, "offset": 0.0}


def test_probabilities_by_hand():
    logits = torch.tensor([[0.0, np.log(3.0)]])
    once = {"scale": 1.0, "offset": 0.0}
    np.testing.assert_allclose(calibrated(logits, once, soft=False), [[0.25, 0.75]], atol=1e-6)
    np.testing.assert_allclose(calibrated(logits, once, soft=True), [[0.5, 0.75]], atol=1e-6)
    twice = {"scale": 2.0, "offset": 0.0}
    np.testing.assert_allclose(calibrated(logits, twice, soft=False), [[0.1, 0.9]], atol=1e-6)

"""Calibration recovers what was planted."""

import numpy as np
import pytest
import torch

from frevl.evaluation.metrics import expected_calibration_error
from frevl.runs.calibration import FEWEST_PAIRS, calibrated, calibration_notes, fit_calibration
from frevl.runs.targets import Answers


def test_platt_recovers_scale_and_offset():
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40_000, 1, generator=random)
    truth = (torch.rand(40_000, generator=random) < (0.5 * logits[:, 0] - 1).sigmoid()).float()
    found = fit_calibration(logits, truth)
    assert found["scale"] == pytest.approx(0.5, abs=0.025)
    assert found["offset"] == pytest.approx(-1, abs=0.06)


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1.3, 0.0), (1.0, -0.7), (1.3, -0.7)])
def test_calibrated_scales_then_shifts(scale, offset):
    logits = torch.tensor([[0.1, -2.0, 3.0], [5.0, 5.0, 0.0]])
    before = logits.clone()
    found = calibrated(logits, {"scale": scale, "offset": offset}, soft=True)
    assert torch.equal(found, (logits * scale + offset).sigmoid())
    assert torch.equal(logits, before)
    found = calibrated(logits, {"scale": scale, "offset": 0.0}, soft=False)
    assert torch.equal(found, (logits * scale).softmax(dim=1))


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


def test_few_right_pairs_do_not_prove_certainty():
    """18 of 18 right: Laplace's rule of succession believes the next with 19/20; maximum likelihood with 0.9999..."""
    right = torch.tensor([0.0, 1.0]).repeat(9)
    for says in (0.5, 1.0, 4.0):  # a timid network may grow as sure as that; one that is sure stays what it is
        found = fit_calibration(2 * says * right[:, None] - says, right)
        believed = calibrated(torch.tensor([[says]]), found, soft=True).item()
        alone = torch.tensor(says).sigmoid().item()
        assert min(alone, 19 / 20) - 0.002 < believed < max(alone, 19 / 20) + 0.002
        assert believed > (0.88 if says < 4 else 0.98)
    classes = Answers(right.long()[:, None], torch.ones(18, 1), soft=False)
    logits = torch.stack([0.25 - 0.5 * right, 0.5 * right - 0.25], dim=1)
    found = fit_calibration(logits, classes)
    said = calibrated(logits, found, soft=False).max(dim=1).values
    assert 0.75 < said.min() <= said.max() < 19 / 20 + 0.002


@pytest.mark.slow
@pytest.mark.parametrize("classes", [None, 2, 3, 6])
def test_twenty_pairs_do_not_spoil_a_network_that_is_calibrated(classes):
    """60 networks whose probabilities are right, each calibrated on 20 pairs; the ECE is measured on 2,000 new ones."""
    random = torch.Generator().manual_seed(11)

    def draw(n, true=1.0):
        if classes is None:
            logits = 2 * torch.randn(n, 1, generator=random)
            return logits, (torch.rand(n, generator=random) < (true * logits[:, 0]).sigmoid()).float()
        logits = 1.5 * torch.randn(n, classes, generator=random)
        drawn = torch.multinomial((true * logits).softmax(dim=1), 1, generator=random)
        return logits, Answers(drawn, torch.ones(n, 1), soft=False)

    def error(logits, truth, calibration):
        said = calibrated(logits, calibration, soft=classes is None)
        if classes is None:
            confidence, hits = torch.maximum(said, 1 - said)[:, 0], (said[:, 0] > 0.5) == (truth > 0.5)
        else:
            confidence, best = said.max(dim=1)
            hits = best == truth.classes[:, 0]
        return 100 * expected_calibration_error(confidence.double().clamp(0, 1).numpy(), hits.double().numpy())

    nothing = {"scale": 1.0, "offset": 0.0}
    before, after = [], []
    for _ in range(60):
        found = fit_calibration(*draw(20))
        new = draw(2000)
        before.append(error(*new, nothing))
        after.append(error(*new, found))
    assert np.mean(after) < np.mean(before) + 1
    assert np.mean(np.array(after) > np.array(before) + 5) <= 0.1, "it was a third"
    wrong = [(error(*new, nothing), error(*new, fit_calibration(*draw(20, 0.2)))) for new in [draw(2000, 0.2)] * 30]
    assert np.mean([b for _, b in wrong]) < 0.7 * np.mean([a for a, _ in wrong]), "a large error is still mended"


def test_few_development_pairs_are_said():
    assert calibration_notes(FEWEST_PAIRS) == []
    assert calibration_notes(20) == [
        "Hardly calibrated: 20 development pairs can reveal only large errors of the probabilities; if these "
        "matter, give at least 50 with --dev."
    ]


def test_with_few_pairs_new_ones_are_believed_no_more_than_they_deserve():
    """Networks that are right in 80 % of the pairs and say so in 98 %; 60 of them, each calibrated on 18 pairs."""
    random = torch.Generator().manual_seed(5)

    def draw(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        truth = torch.randint(2, (n,), generator=random).float()
        right = torch.rand(n, generator=random) < 0.8
        return 8 * (truth == right.float()).float()[:, None] - 4, truth

    losses, believed = [], []
    for _ in range(60):
        found = fit_calibration(*draw(18))
        logits, truth = draw(200)
        said = calibrated(logits, found, soft=True)[:, 0].double()
        losses.append(torch.nn.functional.binary_cross_entropy(said, truth.double()).item())
        believed.append(said.where(said > 0.5, 1 - said).mean().item())
    assert 0.75 < np.mean(believed) < 0.82
    assert np.mean(losses) < 0.56  # 0.50 with the true scale, 0.61 by maximum likelihood


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

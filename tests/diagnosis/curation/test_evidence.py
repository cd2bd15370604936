"""One score from several features, and the agreement of a text with the others of its image."""

import numpy as np
import pytest
import torch

from frevl.diagnosis.curation.evidence import TextsOfImages, exchange_images, half_wrong, judge_images, one_score
from frevl.diagnosis.data_quality.mixture import Mixture


def test_agreement_leaves_the_text_of_the_line_out_wherever_it_stands():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    own = TextsOfImages.of(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2]), 3)
    image, text, line = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, 2, 0]), torch.tensor([0, 0, 2, 0])
    means, others = own.agreement(vectors, image, text, line)
    # text 0 with text 1; text 2 in place of text 0 with text 1; an only text; an image without any
    assert means.tolist() == pytest.approx([0.0, 0.8, 0.0, 0.0])
    assert others.tolist() == [1, 1, 0, 0]


def test_at_most_eight_texts_of_an_image_are_compared():
    own = TextsOfImages.of(torch.zeros(11, dtype=torch.long), torch.arange(11), 1)
    assert own.rows.tolist() == [list(range(8))]


def test_the_features_are_weighed_by_what_they_tell():
    random = np.random.default_rng(0)
    wrong = random.random(2000) < 0.3
    given = random.standard_normal((2000, 3)) + np.outer(~wrong, [2.0, 1.0, 0.0])
    drawn = random.standard_normal((2000, 3))
    scores, _, _ = one_score(given, drawn, np.ones(2000, bool), drawn)
    best = given @ [2.0, 1.0, 0.0]  # the log-likelihood ratio, but for a constant
    assert np.corrcoef(scores, best)[0, 1] > 0.99


def test_one_feature_is_the_score_and_constant_ones_do_no_harm():
    given, drawn = np.array([[3.0], [1.0]]), np.array([[0.0], [2.0]])
    assert one_score(given, drawn, np.ones(2, bool), drawn)[0].tolist() == [3, 1]
    both = np.hstack([given, np.ones((2, 1))]), np.hstack([drawn, np.ones((2, 1))])
    scores, others, again = one_score(*both, np.ones(2, bool), both[1])
    assert again.tolist() == others.tolist()
    assert scores[0] > scores[1]
    assert np.isfinite([*scores, *others]).all()


def test_lines_that_a_single_feature_separates_stay_finite():
    given, drawn = np.random.default_rng(0).standard_normal((2, 60, 2))
    given[:, 0] += 50
    scores, others, _ = one_score(given, drawn, np.ones(60, bool), drawn)
    assert scores.min() > others.max()
    assert np.abs(scores).max() < 100


def test_images_are_given_all_texts_of_one_other_image():
    """Image 0 has one right text; images 2 and 3 are one group."""
    image, group = torch.tensor([0, 1, 1, 2, 2, 3, 3, 0]), torch.tensor([0, 1, 1, 2, 2, 2, 2, 0])
    found = set()
    for seed in range(8):
        images, lines = exchange_images(image, group, torch.arange(7), seed)
        assert {(one, int(image[row])) for one, row in zip(images.tolist(), lines.tolist(), strict=True)} <= {
            (1, 2), (1, 3), (2, 1), (3, 1)
        }  # fmt: skip
        assert len(images) == 4
        found |= set(zip(images.tolist(), lines.tolist(), strict=True))
    assert {(1, 3), (1, 4), (2, 1), (2, 2), (3, 1)} <= found
    for nothing in (torch.arange(0), torch.arange(2)):
        assert [len(one) for one in exchange_images(image, group, nothing, 0)] == [0, 0]


def features_of(random, wrong):
    """Six features of lines: the first tells right from wrong, the fifth is agreement, which whole exchanges keep."""
    table = random.standard_normal((len(wrong), 6))
    table[:, 0] += np.where(wrong, 0.0, 1.8)
    table[:, 4] += 3.0
    return table


@pytest.mark.parametrize("exchanged", [0.0, 0.15])
def test_images_that_were_given_the_texts_of_another_are_found(exchanged):
    random = np.random.default_rng(3)
    images = np.repeat(np.arange(400), 5)
    whole = random.random(400) < exchanged
    given = features_of(random, whole[images])
    drawn = features_of(random, np.ones(4000, bool)) - [0, 0, 0, 0, 3.0, 0]
    made = features_of(random, np.ones(2000, bool))
    right, flagged = np.ones(2000, bool), np.zeros(2000, bool)
    found = judge_images(given, drawn, right, flagged, images, images, (made, images))
    if not exchanged:
        assert found is None
        return
    assert found.images.ci95[0] < exchanged < found.images.ci95[1]
    called = found.beliefs[::5] < 0.5
    assert whole[called].mean() > 0.9
    assert called[whole].mean() > 0.9
    assert found.sentence().startswith(f"About {100 * found.images.wrong_share:.1f} % [")
    share, (low, high) = found.with_lines(Mixture(found.beliefs, found.beliefs, 0.1, 0.02))
    assert share == pytest.approx(1 - 0.9 * (1 - found.images.wrong_share))
    assert (low, high) == pytest.approx((max(0.05, found.images.ci95[0]), 1 - 0.85 * (1 - found.images.ci95[1])))
    # Lines flagged by themselves explain what is wrong with their image, and few images show no distribution.
    flagged[::5] = whole
    assert judge_images(given, drawn, right, flagged, images, images, (made, images)) is None
    assert (
        judge_images(given[:495], drawn, right[:495], ~right[:495], images[:495], images[:495], (made, images)) is None
    )


@pytest.mark.parametrize(("share", "high", "said"), [(0.36, 0.65, True), (0.2, 0.7, False), (0.35, 0.45, False)])
def test_many_wrong_texts_are_a_reason_to_doubt(share, high, said):
    doubts = half_wrong(share, 0.1, high)
    assert bool(doubts) == said
    assert all(one.startswith(f"Half of the texts or more may be wrong ({100 * share:.0f} % [10, ") for one in doubts)

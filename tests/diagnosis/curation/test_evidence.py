"""One score from several features, and the agreement of a text with the others of its image."""

import numpy as np
import pytest
import torch

from frevl.diagnosis.curation.evidence import TextsOfImages, one_score


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

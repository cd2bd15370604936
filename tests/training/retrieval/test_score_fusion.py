"""The weights of a reranked score, chosen on development data."""

import pytest
import torch

from frevl.models.retrieval.reranker import TermWeights
from frevl.training.retrieval.score_fusion import (
    RankedCandidates,
    choose_weights,
    few_enough,
    rank_candidates,
    recall_by_image,
)


def side(terms, right):
    terms = torch.tensor(terms, dtype=torch.float32)
    return RankedCandidates(torch.zeros(terms.shape[:2], dtype=torch.long), torch.tensor(right), terms)


def test_hits_by_hand():
    # first stage, hubness, fusion; the right item is the second.
    one = side([[[2.0, 4.0, 0.0], [1.0, 0.0, 0.0]]], [[False, True]])
    assert one.hits(0.0, 0.0, 2).tolist() == [[0, 1, 1]]
    assert one.hits(-0.5, 0.0, 2).tolist() == [[1, 1, 1]], "the hub loses 2 points"
    assert one.hits(-0.25, 0.0, 2).tolist() == [[0, 1, 1]], "a tie is a miss"
    assert one.hits(-0.5, 0.0, 1).tolist() == [[0, 0, 0]], "the right item is no candidate"


def test_candidates_put_wrong_items_before_right_ones_on_ties():
    columns, found = rank_candidates(torch.tensor([[3.0, 3.0, 1.0]]), torch.tensor([[True, False, False]]), 1)
    assert columns.tolist() == [[1]]
    assert found.tolist() == [[False]]


def test_each_direction_finds_its_weight_of_hubness_and_a_harmful_fusion_weighs_nothing():
    texts = side([[[2.0, 4.0, 9.0], [1.0, 0.0, 0.0]]] * 5, [[False, True]] * 5)
    images = side([[[2.0, 0.0, 9.0], [1.9, 0.0, 0.0]], [[3.0, 0.0, 0.0], [1.0, 0.0, 9.0]]] * 2, [[True, False]] * 4)
    found = choose_weights(texts, images)
    assert found.weights == TermWeights(text_hubness=-0.5)
    assert found.metrics["i2t_r1"] == 100
    assert found.metrics["t2i_r1"] == 100


def test_a_helpful_fusion_gets_a_weight():
    good = side([[[1.0, 0.0, 0.0], [0.9, 0.0, 2.0]]] * 3, [[False, True]] * 3)
    found = choose_weights(good, good)
    assert found.weights.fusion > 0
    assert found.metrics["i2t_r1"] == 100
    assert choose_weights(good, good, fusion=False).metrics["i2t_r1"] == 0


def test_one_direction_never_pays_for_the_other():
    # Every weight of the fusion that helps texts hurts images.
    helped = side([[[1.0, 0.0, 0.0], [0.9, 0.0, 1.0]]] * 3, [[False, True]] * 3)
    hurt = side([[[1.0, 0.0, 0.0], [0.9, 0.0, 1.0]]] * 3, [[True, False]] * 3)
    found = choose_weights(helped, hurt)
    assert found.weights.fusion == 0
    assert found.metrics["t2i_r1"] == 100


def test_never_worse_than_the_first_stage_on_random_terms():
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        sides = []
        for queries in (7, 13):
            terms = torch.randn(queries, 11, 3, generator=random)
            order = terms[..., 0].argsort(dim=1, descending=True)
            right = torch.zeros(queries, 11, dtype=torch.bool)
            right[torch.arange(queries), torch.randint(11, (queries,), generator=random)] = True
            sides.append(
                RankedCandidates(order, right.gather(1, order), terms.gather(1, order[..., None].expand(-1, -1, 3)))
            )
        first, best = choose_weights(*sides, hubs=False, fusion=False), choose_weights(*sides)
        assert best.mean >= first.mean - 1e-4
        for name in ("i2t_r1", "t2i_r1"):
            assert best.metrics[name] >= first.metrics[name] - 1e-4


def test_recall_by_image_by_hand():
    scores = torch.tensor([[5.0, 1.0, 4.0], [3.0, 2.0, 9.0]])
    right = torch.tensor([[True, True, False], [False, False, True]])
    # Image 0 finds a text first; its texts: the first finds its image first, the second only among 5 and 10.
    expected = [0.5 * (1 + (1 + 2 / 3) / 2), 1.0]
    assert recall_by_image(scores, right).tolist() == pytest.approx(expected)


def test_pairs_are_drawn_by_image_where_all_scores_would_not_fit(monkeypatch):
    images, texts = torch.arange(40).repeat_interleave(5), torch.arange(200)
    assert few_enough(images, texts, 0).all()
    monkeypatch.setattr("frevl.training.retrieval.score_fusion._MOST_SCORES", 2_000)  # 20 images with 100 texts
    kept = few_enough(images, texts, 0)
    drawn = images[kept].unique()
    assert 15 <= len(drawn) <= 20
    assert kept.sum() == 5 * len(drawn)  # whole images
    assert torch.equal(kept, few_enough(images, texts, 0))
    assert not torch.equal(kept, few_enough(images, texts, 1))
    assert few_enough(torch.arange(40), torch.zeros(40, dtype=torch.long), 0).all()  # one text for all images
    monkeypatch.setattr("frevl.training.retrieval.score_fusion._MOST_SCORES", 1)
    assert len(images[few_enough(images, texts, 0)].unique()) == 2

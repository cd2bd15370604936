"""Hard negatives: never a right text or a paraphrase, and from a first stage that has not seen the image."""

import math

import pytest
import torch

import frevl.training.retrieval.reranker
from frevl.models.retrieval.reranker import hubness
from frevl.models.retrieval.two_tower import Cosine
from frevl.runs.batches import EmbeddedPairs
from frevl.training.options import Session
from frevl.training.retrieval.reranker import (
    assign_folds,
    bank_of,
    listwise_loss,
    mine_hard_negatives,
    near_duplicate_bound,
)


def session(seed):
    return Session(seed=seed, time_limit=None, device="cpu", progress=False)


def pairs_of(images, texts, image_rows, text_rows):
    images, texts = torch.as_tensor(images).float(), torch.as_tensor(texts).float()
    return EmbeddedPairs(
        images[:, None], torch.ones(len(images), 1, dtype=torch.bool), texts[:, None],
        torch.ones(len(texts), 1, dtype=torch.bool), torch.as_tensor(image_rows), torch.as_tensor(text_rows),
    )  # fmt: skip


def test_an_image_lies_in_one_fold_and_folds_are_even():
    rows = torch.arange(7).repeat_interleave(3)
    folds = assign_folds(rows, 3, seed=5)
    for image in range(7):
        assert len(set(folds[rows == image].tolist())) == 1
    assert sorted(torch.bincount(folds[::3]).tolist()) == [2, 2, 3]
    assert folds.tolist() != assign_folds(rows, 3, seed=6).tolist()


def test_hubness_by_hand():
    found = hubness(
        torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([2.0, 3.0])
    )
    assert found.tolist() == pytest.approx([math.log((math.exp(2) + math.exp(-2)) / 2), 0.0])


def test_mined_items_are_wrong_and_of_the_own_fold_and_hardest_first(monkeypatch):
    monkeypatch.setattr(frevl.training.retrieval.reranker, "near_duplicate_bound", lambda *_: math.inf)
    count, width = 13, 5
    images, texts = torch.randn(count, width), torch.randn(2 * count, width)
    image_rows, text_rows = torch.arange(count).repeat(2), torch.randperm(2 * count)
    pairs = pairs_of(images, texts, image_rows, text_rows)
    first = Cosine(spaces=[[0, width, 0, width]], scale=3.0)
    negatives = mine_hard_negatives(
        pairs, session=session(1), folds=2, depth=4, alignment_weight=0.0, hubness_weight=0.5, bank=6, first=first
    )
    assert negatives.image_rows.tolist() == image_rows.tolist()
    assert negatives.text_rows.tolist() == text_rows.tolist()
    folds = assign_folds(image_rows, 2, 1)
    image_of = dict(zip(text_rows.tolist(), image_rows.tolist(), strict=True))
    fold_of = dict(zip(image_rows.tolist(), folds.tolist(), strict=True))
    # Hubness is measured with items of the other folds.
    outside = [folds != fold for fold in range(2)]
    of_fold = [bank_of(first, images, texts, image_rows[rows], text_rows[rows], 6, 1) for rows in outside]
    for n in range(len(negatives)):
        image, text = int(image_rows[n]), int(text_rows[n])
        banks = of_fold[fold_of[image]]

        def score(i, t, banks=banks):
            v, w = first.image_vectors(images[i : i + 1]), first.text_vectors(texts[t : t + 1])
            scales = torch.full((width,), 3.0)
            hubs = hubness(v, banks[1], scales) + hubness(w, banks[0], scales)
            return float(3 * (v * w).sum() - 0.5 * hubs)

        assert float(negatives.base[n]) == pytest.approx(score(image, text), abs=1e-4)
        wrong = {i: score(i, text) for i in range(count) if i != image and fold_of[i] == fold_of[image]}
        expected = sorted(wrong, key=wrong.get, reverse=True)[:4]
        assert negatives.wrong_images[n].tolist() == expected
        assert negatives.wrong_images_base[n].tolist() == pytest.approx([wrong[i] for i in expected], abs=1e-4)
        wrong = {t: score(image, t) for t, i in image_of.items() if i != image and fold_of[i] == fold_of[image]}
        assert negatives.wrong_texts[n].tolist() == sorted(wrong, key=wrong.get, reverse=True)[:4]


def test_another_wording_is_not_a_wrong_text_and_its_image_not_a_wrong_image(monkeypatch):
    monkeypatch.setattr(frevl.training.retrieval.reranker, "near_duplicate_bound", lambda *_: 0.99)
    fold = (assign_folds(torch.arange(12), 2, 0) == 0).nonzero()[:, 0].tolist()
    texts = torch.randn(12, 4)
    texts[fold[1]] = texts[fold[0]]
    pairs = pairs_of(torch.randn(12, 4), texts, range(12), range(12))
    negatives = mine_hard_negatives(pairs, session=session(0), folds=2, depth=5, first=Cosine(spaces=[[0, 4, 0, 4]]))
    for n in fold[:2]:
        assert set(negatives.wrong_images[n].tolist()) == {*fold[2:], -1}
        assert set(negatives.wrong_texts[n].tolist()) == {*fold[2:], -1}
    assert set(negatives.wrong_texts[fold[2]].tolist()) == {*fold} - {fold[2]}


def test_the_bound_of_another_wording():
    assert near_duplicate_bound(torch.randn(5, 3), torch.arange(5), torch.arange(5)) == math.inf, "one text per image"
    base = torch.randn(200, 8)
    texts = torch.cat([base, base + 0.01 * torch.randn(200, 8)])
    rows = torch.arange(200).repeat(2)
    assert 0.99 < near_duplicate_bound(texts, rows, torch.arange(400)) <= 1


def test_cross_fitted_first_stages_never_see_the_fold(monkeypatch):
    seen = []

    def spy(pairs, **_):
        seen.append(set(pairs.image_rows.tolist()))
        return Cosine(spaces=[[0, 3, 0, 3]]), None

    monkeypatch.setattr(frevl.training.retrieval.reranker, "fit_two_tower_ensemble", spy)
    pairs = pairs_of(torch.randn(9, 3), torch.randn(9, 3), range(9), range(9))
    negatives = mine_hard_negatives(pairs, session=session(2), folds=3, depth=2)
    assert len(seen) == 3
    for n, image in enumerate(range(9)):
        unseen = next(part for part in seen if image not in part)
        assert unseen.isdisjoint(set(negatives.wrong_images[n].tolist()) - {-1})


def test_listwise_loss_by_hand():
    right, wrong = torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 5.0], [0.0, 0.0]])
    exists = torch.tensor([[True, False], [True, True]])
    assert listwise_loss(right, wrong, exists).item() == pytest.approx((math.log(2) + math.log(3)) / 2)
    assert listwise_loss(right[:1], wrong[:1], torch.zeros(1, 2, dtype=torch.bool)).item() == 0
    smooth = listwise_loss(torch.tensor([2.0]), torch.tensor([[0.0]]), torch.tensor([[True]]), label_smoothing=0.5)
    log_right, log_wrong = 2 - math.log(math.exp(2) + 1), -math.log(math.exp(2) + 1)
    assert smooth.item() == pytest.approx(-(0.5 * log_right + 0.25 * (log_right + log_wrong)))

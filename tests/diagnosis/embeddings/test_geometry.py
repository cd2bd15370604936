"""Measures of an embedding space against numbers worked out by hand, and slow reference implementations."""

import math

import numpy as np
import pytest

from frevl.data.pairs import Pairs
from frevl.diagnosis.embeddings.embedding_findings import embedding_findings
from frevl.diagnosis.embeddings.geometry import (
    effective_rank,
    explained,
    hub_counts,
    modality_gap,
    neighbours,
    overlap,
    skewness,
)
from frevl.runs.scorer import Scorer
from frevl.training.training import train


def cross(*lengths):
    """Return two opposite points on each axis: singular values are ``sqrt(2)`` times the lengths, the mean is 0."""
    axes = np.diag(lengths).astype(float)
    return np.concatenate([axes, -axes])


def test_effective_rank_counts_equal_directions():
    assert effective_rank(cross(1, 1, 1)) == pytest.approx(3)
    assert effective_rank(cross(1, 1, 0) + 7) == pytest.approx(2)  # a shift changes nothing
    assert effective_rank(cross(5, 0, 0)) == pytest.approx(1)
    # shares 3/4 and 1/4: exp(-(3/4 ln 3/4 + 1/4 ln 1/4))
    assert effective_rank(cross(3, 1)) == pytest.approx(math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4)))


def test_explained_variance_goes_by_squares():
    assert explained(cross(3, 1)).tolist() == pytest.approx([0.9, 1.0])
    assert explained(cross(2, 2, 2, 2))[:4].tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_neighbours_are_those_of_a_slow_twin():
    values = np.random.default_rng(3).normal(size=(23, 5))
    expected = []
    for i in range(23):
        cosine = {
            j: sum(a * b for a, b in zip(values[i], values[j], strict=True))
            / math.sqrt(sum(a * a for a in values[i]) * sum(b * b for b in values[j]))
            for j in range(23)
            if j != i
        }
        expected.append(sorted(cosine, key=lambda j: -cosine[j])[:7])
    assert neighbours(values, 7).tolist() == expected


def test_hubs_are_counted():
    """Item 0 is a neighbour of everybody, item 3 of nobody."""
    nearest = np.array([[1], [0], [0], [0]])
    assert hub_counts(nearest).tolist() == [3, 1, 0, 0]
    # mean 1, deviations 2, 0, -1, -1: third moment (8 - 1 - 1) / 4 = 1.5, variance 6 / 4 = 1.5
    assert skewness(np.array([3, 1, 0, 0])) == pytest.approx(1.5 / 1.5**1.5)
    assert skewness(np.array([2, 2, 2])) == 0


def test_overlap_is_the_share_of_common_neighbours():
    before, after = np.array([[1, 2], [0, 2], [0, 1]]), np.array([[2, 1], [2, 3], [3, 4]])
    assert overlap(before, after).tolist() == [1.0, 0.5, 0.0]


def test_modality_gap_is_the_distance_of_the_means():
    images, texts = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[-1.0, 0.0], [0.0, 1.0]])
    assert modality_gap(images, texts) == pytest.approx(1.0)


@pytest.mark.slow
def test_findings_of_a_store_and_a_fusion(made, tmp_path):
    train(made.store, made.train, run=tmp_path / "tiny", task="classification", model="tiny", options={"epochs": 1})
    scorer = Scorer.open(tmp_path / "tiny", store=made.store)
    rank, hubs, projection = embedding_findings(made.store, made.train, scorers=[scorer])
    assert [rank.name, hubs.name, projection.name] == ["rank-toy", "hubs-toy", "projection-tiny"]
    images = made.store.read_images(list(dict.fromkeys(made.train.images)))
    assert rank.value == pytest.approx(effective_rank(images))
    assert rank.table[0]["items"] == len(images) == 90
    assert 1 <= rank.table[0]["directions for 50 %"] <= rank.table[0]["directions for 90 %"] <= 90
    assert rank.plot["series"][0]["y"][-1] == pytest.approx(100)
    row = projection.table[0]
    assert row["width before"] == images.shape[1]
    assert row["width after"] == 256
    assert row["by chance %"] < row["low"] <= row["neighbours kept %"] <= row["high"] <= 100
    assert projection.value == row["neighbours kept %"]
    assert hubs.ci95[0] <= hubs.value <= hubs.ci95[1]
    few = embedding_findings(made.store, made.train.select(range(8)), scorers=[scorer])[-1]
    assert few.claim.startswith("There are too few items")
    assert few.value is None


def test_few_items_and_models_without_projection_are_told(made, tmp_path):
    few = made.train.select([0, 1, 2, 3])
    train(made.store, made.train, run=tmp_path / "linear", task="classification", model="linear")
    linear = Scorer.open(tmp_path / "linear", store=made.store)
    assert [one.name for one in embedding_findings(made.store, few, scorers=[linear])] == ["rank-toy"]


class OneSpace:
    """A store whose images and texts lie in one space of three dimensions."""

    def __init__(self, images: dict, texts: dict) -> None:
        self.encoders = ["clip"]
        self._values = {"image": images, "text": texts}

    def select_towers(self, modality, encoders):  # noqa: ARG002
        return [type("Tower", (), {"identity": {"common_space": "clip-3"}})()]

    def read_images(self, ids, *, encoders):  # noqa: ARG002
        return np.array([self._values["image"][id_] for id_ in ids])

    def read_texts(self, texts, *, encoders):  # noqa: ARG002
        return np.array([self._values["text"][text] for text in texts])


def test_the_gap_and_the_ranking_of_a_common_space():
    """Each text lies near its image, and all texts are shifted along the third axis."""
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    images = {f"{i}.png": [math.cos(a), math.sin(a), 0.0] for i, a in enumerate(angles)}
    texts = {f"text {i}": [0.8 * math.cos(a), 0.8 * math.sin(a), 0.6] for i, a in enumerate(angles)}
    pairs = Pairs(list(images), list(texts), [None] * 12, [{}] * 12, [f"a:{i}" for i in range(12)], [])
    gap = embedding_findings(OneSpace(images, texts), pairs)[-1]
    assert gap.name == "modality-gap-clip"
    assert gap.value == pytest.approx(0.6)
    rows = {row["what"]: row["value"] for row in gap.table}
    assert rows["own text nearer %"] == 100
    assert rows["mean cosine to the own text"] == pytest.approx(0.8)
    assert "0.60 apart" in gap.claim

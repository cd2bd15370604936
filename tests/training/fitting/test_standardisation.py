"""Standardised inputs: statistics by hand, and a network that accepts plain embeddings afterwards."""

import json

import numpy as np
import pytest
import torch

from frevl.models.fusion import Fusion
from frevl.runs.batches import EmbeddedPairs
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.training.fitting.initialisation import absorb_statistics, statistics_of
from frevl.training.training import train


def embedded(images, texts, image_rows, text_rows, image_mask=None):
    images, texts = torch.as_tensor(images), torch.as_tensor(texts)
    mask = torch.ones(images.shape[:2], dtype=torch.bool) if image_mask is None else torch.tensor(image_mask)
    full = torch.ones(texts.shape[:2], dtype=torch.bool)
    return EmbeddedPairs(images, mask, texts, full, torch.tensor(image_rows), torch.tensor(text_rows))


def test_statistics_by_hand():
    # Three images of up to two tokens; the third is not used by a pair, and one token does not exist.
    images = [[[1.0, 7], [3, 7]], [[5, 7], [99, 99]], [[50, 50], [50, 50]]]
    texts = [[[2.0, 0, 1]], [[4, 0, 1]]]
    pairs = embedded(images, texts, [0, 0, 1], [0, 1, 1], [[True, True], [True, False], [True, True]])
    found = statistics_of(pairs)
    torch.testing.assert_close(found.image[0], torch.tensor([3.0, 7]))  # of 1, 3, 5: each item once
    torch.testing.assert_close(found.image[1], torch.tensor([np.sqrt(8 / 3), np.inf], dtype=torch.float32))
    torch.testing.assert_close(found.text[0], torch.tensor([3.0, 0, 1]))
    torch.testing.assert_close(found.text[1], torch.tensor([1.0, np.inf, np.inf]))
    standard = found.applied(pairs)
    assert standard.images[:2, 0].tolist() == [[pytest.approx(-2 / np.sqrt(8 / 3)), 0], [pytest.approx(1.2247449), 0]]
    assert standard.texts[:, 0].tolist() == [[-1, 0, 0], [1, 0, 0]]
    assert standard.image_rows is pairs.image_rows


def test_a_network_with_absorbed_statistics_says_of_plain_embeddings_what_it_said_of_standardised_ones():
    torch.manual_seed(0)
    images, texts = torch.randn(11, 1, 5) * torch.tensor([1, 10, 0.1, 3, 0]) + 4, torch.randn(7, 1, 3) * 20 - 9
    rows = torch.arange(13)
    pairs = embedded(images, texts, (rows % 11).tolist(), (rows % 7).tolist())
    statistics = statistics_of(pairs)
    network = Fusion(image_dim=5, text_dim=3, outputs=2, width=8, heads=2, ffn_width=16, head_width=8).eval()
    standard = statistics.applied(pairs)
    before = network(*standard.inputs(standard.image_rows, standard.text_rows))
    absorb_statistics(network, statistics)
    after = network(*pairs.inputs(pairs.image_rows, pairs.text_rows))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_loud_useless_dimension_does_not_drown_the_others_and_the_run_takes_plain_embeddings(made, tmp_path):
    small = {"layers": 0, "epochs": 3, "batch_size": 32, "mixup_share": 0}
    runs = {
        name: train(
            made.store, made.train_file, run=tmp_path / name, task="classification", options={**small, **changes}
        )
        for name, changes in (("plain", {}), ("standard", {"standardise": True, "input_dropout": 0.2}))
    }
    reached = {name: run.results["development"]["accuracy"] for name, run in runs.items()}
    assert reached["standard"] >= reached["plain"]
    assert set(runs["standard"].network.state_dict()) == set(runs["plain"].network.state_dict())
    # What was measured on standardised development pairs is what the saved run says of the stored embeddings.
    last = [json.loads(line)["dev"] for line in (tmp_path / "standard" / "log.jsonl").read_text().splitlines()]
    assert 100 * max(last) == pytest.approx(reached["standard"])
    scorer = Scorer(Run.load(tmp_path / "standard"), made.store)
    right = [
        scorer.predict([tuple(pair)], k=1)[0].label == target
        for *pair, target in zip(made.test.images, made.test.texts, made.test.targets, strict=True)
    ]
    assert np.mean(right) > 0.6
    assert not torch.equal(
        runs["standard"].network.image_projection.weight, runs["plain"].network.image_projection.weight
    )


@pytest.mark.slow
def test_input_dropout_changes_training_only(made, tmp_path):
    arguments = {"task": "classification", "model": "tiny"}
    small = {"layers": 0, "epochs": 1, "batch_size": 64}
    plain, dropped, again = (
        train(made.store, made.train_file, run=tmp_path / str(n), options={**small, "input_dropout": rate}, **arguments)
        for n, rate in enumerate((0.0, 0.5, 0.5))
    )
    weights = [run.network.image_projection.weight for run in (plain, dropped, again)]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])
    pair = [(made.test.images[0], made.test.texts[0])]
    scorer = Scorer(dropped, made.store)
    assert np.array_equal(scorer.score(pair), scorer.score(pair))

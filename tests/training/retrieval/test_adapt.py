"""Adapting an encoder's own space: hubness and canonical directions if they pay, the plain cosine otherwise."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from frevl.data.pairs import read_pairs
from frevl.evaluation.evaluation import evaluate
from frevl.models.retrieval.reranker import Reranked
from frevl.models.retrieval.two_tower import Cosine
from frevl.runs.batches import EmbeddedPairs
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store
from frevl.training.examples import Examples
from frevl.training.fitting.fit_model import Fitted
from frevl.training.options import AutoOptions, Session
from frevl.training.prepare import prepare
from frevl.training.retrieval import choose
from frevl.training.retrieval.adapt import FEWEST_TO_ADAPT, adapt_cosine, full_recall, measurably_worse
from frevl.training.retrieval.two_tower import cosine_of
from frevl.training.run_folder import Checkpoint, Clock
from frevl.training.training import train
from frevl.training.workers.team import Alone

WIDTH = 24


def vectors(count, *, hubs, seed=0):
    """Images and texts of a common space; with ``hubs`` some texts are near to every image."""
    random = torch.Generator().manual_seed(seed)
    shared = torch.randn(count, WIDTH, generator=random)
    images, texts = (shared + 0.9 * torch.randn(count, WIDTH, generator=random) for _ in range(2))
    offset = 2.0 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(7))  # of the encoder, not of the sample
    if hubs:
        texts = texts + 3.0 * torch.rand(count, 1, generator=random) * offset
        images = images + offset
    return normalize(images, dim=1), normalize(texts, dim=1)


def examples(count, *, hubs, seed=0):
    images, texts = vectors(count, hubs=hubs, seed=seed)
    rows, mask = torch.arange(count), torch.ones(count, 1, dtype=torch.bool)
    return Examples(
        EmbeddedPairs(images[:, None], mask, texts[:, None], mask, rows, rows), torch.ones(count), rows.clone()
    )


def cosine():
    return Cosine(spaces=[[0, WIDTH, 0, WIDTH]]).eval()


def test_hubs_are_taken_back_where_there_are_some():
    found = adapt_cosine(cosine(), examples(240, hubs=True), 0)
    assert "hubness" in found.name
    assert isinstance(found.network, Reranked)
    assert found.first is found.network.first
    assert found.rows[0]["name"] == "cosine"
    assert found.judged_on == "240 training images by 4-fold cross-validation"
    new = examples(200, hubs=True, seed=9).pairs
    plain, better = full_recall(cosine(), new), full_recall(found.network, new)
    assert better.mean() > plain.mean() + 0.05
    assert measurably_worse(plain, better)
    assert not measurably_worse(better, plain)


def test_a_space_without_faults_is_left_alone():
    plain = cosine()
    found = adapt_cosine(plain, examples(240, hubs=False), 0)
    assert found.name == "cosine"
    assert found.network is plain
    assert "within one standard error" in found.reason or found.reason.startswith("the best")


def test_too_few_images_say_nothing():
    assert adapt_cosine(cosine(), examples(FEWEST_TO_ADAPT - 1, hubs=True), 0) is None


def test_copies_stay_in_one_fold():
    """Every image is there twice under one cluster: its twin must not tell the canonical directions its text."""
    once = examples(120, hubs=True)
    twice = Examples(
        once.pairs.with_rows(once.pairs.image_rows.repeat(2), once.pairs.text_rows.repeat(2)),
        once.truth.repeat(2),
        once.clusters.repeat(2),
    )
    assert adapt_cosine(cosine(), twice, 0).judged_on.startswith("120 ")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("common")
    images, texts = vectors(200, hubs=True)
    for of, values in (("images", images), ("texts", texts)):
        np.save(folder / f"{of}.npy", values.numpy())
        (folder / f"{of}.json").write_text(json.dumps([f"{of} {n}" for n in range(200)]))
        import_embeddings(
            folder / f"{of}.npy", of=of, ids=folder / f"{of}.json", encoder="own", store=folder / "store",
            common_space=True,
        )  # fmt: skip
    rows = [json.dumps({"image": f"images {n}", "text": f"texts {n}"}) + "\n" for n in range(200)]
    (folder / "train.jsonl").write_text("".join(rows[:120]))
    (folder / "test.jsonl").write_text("".join(rows[120:]))
    return folder


@pytest.mark.slow
def test_auto_takes_it_and_the_run_evaluates_scores_and_comes_back(world, tmp_path):
    run = train(
        world / "store", world / "train.jsonl", run=tmp_path / "run", task="matching", model="auto",
        options={"epochs": 1}, time_limit=30,
    )  # fmt: skip
    selection = run.results["selection"]
    adapted = selection["adapted"]
    assert adapted["chosen"] != "cosine"
    names = {row["name"]: row for row in selection["candidates"]}
    assert names["cosine"]["reason"].startswith(f"behind {adapted['chosen']} on 108 training images")
    assert "metric" in names[adapted["chosen"]]
    plain = train(world / "store", world / "train.jsonl", run=tmp_path / "cosine", task="matching", model="cosine")
    scorer = Scorer.open(tmp_path / "run", store=world / "store")
    found = evaluate(scorer, world / "test.jsonl").metrics
    before = evaluate(Scorer.open(tmp_path / "cosine", store=world / "store"), world / "test.jsonl").metrics
    assert plain.model == "cosine"
    assert found["i2t_r1"] > before["i2t_r1"]
    loaded = Run.load(tmp_path / "run").network
    images, texts = vectors(5, hubs=True, seed=4)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images, texts), run.network(images, texts), rtol=1e-3, atol=1e-2)


def test_workers_rerank_what_the_first_of_them_has_chosen(world, monkeypatch):
    """Processors differ in the last bits: all continue with one first stage, after as many messages."""
    data = prepare(
        Store.open(world / "store"), read_pairs(world / "train.jsonl"), None, task="matching", encoder=None, seed=0,
        dev_share=0.2, min_answer_count=1,
    )  # fmt: skip
    told, messages = Fitted(cosine_of(data.image_towers, data.text_towers), 0.0), []

    class Second(Alone):
        def agreed(self, value):
            messages[-1] += 1
            return value if isinstance(value, float) else replace(value, name="told", fitted=told)

    def reranked(preset, first, *_):
        assert first is told
        raise KeyboardInterrupt

    monkeypatch.setattr(choose, "fit_first_stage", lambda *_, **__: Fitted(told.network, 0.0))
    monkeypatch.setattr(choose, "fit_reranked", reranked)
    team = Second()
    session = Session(seed=0, time_limit=None, device="cpu", progress=False, team=team)
    for adapt in (adapt_cosine, lambda *_: None):
        monkeypatch.setattr(choose, "adapt_cosine", adapt)
        messages.append(0)
        with pytest.raises(KeyboardInterrupt):
            choose.choose_matching(data, AutoOptions(), session, Checkpoint(None, "", Clock(team), team))
    assert messages[0] == messages[1] == 3

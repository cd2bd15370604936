"""Encoders side by side, and the cost of every model."""

from dataclasses import replace

import numpy as np
import pytest

from frevl.diagnosis.embeddings.encoder_comparison import encoder_cost, encoder_findings
from frevl.diagnosis.model_comparison import ComparedModel, ModelComparison, fit, predict_all
from frevl.diagnosis.model_specs import MODEL_SPECS
from frevl.diagnosis.performance.run_costs import cost_findings
from frevl.diagnosis.splits import read_splits
from frevl.errors import UsageError


@pytest.fixture(scope="module")
def splits(made_twice):
    return read_splits(
        made_twice.store, made_twice.train, made_twice.test, task="classification", dev=None, encoder=None, seed=0
    )


@pytest.mark.slow
def test_encoders_are_trained_alike_and_set_side_by_side(splits, tmp_path):
    (finding,), better = encoder_findings(splits, folder=tmp_path, time_limit=30, models=["linear"])
    assert better == ""
    assert [row["encoder"] for row in finding.table] == ["toy", "toy2"]
    for row, encoder in zip(finding.table, ("toy", "toy2"), strict=True):
        own = replace(splits, encoder=[encoder])
        linear = next(spec for spec in MODEL_SPECS if spec.name == "linear")
        again = predict_all(fit(own, linear, folder=tmp_path / f"again-{encoder}", time_limit=15), own.test)
        assert row["linear %"] == row["accuracy %"] == pytest.approx(100 * again.hits.mean())
        (image,) = splits.store.select_towers("image", [encoder])
        (text,) = splits.store.select_towers("text", [encoder])
        assert row["bytes an image"] == 2 * image.dim  # float16
        assert row["bytes a text"] == 2 * text.dim
        assert row["ms an image"] > 0
    best = max(finding.table, key=lambda row: row["accuracy %"])
    behind = {row["encoder"]: row["behind, points"] for row in finding.table}
    assert 0 in behind.values()
    assert finding.value in behind.values()
    assert best["behind, points"] <= 0
    assert finding.section == "encoders"


def test_one_encoder_is_no_comparison(made, tmp_path):
    one = read_splits(made.store, made.train, made.test, task="classification", dev=None, encoder=None, seed=0)
    (finding,), _ = encoder_findings(one, folder=tmp_path, time_limit=30)
    assert finding.claim == "There is only one encoder, toy, so there is nothing to compare."
    assert finding.value is None
    assert "--encoder" in finding.advice
    assert finding.table[0]["ms an image"] > 0
    assert list(tmp_path.iterdir()) == []  # nothing was trained


@pytest.mark.slow
def test_a_store_without_the_items_is_left_out_and_named(splits, made, tmp_path):
    one = replace(splits, store=made.store, encoder=["toy"])
    lacking, _ = encoder_findings(one, [splits.store], folder=tmp_path / "a", time_limit=30, models=["linear"])
    assert [row["encoder"] for row in lacking[0].table] == ["toy (store)", "toy (store)", "toy2"]
    more = read_splits(made.store, made.train, made.test, task="classification", dev=None, encoder=["toy"], seed=0)
    (alone,), _ = encoder_findings(more, [splits.store], folder=tmp_path / "b", time_limit=30, models=["linear"])
    assert [row["encoder"] for row in alone.table] == ["toy (store)"]
    assert "Left out: toy (store) (" in alone.how
    assert "toy2 (" in alone.how
    assert "the store has no image" in alone.how
    assert str(splits.store.path) not in alone.how  # the page may be handed on


def test_an_encoder_that_cannot_be_loaded_has_bytes_but_no_seconds(splits, monkeypatch):
    def refused(name, **given):
        raise UsageError("imported")

    monkeypatch.setattr("frevl.diagnosis.embeddings.encoder_comparison.load_encoder", refused)
    cost = encoder_cost(splits.store, "toy", splits)
    assert cost.image_bytes > 0
    assert cost.image_seconds is None
    assert cost.text_seconds is None


def test_unknown_models_are_refused(splits, tmp_path):
    with pytest.raises(UsageError, match="'lineer' is not one of them"):
        encoder_findings(splits, folder=tmp_path, time_limit=30, models=["lineer"])


def test_tokens_take_as_many_bytes_as_there_are(made_tokens):
    one = read_splits(
        made_tokens.store, made_tokens.train, made_tokens.test, task="classification", dev=None, encoder=None, seed=0
    )
    (image,) = made_tokens.store.select_towers("image", ["toy"])
    assert encoder_cost(made_tokens.store, "toy", one).image_bytes == 16 * 2 * image.dim


def test_every_model_has_its_price(splits, tmp_path):
    models = []
    for name in ("linear", "kernel"):
        spec = next(spec for spec in MODEL_SPECS if spec.name == name)
        scorer = fit(splits, spec, folder=tmp_path / name, time_limit=20)
        models.append(
            ComparedModel(spec, scorer, predict_all(scorer, splits.test), predict_all(scorer, splits.dev), 1.0)
        )
    (finding,) = cost_findings(ModelComparison(splits, models))
    rows = {row["model"]: row for row in finding.table}
    for entry in models:
        row, run = rows[entry.name], entry.scorer.run
        assert row["parameters"] == run.parameters
        needed = {
            file.name: file.stat().st_size
            for file in run.path.iterdir()
            if file.name not in ("settings.json", "config.toml", "posterior.safetensors")  # scoring needs none of them
        }
        assert set(needed) == {"run.json", "weights.safetensors", "seen.safetensors"}
        assert 1000 * row["kilobytes"] == pytest.approx(sum(needed.values()))
        assert row["ms alone"] > 0
        assert row["ms a pair"] > 0
        assert row["accuracy %"] == pytest.approx(100 * entry.test.hits.mean())
    assert finding.value == rows["kernel"]["ms a pair"]
    assert f"{models[0].scorer.run.parameters:,}" in finding.claim


@pytest.mark.slow
def test_a_single_encoder_that_beats_the_recommended_model_belongs_into_the_verdict(splits, tmp_path):
    """The recommended model on all encoders is made always wrong, then always right."""
    spec = next(spec for spec in MODEL_SPECS if spec.name == "linear")
    scorer = fit(splits, spec, folder=tmp_path / "all", time_limit=20)
    test, dev = (predict_all(scorer, part) for part in (splits.test, splits.dev))
    for hits, words in ((0.0, "better still is linear on "), (1.0, "")):
        together = ComparedModel(spec, scorer, replace(test, hits=np.full(len(splits.test), hits)), dev, 1.0)
        folder = tmp_path / f"{hits}"
        (finding,), better = encoder_findings(
            splits, folder=folder, time_limit=30, models=["linear"], together=together
        )  # fmt: skip
        assert better.startswith(words)
        assert ("The single encoder is better than the recommended model" in finding.advice) == (hits == 0)
    assert better == ""

"""Probes: planted embeddings are read, empty ones are not, the rule of the paper, the cache."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from frevl.diagnosis.embeddings import probe_fits
from frevl.diagnosis.embeddings.probe_fits import (
    WAYS,
    Probed,
    ProbesCutError,
    Sizes,
    _linear_hits,
    _read_with_tiny,
    probe_encoder,
)
from frevl.diagnosis.embeddings.probe_pictures import SKILLS
from frevl.diagnosis.embeddings.probes import probe_findings, shortfall
from frevl.encoders.interface import Encoder
from frevl.errors import UsageError
from frevl.models.baselines import Linear, fit_linear

SMALL = Sizes(train=18, dev=9, test=18, epochs=1)
CLASSES = {name: len(skill.answers) for name, skill in SKILLS.items()}


def one_hot(skill, n, width=16):
    """Return ``(n, 1, width)``: embeddings that hold the answer and nothing else."""
    return np.eye(width)[np.arange(n) % CLASSES[skill]][:, None]


def always(answer):
    """Return a function that gives the same answer whatever it is asked."""
    return lambda *asked, **options: answer  # noqa: ARG005


def noise(n, seed=0, width=16):
    return np.random.default_rng(seed).normal(size=(n, 1, width))


# ---- reading


def test_the_linear_probe_reads_what_is_there_and_nothing_else():
    sizes = Sizes(train=72, dev=36, test=360)
    truth = np.arange(sizes.all) % 9
    assert sum(_linear_hits(one_hot("count", sizes.all).astype(np.float16), truth, sizes)) == 360
    blind = sum(_linear_hits(noise(sizes.all).astype(np.float16), truth, sizes))
    assert 20 <= blind <= 64  # 40 of 360 by chance, 4 standard deviations


def test_rotating_into_the_span_of_the_training_rows_changes_no_answer():
    """A twin fits the same penalised loss on all 211 features of 40 rows, in float64."""
    sizes = Sizes(train=40, dev=17, test=101)
    random = np.random.default_rng(1)
    truth = np.arange(sizes.all) % 3
    values = random.normal(size=(sizes.all, 211)) + 0.2 * np.eye(3)[truth] @ random.normal(size=(3, 211))
    features = torch.from_numpy(values.astype(np.float16)).double()
    deviation, mean = torch.std_mean(features[:40], dim=0, correction=0)
    features = 10 / 211**0.5 * (features - mean) / deviation
    right = torch.from_numpy(truth)
    network = Linear(image_dim=211, text_dim=0, outputs=3).double()

    def development():
        return float((network.linear(features[40:57]).argmax(dim=1) == right[40:57]).double().mean())

    penalties = probe_fits._PENALTIES
    fit_linear(
        network, features[:40], lambda logits: F.cross_entropy(logits, right[:40]), development, penalties=penalties
    )
    expected = (network.linear(features[57:]).argmax(dim=1) == right[57:]).int().tolist()
    assert _linear_hits(values.astype(np.float16)[:, None], truth, sizes) == expected
    assert 40 < sum(expected) < 100  # so that the two could differ


@pytest.mark.slow
def test_tiny_reads_the_question_and_is_judged_among_its_answers():
    """Count, size and same are planted, the other skills are noise."""
    sizes = Sizes(train=36, dev=18, test=36, epochs=12)
    planted = {"count", "size", "same"}
    images = {
        skill: (one_hot(skill, sizes.all) if skill in planted else noise(sizes.all, seed)).astype(np.float16)
        for seed, skill in enumerate(SKILLS)
    }
    hits = _read_with_tiny(images, np.eye(len(SKILLS), dtype=np.float32), sizes, 0, False)
    assert {skill: len(values) for skill, values in hits.items()} == dict.fromkeys(SKILLS, 36)
    for skill, values in hits.items():
        share = np.mean(values)
        if skill in planted:
            assert share > 0.9, skill
        else:
            assert share < 1 / CLASSES[skill] + 0.35, skill


# ---- an encoder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def probed(cache):
    return probe_encoder("toy", sizes=SMALL, cache=cache)


@pytest.mark.slow
def test_every_way_and_skill_is_measured(probed):
    assert list(probed.hits) == list(WAYS)
    for way in WAYS:
        assert {skill: len(hits) for skill, hits in probed.hits[way].items()} == dict.fromkeys(SKILLS, 18)
        assert {hit for hits in probed.hits[way].values() for hit in hits} == {0, 1}
    assert set(probed.seconds) == {"draw and embed", *WAYS}
    assert not probed.cached


def test_what_was_measured_is_remembered(probed, cache, monkeypatch):
    again = probe_encoder("toy", sizes=SMALL, cache=cache)
    assert again.cached
    assert again.hits == probed.hits
    assert again.seconds == probed.seconds
    keys = {
        probe_fits._key(probe_fits.load_encoder(name), None, seed, sizes)
        for name, seed, sizes in [("toy", 0, SMALL), ("toy", 1, SMALL), ("toy", 0, Sizes()), ("toy2", 0, SMALL)]
    }
    assert len(keys) == 4
    (file,) = cache.iterdir()
    for damage in ("{", "[]", '{"hits": {}, "seconds": {}}', json.dumps({"hits": {WAYS[0]: {}}, "seconds": {}})):
        file.write_text(damage)
        assert probe_fits._read(file, "toy", SMALL) is None
    for step in ("_read_with_tiny", "_read_linearly"):
        monkeypatch.setattr(probe_fits, step, always(dict.fromkeys(SKILLS, [1] * 18)))
    monkeypatch.setattr(probe_fits, "_embed", always(({}, {})))
    assert not probe_encoder("toy", sizes=SMALL, cache=cache).cached
    assert probe_encoder("toy", sizes=SMALL, cache=cache).cached


@pytest.mark.slow
def test_an_encoder_without_tokens_is_probed_pooled(tmp_path, monkeypatch):
    whole = probe_fits.load_encoder

    def pooled_only(name, *, tokens="pooled"):
        if tokens != "pooled":
            raise UsageError("pooled only")
        return Encoder(name, whole("toy").image, None)  # and it has no text tower

    monkeypatch.setattr(probe_fits, "load_encoder", pooled_only)
    findings = probe_findings(["one"], sizes=SMALL, cache=tmp_path)
    assert [finding.name for finding in findings] == ["probes-one-skills", "probes-one-fine-grained"]
    assert {row["read by"] for row in findings[0].table} == {"linear, pooled", "tiny, pooled"}


def test_an_encoder_that_cannot_be_loaded_is_told_and_stops_nothing(tmp_path):
    findings = probe_findings(["imported"], sizes=SMALL, cache=tmp_path)
    assert [finding.name for finding in findings] == ["probes-imported-not-run"]
    assert findings[0].claim.startswith("The encoder imported was not probed")
    assert "There is no encoder 'imported'" in findings[0].how
    assert findings[0].value is None


def test_a_time_limit_leaves_probes_out_and_what_was_measured_costs_nothing(probed, cache, tmp_path, monkeypatch):
    assert not probed.cached  # so that there is something in the cache
    (finding,) = probe_findings(["toy"], sizes=SMALL, cache=tmp_path, time_limit=1e-6)
    assert finding.name == "probes-toy-not-run"
    assert finding.claim == "The encoder toy was not probed: the time limit is too short for it."
    assert "the time limit leaves 0" in finding.how
    assert not list(tmp_path.iterdir())  # half a measurement is none
    assert probe_encoder("toy", sizes=SMALL, cache=cache, time_limit=0.0).cached

    def slowly(*_, **__):  # embedding takes all that there was
        clock[0] += 10
        return {}, {}

    clock = [0.0]
    monkeypatch.setattr(probe_fits.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(probe_fits, "_embed", slowly)
    with pytest.raises(ProbesCutError, match="more than 10 s"):
        probe_encoder("toy", sizes=SMALL, cache=tmp_path, time_limit=9.0)


def test_a_store_names_its_encoders(made_twice, tmp_path, monkeypatch):
    asked = []

    def remembered(name, **given):
        asked.append(name)
        raise UsageError("not now")

    monkeypatch.setattr("frevl.diagnosis.embeddings.probes.probe_encoder", remembered)
    probe_findings(made_twice.store, cache=tmp_path)
    assert asked == ["toy", "toy2"]


# ---- the rule


def hits_of(semantic, fine, n=360):
    """Return hits whose scores, corrected for chance, are as given, in percent."""

    def row(skill, score):
        chance = 1 / CLASSES[skill]
        right = round(n * (chance + (1 - chance) * score / 100))
        return [1] * right + [0] * (n - right)

    return {name: row(name, semantic if skill.semantic else fine) for name, skill in SKILLS.items()}


def judged(semantic, fine, **more):
    return Probed("x", {"tiny, pooled": hits_of(semantic, fine), **more}, {"draw and embed": 1.0}, Sizes(test=360))


def test_the_shortfall_is_that_of_the_scores():
    """All semantic answers right is 100, guessing is 0, whatever the number of answers."""
    gap = shortfall(judged(100, 0), "tiny, pooled")
    assert gap.value == pytest.approx(100)
    assert gap.low < 100 < gap.high
    assert gap.high - gap.low < 12
    assert shortfall(judged(90, 60), "tiny, pooled").value == pytest.approx(30, abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("semantic", "fine", "said", "advised"),
    [
        (95, 50, "more than the 15 that the paper allows", "the wrong tool"),
        (95, 92, "less than the 15 that the paper allows", "the fine detail is captured"),
        (95, 80, "whether that is more than 15 is uncertain", "This is borderline"),
        (
            20,
            5,
            "cannot be measured by the paper's rule: even the semantic ones reach a score of only 20",
            "captures little",
        ),
    ],
)
def test_the_rule_has_four_ends(semantic, fine, said, advised, monkeypatch, tmp_path):
    monkeypatch.setattr("frevl.diagnosis.embeddings.probes.probe_encoder", always(judged(semantic, fine)))
    skills, rule = probe_findings(["x"], cache=tmp_path)
    assert said in rule.claim
    assert advised in rule.advice
    assert rule.value == pytest.approx(semantic - fine, abs=0.5)
    assert rule.ci95[0] < rule.value < rule.ci95[1]
    assert skills.value is not None


def test_the_weakest_skill_is_named_with_its_accuracy(monkeypatch, tmp_path):
    hits = hits_of(100, 100)
    hits["reading"] = [1] * 90 + [0] * 270
    one = Probed("x", {"tiny, pooled": hits}, {"draw and embed": 1.0}, Sizes(test=360))
    monkeypatch.setattr("frevl.diagnosis.embeddings.probes.probe_encoder", always(one))
    skills, _ = probe_findings(["x"], cache=tmp_path)
    assert "reading worst: 25.0 % of 360 drawn images are answered right, guessing gives 10.0 %" in skills.claim
    assert skills.value == 25.0
    row = next(row for row in skills.table if row["skill"] == "reading")
    assert row["right %"] == 25.0
    assert row["low"] < 25 < row["high"]
    assert [one["name"] for one in skills.plot["series"]] == ["tiny, pooled", "guessing"]


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "said"), [(80, "hold more fine detail"), (40, "worse"), (60, "add nothing")])
def test_tokens_are_compared_on_the_same_pictures(tokens, said, monkeypatch, tmp_path):
    one = judged(90, 60, **{"tiny, tokens": hits_of(90, tokens)})
    monkeypatch.setattr("frevl.diagnosis.embeddings.probes.probe_encoder", always(one))
    *_, finding = probe_findings(["x"], cache=tmp_path)
    assert said in finding.claim
    assert finding.value == pytest.approx(tokens - 60, abs=0.5)
    gains = {row["skill"]: row["gain"] for row in finding.table}
    assert gains["colour"] == 0
    assert gains["overlap"] == pytest.approx((tokens - 60) / 2, abs=0.5)  # two answers: half a point a point

"""Diagnoses where the truth is known by construction: verdict, data findings, false alarms, command line."""

import json
from dataclasses import replace

import numpy as np
import pytest

from frevl.diagnosis import cross_validation
from frevl.diagnosis import model_comparison as comparison_module
from frevl.diagnosis import splits as splits_module
from frevl.diagnosis.cross_validation import contenders, cross_validate_contenders
from frevl.diagnosis.data_quality import label_rule
from frevl.diagnosis.data_quality.label_errors import label_error_finding
from frevl.diagnosis.diagnosis import diagnose
from frevl.diagnosis.findings import SECTIONS
from frevl.diagnosis.model_comparison import compare_models, predict_all
from frevl.diagnosis.performance.modality_use import exchanged_hits
from frevl.diagnosis.report.markdown import diagnosis_markdown
from frevl.diagnosis.splits import read_splits
from frevl.diagnosis.verdict import reach_verdict
from frevl.evaluation.evaluation import evaluate
from planted import FASTEST, plant

pytestmark = pytest.mark.slow


# Closed-form and counted models, and the two networks of one side: seconds instead of a minute.
FAST = ["majority", "text", "image", "text kernel", "image kernel", "linear", "kernel"]


NAMES = [f"{number}.png" for number in range(300)]


TRUTHS = {
    "nothing": lambda _, __, random: random.integers(0, 2),
    "text": lambda _, text, random: text ^ int(random.random() < 0.1),
    "image": lambda image, _, random: image ^ int(random.random() < 0.1),
    "both": lambda image, text, _: image ^ text,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("planted") / "store")


def verdict_of(world, truth, folder, *, seed=0, models=FAST, images=200):
    train = world.pairs(NAMES[: images // 2], TRUTHS[truth], seed=2 * seed)
    test = world.pairs(NAMES[200:], TRUTHS[truth], seed=2 * seed + 1)
    splits = read_splits(world.store, train, test, task="classification", dev=None, encoder=None, seed=seed)
    comparison = compare_models(splits, folder=folder / "whole", time_limit=100, models=models)
    comparison, _ = cross_validate_contenders(comparison, folder=folder / "parts", time_limit=100)
    comparison = replace(comparison, exchanged=exchanged_hits(comparison))
    verdict, _ = reach_verdict(comparison.choice)
    return verdict, comparison


@pytest.mark.parametrize(
    ("truth", "kind", "words"),
    [
        ("nothing", "chance", "Everything is at chance"),
        ("text", "text", "The image adds nothing measurable on 200 pairs"),
        ("image", "image", "The text adds nothing measurable on 200 pairs"),
    ],
)
def test_the_verdict_says_what_the_labels_were_made_from(world, tmp_path, truth, kind, words):
    verdict, _ = verdict_of(world, truth, tmp_path)
    assert verdict["kind"] == kind
    assert words in verdict["sentence"]


def test_only_what_may_be_the_best_of_its_kind_is_cross_validated(world, tmp_path):
    """The labels say what the image shows: of the models of one side those of the image, of both linear and kernel."""
    train, test = (world.pairs(names, TRUTHS["image"], seed=9) for names in (NAMES[:120], NAMES[200:240]))
    splits = read_splits(world.store, train, test, task="classification", dev=None, encoder=None, seed=0)
    comparison = compare_models(splits, folder=tmp_path / "whole", time_limit=100, models=FASTEST)
    # A kind has its best model, so all of these kinds with one model are there.
    assert {model.name for model in contenders(comparison)} == set(FASTEST)
    crossed, notes = cross_validate_contenders(comparison, folder=tmp_path / "parts", time_limit=100)
    assert notes == []
    for model in crossed.models:
        seen = [pair for pairs, _ in model.crossed.parts for pair in zip(pairs.images, pairs.texts, strict=True)]
        assert sorted(seen) == sorted(zip(splits.train.images, splits.train.texts, strict=True))
        for pairs, scorer in model.crossed.parts:
            answered = predict_all(scorer, comparison_module.seen_by(model.spec, pairs, splits))
            assert len(answered.hits) == len(pairs)
    parts = [[set(pairs.clusters) for pairs, _ in model.crossed.parts] for model in crossed.models]
    assert all(own == parts[0] for own in parts)  # the same images for every model
    assert not parts[0][0] & parts[0][1]
    same, notes = cross_validate_contenders(comparison, folder=tmp_path / "none", time_limit=1e-9)
    assert same is comparison
    assert "There was no time for cross-validation" in notes[0]


def test_false_alarms_are_counted(world, tmp_path):
    """On 20 sets of random labels at most one claims that anything is learned."""
    kinds = [
        verdict_of(world, "nothing", tmp_path / str(seed), seed=seed, models=FASTEST, images=100)[0]["kind"]
        for seed in range(20)
    ]
    assert sum(kind != "chance" for kind in kinds) <= 1


@pytest.fixture(scope="module")
def both(world, tmp_path_factory):
    """A whole diagnosis: labels need image and text together, a fifth of them is wrong, test images leak."""
    random = np.random.default_rng(4)
    # Four texts per image: with two, no model of these can surely be told from chance on 200 test pairs.
    asked = {"extras": lambda _, text: {"half": text < "is it am"}, "each": 4}
    train = world.pairs(NAMES[:200], TRUTHS["both"], seed=1, **asked)
    test = world.pairs(NAMES[200:], TRUTHS["both"], seed=2, **asked)
    wrong = {int(row) for row in random.permutation(len(train))[: len(train) // 5]}
    for row in wrong:
        train.targets[row] = "yes" if train.targets[row] == "no" else "no"
    diagnosis = diagnose(world.store, train, test, task="classification", models=FAST, probes=False)
    return diagnosis, {train.places[row] for row in wrong}, test


def of_name(diagnosis, name):
    return next(finding for finding in diagnosis.findings if finding.name == name)


def test_where_both_are_needed_the_fusion_wins_and_the_linear_probe_is_at_chance(both):
    diagnosis, _, _ = both
    assert diagnosis.verdict["kind"] == "fusion"
    assert diagnosis.verdict["sentence"].startswith(
        "Image and text are both needed; best of all is the fusion (kernel)"
    )
    assert diagnosis.verdict["sentence"].endswith(": worth it.")
    linear = of_name(diagnosis, "fusion-against-linear")
    assert linear.ci95[0] > 0
    probe = diagnosis.verdict["scores"]["linear"]
    assert probe["ci95"][0] < 50 < probe["ci95"][1], "at chance"
    assert of_name(diagnosis, "wrong-image").value > 10
    assert of_name(diagnosis, "solvable-blind").value < 62
    assert "half" in "".join(finding.name for finding in diagnosis.findings if finding.section == "skills")


def test_every_finding_is_complete_and_every_section_known(both):
    diagnosis, _, _ = both
    sections = {finding.section for finding in diagnosis.findings}
    assert {"verdict", "image", "skills", "curve", "calibration", "data", "embedding", "cost"} <= sections
    assert sections <= set(SECTIONS)
    names = [finding.name for finding in diagnosis.findings]
    assert len(names) == len(set(names))
    for finding in diagnosis.findings:
        assert finding.claim.endswith(".")
        assert finding.how
        assert finding.advice
        assert len({tuple(row) for row in finding.table}) <= 1
        if finding.ci95 is not None:
            assert finding.ci95[0] <= finding.value <= finding.ci95[1] or finding.name == "calibration"
    record = json.loads(json.dumps(diagnosis.record(), allow_nan=False))
    assert {"verdict", "findings", "provenance"} <= set(record)
    assert {"name", "claim", "value", "ci95", "how", "advice"} <= set(record["findings"][0])


def test_the_markdown_says_what_the_json_says(both):
    diagnosis, _, _ = both
    text = diagnosis_markdown(diagnosis)
    assert text.startswith(f"# {diagnosis.verdict['sentence']}\n")
    assert all(finding.claim in text for finding in diagnosis.findings)
    assert text.index("## Is the fusion worth it?") < text.index("## Leaks and noise in the data")


def test_tokens_and_several_encoders_are_diagnosed_too(made_tokens, made_twice):
    for world, encoders in ((made_tokens, 1), (made_twice, 2)):
        diagnosis = diagnose(
            world.store, world.train, world.test, task="classification", models=FASTEST, probes=False, time_limit=30
        )
        assert {row["shown"] for row in of_name(diagnosis, "wrong-image").table} >= {"the mean image"}
        assert len(of_name(diagnosis, "encoders").table) == encoders
        json.dumps(diagnosis.record(), allow_nan=False)


def test_a_curve_begins_where_there_are_two_classes(world):
    """Of 160 training pairs 4 are of the rarer class: the smallest part has one class only."""
    rare = set(NAMES[60:62])
    train, test = (world.pairs(names, lambda *_: "yes", seed=3) for names in (NAMES[:80], [*NAMES[200:240]]))
    train.targets[:] = ["no" if image in rare else "yes" for image in train.images]
    diagnosis = diagnose(
        world.store, train, test, task="classification", models=FASTEST, probes=False, dev=train.select(range(118, 126))
    )
    assert diagnosis.verdict["kind"] == "single"  # all test pairs say yes
    curves = [finding for finding in diagnosis.findings if finding.section == "curve"]
    measured = [row for row in curves[0].table if row["model"] == "linear" and row["from"] == "measured"]
    assert len(measured) == 4
    assert "on 4 nested parts" in curves[0].how


def test_a_leak_stands_beside_the_verdict_and_one_image_is_too_few(world):
    train = world.pairs(NAMES[:40], TRUTHS["both"], seed=1)
    diagnosis = diagnose(world.store, train, train.select([0]), task="classification", models=FASTEST, probes=False)
    assert diagnosis.verdict["kind"] == "few"
    assert "1 of 1 test image is also in the training or development pairs" in diagnosis.verdict["detail"][0]
    assert "1 of 1 test pair is also in the training" in diagnosis.verdict["detail"][1]
    assert diagnosis.verdict["sentence"].startswith(
        "Not reliable for new images, as most test images are among the training or development pairs: Too few"
    )
    assert of_name(diagnosis, "wrong-image").claim == "The cost of wrong images cannot be measured with 1 test image."
    assert of_name(diagnosis, "solvable-blind").value is None
    json.dumps(diagnosis.record(), allow_nan=False)


def test_a_test_set_of_one_class_tells_nothing(world):
    train = world.pairs(NAMES[:60], TRUTHS["both"], seed=1)
    dev, test = (world.pairs(names, lambda *_: "yes", seed=2) for names in (NAMES[160:180], NAMES[200:240]))
    diagnosis = diagnose(world.store, train, test, task="classification", models=FASTEST, probes=False, dev=dev)
    assert diagnosis.verdict["kind"] == "single"
    assert diagnosis.verdict["sentence"] == (
        "Test pairs of a single class show nothing: all 80 have the answer 'yes', so always giving "
        "that answer is right every time. Give test pairs of every class."
    )
    assert of_name(diagnosis, "single-class-test").claim.startswith("All 80 test pairs have the one answer 'yes': ")
    assert of_name(diagnosis, "single-class-dev").claim in diagnosis.verdict["detail"]


def test_cases_are_real_test_pairs(both):
    diagnosis, _, test = both
    shown = {(case["image"], case["text"], case["target"]) for case in diagnosis.cases}
    assert shown <= set(zip(test.images, test.texts, test.targets, strict=True))
    for case in diagnosis.cases:
        assert (case["answer"] == case["target"]) == (case["kind"] == "right only with the image")
        assert 0 <= case["confidence"] <= 100


@pytest.mark.parametrize(
    ("share", "start"),
    [(0.05, "{} of 600 labels are likely wrong ("), (0.2, "{} of 600 labels are called wrong (")],
)
def test_planted_label_errors_are_named(world, tmp_path, share, start):
    """At least 85 % of what is named was planted, and at least 75 % of what was planted is named.

    Where a fifth is wrong, both models are right on less than 90 %: then that is said first.
    """
    train = world.pairs(NAMES[:200], lambda image, _, __: image, seed=1)
    test = world.pairs(NAMES[200:], lambda image, _, __: image, seed=2)
    wrong = np.random.default_rng(2).permutation(len(train))[: round(len(train) * share)]
    for row in wrong:
        train.targets[row] = "yes" if train.targets[row] == "no" else "no"
    test.places[:] = [f"test:{place}" for place in test.places]
    splits = read_splits(world.store, train, test, task="classification", dev=None, encoder=None, seed=0)
    comparison = compare_models(splits, folder=tmp_path / "models", time_limit=100, models=FASTEST)
    finding = label_error_finding(comparison, folder=tmp_path / "parts", time_limit=100)
    named = {row["place"] for row in finding.table}
    planted = {train.places[row] for row in wrong}
    assert len(named & planted) / len(named) >= 0.85
    assert len(named & planted) / len(planted) >= 0.75
    assert finding.value == pytest.approx(100 * len(named) / 600)
    assert finding.claim.startswith(start.format(len(named)))
    assert f"{len(named)} of 600 labels" in finding.claim


def test_all_labels_of_many_pairs_are_looked_at_in_blocks(world, tmp_path, monkeypatch):
    """As if 60 pairs were many, a model learned from at most 150, and 1,400 probabilities filled the memory."""
    train = world.pairs(NAMES[:200], lambda image, _, __: image, seed=1)
    test = world.pairs(NAMES[200:], lambda image, _, __: image, seed=2)
    test.places[:] = [f"test:{place}" for place in test.places]
    wrong = np.random.default_rng(2).permutation(len(train))[:80]
    for row in wrong:
        train.targets[row] = "yes" if train.targets[row] == "no" else "no"
    options = {"task": "classification", "dev": None, "encoder": None, "seed": 0}
    splits = read_splits(world.store, train, test, **options, find_groups=False)
    comparison = compare_models(splits, folder=tmp_path / "models", time_limit=100, models=FASTEST)
    monkeypatch.setattr(cross_validation, "SMALL", 60)
    monkeypatch.setattr(splits_module, "MOST_TRAINED_ON", 150)
    monkeypatch.setattr(label_rule, "_MOST_CELLS", 1400)
    assert cross_validate_contenders(comparison, folder=tmp_path, time_limit=100) == (comparison, [])
    learnt = []
    real = cross_validation.fit
    monkeypatch.setattr(
        cross_validation, "fit", lambda *args, **more: learnt.append(len(more["pairs"])) or real(*args, **more)
    )
    finding = label_error_finding(comparison, folder=tmp_path / "parts", time_limit=100)
    assert len(learnt) == 4  # two models, two parts each
    assert all(100 < count <= 160 for count in learnt)  # whole images: a pair or two more or less
    assert " of 600 labels " in finding.claim  # every pair was looked at
    assert "some of them may be model errors" in finding.claim  # the models are right on less than 90 %
    named = {row["place"] for row in finding.table}
    planted = {train.places[row] for row in wrong}
    assert len(named & planted) >= 0.8 * len(planted)
    assert len(named & planted) >= 0.85 * len(named)
    shares = [row["probability of label %"] for row in finding.table]
    assert shares == sorted(shares)  # the likeliest first, whatever the block


def test_where_the_models_cannot_tell_no_label_is_accused(world, tmp_path):
    _, comparison = verdict_of(world, "nothing", tmp_path, models=FASTEST, images=120)
    comparison = replace(comparison, models=[_with_accuracy(model, 0.0) for model in comparison.models])
    finding = label_error_finding(comparison, folder=tmp_path / "parts", time_limit=100)
    assert finding.value is None
    assert finding.claim == (
        "Wrong labels cannot be distinguished from model errors: no model is right often enough; the best, the text "
        "kernel model, answers 0 % of held-out pairs right, and always giving the most frequent "
        "answer 0 %."
    )


def test_one_model_alone_accuses_no_label(world, tmp_path):
    _, comparison = verdict_of(world, "both", tmp_path, models=FASTEST, images=200)
    models = [_with_accuracy(model, 0.9 if model.name == "kernel" else 0.3) for model in comparison.models]
    finding = label_error_finding(replace(comparison, models=models), folder=tmp_path / "parts", time_limit=100)
    assert finding.claim == (
        "Wrong labels cannot be distinguished from model errors: only the fusion (kernel) is right often enough, and "
        "two different models are needed."
    )


def test_weak_models_say_first_that_it_may_be_the_models(world, tmp_path):
    """A fifth of the test labels is exchanged; of unseen pairs both models are said to answer 73.5 % right."""
    _, comparison = verdict_of(world, "image", tmp_path, models=FASTEST, images=200)
    weak = [_with_accuracy(model, 0.0 if model.spec.role == "majority" else 0.735) for model in comparison.models]
    random = np.random.default_rng(5)
    targets = [
        ("yes", "no")[target == "yes"] if random.random() < 0.2 else target for target in comparison.splits.test.targets
    ]
    test = replace(comparison.splits.test, targets=targets)
    comparison = replace(comparison, models=weak, splits=replace(comparison.splits, test=test))
    finding = label_error_finding(comparison, folder=tmp_path / "parts", time_limit=100)
    assert finding.table
    assert finding.claim.startswith(
        f"{len(finding.table)} of 400 labels are called wrong ({len(finding.table) / 4:.1f} %), and some of them may "
        "be model errors. Accuracy on unseen pairs: the text kernel model 73.5 % and the linear probe 73.5 %."
    )
    assert "of labels made wrong for comparison 74 % are found" in finding.how


def _with_accuracy(model, share):
    """The same model, as if so many of its answers on development and held-out pairs were right."""
    crossed = replace(model.crossed, hits=_right(share, len(model.crossed.hits))) if model.crossed else None
    return replace(model, dev=replace(model.dev, hits=_right(share, len(model.dev.hits))), crossed=crossed)


def _right(share, count):
    return (np.arange(count) < round(share * count)).astype(float)


def test_predictions_are_those_of_evaluate(made, tmp_path):
    splits = read_splits(made.store, made.train, made.test, task="classification", dev=None, encoder=None, seed=0)
    comparison = compare_models(splits, folder=tmp_path, time_limit=100, models=FASTEST)
    for model in comparison.models:
        result = evaluate(model.scorer, made.test)
        assert 100 * model.test.hits.mean() == pytest.approx(result.metrics["accuracy"])
        assert np.array_equal(predict_all(model.scorer, splits.test).hits, result.hits)
        assert len(set(splits.train.images) & set(splits.dev.images)) == 0


def test_matching_is_diagnosed_too(made, made_matching):
    diagnosis = made_matching
    assert diagnosis.task == "matching"
    scores = diagnosis.verdict["scores"]
    assert scores["majority"]["value"] == pytest.approx(50, abs=1)  # one wrong text beside every right one
    assert "kernel" not in scores
    shown = [(case["kind"], case["image"], case["text"]) for case in diagnosis.cases]
    assert len(shown) == len(set(shown)) > 0
    for case in diagnosis.cases:
        assert {case["target"], case["answer"]} <= {"match", "no match"}
        assert (case["target"] == case["answer"]) == (case["kind"] == "right only with the image")
    assert of_name(diagnosis, "label-errors").claim
    ranking = of_name(diagnosis, "ranking")
    assert [row["model"] for row in ranking.table] == ["linear", "tiny"]
    assert "Among 8 texts the fusion (tiny) finds a right one first for" in ranking.claim
    assert ranking.value == ranking.table[1]["i2t_r1"] <= ranking.table[1]["i2t_r5"]


@pytest.fixture(scope="module")
def made_matching(made):
    captions = made.captions
    half = [row for row, image in enumerate(captions.images) if int(image.split(".")[0]) < 80]
    rest = [row for row, image in enumerate(captions.images) if int(image.split(".")[0]) >= 80]
    models = ["majority", "text", "image", "linear", "tiny"]
    return diagnose(
        made.store, captions.select(half), captions.select(rest), task="matching", models=models, probes=False,
        time_limit=20,
    )  # fmt: skip

"""A diagnosis of images only, or texts only: what needs the other side is left out, with one note."""

import re
from dataclasses import replace

import numpy as np
import pytest

from frevl.data.pairs import read_pairs
from frevl.diagnosis.diagnosis import diagnose
from frevl.diagnosis.model_choice import ModelChoice, ModelResult
from frevl.diagnosis.report.markdown import diagnosis_markdown, diagnosis_summary
from frevl.diagnosis.report.page import page_of
from frevl.diagnosis.verdict import reach_verdict
from frevl.errors import PairsError, UsageError

pytestmark = pytest.mark.slow

NAMES = {
    "accuracy", "ten-times-data", "calibration", "abstention", "same-image", "near-same-image", "conflicting-labels",
    "class-balance", "errors-explained", "label-errors", "rank-other", "hubs-other", "encoders", "cost",
}  # fmt: skip


@pytest.fixture(scope="module")
def diagnosed(one_side):
    return diagnose(one_side.store, one_side.train_file, one_side.dev_file, task="classification", probes=False)


def test_the_verdict_names_a_model_of_that_side(one_side, diagnosed):
    verdict = diagnosed.verdict
    assert verdict["kind"] == "side"
    assert verdict["sentence"].startswith(f"From {one_side.side}s alone best of all ")
    assert verdict["scores"].keys() == {"majority", "linear", "kernel", one_side.side}
    assert (verdict["fusion"], verdict["both"], verdict[one_side.other]) == (None, None, None)
    assert verdict[one_side.side] in verdict["best"]
    assert verdict["unit"] == one_side.side
    assert (verdict["exchanged"], verdict["exchanged_both"]) == ({}, {})


def test_what_needs_the_other_side_is_left_out_with_one_note(one_side, diagnosed):
    assert {finding.name for finding in diagnosed.findings} == NAMES
    assert sum("and whatever needs" in note for note in diagnosed.notes) == 1
    assert {case["kind"] for case in diagnosed.cases} <= {"confident and wrong"}


def test_page_and_markdown_speak_of_that_side(one_side, diagnosed):
    page, markdown = page_of(diagnosed), diagnosis_markdown(diagnosed)
    for text in (page, markdown, diagnosis_summary(diagnosed)):
        assert "Which model is best?" in text
        assert "Does the image matter?" not in text
    assert f"<dt>Test {one_side.side}s</dt>" in page
    if one_side.side == "text":
        told = " ".join(one.claim + one.how + one.advice for one in diagnosed.findings)
        assert not re.search(r"\bimages?\b", told)


def test_the_same_items_on_both_sides_are_a_leak(one_side):
    found = diagnose(one_side.store, one_side.train_file, one_side.train_file, task="classification", probes=False)
    assert found.verdict["sentence"].startswith("Not reliable")
    leak = next(finding for finding in found.findings if finding.name == "same-image")
    assert leak.value == 100.0
    assert leak.table[0] == {f"test {one_side.side}": one_side.items[0], f"training {one_side.side}": one_side.items[0]}


def test_what_cannot_be_diagnosed_is_said(one_side, made):
    with pytest.raises(PairsError, match=f"train.jsonl:1, field '{one_side.other}': expected .* matching needs both"):
        diagnose(one_side.store, one_side.train_file, one_side.dev_file, task="matching")
    with pytest.raises(UsageError, match="has no model 'tiny'"):
        diagnose(one_side.store, one_side.train_file, one_side.dev_file, task="classification", models=["tiny"])
    with pytest.raises(UsageError, match="found none for: side"):
        diagnose(one_side.store, one_side.train_file, one_side.dev_file, task="classification", models=["majority"])
    alone = made.test.only(("image",))
    with pytest.raises(PairsError, match="field 'text': expected a text, as the pairs of .* have one; found none"):
        diagnose(made.store, made.train, alone, task="classification")
    with pytest.raises(PairsError, match="found a text in the pairs, and none in those of .*; give all files the same"):
        diagnose(made.store, made.train.only(("image",)), made.test, task="classification")


@pytest.mark.parametrize("side", ["image", "text"])
def test_one_side_of_a_store_with_both(made, side):
    """Its other towers are not used; once they were asked for by name, and refused."""
    found = diagnose(made.store, made.train.only((side,)), made.test.only((side,)), task="classification", probes=False)
    assert found.verdict["scores"].keys() == {"majority", "linear", "kernel", side}
    assert found.verdict["unit"] == side


def test_labels_that_contradict_each_other_are_found_by_item(one_side):
    train = read_pairs(one_side.train_file)
    targets = ["reed" if target == "fern" else "fern" for target in train.targets[:2]]
    twice = replace(train.select([*range(60), 0, 1]), targets=[*train.targets, *targets])
    found = diagnose(one_side.store, twice, one_side.dev_file, task="classification", probes=False)
    conflict = next(finding for finding in found.findings if finding.name == "conflicting-labels")
    assert conflict.claim == f"4 of 92 pairs contradict another pair with the same {one_side.side}."


def result(name, hits, role="side"):
    return ModelResult(name, role, np.array(hits, float), dev=float(np.mean(hits)))


def test_the_simplest_of_equals_is_recommended_and_a_single_leader_is_compared_with_the_next():
    clusters = [str(row) for row in range(100)]
    models = [
        result("majority", [1] * 30 + [0] * 70, "majority"),
        result("linear", [1] * 80 + [0] * 20),
        result("kernel", [1] * 79 + [0] * 20 + [1]),
    ]
    verdict, _ = reach_verdict(ModelChoice(models, clusters, unit="text"))
    assert verdict["recommended"] == "linear"
    assert "use the linear probe, the simplest of them" in verdict["sentence"]
    alone, _ = reach_verdict(ModelChoice([models[0], models[1]], clusters, unit="text"))
    assert alone["sentence"].startswith("From texts alone best of all is the linear probe with 80.0 % right")
    assert "above always giving the most frequent answer" in alone["sentence"]

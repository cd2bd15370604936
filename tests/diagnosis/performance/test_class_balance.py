"""Classes of unequal size: what is measured for each, and a part with a single class."""

from types import SimpleNamespace

import numpy as np
import pytest

from frevl.diagnosis.model_comparison import ComparedModel, ModelComparison
from frevl.diagnosis.model_specs import MODEL_SPECS
from frevl.diagnosis.performance.class_balance import (
    balanced_findings,
    imbalance_finding,
    only_class,
    single_class_findings,
)
from frevl.diagnosis.splits import Splits
from planted import pairs_of, plant, predictions


def test_classes_by_hand(tmp_path):
    world = plant(tmp_path / "store", images=10)
    train = pairs_of(*[(f"{k}.png", "q", "a") for k in range(6)], *[(f"{k}.png", "q", "b") for k in range(2)])
    test = pairs_of(("8.png", "q", "a"), ("9.png", "q", "c"), ("9.png", "q", ["c", "a"]))
    finding = imbalance_finding(Splits(world.store, "classification", train, train, test, None, 0))
    assert finding.value == 75
    # exp(-(0.75 ln 0.75 + 0.25 ln 0.25)) = 1.755
    assert "2 classes, as uneven as 1.8 equal classes; 'a' alone is 75.0 %, 1 has fewer than 5" in finding.claim
    assert "1 of 3 test pairs has a class that does not occur in training" in finding.claim
    assert "No model can answer more than 66.7 %" in finding.advice


def test_a_part_with_one_class_is_named(tmp_path):
    world = plant(tmp_path / "store", images=10)
    both = pairs_of(("1.png", "q", "a"), ("2.png", "q", "b"))
    one = pairs_of(("8.png", "q", "a"), ("9.png", "q", ["a"]), ("9.png", "r", {"a": 0.5, "b": 0.0}))
    assert only_class(one, "classification") == "a"
    assert only_class(both, "classification") is None
    assert only_class(pairs_of(("1", "q", ["a", "b"])), "classification") is None
    assert only_class(pairs_of(("1", "q", "false"), ("2", "q", "0")), "matching") == "no match"
    assert single_class_findings(Splits(world.store, "classification", both, both, both, None, 0)) == []
    named = single_class_findings(Splits(world.store, "classification", both, both, one, None, 0))
    assert [(finding.name, finding.claim) for finding in named] == [
        (
            "single-class-test",
            "All 3 test pairs have the one answer 'a': a model that always gives it would be right every time, so they "
            "cannot tell a good model from a bad one.",
        )
    ]
    (dev,) = single_class_findings(Splits(world.store, "classification", both, one, both, None, 0))
    assert dev.claim.startswith("All 3 development pairs have the one answer 'a': models, temperatures and thresholds")


def uneven(tmp_path, hits):
    """100 test pairs, 90 of them ``no``; a comparison of one fusion with these hits."""
    world = plant(tmp_path / "store", images=10)
    test = pairs_of(*[(f"{k}.png", "q", "no" if k < 90 else "yes") for k in range(100)])
    said = predictions(np.full(100, 0.9), hits)
    spec = next(one for one in MODEL_SPECS if one.name == "kernel")
    model = ComparedModel(spec, SimpleNamespace(run=SimpleNamespace(parameters=1)), said, said, 0.0)
    return ModelComparison(Splits(world.store, "classification", test, test, test, None, 0), [model])


def test_accuracy_by_class_where_one_answer_is_nearly_all(tmp_path):
    """81 of 90 and 6 of 10 are right: (90 + 60) / 2 = 75, where always `no` gives 50 (and an accuracy of 90)."""
    hits = [k < 81 or k >= 94 for k in range(100)]
    (finding,) = balanced_findings(uneven(tmp_path, hits))
    assert finding.value == pytest.approx(75)
    assert finding.ci95[0] < 75 < finding.ci95[1]
    assert (
        "always giving 'no', which is 90.0 % of the test pairs, would give 50.0 %: something was learned"
        in finding.claim
    )
    assert [(row["class"], row["test pairs"], row["right %"]) for row in finding.table] == [
        ("no", 90, pytest.approx(90)), ("yes", 10, pytest.approx(60))
    ]  # fmt: skip
    (none,) = balanced_findings(uneven(tmp_path / "b", [k < 90 for k in range(100)]))
    assert none.value == 50
    assert "nothing measurable was learned about the other classes" in none.claim

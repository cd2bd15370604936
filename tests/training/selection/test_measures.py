"""How ``auto`` compares candidates: means by hand, errors against a bootstrap, refusals, other metrics."""

import numpy as np
import pytest
import torch

from frevl.errors import UsageError
from frevl.evaluation.metrics import macro_f1
from frevl.runs.targets import encode_answers
from frevl.training.options import AutoOptions
from frevl.training.selection.candidates import Candidate
from frevl.training.selection.held_out import CandidateScores
from frevl.training.selection.measures import check_measure, earned, in_nats, one_standard_error, shown, standard_error
from frevl.training.training import train

LABELS = ["a", "b", "c"]
CHOOSE_BY = AutoOptions.__dataclass_fields__["choose_by"].metadata["one_of"]


def probabilities_of(predicted, certainty=0.8):
    values = torch.full((len(predicted), 3), (1 - certainty) / 2)
    values[range(len(predicted)), [LABELS.index(one) for one in predicted]] = certainty
    return values


def test_every_measure_by_hand():
    targets, predicted = list("aaaabbc"), list("aaabbac")
    truth = encode_answers(targets, LABELS)
    means = {by: earned(by, probabilities_of(predicted), truth).mean().item() for by in CHOOSE_BY}
    assert means["accuracy"] == pytest.approx(5 / 7)
    assert means["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert means["macro_f1"] == pytest.approx(macro_f1(predicted, targets))
    assert means["nll"] == pytest.approx((5 * np.log(0.8) + 2 * np.log(0.1)) / 7)
    assert (shown("nll", means["nll"]), shown("macro_f1", 0.5)) == (" 0.817 nats", " 50.00 %")


def test_a_class_that_training_never_saw_is_never_right():
    truth = encode_answers(["a", "new"], LABELS)
    same = probabilities_of("aa")
    assert earned("accuracy", same, truth).tolist() == [1, 0]
    assert earned("balanced_accuracy", same, truth).mean().item() == pytest.approx(1 / 2)
    assert earned("macro_f1", same, truth).mean().item() == pytest.approx((2 / 3 + 0) / 2)
    assert earned("nll", same, truth)[1].item() == pytest.approx(np.log(1e-7))
    assert earned("macro_f1", same[:0], truth.select(torch.zeros(0, dtype=torch.long))).tolist() == []


@pytest.mark.slow
@pytest.mark.parametrize("by", ["macro_f1", "balanced_accuracy"])
def test_errors_are_those_of_a_bootstrap_over_clusters(by):
    random = np.random.default_rng(4)
    clusters = np.repeat(np.arange(150), 3)
    targets = random.choice(LABELS, 450, p=[0.8, 0.15, 0.05])
    sticky = np.repeat(random.random(150) < 0.3, 3)  # pairs of a cluster are wrong together
    predicted = np.where(sticky, "a", targets)
    truth = encode_answers(targets.tolist(), LABELS)
    values = earned(by, probabilities_of(predicted.tolist()), truth)
    error = standard_error(values, torch.from_numpy(clusters))
    drawn = []
    for _ in range(400):
        rows = torch.from_numpy(
            np.concatenate([np.arange(3) + 3 * cluster for cluster in random.integers(0, 150, 150)])
        )
        drawn.append(earned(by, probabilities_of(predicted[rows.numpy()].tolist()), truth.select(rows)).mean().item())
    assert error == pytest.approx(np.std(drawn), rel=0.15)


def test_the_rule_takes_another_candidate_where_rare_classes_count():
    targets = ["a"] * 90 + ["b"] * 10
    truth, clusters = encode_answers(targets, LABELS), torch.arange(100)
    always, fair = probabilities_of(["a"] * 100), probabilities_of(["a"] * 78 + ["b"] * 22)
    none = torch.zeros(0)

    def chosen(by):
        candidates = [
            CandidateScores(Candidate(name, name), earned(by, values, truth), values, 1.0, 1, none, none)
            for name, values in (("majority", always), ("fair", fair))
        ]
        return one_standard_error(candidates, clusters, unit="points")

    assert chosen("accuracy")[0].name == "majority"
    for by in ("macro_f1", "balanced_accuracy"):
        assert chosen(by)[0].name == "fair"
    winner, _, rows = chosen("nll")
    assert winner.name == "majority"
    nats = in_nats([*rows, {"name": "left out", "reason": "no time left"}])
    assert nats[0]["metric"] == pytest.approx(-(0.9 * np.log(0.8) + 0.1 * np.log(0.1)))
    assert nats[1]["behind_best"] == pytest.approx(nats[1]["metric"] - nats[0]["metric"], abs=1e-6)
    assert nats[2] == {"name": "left out", "reason": "no time left"}


def test_targets_without_the_measure_are_refused():
    several = encode_answers([["a", "b"], ["a"]], LABELS)
    soft = encode_answers([{"a": 0.5}], LABELS)
    for by in CHOOSE_BY:
        check_measure(by, encode_answers(["a", "b"], LABELS))
    check_measure("nll", several)
    with pytest.raises(UsageError, match="choose_by=macro_f1 needs one right class per pair, found pairs with several"):
        check_measure("macro_f1", several)
    with pytest.raises(UsageError, match="choose_by=nll needs one right class per pair, found weights of answers"):
        check_measure("nll", soft)
    with pytest.raises(UsageError, match="'choose_by' must be accuracy or macro_f1 or balanced_accuracy or nll, found"):
        AutoOptions(choose_by="f1")


@pytest.mark.slow
@pytest.mark.parametrize("by", ["macro_f1", "nll"])
def test_auto_says_what_it_chose_by(made_twice, tmp_path, by):
    run = train(
        made_twice.store, made_twice.train, run=tmp_path / "r", task="classification", model="auto", time_limit=2,
        encoder=["toy"], options={"choose_by": by, "epochs": 1},
    )  # fmt: skip
    selection = run.results["selection"]
    assert selection["choose_by"] == by
    metrics = [row["metric"] for row in selection["candidates"] if "metric" in row]
    best = min(metrics) if by == "nll" else max(metrics)
    assert all(
        row["behind_best"] == pytest.approx(abs(row["metric"] - best), abs=1e-4)
        for row in selection["candidates"]
        if "metric" in row
    )
    assert run.settings["choose_by"] == by
    with pytest.raises(UsageError, match="choose_by and class_weight apply to --task classification"):
        train(
            made_twice.store, made_twice.captions, run=tmp_path / "m", task="matching", model="auto",
            options={"choose_by": by},
        )  # fmt: skip

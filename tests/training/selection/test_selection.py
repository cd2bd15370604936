"""``--model auto``: the rule by hand, and the choice on data with known truth."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from frevl.estimators import FusionClassifier
from frevl.evaluation.chance import against_majority
from frevl.models.baselines import Linear, Majority, Mlp
from frevl.models.ensemble import Average
from frevl.models.fusion import Fusion
from frevl.models.registry import build
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.training.loop import FitReport
from frevl.training.options import FusionOptions
from frevl.training.selection.candidates import Candidate
from frevl.training.selection.choose import Selection
from frevl.training.selection.held_out import (
    NO_TIME,
    TOO_LONG,
    CandidateScores,
    fit_candidate,
    score_held_out,
    whole_schedule,
)
from frevl.training.selection.measures import one_standard_error
from frevl.training.training import train


def scored(name, hits):
    none = torch.zeros(0)
    return CandidateScores(Candidate(name, name), torch.tensor(hits), torch.zeros(len(hits), 2), 1.0, 1, none, none)


def test_the_simplest_within_one_standard_error_by_hand():
    clusters = torch.arange(4)
    simple, middle, best = (
        scored("simple", [0.0, 0, 0, 1]),
        scored("middle", [1.0, 1, 0, 1]),
        scored("best", [1.0, 1, 1, 1]),
    )
    # middle is 0.25 behind; the differences are 0, 0, 1, 0, their standard error is sqrt(3 * 1/16 + 9/16) / 4 = 0.2165
    winner, reason, rows = one_standard_error([simple, middle, best], clusters)
    assert winner is best
    assert reason.startswith("the best, and no simpler")
    assert rows[1]["behind_best"] == pytest.approx(25)
    assert rows[1]["standard_error_of_difference"] == pytest.approx(100 * np.sqrt(12 / 16) / 4)
    assert [row["within_one_standard_error"] for row in rows] == [False, False, True]


def test_a_simpler_candidate_that_is_as_good_is_taken():
    clusters = torch.arange(4)
    simple, other = scored("simple", [1.0, 0, 1, 0]), scored("other", [0.0, 1, 1, 1])
    # 0.25 behind with differences -1, 1, 0, 1: standard error sqrt(11/4) / 4 = 0.41
    winner, reason, _ = one_standard_error([simple, other], clusters)
    assert winner is simple
    assert "within one standard error of the best (other, +25.00 points)" in reason


def test_a_gain_that_is_not_worthwhile_is_left_however_sure_it_is():
    # 0.5 points behind on every pair: no doubt at all that the other is better.
    simple, other = scored("simple", [0.5, 0.5, 0.5]), scored("other", [0.505, 0.505, 0.505])
    clusters = torch.arange(3)
    assert one_standard_error([simple, other], clusters)[0] is other
    assert one_standard_error([simple, other], clusters, worthwhile=0.004)[0] is other
    assert one_standard_error([simple, other], clusters, worthwhile=0.006)[0] is simple


def test_pairs_of_one_image_are_not_independent():
    simple, other = scored("simple", [0.0] * 4), scored("other", [1.0, 1, 0, 0])
    apart = one_standard_error([simple, other], torch.arange(4))[2][0]["standard_error_of_difference"]
    together = one_standard_error([simple, other], torch.tensor([0, 0, 1, 1]))[2][0]["standard_error_of_difference"]
    assert together == pytest.approx(apart * np.sqrt(2))


def test_few_development_pairs_do_not_end_a_training():
    options = FusionOptions()
    assert whole_schedule(options, 1_000) is options
    changed = whole_schedule(options, 999)
    assert changed.keep_last
    assert changed.patience > 10**9


def test_what_time_did_not_allow_is_said_beside_a_majority():
    late = [{"name": "linear", "reason": TOO_LONG}, {"name": "mlp", "reason": NO_TIME}]
    tried = [{"name": "majority", "metric": 60.0}, {"name": "kernel", "metric": 59.0}]
    rows = [*tried, *late, {"name": "small", "reason": "never won"}]
    chance = against_majority(np.ones(9), np.ones(9), np.arange(9), "a")
    assert chance.is_chance
    taken = Selection(None, "majority", "the best", rows, "", None, None, "", "accuracy", chance=chance)
    assert taken.warnings() == [
        "The most frequent answer was chosen because the time limit ended before linear, mlp could be tried, which may "
        "be better; raise --time-limit.",
        chance.sentence,
    ]
    assert replace(taken, rows=tried).warnings() == [chance.sentence]
    assert replace(taken, chosen="kernel").warnings() == [chance.sentence]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "chosen", "image_dim"), [(60, "kernel", 4), (60, "kernel", None), (2_100, "linear", 4)]
)
def test_a_time_limit_too_short_for_any_comparison_still_gives_a_model(rows, chosen, image_dim):
    random = np.random.default_rng(0)
    x = random.standard_normal((rows, 8)).astype(np.float32)
    y = np.where(x[:, 0] + 0.2 * x[:, 1] > 0.5, "yes", "no")
    fitted = FusionClassifier(image_dim=image_dim, time_limit=1e-9).fit(x, y)
    selection = fitted.results_["selection"]
    assert selection["chosen"] == chosen
    assert fitted.score(x, y) > (y == "no").mean() + 0.1
    assert fitted.results_["warnings"][0] == (
        "Nothing was compared: the time limit was too short to try a model on held-out pairs, so "
        f"{chosen} was fitted once; others may be better. Raise time_limit."
    )
    # It was judged next to the majority on pairs that it has not learned from, all the same.
    assert selection["majority"]["answer"] in ("yes", "no", "0", "1")
    assert not selection["majority"]["chance"]
    assert {row["name"] for row in selection["candidates"]} >= {"kernel", "linear"}


def test_a_model_that_time_did_not_allow_to_compare_may_be_chance():
    random = np.random.default_rng(1)
    x, y = random.standard_normal((60, 8)).astype(np.float32), np.arange(60) % 2
    fitted = FusionClassifier(time_limit=1e-9).fit(x, y)
    assert fitted.results_["warnings"][0].startswith("Nothing was compared")
    assert fitted.results_["warnings"][1].startswith("Chance: ")


@pytest.mark.slow
def test_auto_looks_at_the_image_where_it_is_needed_and_says_why(made, tmp_path):
    run = train(
        made.store,
        made.train_file,
        run=tmp_path / "run",
        task="classification",
        model="auto",
        time_limit=3000,
        options={"epochs": 2},
    )
    selection = run.results["selection"]
    assert selection["chosen"] not in ("majority", "text", "image")
    tried = {row["name"]: row for row in selection["candidates"] if "metric" in row}
    assert {"majority", "text", "image", "linear", "mlp", "kernel", "tiny"} <= set(tried)
    best = max(row["metric"] for row in tried.values())
    assert (
        best - tried[selection["chosen"]]["metric"] <= tried[selection["chosen"]]["standard_error_of_difference"] + 1e-9
    )
    assert "cross-validation over images" in selection["judged_on"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["results"]["selection"] == json.loads(
        json.dumps(selection)
    )
    scores = Scorer.open(tmp_path / "run", store=made.store).score([(made.test.images[0], made.test.texts[0])])
    assert scores.shape == (1, 2)


@pytest.mark.slow
def test_auto_takes_the_simplest_where_nothing_can_be_learnt(made, tmp_path):
    pairs = made.train
    rng = np.random.default_rng(0)
    pairs.targets[:] = [str(rng.choice(["a", "b"], p=[0.8, 0.2])) for _ in pairs.targets]
    run = train(
        made.store,
        pairs,
        run=tmp_path / "run",
        task="classification",
        model="auto",
        time_limit=3000,
        options={"epochs": 1},
    )
    assert run.results["selection"]["chosen"] == "majority"


@pytest.mark.slow
def test_auto_chooses_for_matching_too(made, tmp_path):
    run = train(
        made.store,
        made.captions_file,
        run=tmp_path / "run",
        task="matching",
        model="auto",
        time_limit=3000,
        options={"epochs": 1},
    )
    assert run.results["selection"]["chosen"]
    assert Scorer.open(tmp_path / "run", store=made.store).grid(
        made.store.image_ids[:2], made.store.texts[:3]
    ).shape == (2, 3)


def test_an_average_is_the_mean_of_calibrated_probabilities():
    torch.manual_seed(0)
    networks = [
        Mlp(image_dim=3, text_dim=5, outputs=2).eval(),
        Fusion.from_preset("tiny", image_dim=3, text_dim=5, outputs=2).eval(),
    ]
    calibrations = [{"scale": 2.0, "offset": 0.0}, {"scale": 0.5, "offset": 0.0}]
    image, text = torch.randn(7, 3), torch.randn(7, 5)
    by_hand = ((networks[0](image, text) * 2).softmax(1) + (networks[1](image, text) / 2).softmax(1)) / 2
    average = Average.of(networks, calibrations, soft=False)
    torch.testing.assert_close(average(image, text).softmax(1), by_hand)
    twin = Average.from_settings(average.settings, build)
    twin.load_state_dict(average.state_dict())
    torch.testing.assert_close(twin.eval()(image, text), average(image, text))
    soft = Average.of(networks, calibrations, soft=True)
    by_hand = ((networks[0](image, text) * 2).sigmoid() + (networks[1](image, text) / 2).sigmoid()) / 2
    torch.testing.assert_close(soft(image, text).sigmoid(), by_hand)


@pytest.mark.slow
def test_an_average_says_which_of_its_members_the_time_limit_cut_short(made, tmp_path, monkeypatch):
    seen = iter((0.25, 1.5, 0.5))

    def cut(member, *arguments, **named):
        fitted = fit_candidate(member, *arguments, **named)
        return replace(fitted, report=FitReport(1, 1, 0.5, 1.0, "time", next(seen)), notes=[f"about {member.name}"])

    def average(scored, clusters, **named):
        _, _, rows = one_standard_error(scored, clusters, **named)
        return next(one for one in scored if len(one.candidate.members) == 3), "by hand", rows

    monkeypatch.setattr("frevl.training.selection.choose.fit_candidate", cut)
    monkeypatch.setattr("frevl.training.selection.comparison.one_standard_error", average)
    monkeypatch.setattr("frevl.training.selection.choose.TRIED", ("majority", "linear", "kernel"))
    run = train(made.store, made.train_file, run=tmp_path / "run", task="classification", model="auto", time_limit=3000)
    first, second, third = run.results["selection"]["chosen"].split(" + ")
    assert run.results["warnings"] == [
        f"The time limit ended the training of {first} when 25 % and that of {third} when 50 % of the training pairs "
        "had been seen; raise it, or train on fewer pairs."
    ]
    late = f"The time limit cut short the training of {second}; a longer one may help."
    assert [late, *(f"about {name}" for name in (first, second, third))] == [
        note for note in run.results["notes"] if note == late or note.startswith("about ")
    ]


@pytest.mark.slow
def test_no_candidate_takes_time_that_the_fit_of_the_choice_needs(made, tmp_path, monkeypatch):
    """The last of them had twice what was left: it was compared after 75 s, and fitted anew in a rest of 30."""
    limits = []

    def timed(candidate, *, session, **named):
        limits.append(session.time_limit)
        return score_held_out(candidate, session=session, **named)

    monkeypatch.setattr("frevl.training.selection.choose.score_held_out", timed)
    monkeypatch.setattr("frevl.training.selection.choose.TRIED", ("majority", "linear", "kernel"))
    train(made.store, made.train_file, run=tmp_path / "run", task="classification", model="auto", time_limit=3000)
    assert len(limits) == 3
    # Three folds: each fit of a candidate takes no longer than is left for the fourth, that of the choice.
    assert max(limits) <= 3000 / 4
    assert limits[-1] > 3000 / 5


def test_an_average_is_saved_and_loaded_like_any_run(made, tmp_path):
    run = train(made.store, made.train_file, run=tmp_path / "run", task="classification", model="linear")
    dims = {name: run.network.settings[name] for name in ("image_dim", "text_dim", "outputs")}
    members = [run.network, Majority(outputs=2), Linear(**dims)]
    run.network = Average.of(members, [{"scale": 1.0, "offset": 0.0}] * 3, soft=False)
    run.network_name, run.network_settings, run.path = "average", run.network.settings, tmp_path / "average"
    run.save()
    pair = [(made.test.images[0], made.test.texts[0])]
    loaded = Scorer(Run.load(tmp_path / "average"), made.store).score(pair)
    assert np.allclose(loaded, Scorer(run, made.store).score(pair))


@pytest.mark.slow
def test_a_handful_of_images_is_not_cross_validated(made, tmp_path):
    images = sorted(set(made.train.images))[:6]
    rows = [i for i, image in enumerate(made.train.images) if image in images]
    few = made.train.select(rows)
    run = train(
        made.store,
        few,
        run=tmp_path / "run",
        task="classification",
        model="auto",
        time_limit=3000,
        options={"epochs": 1},
    )
    assert "too few images to cross-validate" in run.results["selection"]["judged_on"]

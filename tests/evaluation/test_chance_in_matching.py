"""Chance in matching: pairs, rankings and choice sets that random scores would solve as well."""

import json
import random

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from frevl.cli.tables import result_table, run_sentence
from frevl.data.pairs import Pairs, read_pairs
from frevl.evaluation.benchmarks.choice_sets import choice_chance, choice_set_scores
from frevl.evaluation.chance import match_chance
from frevl.evaluation.evaluation import evaluate
from frevl.evaluation.retrieval_metrics import Ranks, _no_better_than_random
from frevl.evaluation.seeds import evaluate_seeds
from frevl.runs.scorer import Scorer
from frevl.training.seeds import train_seeds
from frevl.training.training import train


def test_scores_by_hand():
    right = np.array([True, False] * 4)
    assert match_chance([2, 1] * 4, right, list("aabbccdd")) == []
    (equal,) = match_chance([1.0] * 8, right, list("aabbccdd"))
    assert equal == (
        "Chance: right pairs score higher than wrong ones in 50.00 % [50.00, 50.00] of comparisons, which is not "
        "measurably more than half."
    )
    (worse,) = match_chance([1, 2] * 4, right, list("aabbccdd"))
    assert "in 0.00 % [0.00, 0.00] of comparisons" in worse
    (one,) = match_chance([2, 1] * 4, right, ["a"] * 8)
    assert one == "Chance: pairs of a single image cannot show that right pairs score higher than wrong ones."
    assert match_chance([1.0, 2.0], [True, True], ["a", "b"]) == match_chance([1.0], [False], ["a"]) == []


@pytest.mark.slow
def test_the_share_is_the_area_under_the_curve_and_its_interval_that_of_drawn_clusters():
    draw = np.random.default_rng(3)
    clusters = np.repeat(np.arange(120), 4)
    right = draw.random(480) < 0.3
    scores = np.round(draw.normal(size=120)[clusters] + draw.normal(size=480) + 0.1 * right, 1)
    (said,) = match_chance(scores, right, clusters)
    area, low, high = (float(part.strip("[,]")) for part in said.split()[9:13] if part != "%")
    assert area == pytest.approx(100 * roc_auc_score(right, scores), abs=0.005)
    rows = [np.flatnonzero(clusters == one) for one in range(120)]
    drawn = []
    for _ in range(2000):
        some = np.concatenate([rows[one] for one in draw.integers(120, size=120)])
        drawn.append(100 * roc_auc_score(right[some], scores[some]))
    assert high - area == pytest.approx(1.96 * np.std(drawn), rel=0.08)
    assert area - low == pytest.approx(high - area, abs=0.02)
    alone = match_chance(scores, right, np.arange(480))
    assert alone != [said], "pairs of one image are no independent facts"


def test_false_alarms_and_misses_are_as_rare_as_the_interval_says():
    """Random scores are called chance in 97.5 % of the cases, for only the lower bound counts."""
    draw = np.random.default_rng(5)
    right, clusters = np.tile([True, False], 200), np.repeat(np.arange(100), 4)
    called = [bool(match_chance(draw.normal(size=400), right, clusters)) for _ in range(400)]
    assert 0.95 <= np.mean(called) <= 1.0
    assert not any(match_chance(draw.normal(size=400) + 1.0 * right, right, clusters) for _ in range(50))


def said_of_ranks(i2t, t2i, of_image, of_text):
    images = [f"i{number}" for number in range(len(of_image))]
    texts = [images[min(found)] for found in of_text]
    return _no_better_than_random(Ranks(np.array(i2t), np.array(t2i)), of_image, of_text, images, texts)


def test_rankings_by_hand():
    """Ten images with two texts each: in random order the better text is ahead of two thirds of the wrong ones."""
    of_image = [{2 * number, 2 * number + 1} for number in range(10)]
    of_text = [{number // 2} for number in range(20)]
    assert said_of_ranks([0] * 10, [0] * 20, of_image, of_text) == []
    (tied,) = said_of_ranks([18] * 10, [9] * 20, of_image, of_text)
    assert tied.startswith("Chance: right items are ahead of 0.00 % of the wrong ones on average")
    assert "than in random order (55.56 %): -55.56 points" in tied
    draw = np.random.default_rng(0)
    of_image = [set(range(2 * number, 2 * number + 2)) for number in range(300)]
    of_text = [{number // 2} for number in range(600)]
    i2t = [min(draw.permutation(600)[:2]) for _ in range(300)]
    i2t = [place if place == 0 else place - (draw.random() < place / 599) for place in i2t]
    (drawn,) = said_of_ranks(i2t, draw.integers(300, size=600).tolist(), of_image, of_text)
    value, low, high = (
        float(part) for part in drawn.split(": ")[2].replace("points [", "").strip("].").replace(",", "").split()
    )
    assert low < 0 < high
    assert abs(value) < 2


def test_one_pair_has_nothing_wrong_to_be_ahead_of():
    (said,) = said_of_ranks([0, 0], [0], [{0}, {0}], [{0, 1}])
    assert "on average, which is not measurably better" in said


@pytest.mark.parametrize("texts", [2, 5])
def test_choice_sets_have_the_chance_of_their_size(texts):
    def said(scores):
        rows = [(group, number) for group in range(40) for number in range(texts)]
        pairs = Pairs(
            [f"i{group}" for group, _ in rows], [f"{group} {number}" for group, number in rows], [None] * len(rows),
            [{"group": str(group)} for group, _ in rows], ["made:1"] * len(rows),
        )  # fmt: skip
        return choice_chance(choice_set_scores(scores, np.array([number == 0 for _, number in rows]), pairs)[0])

    drawn = np.random.default_rng(1).normal(size=40 * texts)
    (sentence,) = said(drawn)
    assert f"not measurably better than that of random scores ({100 / texts:.2f} %)" in sentence
    drawn[::texts] += 3
    assert said(drawn) == []


def test_crossed_sets_have_three_scores_with_a_chance_each():
    draw = np.random.default_rng(2)
    extras = [{"group": str(group), "caption": c, "picture": m} for group in range(200) for c in (0, 1) for m in (0, 1)]
    pairs = Pairs(
        [f"{one['group']} {one['picture']}" for one in extras], [f"{one['group']} {one['caption']}" for one in extras],
        [None] * len(extras), extras, ["made:1"] * len(extras),
    )  # fmt: skip
    truth = np.array([one["caption"] == one["picture"] for one in extras])
    found = choice_chance(choice_set_scores(draw.normal(size=len(extras)), truth, pairs)[0])
    assert [sentence.split()[1] for sentence in found] == ["text_score", "image_score", "group_score"]
    assert [sentence.split("random scores (")[1].split()[0] for sentence in found] == ["25.00", "25.00", "16.67"]
    assert choice_chance(choice_set_scores(truth + 0.0, truth, pairs)[0]) == []


@pytest.fixture(scope="module")
def shuffled(made, tmp_path_factory):
    """Captions dealt to other images: nothing can be learnt from these."""
    file = tmp_path_factory.mktemp("shuffled") / "pairs.jsonl"
    rows = [json.loads(line) for line in made.captions_file.read_text().splitlines()]
    texts = [row["text"] for row in rows]
    random.Random(1).shuffle(texts)
    file.write_text("".join(json.dumps({**row, "text": t}) + "\n" for row, t in zip(rows, texts, strict=True)))
    return file


@pytest.mark.slow
def test_training_and_evaluation_say_first_that_nothing_was_learnt(made, shuffled, tmp_path):
    run = train(made.store, shuffled, run=tmp_path / "run", task="matching", model="linear")
    assert run_sentence(run).startswith("Chance: right pairs score higher than wrong ones in ")
    found = evaluate(Scorer(run, made.store), shuffled)
    assert any(note.startswith("Chance: right items are ahead of ") for note in found.notes)
    table = result_table(found)
    assert table.index("Chance: ") < table.index("i2t_r1")
    learnt = train(made.store, made.captions, run=tmp_path / "learnt", task="matching", model="dual")
    assert not run_sentence(learnt).startswith("Chance")
    assert not any(note.startswith("Chance") for note in evaluate(Scorer(learnt, made.store), made.captions).notes)


@pytest.mark.slow
def test_of_several_seeds_one_sentence_says_how_many_are_at_chance(made, shuffled, tmp_path):
    pairs = read_pairs(shuffled)
    trained = train_seeds(
        made.store, pairs, run=tmp_path / "seeds", task="matching", model="mlp", seeds=2,
        options={"epochs": 1, "hidden": 4},
    )  # fmt: skip
    scorers = [Scorer.open(trained.path / run, store=made.store.path) for run in trained.runs]
    found = evaluate_seeds(scorers, pairs)
    assert found.at_chance == 2
    told = [note for note in found.notes if note.startswith("Chance: ")]
    assert len(told) == 1
    assert told[0].startswith("Chance: 2 of 2 seeds are not measurably better than random scores; the first: right ")

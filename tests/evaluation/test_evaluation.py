"""Evaluation of choice sets, official VQA answers and weighted targets, by hand, with given scores."""

from types import SimpleNamespace

import numpy as np
import pytest

from frevl.data.pairs import Pairs
from frevl.errors import Reject, UsageError, misleading
from frevl.evaluation.evaluation import evaluate
from frevl.evaluation.metrics import macro_f1
from frevl.evaluation.seeds import evaluate_seeds
from frevl.runs.scorer import Scorer
from frevl.runs.targets import prefixes_of
from frevl.training.training import train


def pairs_of(rows):
    """Pairs from ``(image, text, target, extra)`` rows."""
    images, texts, targets, extras = (list(column) for column in zip(*rows, strict=True))
    return Pairs(images, texts, targets, extras, [f"made:{i}" for i in range(len(rows))])


class GivenScorer:
    """Answers with scores from a table."""

    def __init__(self, table, task, labels=(), path="made"):
        self.table = table
        self.run = SimpleNamespace(
            task=task,
            labels=list(labels),
            path=path,
            provenance={"seed": 0},
            train_image_hashes=np.zeros(0, np.uint64),
            towers={"image": {}},
            sides=("image", "text"),
            check_pairs=lambda _: [],
        )
        images = {image: row for row, image in enumerate(dict.fromkeys(pair[0] for pair in table))}
        self.store = SimpleNamespace(
            positions=lambda _: images,
            rejects=list,
            content_hashes=lambda _: {},
            content_column=lambda ids: np.array([f"content {images[id_]}".encode() for id_ in ids], "S32"),
            fingerprint="made",
            select_towers=lambda _: [],
        )

    has_first_stage, rerank_depth = False, 0
    network = SimpleNamespace(prior=None)

    def score(self, pairs):
        return np.array([self.table[pair] for pair in pairs], np.float32)

    def match_probabilities(self, pairs):
        scores = self.score(pairs)
        return scores, self.probabilities(scores)

    def probabilities(self, scores):
        exp = np.exp(scores)
        return 1 / (1 + 1 / exp) if self.run.task == "matching" else exp / exp.sum(axis=1, keepdims=True)

    def prior(self, _):
        return None

    def between(self, images, texts):
        grid = np.array([[self.table.get((i, t), -9.0) for t in texts] for i in images], np.float32)
        return lambda rows, columns: grid[rows, columns]


def test_winoground_groups():
    rows, table = [], {}
    # Group 0 is right in every way; group 1 prefers caption 0 for both images.
    for group, scores in enumerate(([[2, 0], [0, 2]], [[5, 4], [1, 3]])):
        for caption in (0, 1):
            for picture in (0, 1):
                pair = (f"{group}-{picture}", f"text {group}-{caption}")
                table[pair] = scores[caption][picture]
                extra = {"group": group, "caption": caption, "picture": picture}
                rows.append((*pair, "true" if caption == picture else "false", extra))
    result = evaluate(GivenScorer(table, "matching"), pairs_of(rows))
    assert result.metrics["text_score"] == 50
    assert result.metrics["image_score"] == 100
    assert result.metrics["group_score"] == 50


def test_sugarcrepe_choices():
    rows, table = [], {}
    for group, (right, wrong) in enumerate([(2, 1), (0, 1), (3, 1), (1, 1)]):
        for text, score, target in ((f"yes {group}", right, "true"), (f"no {group}", wrong, "false")):
            table[f"{group}", text] = score
            rows.append((f"{group}", text, target, {"group": group}))
    result = evaluate(GivenScorer(table, "matching"), pairs_of(rows))
    assert result.metrics["choice_accuracy"] == 50, "a tie is wrong"
    assert result.metrics["accuracy"] == pytest.approx(100 * 3 / 8), "only 2, 3 and 1 of the right ones are above 0"


def test_official_vqa_answers_come_first():
    answers = ["cat"] * 2 + ["the cat"] + ["dog"] * 7
    rows = [("a", "what?", "dog", {"answers": answers}), ("b", "what?", "dog", {"answers": ["dog"] * 10})]
    table = {("a", "what?"): [5, 0], ("b", "what?"): [5, 0]}
    result = evaluate(GivenScorer(table, "classification", ["cat", "dog"]), pairs_of(rows))
    # "cat" matches three of ten answers after normalisation: leave-one-out mean of min(1, matches / 3) is 0.9.
    assert result.metrics["vqa_accuracy"] == pytest.approx(45)
    assert next(iter(result.metrics)) == "vqa_accuracy"


def test_weighted_targets_count_their_weight_and_only_the_heaviest_is_right():
    rows = [("a", "what?", {"cat": 0.3, "unknown": 1.0}, {}), ("b", "what?", {"cat": 1.0, "dog": 1.0}, {})]
    table = {("a", "what?"): [5, 0], ("b", "what?"): [5, 0]}
    result = evaluate(GivenScorer(table, "classification", ["cat", "dog"]), pairs_of(rows))
    assert result.metrics["vqa_accuracy"] == pytest.approx(65)
    assert result.metrics["accuracy"] == 50


def test_pairs_of_one_cluster_are_resampled_together():
    rows, table = [], {}
    for n in range(40):
        table[f"{n}", "q"] = [1.0, 0.0] if n % 4 < 2 else [0.0, 1.0]
        rows.append((f"{n}", "q", "a", {"cluster": f"c{n // 20}"}))
    scorer = GivenScorer(table, "classification", ["a", "b"])
    together = evaluate(scorer, pairs_of(rows)).ci95["accuracy"]
    assert together == [50, 50], "both clusters are half right"
    apart = evaluate(scorer, pairs_of([(*row[:3], {}) for row in rows])).ci95["accuracy"]
    assert apart[0] < 40 < 60 < apart[1]


def test_macro_f1_and_brier_of_single_answers():
    table = {("a", "q"): [0.0, 0.0], ("b", "q"): [0.0, np.log(3.0)], ("c", "q"): [0.0, np.log(3.0)]}
    rows = [("a", "q", "x", {}), ("b", "q", "y", {}), ("c", "q", "never seen", {})]
    result = evaluate(GivenScorer(table, "classification", ["x", "y"]), pairs_of(rows))
    assert result.metrics["accuracy"] == pytest.approx(100 * 2 / 3)
    assert result.metrics["macro_f1"] == pytest.approx(100 * macro_f1(["x", "y", "y"], ["x", "y", "never seen"]))
    # a: 2 * 0.25; b: 2 * 0.0625; c: 0.0625 + 0.5625 + 1 for the class that cannot be said
    assert result.metrics["brier"] == pytest.approx(100 * (0.5 + 0.125 + 1.625) / 3)


def test_the_p_value_of_a_difference():
    table = {(f"{n}", "q"): [1.0, 0.0] for n in range(8)}
    worse = {pair: [0.0, 1.0] for pair in table}
    rows = [(*pair, "a", {}) for pair in table]
    labels = ["a", "b"]
    result = evaluate(
        GivenScorer(table, "classification", labels),
        pairs_of(rows),
        versus=GivenScorer(worse, "classification", labels, path="worse"),
    )
    assert result.difference["difference"] == 100
    assert result.difference["p"] == pytest.approx(2 / 256)


def test_a_run_to_compare_with_that_learned_from_the_test_images_is_reported():
    table = {(f"{n}", "q"): [1.0, 0.0] for n in range(4)}
    rows = [(*pair, "a", {}) for pair in table]
    scorer, other, clean = (GivenScorer(table, "classification", ["a", "b"], path=path) for path in ("a", "b", "c"))
    content = other.store.content_column = lambda ids: np.array([f"{int(id_):032x}"[::-1].encode() for id_ in ids])
    scorer.store.content_column = content
    other.run.path, other.run.train_image_hashes = "leaky", prefixes_of(content(["1", "3", "7"]))
    leaks = [note for note in evaluate(scorer, pairs_of(rows), versus=other).notes if note.startswith("Leak: ")]
    assert leaks == [
        "Leak: 2 of 4 different images were in training or development of leaky (same content): its result is too "
        "good, and the difference misleading."
    ]
    assert not any(note.startswith("Leak: ") for note in evaluate(scorer, pairs_of(rows), versus=clean).notes)


def test_pairs_of_one_class_are_said_to_tell_nothing():
    table = {("0", "a"): [2.0, 0.0], ("1", "b"): [0.0, 1.0]}
    scorer = GivenScorer(table, "classification", ["yes", "no"])
    one = evaluate(scorer, pairs_of([("0", "a", "yes", {}), ("1", "b", "yes", {})]))
    assert (
        "One class: all 2 pairs have the same right answer ('yes'), so a constant answer would get everything right "
        "and these numbers reveal nothing about the run; evaluate on pairs of several classes."
    ) in misleading(one.notes)
    two = evaluate(scorer, pairs_of([("0", "a", "yes", {}), ("1", "b", "no", {})]))
    assert not any("same right answer" in note for note in two.notes)

    wrong = evaluate(GivenScorer({("0", "a"): 1.0, ("1", "b"): -1.0}, "matching"),
                     pairs_of([("0", "a", "false", {}), ("1", "b", "false", {})]))  # fmt: skip
    assert wrong.metrics["accuracy"] == 50
    assert "All 2 pairs are wrong pairs: always saying no would get them all right." in wrong.notes


def test_the_accuracy_of_single_answers_stands_beside_that_of_sets():
    table = {("a", "q"): [2.0, 0.0], ("b", "q"): [2.0, 0.0], ("c", "q"): [2.0, 0.0], ("d", "q"): [2.0, 0.0]}
    rows = [("a", "q", "x", {}), ("b", "q", "y", {}), ("c", "q", "never seen", {}), ("d", "q", ["x", "y"], {})]
    scorer = GivenScorer(table, "classification", ["x", "y"])
    result = evaluate(scorer, pairs_of(rows))
    assert result.n == 4
    assert next(iter(result.metrics)) == "accuracy"
    assert result.metrics["accuracy"] == 50
    assert result.metrics["single_answer_accuracy"] == pytest.approx(100 / 3)
    assert result.ci95["single_answer_accuracy"] == [0, 100]
    assert result.notes[0] == "1 pair has only classes that were not in training; it counts as wrong."
    assert "single_answer_accuracy" not in evaluate(scorer, pairs_of(rows[:3])).metrics
    assert "single_answer_accuracy" not in evaluate(scorer, pairs_of(rows[3:])).metrics


def test_every_pair_that_was_not_evaluated_is_listed():
    scorer = GivenScorer({("a", "q"): [2.0, 0.0]}, "classification", ["x", "y"])
    scorer.store.rejects = lambda: [Reject("image", f"gone {n}", "it is damaged") for n in range(5)]
    rows = [("a", "q", "x", {}), *((f"gone {n}", "q", "x", {}) for n in range(5))]
    record = evaluate(scorer, pairs_of(rows)).record()
    assert record["n"] == 1
    assert [entry["pair"] for entry in record["left_out"]] == [f"made:{n}" for n in range(1, 6)]
    assert record["left_out"][4]["reason"] == "its image 'gone 4' was rejected: it is damaged"
    assert record["notes"][0].startswith("Left out: 5 pairs (made:1: ")


def test_a_text_of_several_images_is_one_query():
    """Text "s" stands with both images and finds b first: right. "t" stands with a, and finds b."""
    table = {("a", "s"): 1.0, ("b", "s"): 2.0, ("a", "t"): 0.0, ("b", "t"): 3.0}
    result = evaluate(GivenScorer(table, "matching"), pairs_of([(i, t, None, {}) for i, t in ("as", "bs", "at")]))
    assert result.metrics["t2i_r1"] == 50
    assert "2 images and 2 texts; any right one counts (1 of the texts belong to several images)" in result.notes[0]


def test_a_list_of_one_answer_is_a_single_answer():
    table = {("a", "q"): [0.0, 1.0], ("b", "q"): [0.0, 1.0], ("c", "q"): [0.0, 1.0]}
    scorer = GivenScorer(table, "classification", ["x", "y"])
    listed = [("a", "q", ["x"], {}), ("b", "q", ["y", "y"], {}), ("c", "q", "y", {})]
    plain = [("a", "q", "x", {}), ("b", "q", "y", {}), ("c", "q", "y", {})]
    assert evaluate(scorer, pairs_of(listed)).metrics == evaluate(scorer, pairs_of(plain)).metrics
    several = evaluate(scorer, pairs_of([*listed[:2], ("c", "q", ["x", "y"], {})]))
    assert several.metrics["single_answer_accuracy"] == 50, "one of the two pairs with a single answer is right"


def test_no_answer_is_right_where_all_weights_are_zero():
    rows = [("a", "q", {"x": 0.0, "y": 0.0}, {}), ("b", "q", {"y": 1.0}, {})]
    result = evaluate(
        GivenScorer({("a", "q"): [0, 1], ("b", "q"): [0, 1]}, "classification", ["x", "y"]), pairs_of(rows)
    )
    assert result.metrics["accuracy"] == 50
    assert not any("not in training" in note for note in result.notes)


def test_a_run_is_not_compared_with_itself(made, tmp_path, frevl):
    train(made.store, made.train_file, run=tmp_path / "a", task="classification", model="majority")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    run, link = (Scorer.open(tmp_path / name, store=made.store) for name in ("a", "link"))
    for compare in (
        lambda: evaluate(run, made.test_file, versus=link),
        lambda: evaluate_seeds([run], made.test_file, versus=[link]),
    ):
        with pytest.raises(UsageError, match="expected another run to compare with, found that of --run"):
            compare()
    pairs = ("--store", made.store.path, "--pairs", made.test_file)
    for other in ("a", "link"):
        done = frevl("evaluate", *pairs, "--run", tmp_path / "a", "--versus", tmp_path / other)
        assert done.code == 2
        assert f"--versus {tmp_path / other}: expected another run to compare with, found that of --run" in done.err

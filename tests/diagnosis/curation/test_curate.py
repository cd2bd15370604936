"""``frevl curate`` on captions of which a fifth were exchanged."""

import json

import numpy as np
import pytest

import frevl
from frevl.diagnosis.curation.match import FEWEST_GROUPS
from frevl.errors import PairsError, RunError, UsageError


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def found(captioned, tmp_path_factory):
    folder = tmp_path_factory.mktemp("curated")
    return frevl.curate(
        captioned.store, captioned.exchanged, folder / "kept.jsonl", dropped=folder / "dropped.jsonl", drop=["match"]
    )


@pytest.mark.slow
def test_exchanged_captions_are_found(captioned, found):
    wrong = np.array([row["exchanged"] for row in captioned.rows])
    right = np.array([line["curate"]["match"] for line in found.lines])
    # The share of pairs of a right and a wrong line in which the right one has the larger probability.
    assert (right[~wrong][:, None] > right[wrong][None]).mean() > 0.93
    kept = np.array([line["curate"]["kept"] for line in found.lines])
    assert (~kept & wrong).sum() / wrong.sum() > 0.7
    assert (~kept & ~wrong).sum() / (~wrong).sum() < 0.05
    low, high = found.filters["match"]["ci95"]
    assert low <= wrong.mean() <= high
    assert "The number of wrong texts cannot be known from the lines alone: about" in found.sentence()


def test_every_line_stands_in_one_file_in_its_order_with_all_that_was_found(captioned, found):
    kept, dropped = lines_of(found.out), lines_of(found.out.with_name("dropped.jsonl"))
    assert kept == [line for line in found.lines if line["curate"]["kept"]]
    assert len(kept) == found.kept
    places = {(row["image"], row["text"]): n for n, row in enumerate(captioned.rows)}
    for part in (kept, dropped):
        order = [places[line["image"], line["text"]] for line in part]
        assert order == sorted(order)
    assert len(kept) + len(dropped) == len(captioned.rows)
    keys = ["match", "duplicate_of", "copies", "text", "image", "blind", "label", "kept", "why", "row"]
    assert all(list(line["curate"]) == keys for line in found.lines)
    assert [line["curate"]["row"] for line in found.lines] == list(range(len(captioned.rows)))
    assert {"why": ["match"], "kept": False}.items() <= dropped[0]["curate"].items()
    assert not found.out.with_name("kept.jsonl.unfinished").exists()
    assert found.record()["filters"]["match"]["dropped"] == len(dropped)


@pytest.mark.slow
def test_a_killed_call_goes_on_with_the_folds_that_are_done(captioned, found, tmp_path, monkeypatch):
    from frevl.diagnosis.curation import match

    whole, trained = match._one_fold, []

    def killed(*arguments):
        if trained:
            raise KeyboardInterrupt
        trained.append(1)
        return whole(*arguments)

    call = {"drop": ["match"]}
    monkeypatch.setattr(match, "_one_fold", killed)
    with pytest.raises(KeyboardInterrupt):
        frevl.curate(captioned.store, captioned.exchanged, tmp_path / "kept.jsonl", **call)
    with pytest.raises(RunError, match="its 'seed' was 0, not 1.*choose another --out"):
        frevl.curate(captioned.store, captioned.exchanged, tmp_path / "kept.jsonl", seed=1, **call)
    with pytest.raises(
        RunError, match="since then the file of --pairs .* has changed, so its folds cannot be used: del"
    ):
        frevl.curate(captioned.store, captioned.clean, tmp_path / "kept.jsonl", **call)
    again = []
    monkeypatch.setattr(match, "_one_fold", lambda *arguments: again.append(1) or whole(*arguments))
    resumed = frevl.curate(captioned.store, captioned.exchanged, tmp_path / "kept.jsonl", **call)
    assert len(again) == 2
    assert resumed.lines == found.lines
    assert [path.name for path in tmp_path.iterdir()] == ["kept.jsonl"]


@pytest.mark.slow
def test_a_run_that_has_learnt_from_the_lines_is_told_first(captioned, tmp_path):
    run = frevl.train(captioned.store, captioned.clean, run=tmp_path / "run", task="matching", model="dual",
                      options={"members": 1, "epochs": 2})  # fmt: skip
    told = frevl.curate(captioned.store, captioned.exchanged, run=run.path, drop=["match"])
    assert "was trained on 260 of the 260 images" in told.sentence().split(". ")[0]
    assert all(line["curate"]["match"] is not None for line in told.lines)


def test_too_few_images_score_nothing_and_drop_nothing(captioned, tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in captioned.rows[:100:2]))
    told = frevl.curate(captioned.store, few, tmp_path / "kept.jsonl", drop=["match"])
    assert told.sentence().startswith("Matches were not checked: only 50 images with right lines, and at least 100")
    assert told.kept == 50
    assert {line["curate"]["match"] for line in told.lines} == {None}
    assert FEWEST_GROUPS == 100


def test_one_text_for_all_scores_nothing(captioned, tmp_path):
    same = tmp_path / "same.jsonl"
    same.write_text("".join(json.dumps({**row, "text": captioned.rows[0]["text"]}) + "\n" for row in captioned.rows))
    told = frevl.curate(captioned.store, same, drop=["match"], find_groups=False)
    assert told.sentence().startswith("Matches were not checked: all lines have the same text")


@pytest.mark.slow
def test_only_the_keys_that_are_asked_for_are_compared(captioned, tmp_path):
    rows = [{**row, "site": n % 2, "camera": n % 3, "same": 1} for n, row in enumerate(captioned.rows)]
    (tmp_path / "keys.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = frevl.curate(
        captioned.store, tmp_path / "keys.jsonl", drop=["match"], groups=["camera", "same"], below=0.3
    )  # fmt: skip
    assert {one["key"] for one in told.record()["removed"]["groups"]} == {"camera"}
    assert "The key 'same' forms no groups" in told.sentence()
    with pytest.raises(UsageError, match="--groups camra: no line has this key. Did you mean 'camera'"):
        frevl.curate(captioned.store, tmp_path / "keys.jsonl", groups=["camra"])


def test_no_right_line_scores_nothing(captioned, tmp_path):
    rows = [{**row, "target": False} for row in captioned.rows]
    (tmp_path / "false.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = frevl.curate(captioned.store, tmp_path / "false.jsonl", drop=["match"])
    assert told.sentence().startswith("Matches were not checked: no images with right lines")


def test_a_run_that_tells_nothing_drops_nothing(captioned, tmp_path):
    run = frevl.train(captioned.store, captioned.clean, run=tmp_path / "run", task="matching", model="linear")
    told = frevl.curate(captioned.store, captioned.exchanged, run=run.path, drop=["match"])
    assert told.sentence().startswith(
        "Matches were not checked: the model does not distinguish these texts from random"
    )
    assert told.kept == len(told.lines)


@pytest.mark.slow
def test_lines_given_as_wrong_are_scored_and_stay(captioned, tmp_path):
    rows = [{**row, "target": not row["exchanged"]} for row in captioned.rows]
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = frevl.curate(captioned.store, tmp_path / "judged.jsonl", drop=["match"], below=0.9)
    given_wrong = [line["curate"] for line in told.lines if line["exchanged"]]
    assert all(one["kept"] for one in given_wrong)
    assert np.median([one["match"] for one in given_wrong]) < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "matchin"}, "There is no task 'matchin'. Did you mean 'matching'?"),
        ({"drop": ["mach"]}, "--drop: there is no filter 'mach'. Did you mean 'match'?"),
        ({"folds": 1}, "--folds must be between 2 and 20, found 1"),
        ({"time_limit": float("nan")}, "--time-limit must be a number of seconds above 0, found nan"),
        ({"keep": 0}, "--keep: expected a share of the lines, above 0"),
        ({"seed": -1}, "--seed must be between 0"),
    ],
)
def test_wrong_use(captioned, options, message):
    with pytest.raises(UsageError, match=message.replace("?", "[?]")):
        frevl.curate(captioned.store, captioned.exchanged, **options)


def test_more_lines_than_the_memory_holds_are_refused_before_anything_is_learnt(captioned, monkeypatch):
    count = len(captioned.rows)
    monkeypatch.setattr("frevl.diagnosis.curation.curate.memory_limit", lambda: 1_200 * (count - 1))
    asked = f"{count:,} lines need over .* curate parts of at most {(count - 1) // 2:,} lines"
    with pytest.raises(UsageError, match=asked):
        frevl.curate(captioned.store, captioned.exchanged)
    monkeypatch.setattr("frevl.diagnosis.curation.curate.memory_limit", lambda: 500 * count)
    assert len(frevl.curate(captioned.store, captioned.exchanged, drop=["text"], find_groups=False).lines) == count


def test_a_graph_that_the_memory_does_not_hold_is_refused(captioned, monkeypatch):
    """A graph takes 177 bytes for each of the 260 images: 17 numbers and 160 bytes of links."""
    count, options = len(captioned.rows), {"drop": ["duplicate"], "find_groups": False}
    monkeypatch.setattr("frevl.diagnosis.curation.copies.duplicates.MOST_COMPARED", 259)
    monkeypatch.setattr("frevl.diagnosis.curation.curate.memory_limit", lambda: 500 * count + 177 * 260 - 1)
    with pytest.raises(UsageError, match="near copies of so many images .* choose other filters with --drop"):
        frevl.curate(captioned.store, captioned.exchanged, **options)
    monkeypatch.setattr("frevl.diagnosis.curation.curate.memory_limit", lambda: 500 * count + 177 * 260)
    assert frevl.curate(captioned.store, captioned.exchanged, **options).kept > 0


def test_no_input_is_written_over(captioned, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_bytes(captioned.exchanged.read_bytes())
    with pytest.raises(UsageError, match="--out .* is the same path as --pairs"):
        frevl.curate(captioned.store, pairs, pairs)
    with pytest.raises(UsageError, match="both name"):
        frevl.curate(captioned.store, pairs, tmp_path / "x.jsonl", dropped=tmp_path / "x.jsonl")
    assert pairs.read_bytes() == captioned.exchanged.read_bytes()


def test_sides_and_targets_that_are_missing(captioned, one_side):
    with pytest.raises(PairsError, match="matching expects an image and a text in every line"):
        frevl.curate(one_side.store, one_side.train_file, task="matching")
    with pytest.raises(UsageError, match="--drop match is for --task matching, found --task classification"):
        frevl.curate(one_side.store, one_side.train_file, drop=["match"])


def test_a_text_that_the_store_lacks_is_refused_before_anything_is_learnt(captioned, tmp_path):
    """Only the models need its embedding: other filters read the text itself."""
    file = tmp_path / "lines.jsonl"
    rows = [{**row, "text": "never extracted"} if n == 2 else row for n, row in enumerate(captioned.rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "kept.jsonl"
    message = (
        rf"lines.jsonl:3, field 'text': the store has no text 'never extracted' \(1 of {len(rows):,} lines have "
        r"unknown texts\); add them with: frevl extract --pairs FILE --store "
    )
    with pytest.raises(PairsError, match=message):
        frevl.curate(captioned.store, file, out, task="matching", drop=["text", "match"])
    assert list(tmp_path.iterdir()) == [file]
    frevl.curate(captioned.store, file, out, task="matching", drop=["text"])
    assert out.exists()


@pytest.mark.slow
def test_the_command(captioned, frevl, tmp_path):
    said = frevl(
        "curate", "--store", captioned.store.path, "--pairs", captioned.exchanged, "--out", tmp_path / "kept.jsonl",
        "--drop", "match", "--keep", "0.8", "--json", tmp_path / "result.json", "--quiet",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert said.out.startswith("Kept 416 of 520 lines into")
    record = json.loads((tmp_path / "result.json").read_text())
    assert (record["lines"], record["kept"], record["filters"]["match"]["dropped"]) == (520, 416, 104)
    assert len(lines_of(tmp_path / "kept.jsonl")) == 416


def test_a_fold_without_right_lines_scores_nothing(captioned, tmp_path, monkeypatch):
    """Few right lines among many wrong ones: all of a fold may be wrong, and nothing can be drawn there."""
    from frevl.diagnosis.curation import match

    lines = frevl.data.pairs.read_pairs(captioned.exchanged)
    dealt = match.deal_folds(lines.images, 3, 0)
    fold_of = dict(zip(lines.images, dealt.tolist(), strict=True))
    monkeypatch.setattr(match, "deal_folds", lambda *_: dealt)
    rows = [{**row, "target": fold_of[row["image"]] != 2} for row in captioned.rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = frevl.curate(captioned.store, tmp_path / "rows.jsonl", drop=["match"], find_groups=False)
    assert told.sentence().startswith("Matches were not checked: fold 3 of 3 has fewer than two groups with right")
    assert told.kept == len(rows)


@pytest.mark.slow
def test_a_fold_that_was_cut_short_is_told_first_and_learnt_again_where_there_is_more_time(
    captioned, tmp_path, monkeypatch
):
    from frevl.diagnosis.curation import match

    whole, learnt = match._one_fold, []

    def cut(*arguments):
        if len(learnt) == stop:
            raise KeyboardInterrupt
        learnt.append(1)
        return whole(*arguments)[0], len(learnt) == 1

    monkeypatch.setattr(match, "_one_fold", cut)
    for limit, count in ((1000.0, 3), (2000.0, 4)):
        out, stop = tmp_path / f"{limit}.jsonl", 1
        learnt.clear()
        with pytest.raises(KeyboardInterrupt):
            frevl.curate(captioned.store, captioned.exchanged, out, drop=["match"], time_limit=1000.0)
        stop = None
        told = frevl.curate(captioned.store, captioned.exchanged, out, drop=["match"], time_limit=limit)
        assert len(learnt) == count
        assert told.sentence().startswith("1 of 3 folds was cut short by --time-limit") is (limit == 1000.0)

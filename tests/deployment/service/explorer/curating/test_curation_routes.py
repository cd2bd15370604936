"""Curations over HTTP: findings accepted, overruled, undone, by several people, exported, started, refused."""

import asyncio
import json
import time

import pytest

from explored import copied, explored
from frevl.data.pairs import read_pairs
from frevl.deployment.service.explorer.curating import curate_handlers
from frevl.deployment.service.explorer.curating.curations import Curations
from frevl.errors import InputError
from judged import captions, classes, judged, write_result


@pytest.fixture(scope="module")
def world(made, tmp_path_factory):
    return copied(made, tmp_path_factory.mktemp("curated"))


@pytest.fixture
def result(tmp_path):
    return write_result(tmp_path / "found")


def opened(world, result=None, *, writable=True, **more):
    curations = Curations(world.store, writable=writable, given=result, images=world.images, **more)
    return explored(world.store, world.images, writable=writable, curations=curations)


def lines(http, by="match", **asked):
    return http.get("/explore/curation/lines", params={"filter": by, **asked}).json()["lines"]


def decide(http, by="ada", **decision):
    return http.post("/explore/curation/decide", json={"by": by, "decisions": [decision]})


def kept(http):
    return http.get("/explore/curation").json()["kept"]


def export(http, which="kept"):
    text = http.get("/explore/curation/export", params={"lines": which}).text
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_what_was_found_is_told(world, result):
    with opened(world, result) as at:
        assert at.http.get("/explore/curations").json()["curations"] == ["result"]
        found = at.http.get("/explore/curation").json()
        assert (found["lines"], found["kept_by_curate"], found["kept"]) == (9, 4, 4)
        assert found["doubts"] == ["Look at a hundred of them first."]
        assert found["removed"]["groups"][0]["value"] == "winter"
        counts = {one["name"]: (one["judged"], one["flagged"], one["undecided"]) for one in found["filters"]}
        assert counts == {"match": (8, 2, 2), "text": (1, 1, 1), "duplicate": (1, 1, 1), "repeated": (1, 1, 1)}


@pytest.mark.slow
def test_the_most_suspicious_come_first(world, result):
    with opened(world, result) as at:
        assert [one["text"] for one in lines(at.http)] == ["a wrong one", "a bad copy"]
        shown = lines(at.http, shown="all")
        assert [one["probability"] for one in shown] == pytest.approx([0.02, 0.1, 0.55, 0.8, 0.9, 0.97, 0.97, 0.99])
        assert [one["text"] for one in lines(at.http, shown="all", start=1, count=2)] == [
            "a bad copy",
            "a doubtful one",
        ]
        assert lines(at.http, "text")[0]["reasons"] == ["file name"]
        assert lines(at.http, "repeated")[0]["why"] == ["duplicate"]


@pytest.mark.slow
def test_a_judgement_is_overruled_accepted_and_taken_back(world, result):
    with opened(world, result) as at:
        wrong, bad = lines(at.http)
        assert decide(at.http, line=wrong["line"], filter="match", say="keep").json()["kept"] == 5
        # A line that two filters drop stays dropped when one of them is overruled.
        assert decide(at.http, line=bad["line"], filter="match", say="keep").json()["kept"] == 5
        assert lines(at.http, shown="decided")[1]["why"] == ["duplicate"]
        doubtful = lines(at.http, shown="all")[2]
        assert decide(at.http, line=doubtful["line"], filter="match", say="drop").json()["kept"] == 4
        assert lines(at.http, shown="undecided") == []
        undone = at.http.post("/explore/curation/undo", json={"by": "ada"}).json()
        assert (undone["kept"], undone["judgements"]) == (5, 1)
        assert decide(at.http, line=wrong["line"], filter="match", say=None).json()["kept"] == 4
        refused = at.http.post("/explore/curation/undo", json={"by": "bob"})
        assert refused.status_code == 422
        assert "nothing" in refused.json()["error"]["message"]


@pytest.mark.slow
def test_copies_are_kept_or_dropped_with_their_lines(world, result):
    with opened(world, result) as at:
        (group,) = at.http.get("/explore/curation/copies").json()["groups"]
        assert [(one["picture"], one["kept"]) for one in group["copies"]] == [
            ("3.png", True),
            ("4.png", False),
            ("5.png", False),
        ]
        chosen = [
            {"picture": "3.png", "say": "drop"},
            {"picture": "4.png", "say": "keep"},
            {"picture": "5.png", "say": "keep"},
        ]
        answer = at.http.post("/explore/curation/decide", json={"by": "ada", "decisions": chosen}).json()
        assert answer["kept"] == 4  # one more, one less; the bad copy is no match either
        (group,) = at.http.get("/explore/curation/copies").json()["groups"]
        assert [one["kept"] for one in group["copies"]] == [False, True, True]
        assert at.http.get("/explore/curation/copies", params={"shown": "undecided"}).json()["total"] == 0
        why = {line["text"]: line["curate"]["why"] for line in export(at.http, "dropped")}
        assert why["the best copy"] == ["duplicate"]
        assert why["a bad copy"] == ["match"]
        assert why["twice"] == ["duplicate"]


@pytest.mark.slow
def test_a_group_of_many_copies_is_decided_as_one(world, tmp_path):
    lines_of = [judged("0.png", "first", match=0.9, copies=90)]
    lines_of += [judged(f"c{n}.png", f"copy {n}", ["duplicate"], copies=90, duplicate_of="0.png") for n in range(89)]
    with opened(world, write_result(tmp_path / "found", lines_of)) as at:
        (group,) = at.http.get("/explore/curation/copies").json()["groups"]
        assert (len(group["copies"]), group["more"]) == (40, 50)
        assert decide(at.http, group="0.png", say="keep").json()["kept"] == 90
        assert decide(at.http, group="0.png", picture="c88.png", say="drop").json()["kept"] == 1
        assert [line["image"] for line in export(at.http)] == ["c88.png"]
        assert decide(at.http, group="0.png", say="drop").json()["kept"] == 1
        assert [line["image"] for line in export(at.http)] == ["0.png"]
        assert decide(at.http, group="0.png", say=None).json()["kept"] == 1
        assert at.http.get("/explore/curation").json()["decided"] == 0


@pytest.mark.slow
def test_texts_alone_and_names_of_all_kinds(world, tmp_path):
    name = "bücher/mit blank <b>&?#.png"
    texts = [judged("", "same", target="a", copies=2), judged("", "Same ", ["duplicate"], target="a", copies=2,
                                                               duplicate_of="same")]  # fmt: skip
    for line in texts:
        del line["image"]
    with opened(world, write_result(tmp_path / "texts", texts, task="classification")) as at:
        assert decide(at.http, picture="Same ", say="keep").json()["kept"] == 2
        assert [line["text"] for line in export(at.http)] == ["same", "Same "]
    odd = [judged(name, "x", match=0.9, copies=2), judged("y" * 4090, "x", ["duplicate"], copies=2, duplicate_of=name)]
    with opened(world, write_result(tmp_path / "odd", odd)) as at:
        assert decide(at.http, picture="y" * 4090, say="keep").json()["kept"] == 2
        found = at.http.get("/explore/curation").json()
        assert found["kept"] == 2
        assert "is it a curation of another store?" in found["notes"][0]


@pytest.mark.slow
def test_the_result_is_a_pairs_file(world, result, tmp_path):
    with opened(world, result) as at:
        wrong = lines(at.http)[0]
        decide(at.http, line=wrong["line"], filter="match", say="keep")
        text = lines(at.http, "text")[0]
        decide(at.http, line=text["line"], filter="text", say="drop")
        (tmp_path / "left.jsonl").write_bytes(at.http.get("/explore/curation/export").content)
        read = read_pairs(tmp_path / "left.jsonl")
        assert read.texts == ["a red square", "a doubtful one", "the best copy", "twice", "a wrong one"]
        assert read.extras[4]["curate"]["decided"] == {"match": "keep"}
        assert read.extras[4]["curate"]["why"] == []
        gone = export(at.http, "dropped")
        assert [(one["text"], one["curate"]["why"]) for one in gone if one["image"] == "7.png"] == [
            ("IMG_0001.jpg", ["text"])
        ]
        assert len(gone) + len(read) == 9


@pytest.mark.slow
def test_the_result_comes_in_the_order_of_the_file_that_was_judged(world, tmp_path):
    given = captions()
    for row, line in enumerate(given):
        line["curate"]["row"] = 2 * row + 1  # some lines could not be used
    with opened(world, write_result(tmp_path / "found", given)) as at:
        wrong, _ = lines(at.http)
        decide(at.http, line=wrong["line"], filter="match", say="keep")
        doubtful = lines(at.http, shown="all")[2]
        decide(at.http, line=doubtful["line"], filter="match", say="drop")
        kept_lines, dropped = export(at.http), export(at.http, "dropped")
        assert [one["text"] for one in kept_lines] == ["a red square", "a wrong one", "the best copy", "twice"]
        assert [one["text"] for one in dropped] == [
            "a doubtful one", "a copy", "a bad copy", "twice", "IMG_0001.jpg",
        ]  # fmt: skip
        assert kept_lines[1]["curate"]["decided"] == {"match": "keep"}


@pytest.mark.slow
def test_who_loses_lines_is_told_after_all_decisions(world, result):
    asked = []

    def removal(store, some, left, **how):
        asked.append(([line["text"] for line in some], left.tolist(), how))
        return {"sentence": "Now.", "groups": []}

    with opened(world, result, removal=removal) as at:
        first = at.http.get("/explore/curation/removed").json()
        assert (first["decided"], first["removed"]["groups"][0]["value"]) == (False, "winter")
        wrong = lines(at.http)[0]
        decide(at.http, line=wrong["line"], filter="match", say="keep")
        for _ in range(2):  # once for every state of the decisions
            now = at.http.get("/explore/curation/removed").json()
            assert (now["decided"], now["removed"]["sentence"], now["why_not"]) == (True, "Now.", "")
        ((texts, left, how),) = asked
        assert [text for text, stays in zip(texts, left, strict=True) if stays] == [
            one["text"] for one in export(at.http)
        ]
        assert how == {"task": "matching", "asked": {}}
        at.http.post("/explore/curation/undo", json={"by": "ada"})
        assert at.http.get("/explore/curation/removed").json()["removed"] == first["removed"]
    with opened(world, result) as at:
        decide(at.http, line=wrong["line"], filter="match", say="keep")
        old = at.http.get("/explore/curation/removed").json()
        assert (old["decided"], old["removed"]) == (False, first["removed"])
        assert "Decisions are not included" in old["why_not"]
        assert at.http.get("/explore/curation/removed", params={"of": "none"}).status_code == 404


@pytest.mark.slow
def test_a_label_is_corrected(world, tmp_path):
    result = write_result(tmp_path / "found", classes(), task="classification")
    with opened(world, result) as at:
        (wrong,) = lines(at.http, "label")
        assert wrong["label"] == {"given": "cat", "likelier": "dog", "probability": 0.03}
        assert decide(at.http, line=wrong["line"], filter="label", say="fix").json()["kept"] == 3
        targets = {line["image"]: line["target"] for line in export(at.http)}
        assert targets == {"0.png": "cat", "1.png": "dog", "2.png": "dog"}
        right = lines(at.http, "label", shown="all")[1]
        refused = decide(at.http, line=right["line"], filter="label", say="fix")
        assert "No other label is likelier" in refused.json()["error"]["message"]


@pytest.mark.slow
def test_two_people_lose_nothing_and_a_tie_leaves_what_curate_said(world, result):
    with opened(world, result) as ada, opened(world, result) as bob:
        wrong = lines(ada.http)[0]["line"]
        decide(ada.http, "ada", line=wrong, filter="match", say="keep")
        assert kept(bob.http) == 5
        decide(bob.http, "bob", line=wrong, filter="match", say="drop")
        found = ada.http.get("/explore/curation").json()
        assert (found["kept"], found["disputed"], found["by"]) == (4, 1, {"ada": 1, "bob": 1})
        assert lines(ada.http)[0]["said"] == {"ada": "keep", "bob": "drop"}
        decide(bob.http, "eve", line=wrong, filter="match", say="keep")
        assert kept(ada.http) == 5


@pytest.mark.slow
def test_decisions_outlive_the_process_and_a_torn_line(world, result):
    with opened(world, result) as at:
        decide(at.http, line=lines(at.http)[0]["line"], filter="match", say="keep")
    file = result.with_name("result.json.decisions") / "decisions.jsonl"
    with file.open("ab") as torn:
        torn.write(b'{"id": "x", "at"')
    with opened(world, result) as at:
        assert kept(at.http) == 5
        assert "was cut off" in " ".join(at.http.get("/explore/curation").json()["notes"])
        assert decide(at.http, line=lines(at.http)[1]["line"], filter="match", say="drop").status_code == 200


@pytest.mark.slow
def test_decisions_stay_when_the_same_lines_are_curated_again(world, result):
    with opened(world, result) as at:
        decide(at.http, line=lines(at.http)[0]["line"], filter="match", say="keep")
        lines_again = [line for line in captions() if line["text"] != "a red square"]
        time.sleep(0.01)
        write_result(result.parent, lines_again)
        found = at.http.get("/explore/curation").json()
        assert (found["lines"], found["kept_by_curate"], found["kept"]) == (8, 3, 4)


@pytest.mark.slow
def test_the_same_request_again_is_written_once(world, result):
    with opened(world, result) as at:
        body = {"by": "ada", "id": "abc", "decisions": [{"picture": "4.png", "say": "keep"}]}
        for _ in range(2):
            assert at.http.post("/explore/curation/decide", json=body).json()["kept"] == 5
        written = (result.with_name("result.json.decisions") / "decisions.jsonl").read_text().splitlines()
        assert len(written) == 2  # what the file is, and the decision


@pytest.mark.slow
def test_where_nothing_is_written_decisions_are_refused(world, result):
    with opened(world, result, writable=False) as at:
        refused = decide(at.http, line=lines(at.http)[0]["line"], filter="match", say="keep")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "read_only")
        assert at.http.post("/explore/curation/start", json={"judge": "pairs"}).status_code == 403
        assert at.http.get("/explore/curations").json()["judges"] == []
        assert not result.with_name("result.json.decisions").exists()


@pytest.mark.slow
def test_another_site_decides_nothing(world, result):
    with opened(world, result) as at:
        body = {"by": "ada", "decisions": [{"picture": "4.png", "say": "keep"}]}
        for route in ("decide", "undo", "start", "stop"):
            headers = {"Origin": "http://elsewhere.example"}
            assert at.http.post(f"/explore/curation/{route}", json=body, headers=headers).status_code == 403
        assert kept(at.http) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decision", "code", "words"),
    [
        ({"line": "0" * 16, "filter": "match", "say": "keep"}, 404, "has no line"),
        ({"picture": "0.png", "say": "keep"}, 404, "in no group of copies"),
        ({"group": "3.png", "picture": "0.png", "say": "drop"}, 404, "in no group '3.png'"),
        ({"group": "0.png", "say": "drop"}, 404, "no group of copies of '0.png'"),
        ({"group": "3.png", "picture": "3.png", "say": "keep"}, 422, "requires the decision 'drop', for the others"),
        ({"picture": "4.png", "say": "fix"}, 422, "only a label can be fixed"),
        ({"say": "keep"}, 422, "names a 'line' with a 'filter'"),
        ({"picture": "4.png", "say": "burn"}, 422, "say"),
    ],
)
def test_what_cannot_be_decided_is_refused(world, result, decision, code, words):
    with opened(world, result) as at:
        refused = decide(at.http, **decision)
        assert refused.status_code == code
        assert words in refused.json()["error"]["message"]


@pytest.mark.slow
def test_no_curation_is_said(world):
    with opened(world) as at:
        assert at.http.get("/explore/curations").json()["curations"] == []
        assert at.http.get("/explore/curation").json()["error"]["message"] == "There is no curation yet."
        assert at.http.get("/explore/curation", params={"of": "<b>"}).status_code == 404


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "dropped.jsonl").unlink(), "the lines of the curation are not at"),
        (lambda folder: (folder / "kept.jsonl").write_text(""), "have they changed since"),
        (
            lambda folder: (folder / "kept.jsonl").write_text('{"image": "a"}\n'),
            "line 1: expected a line written by frevl",
        ),
        (lambda folder: (folder / "kept.jsonl").write_bytes(b"\xff\n"), "line 1: expected a line written by frevl"),
        (lambda folder: (folder / "result.json").write_text("{}"), "a file without 'task'"),
        (lambda folder: (folder / "result.json").write_text("[1"), "expected the file that frevl curate"),
    ],
)
def test_a_result_that_is_broken_while_it_is_shown_is_a_sentence(world, result, change, words):
    with opened(world, result) as at:
        assert kept(at.http) == 4
        change(result.parent)
        refused = at.http.get("/explore/curation")
        assert refused.status_code == 409
        assert words in refused.json()["error"]["message"]
        assert str(result.parent) not in refused.json()["error"]["message"]


def test_a_result_that_is_not_there_ends_the_start(world, tmp_path):
    with pytest.raises(InputError, match="no such file; expected the one that frevl curate --json wrote"):
        Curations(world.store, writable=True, given=tmp_path / "none.json")
    result = write_result(tmp_path / "old", dropped=None)
    with pytest.raises(InputError, match="5 lines of the curation were not written"):
        Curations(world.store, writable=True, given=result)


@pytest.mark.slow
def test_a_disk_that_takes_nothing_is_a_sentence(world, result):
    with opened(world, result) as at:
        result.with_name("result.json.decisions").symlink_to(result.parent / "gone" / "away")
        refused = decide(at.http, picture="4.png", say="keep")
        assert refused.status_code == 503
        assert refused.json()["error"]["message"].startswith(
            "result.json.decisions/decisions.jsonl: decisions cannot be written"
        )
        assert kept(at.http) == 4


@pytest.mark.slow
def test_lines_are_exported_in_blocks(world, result, monkeypatch):
    def sent(at):
        async def all_of():
            return list(await curate_handlers.exported(at.explorer, None, kept=True))

        return asyncio.run(all_of())

    with opened(world, result) as at:
        (whole,) = sent(at)
        assert whole.count(b"\n") == 4
        monkeypatch.setattr(curate_handlers, "_BLOCK", whole.index(b"\n") + 2)
        parts = sent(at)
        assert (len(parts), b"".join(parts)) == (2, whole)

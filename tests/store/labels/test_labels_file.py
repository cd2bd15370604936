"""The labels file: nothing confirmed is lost, whoever writes and however the process ends."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from frevl.errors import StoreError, UsageError
from frevl.store.labels.entries import parse
from frevl.store.labels.labels_file import LabelsFile


@pytest.fixture
def labels(tmp_path):
    return LabelsFile(tmp_path)


def lines_of(tmp_path):
    return [json.loads(line) for line in (tmp_path / "labels" / "labels.jsonl").read_text().splitlines()]


def test_who_when_item_and_class_stand_in_a_line_that_is_only_ever_added_to(labels, tmp_path):
    first = labels.label("ada", [("a.png", "cat")])
    labels.label("bob", [("a.png", "dog"), ("b.png", "dog")], "mine")
    before = (tmp_path / "labels" / "labels.jsonl").read_bytes()
    labels.undo("bob")
    assert (tmp_path / "labels" / "labels.jsonl").read_bytes().startswith(before)
    header, *rows = lines_of(tmp_path)
    assert header == {"frevl_labels": 1}
    assert [{key: row[key] for key in row if key != "at"} for row in rows] == [
        {"id": first, "by": "ada", "image": "a.png", "class": "cat"},
        {"id": "mine.0", "by": "bob", "image": "a.png", "class": "dog"},
        {"id": "mine.1", "by": "bob", "image": "b.png", "class": "dog"},
        {"id": rows[3]["id"], "by": "bob", "undo": "mine"},
    ]
    assert all(row["at"].endswith("Z") for row in rows)
    assert labels.book().agreed() == LabelsFile(tmp_path).book().agreed() == {"a.png": "cat"}


def test_undo_brings_back_what_was_said_before_and_ends_with_a_sentence(labels):
    labels.label("ada", [("a.png", "cat")])
    labels.label("ada", [("a.png", "dog")])
    labels.label("ada", [("a.png", None)])
    assert labels.book().of("a.png") == {}
    for left in ({"ada": "dog"}, {"ada": "cat"}, {}):
        labels.undo("ada")
        assert labels.book().of("a.png") == left
    assert labels.book().classes() == {"cat": 0, "dog": 0}
    with pytest.raises(UsageError, match="There is nothing that 'ada' could undo"):
        labels.undo("ada")


def test_nobody_undoes_what_another_labeller_wrote(labels):
    written = labels.label("ada", [("a.png", "cat")])
    with pytest.raises(UsageError, match="nothing under the id"):
        labels.undo("bob", written)
    assert labels.book().of("a.png") == {"ada": "cat"}


def test_a_request_that_is_sent_twice_counts_once(labels):
    for _ in range(2):
        labels.label("ada", [("a.png", "cat"), ("b.png", "cat")], "same")
    assert len(labels.book().entries) == 2
    labels.undo("ada")
    assert labels.book().agreed() == {}


def test_labels_follow_a_class_that_is_renamed_and_the_former_name_leads_to_it(labels):
    labels.label("ada", [("a.png", "cat")])
    labels.rename("ada", "cat", "kitten")
    labels.label("bob", [("b.png", "cat")])  # from a page that was opened before
    assert labels.book().agreed() == {"a.png": "kitten", "b.png": "kitten"}
    assert labels.book().classes() == {"kitten": 2}
    with pytest.raises(UsageError, match="no class 'cat'; it is now called 'kitten'"):
        labels.rename("ada", "cat", "dog")


def test_classes_become_one_only_if_that_is_said_and_undo_parts_them_again(labels):
    labels.label("ada", [("a.png", "cat"), ("b.png", "dog")])
    with pytest.raises(UsageError, match="The class 'dog' already exists"):
        labels.rename("ada", "cat", "dog")
    labels.rename("ada", "cat", "dog", merge=True)
    labels.label("ada", [("c.png", "cat")])
    assert labels.book().classes() == {"dog": 3}
    labels.undo("ada")  # the label
    labels.undo("ada")  # the name
    assert labels.book().agreed() == {"a.png": "cat", "b.png": "dog"}
    assert labels.book().classes() == {"cat": 1, "dog": 1}


def test_a_former_name_can_be_given_to_a_new_class(labels):
    labels.label("ada", [("a.png", "cat")])
    labels.rename("ada", "cat", "kitten")
    labels.define("ada", ["cat"])
    labels.label("ada", [("b.png", "cat")])
    assert labels.book().agreed() == {"a.png": "kitten", "b.png": "cat"}


def test_most_labellers_decide_and_a_tie_is_disputed(labels):
    for by, name in (("ada", "cat"), ("bob", "dog")):
        labels.label(by, [("a.png", name), ("b.png", "dog")])
    assert labels.book().agreed() == {"b.png": "dog"}
    assert labels.book().disputed() == ["a.png"]
    labels.label("eve", [("a.png", "cat")])
    assert labels.book().agreed() == {"b.png": "dog", "a.png": "cat"}
    assert labels.book().both()["ada", "bob"] == (["cat", "dog"], ["dog", "dog"])
    assert labels.book().agreed("bob") == {"a.png": "dog", "b.png": "dog"}


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_last_line_that_was_cut_off_is_put_aside_with_a_sentence(labels, tmp_path, cut):
    labels.label("ada", [("a.png", "cat")])
    labels.label("ada", [("b.png", "cat")])
    path = tmp_path / "labels" / "labels.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    opened = LabelsFile(tmp_path)
    kept = {"a.png": "cat", "b.png": "cat"} if cut == 1 else {"a.png": "cat"}  # of the first, only its end is missing
    assert opened.book().agreed() == kept
    assert [("cut off while being written" in note) for note in opened.notes] == [True] * (cut > 1)
    opened.label("ada", [("c.png", "dog")])
    assert LabelsFile(tmp_path).book().agreed() == {**kept, "c.png": "dog"}
    if cut > 1:
        assert (tmp_path / "labels" / "torn").read_bytes().strip() in whole


def test_lines_that_cannot_be_read_are_named_and_stay(labels, tmp_path):
    labels.label("ada", [("a.png", "cat")])
    path = tmp_path / "labels" / "labels.jsonl"
    for bad in (
        b"no json",
        b"[1]",
        b'{"id": "x", "at": "t", "by": ""}',
        b'{"id": "../x", "at": "t", "by": "a"}',
        b"\xff",
    ):
        with path.open("ab") as file:
            file.write(bad + b"\n")
    labels.label("ada", [("b.png", "cat")])
    opened = LabelsFile(tmp_path)
    assert opened.book().agreed() == {"a.png": "cat", "b.png": "cat"}
    assert [note.partition(":")[0] for note in opened.notes] == [f"labels.jsonl, line {n}" for n in range(3, 8)]
    assert b"no json\n" in path.read_bytes()


def test_a_file_of_a_newer_frevl_says_so(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "labels.jsonl").write_text('{"frevl_labels": 2}\n')
    assert "a newer frevl" in LabelsFile(tmp_path).notes[0]


def test_two_that_have_the_file_open_see_each_others_labels(labels, tmp_path):
    other = LabelsFile(tmp_path)
    labels.label("ada", [("a.png", "cat")])
    other.label("bob", [("b.png", "dog")])
    labels.label("ada", [("c.png", "cat")])
    assert labels.book().agreed() == other.book().agreed() == {"a.png": "cat", "b.png": "dog", "c.png": "cat"}


def test_threads_that_write_at_once_lose_nothing(tmp_path):
    files = [LabelsFile(tmp_path) for _ in range(2)]

    def write(number):
        for step in range(10):
            files[number % 2].label(f"p{number}", [(f"{number}-{step}.png", "cat")])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(LabelsFile(tmp_path).book().agreed()) == 40
    assert LabelsFile(tmp_path).notes == []


WRITER = """
import sys
from pathlib import Path
from frevl.store.labels.labels_file import LabelsFile
labels = LabelsFile(Path(sys.argv[1]))
for number in range(100_000):
    labels.label(sys.argv[2], [(f"{sys.argv[2]}-{number}.png", "cat")])
    print(number, flush=True)
"""


@pytest.mark.slow
def test_what_was_confirmed_survives_the_kill_of_two_writers(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, name], stdout=subprocess.PIPE, text=True)
        for name in ("ada", "bob")
    ]
    for writer in writers:  # both are at work
        for _ in range(20):
            writer.stdout.readline()
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
    confirmed = {}
    for writer, name in zip(writers, ("ada", "bob"), strict=True):
        confirmed[name] = 20 + len(writer.communicate()[0].splitlines())
    found = LabelsFile(tmp_path).book()
    for name, count in confirmed.items():
        assert {f"{name}-{number}.png" for number in range(count)} <= set(found.images())
    LabelsFile(tmp_path).label("eve", [("new.png", "cat")])  # no lock is left behind
    for line in (tmp_path / "labels" / "labels.jsonl").read_bytes().splitlines()[1:]:
        assert parse(line) is not None


def test_a_full_disk_leaves_the_file_as_it_was(labels, tmp_path, monkeypatch):
    labels.label("ada", [("a.png", "cat")])
    before = (tmp_path / "labels" / "labels.jsonl").read_bytes()
    real = os.write

    def short(descriptor, content):
        if len(content) < 50:
            raise OSError(28, "No space left on device")
        return real(descriptor, content[:40])

    monkeypatch.setattr("frevl.store.labels.labels_file.os.write", short)
    with pytest.raises(StoreError, match="No space left on device"):
        labels.label("ada", [("b.png", "cat")])
    monkeypatch.undo()
    assert (tmp_path / "labels" / "labels.jsonl").read_bytes() == before
    labels.label("ada", [("b.png", "cat")])
    assert LabelsFile(tmp_path).book().agreed() == {"a.png": "cat", "b.png": "cat"}


def test_a_file_that_is_replaced_or_goes_is_read_anew_with_a_sentence(labels, tmp_path):
    labels.label("ada", [("a.png", "cat")])
    path = tmp_path / "labels" / "labels.jsonl"
    (tmp_path / "other").mkdir()
    LabelsFile(tmp_path / "other").label("bob", [("z.png", "dog")])
    (tmp_path / "other" / "labels" / "labels.jsonl").rename(path)
    assert labels.book().agreed() == {"z.png": "dog"}
    path.unlink()
    assert labels.book().agreed() == {}
    assert [("replaced" in note, "has been deleted" in note) for note in labels.notes] == [(True, False), (False, True)]


def test_another_file_in_the_same_place_is_noticed_though_it_has_the_same_inode(labels, tmp_path):
    labels.label("ada", [("a.png", "cat")])
    (tmp_path / "other").mkdir()
    other = LabelsFile(tmp_path / "other")
    other.label("bob", [(f"{number}.png", "dog") for number in range(9)])
    inode = labels.path.stat().st_ino
    labels.path.write_bytes(other.path.read_bytes())  # longer than what was read
    assert labels.path.stat().st_ino == inode
    assert set(labels.book().agreed().values()) == {"dog"}
    assert len(labels.book().agreed()) == 9


@pytest.mark.parametrize(
    "name", ["", "   ", "a" * 201, "a\nb", "\x00", "\ud800"], ids=["empty", "blank", "long", "line", "zero", "half"]
)
def test_names_that_cannot_be_kept_are_refused(labels, name):
    for write in (
        lambda: labels.label("ada", [("a.png", name)]),
        lambda: labels.label(name, [("a.png", "cat")]),
        lambda: labels.define("ada", [name]),
        lambda: labels.rename("ada", "cat", name),
    ):
        with pytest.raises(UsageError, match="expected"):
            write()
    assert not labels.path.exists()


def test_hostile_names_come_back_as_they_were(labels, tmp_path):
    names = ["<img src=x onerror=alert(1)>", "=1+1", "ärger", "猫", "a\u2028b", '"', "{}", "true"]
    labels.label("<b>ada</b>", [(f"{number}.png", name) for number, name in enumerate(names)])
    assert list(LabelsFile(tmp_path).book().agreed().values()) == names
    assert list(LabelsFile(tmp_path).book().labellers()) == ["<b>ada</b>"]


@pytest.mark.parametrize("request_id", ["", "a.b", "a b", "x" * 65, "ü"])
def test_ids_of_requests_are_plain(labels, request_id):
    with pytest.raises(UsageError, match="the id of a request"):
        labels.label("ada", [("a.png", "cat")], request_id)


def test_a_reader_that_may_not_write_leaves_a_torn_line_alone(labels, tmp_path):
    labels.label("ada", [("a.png", "cat")])
    with labels.path.open("ab") as file:
        file.write(b'{"id"')
    before = labels.path.read_bytes()
    assert LabelsFile(tmp_path, writes=False).book().agreed() == {"a.png": "cat"}
    assert labels.path.read_bytes() == before


BATCH = [("a.png", "cat"), ("b.png", "dog"), ("c.png", None), ("d.png", "cat")]


@pytest.mark.parametrize("lines", [0, 1, 2, 3])
@pytest.mark.parametrize("torn", [0, 30])
def test_a_batch_that_was_cut_is_completed_by_the_same_request(labels, tmp_path, lines, torn):
    labels.label("ada", [("c.png", "cat")])
    before = labels.path.read_bytes()
    labels.label("ada", BATCH, "mine")
    whole = lines_of(tmp_path)
    batch = labels.path.read_bytes().removeprefix(before).splitlines(keepends=True)
    labels.path.write_bytes(before + b"".join(batch[:lines]) + batch[lines][:torn])
    opened = LabelsFile(tmp_path)
    assert len(opened.book().entries) == 1 + lines
    for _ in range(2):
        assert opened.label("ada", BATCH, "mine") == "mine"
        rows = lines_of(tmp_path)
        assert [{**row, "at": ""} for row in rows] == [{**row, "at": ""} for row in whole]
    assert opened.book().agreed() == {"a.png": "cat", "b.png": "dog", "d.png": "cat"}
    opened.undo("ada")
    assert opened.book().agreed() == {"c.png": "cat"}


def test_what_was_undone_in_part_is_not_written_again(labels):
    labels.label("ada", BATCH, "mine")
    labels.path.write_bytes(b"".join(labels.path.read_bytes().splitlines(keepends=True)[:3]))
    opened = LabelsFile(labels.path.parents[1])
    opened.undo("ada", "mine")
    opened.label("ada", BATCH, "mine")
    assert (len(opened.book().entries), opened.book().agreed()) == (3, {})


def test_an_id_that_was_used_for_something_else_is_refused(labels):
    labels.label("ada", BATCH, "mine")
    undone = labels.label("ada", [("a.png", "cat")], "one")
    labels.undo("ada", undone)
    before = labels.path.read_bytes()
    other = [(image, "bird") for image, _ in BATCH]
    for again in (
        lambda: labels.label("bob", BATCH, "mine"),
        lambda: labels.label("ada", other, "mine"),
        lambda: labels.label("ada", BATCH[:3], "mine"),
        lambda: labels.label("ada", BATCH[:1], "mine"),
        lambda: labels.define("ada", ["cat"], "mine"),
        lambda: labels.rename("ada", "cat", "kitten", request="mine"),
        lambda: labels.label("ada", [("a.png", "dog")], "one"),
    ):
        with pytest.raises(UsageError, match="The id '(mine|one)' was already used by 'ada' for something else"):
            again()
    assert labels.path.read_bytes() == before
    labels.rename("ada", "cat", "kitten", request="new")
    labels.rename("ada", "cat", "kitten", request="new")
    labels.label("ada", BATCH, "mine")
    assert labels.book().classes() == {"kitten": 2, "dog": 1}


def test_the_version_is_another_when_the_file_is_replaced_by_one_with_as_many_lines(labels, tmp_path):
    labels.label("ada", [("a.png", "cat")])
    seen = [labels.book().version]
    for name in ("dog", "bird"):
        (tmp_path / name).mkdir()
        LabelsFile(tmp_path / name).label("bob", [("z.png", name)])
        (tmp_path / name / "labels" / "labels.jsonl").rename(labels.path)
        assert labels.book().agreed() == {"z.png": name}
        seen.append(labels.book().version)
    labels.path.unlink()
    seen.append(labels.book().version)
    labels.label("ada", [("a.png", "cat")])
    seen.append(labels.book().version)
    assert len(set(seen)) == len(seen)


def test_all_processes_call_the_same_labels_by_the_same_version(labels, tmp_path):
    seen = [labels.book().version]
    for row in range(3):
        labels.label("ada", [(f"{row}.png", "cat")])
        seen.append(labels.book().version)
        assert LabelsFile(tmp_path).book().version == seen[-1]  # a process that began now
    assert seen == sorted(set(seen))
    (tmp_path / "other").mkdir()
    LabelsFile(tmp_path / "other").label("bob", [("z.png", "dog")])
    (tmp_path / "other" / "labels" / "labels.jsonl").rename(labels.path)
    assert labels.book().version == LabelsFile(tmp_path).book().version
    assert labels.book().version not in seen
    assert labels.book().version < 2**53

"""Writing: filling, replacing, rejects, the lock, tidying up."""

import threading
from datetime import timedelta

import lance
import numpy as np
import pytest

from frevl.errors import Reject, StoreError, rejects_sentence
from frevl.store.reader import Store
from frevl.store.upkeep.verification import verify
from frevl.store.writer import StoreWriter
from handmade import item, killed, made_of, pooled, ragged, tower


def test_filling_replacing_and_the_checksums(tmp_path):
    path = tmp_path / "s"
    made_of(path, [tower()], {id_: {"eye": pooled([1, 0, 0])} for id_ in "abc"})
    with StoreWriter(path) as writer:
        writer.register([tower("far", dim=2, encoders=("two",))])
        writer.fill("image", [item("c"), item("a")], {"far": pooled([3, 4], [5, 6])})
        writer.replace("image", [item("b", "new content")], {"eye": pooled([0, 1, 0])})
        writer.append("image", [item("d")], {"far": pooled([7, 8])})
    store = Store.open(path)
    assert sorted(store.image_ids) == list("abcd")
    assert store.read_images(list("ca")).tolist() == [[1, 0, 0, 3, 4], [1, 0, 0, 5, 6]]
    assert store.read_images(["b"], encoders=["one"]).tolist() == [[0, 1, 0]]
    assert store.read_images(["d"], encoders=["two"]).tolist() == [[7, 8]]
    assert store.content_hashes(["b"]) == {"b": item("b", "new content").content_hash}
    states = store.states("image")
    lacking = {
        id_: [name for name in ("eye", "far") if not states[f"has:{name}"][row]]
        for row, id_ in enumerate(store.image_ids)
    }
    assert lacking == {"a": [], "b": ["far"], "c": [], "d": ["eye"]}
    assert states["bytes"].tolist() == [5] * 4
    assert states["modified_ns"].tolist() == [7] * 4
    problems = verify(path)
    assert [problem.split(":")[0] for problem in problems] == ["Tower 'eye'", "Tower 'far'"]
    assert all("1 of 4 images lack an embedding" in problem for problem in problems)


def test_texts_may_be_anything(tmp_path):
    texts = ["it's", 'a "b" \\ c', "x' OR '1'='1", "null\0byte", "line\nbreak", "ü😀", "%_", " a ", "a", "NULL"]
    path = tmp_path / "s"
    with StoreWriter(path) as writer:
        writer.register([tower(modality="text")])
        writer.append("text", [item(text) for text in texts], {"eye": pooled(*([n, 0, 1] for n in range(len(texts))))})
    with StoreWriter(path) as writer:
        writer.register([tower("second", modality="text", dim=1)])
        writer.fill(
            "text", [item(text) for text in reversed(texts)], {"second": pooled(*([-n] for n in range(len(texts))))}
        )
        writer.replace("text", [item(texts[2])], {"eye": pooled([9, 9, 9]), "second": pooled([9])})
    store = Store.open(path)
    expected = [[n, 0, 1, n - len(texts) + 1] for n in range(len(texts))]
    expected[2] = [9, 9, 9, 9]
    assert store.read_texts(texts).tolist() == expected
    assert verify(path) == []


def test_a_kill_between_two_commits_of_the_registration_is_healed(tmp_path, monkeypatch):
    path = tmp_path / "s"
    made_of(path, [tower()], {"a": {"eye": pooled([1, 0, 0])}})

    class Killed(BaseException):
        """As abrupt as a test in one process can be."""

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch, StoreWriter(path) as writer:
        patch.setattr(lance.LanceDataset, "add_columns", die)
        with pytest.raises(Killed):
            writer.register([tower("far", dim=2, encoders=("two",))])
    # The tower is known, its column is not there: reading says so, and an extraction with the first encoder works.
    store = Store.open(path)
    assert list(store.towers) == ["eye", "far"]
    with pytest.raises(StoreError, match="1 of 1 images have no embedding by the tower 'far'"):
        store.read_images(["a"])
    assert not store.states("image")["has:far"].any()
    with StoreWriter(path) as writer:
        writer.register([tower()])
        writer.append("image", [item("b")], {"eye": pooled([0, 1, 0])})
    assert Store.open(path).read_images(["b", "a"], encoders=["one"]).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_rejects_stand_once_and_are_taken_back(tmp_path):
    path = tmp_path / "s"
    with StoreWriter(path) as writer:
        writer.register([tower()])
        writer.reject(
            [Reject("image", "a", "first"), Reject("image", "a", "second"), Reject("pair", "a", "other kind")]
        )
        writer.reject([Reject("image", "b's \udcff", "broken \udcff")])
    version = lance.dataset(str(path / "rejects.lance")).version
    with StoreWriter(path) as writer:
        writer.reject([Reject("image", "a", "second")])  # nothing new: no commit
    assert lance.dataset(str(path / "rejects.lance")).version == version
    with StoreWriter(path) as writer:
        writer.reject([Reject("image", "a", "third"), Reject("text", "c", "new")])
        assert len(Store.open(path).rejects()) == 4
        writer.clear_rejects("image", ["b's \\udcff", "never there"])
        writer.clear_rejects("pair", ["b"])
    assert sorted((reject.kind, reject.id, reject.reason) for reject in Store.open(path).rejects()) == [
        ("image", "a", "third"),
        ("pair", "a", "other kind"),
        ("text", "c", "new"),
    ]
    with StoreWriter(path) as writer:
        for kind, id_ in [("image", "a"), ("pair", "a"), ("text", "c")]:
            writer.clear_rejects(kind, [id_])
    assert Store.open(path).rejects() == []


def test_the_closing_line_counts_and_shows_no_control_characters():
    rejects = [
        Reject("image", "\x1b[2Ja\n.jpg", "it is empty"),
        Reject("image", "b" * 500, "x"),
        *[Reject("pair", "p:1", "y")] * 3,
    ]
    assert rejects_sentence(rejects) == (
        f"Left out: 2 images, 3 pairs (\\x1b[2Ja\\n.jpg: it is empty; {'b' * 200}: x; p:1: y; and 2 more)."
    )
    assert rejects_sentence(rejects[2:3]) == "Left out: 1 pair (p:1: y)."
    assert rejects_sentence([]) == ""


def test_files_beside_the_pictures_do_not_hide_what_is_lost():
    beside = [Reject("image", f"{n}{ending}", "it is no image") for n in range(12) for ending in (".json", ".TXT")]
    lost = Reject("image", "IMG_1.HEIC", "it needs a library")
    assert rejects_sentence([*beside, lost]) == (
        "Left out: 1 image (IMG_1.HEIC: it needs a library), and 24 other files (.json, .txt)."
    )
    assert rejects_sentence([beside[0], lost]).endswith(", and 1 other file (.json).")
    assert rejects_sentence(beside[:2]) == "Left out: 2 images (0.json: it is no image; 0.TXT: it is no image)."
    pair = Reject("pair", "p.json:1", "y")  # a line of a file, and no file
    assert rejects_sentence([pair]) == "Left out: 1 pair (p.json:1: y)."


def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path, monkeypatch):
    with StoreWriter(tmp_path / "s"):
        with pytest.raises(StoreError) as raised, StoreWriter(tmp_path / "s"):
            pass
        assert str(raised.value) == f"{tmp_path / 's'}: another process is writing to this store; wait for it to finish"
    with pytest.raises(KeyError), StoreWriter(tmp_path / "s"):
        raise KeyError
    cut_short = StoreWriter(tmp_path / "s")
    with monkeypatch.context() as patch:
        patch.setattr("frevl.store.writer.Store", {}.__getitem__)
        with pytest.raises(KeyError):
            cut_short.__enter__()
    with StoreWriter(tmp_path / "s") as writer:
        writer.register([tower()])


@pytest.mark.slow
def test_readers_work_while_a_writer_writes(tmp_path):
    path = tmp_path / "s"
    made_of(path, [tower()], {"0": {"eye": pooled([0, 1, 1])}})
    failures, done = [], threading.Event()

    def read():
        try:
            while not done.is_set():
                store = Store.open(path)
                ids = store.image_ids
                assert ids == [str(number) for number in range(len(ids))]
                assert store.read_images(ids)[:, 0].tolist() == list(range(len(ids)))
        except Exception as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    with StoreWriter(path) as writer:
        writer.register([tower()])
        for number in range(1, 90):
            writer.append("image", [item(str(number))], {"eye": pooled([number, 1, 1])})
    done.set()
    reader.join()
    assert failures == []
    assert len(Store.open(path).image_ids) == 90


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [False, True])
def test_versions_and_files_stay_few_and_an_old_reader_goes_on(tmp_path, monkeypatch, tokens):
    path = tmp_path / "s"
    monkeypatch.setattr("frevl.store.commits.table_writer._KEEP_VERSIONS", timedelta(microseconds=1))
    kind = tower(tokens="words") if tokens else tower()
    made_of(path, [kind], {str(number): {"eye": ragged([number, 1, 1])} for number in range(10)})
    old = Store.open(path)
    assert len(old.image_ids) == 10
    with StoreWriter(path) as writer:
        writer.register([kind])
        for number in range(10, 200):
            writer.append("image", [item(str(number))], {"eye": ragged([number, 1, 1])})
        monkeypatch.undo()
        files = list((path / "images.lance" / "data").iterdir())
        versions = list((path / "images.lance" / "_versions").glob("*.manifest"))
        assert len(files) <= 66
        assert len(versions) <= 66
    # Ten files on, what the first reader held is deleted; it continues with the newest version.
    assert old.read_images(["9", "0"])[:, 0].tolist() == pytest.approx([9 / np.sqrt(83), 0] if tokens else [9, 0])
    assert len(old.image_ids) == 200
    assert Store.open(path).image_ids == [str(number) for number in range(200)]
    assert verify(path) == []


def test_files_of_a_killed_process_are_deleted(tmp_path):
    made_of(tmp_path / "s", [tower()], {"a": {"eye": pooled([1, 0, 0])}})
    orphan = tmp_path / "s" / "images.lance" / "data" / "0123.lance"
    with killed(tmp_path / "s"):
        orphan.write_bytes(b"half a file")
    assert orphan.exists()
    assert verify(tmp_path / "s") == []
    with StoreWriter(tmp_path / "s") as writer:
        assert not orphan.exists()
    assert writer.notes == []
    assert Store.open(tmp_path / "s").read_images(["a"]).tolist() == [[1, 0, 0]]


def test_tidying_that_fails_loses_nothing_and_is_said(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("LanceError(IO): No space left on device (os error 28), /some/where.rs:1")

    with StoreWriter(tmp_path / "s") as writer:
        writer.register([tower()])
        writer.append("image", [item("a")], {"eye": pooled([1, 0, 0])})
        monkeypatch.setattr(lance.LanceDataset, "cleanup_old_versions", fail)
    assert len(writer.notes) == 1
    assert writer.notes[0].startswith("The store is complete, but could not be tidied up: ")
    assert "(No space left on device)" in writer.notes[0]
    assert Store.open(tmp_path / "s").image_ids == ["a"]


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").touch()
    with pytest.raises(
        StoreError, match="photos: expected a store, or an empty or new folder for one, found 'me.jpg' in it"
    ):
        StoreWriter(tmp_path / "photos")
    assert [entry.name for entry in (tmp_path / "photos").iterdir()] == ["me.jpg"]
    with pytest.raises(StoreError, match="me.jpg: expected a store, or an empty or new folder for one, found a file"):
        StoreWriter(tmp_path / "photos" / "me.jpg")

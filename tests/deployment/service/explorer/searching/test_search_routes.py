"""Filters as chips, columns with their values, and why an image was found."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_folders import clip_retrieval
from explored import copied, explored
from frevl.deployment.service.explorer.searching import columns as of_columns
from frevl.deployment.service.explorer.searching.filters import Filter, condition
from frevl.errors import UsageError
from frevl.runs.scorer import Scorer
from frevl.store.ids.rows_of_ids import RowsOfIds
from frevl.store.importing.vectors import import_embeddings
from frevl.store.labels.labels_file import LabelsFile
from frevl.store.reader import Store
from frevl.store.upkeep.growth import growth
from frevl.store.upkeep.removal import remove
from served import refused, runs

__all__ = ["runs"]


@pytest.fixture
def clip(tmp_path):
    """Five images with captions and metadata in one space."""
    clip_retrieval(tmp_path / "clip")
    import_embeddings(tmp_path / "clip", store=tmp_path / "store", encoder="clip", common_space=True)
    with explored(tmp_path / "store") as looked:
        looked.path = tmp_path / "store"
        yield looked


def listed(looked, *filters, **more):
    asked = {"filters": json.dumps([dict(zip(("column", "test", "value"), one, strict=False)) for one in filters])}
    return looked.http.get("/explore/images", params={**asked, **more})


def rows_of(answer):
    assert answer.status_code == 200, answer.text
    return sorted(int(one["id"].rpartition("/")[2].partition(".")[0]) for one in answer.json()["images"])


@pytest.mark.slow
def test_columns_and_their_values_are_listed(clip):
    found = clip.http.get("/explore/columns").json()
    of = {one["name"]: one for one in found["columns"]}
    assert {"id", "bytes", "width"} <= set(of)
    assert (found["looked_at"], found["pictures"]) == (5, 5)
    make = next(name for name in of if "make" in name)
    assert (of[make]["kind"], of[make]["values"]) == ("text", [{"value": "a camera", "count": 3}])
    assert (of["width"]["kind"], of["width"]["values"]) == ("number", [])  # all differ


@pytest.mark.slow
def test_filters_hold_together_and_beside_sql_and_in_a_search(clip):
    make = next(one["name"] for one in clip.http.get("/explore/columns").json()["columns"] if "make" in one["name"])
    assert rows_of(listed(clip, ("width", "at least", 642))) == [2, 3, 4]
    assert rows_of(listed(clip, ("width", "at least", 641.5), ("width", "at most", 643.9))) == [2, 3]
    assert rows_of(listed(clip, (make, "missing"))) == [3, 4]
    assert rows_of(listed(clip, (make, "is not", "a camera"))) == [3, 4]
    assert rows_of(listed(clip, (make, "there"), where="width = 640 OR width = 644")) == [0]
    assert rows_of(listed(clip, ("id", "contains", "_"))) == []  # no wildcard
    assert rows_of(listed(clip, ("id", "contains", "/1."))) == [1]
    body = {"text": "caption 3", "filters": [{"column": "width", "test": "is not", "value": 643}]}
    found = clip.http.post("/explore/find", json=body).json()
    assert (found["searched"], len(found["images"])) == (4, 4)


def test_values_are_quoted_whatever_they_hold():
    columns = {"a b": pa.string(), "n": pa.int64(), "on": pa.bool_(), "when": pa.timestamp("s"), "x": pa.float32()}

    def sql(*given):
        return condition([Filter(**dict(zip(("column", "test", "value"), given, strict=False)))], None, columns)

    assert sql("a b", "is", "x' OR 1=1 --") == "`a b` = 'x'' OR 1=1 --'"
    assert sql("a b", "begins with", "100%_") == "starts_with(`a b`, '100%_')"
    assert sql("on", "is", True) == "`on` = true"
    assert sql("n", "at least", 1.2) == "`n` >= 2"
    assert sql("x", "at least", 10**30) == "`x` >= 1e+30"
    assert sql("n", "is", "9007199254740993") == "`n` = 9007199254740993"  # a browser knows ...992 and ...994 only
    assert sql("n", "at most", "-9007199254740993") == "`n` <= -9007199254740993"
    assert sql("when", "missing") == "`when` IS NULL"
    for wrong in (
        ("a b", "is", 3), ("a b", "is", ""), ("a b", "at least", "x"), ("n", "is", "3"), ("n", "is", True),
        ("n", "is", "9007199254740993 OR 1=1"), ("n", "is", "9" * 19), ("on", "is", "9007199254740993"),
        ("n", "is", 1.5), ("n", "is", 2**63), ("n", "is", float("nan")), ("on", "is", "true"), ("when", "is", "x"),
        ("none", "there"), ("a b", "is", "a\0b"),
        ("n", "is", 10**400), ("n", "at most", -(10**400)), ("x", "is", 10**400),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            sql(*wrong)
    with pytest.raises(UsageError, match="because of the `"):
        condition([Filter(column="a`b", test="there")], None, {"a`b": pa.string()})
    assert condition([], "x = 1", columns) == "x = 1"


@pytest.mark.slow
def test_whole_numbers_that_a_browser_would_round_travel_as_digits(tmp_path):
    numbers = [2**53, 2**53 + 1, 2**53 + 1, 2**53 + 1, 7, 7]
    vectors = pa.array(np.eye(6).tolist(), pa.list_(pa.float32(), 6))
    table = pa.table({"name": [f"{row}.jpg" for row in range(6)], "vector": vectors, "number": numbers})
    pq.write_table(table, tmp_path / "table.parquet")
    import_embeddings(
        tmp_path / "table.parquet", store=tmp_path / "store", encoder="own", of="images", id_column="name",
        vector_column="vector",
    )  # fmt: skip
    with explored(tmp_path / "store") as looked:
        (found,) = (one for one in looked.http.get("/explore/columns").json()["columns"] if one["name"] == "number")
        offered = {"9007199254740993": 3, 7: 2, "9007199254740992": 1}
        assert {one["value"]: one["count"] for one in found["values"]} == offered
        for value, count in offered.items():
            assert listed(looked, ("number", "is", value)).json()["total"] == count


@pytest.fixture
def dated(tmp_path):
    """Images of 29 March 2026, 22:30 UTC and then every half hour; the sixth has no date."""
    moments = [datetime(2026, 3, 29, 22, 30, tzinfo=UTC) + timedelta(minutes=30 * row) for row in range(5)]
    plain = [*(moment.replace(tzinfo=None) for moment in moments), None]
    vectors = pa.array(np.eye(6).tolist(), pa.list_(pa.float32(), 6))
    columns = {
        "day": pa.array([moment and moment.date() for moment in plain], pa.date32()),
        "taken": pa.array(plain, pa.timestamp("s")),
        "berlin": pa.array([*moments, None], pa.timestamp("us", "Europe/Berlin")),
        "offset": pa.array([*moments, None], pa.timestamp("ms", "-05:00")),
        "fine": pa.array([*moments, None], pa.timestamp("ns", "UTC")),
    }
    table = pa.table({"name": [f"{row}.jpg" for row in range(6)], "vector": vectors, **columns})
    pq.write_table(table, tmp_path / "table.parquet")
    import_embeddings(
        tmp_path / "table.parquet", store=tmp_path / "store", encoder="own", of="images", id_column="name",
        vector_column="vector",
    )  # fmt: skip
    with explored(tmp_path / "store") as looked:
        yield looked


@pytest.mark.slow
def test_days_and_times_are_ranges_in_the_time_zone_of_the_column(dated):
    of = {one["name"]: one for one in dated.http.get("/explore/columns").json()["columns"]}
    assert [of[name]["kind"] for name in ("day", "taken", "berlin", "bytes")] == ["date", "time", "time", "number"]
    assert [of[name]["zone"] for name in ("day", "taken", "berlin", "offset")] == [
        None, None, "Europe/Berlin", "-05:00",
    ]  # fmt: skip
    assert (of["day"]["first"], of["day"]["last"]) == ("2026-03-29", "2026-03-30")
    assert (of["berlin"]["first"], of["berlin"]["last"]) == ("2026-03-30 00:30:00", "2026-03-30 02:30:00")
    assert rows_of(listed(dated, ("day", "on", "2026-03-29"))) == [0, 1, 2]
    assert rows_of(listed(dated, ("day", "from", "2026-03-30"))) == [3, 4]
    assert rows_of(listed(dated, ("taken", "from", "2026-03-29T23:00"), ("taken", "before", "2026-03-30"))) == [1, 2]
    assert rows_of(listed(dated, ("taken", "before", "2026-03-29T23:00:00.5"))) == [0, 1]  # seconds have no halves
    # In Berlin it is the day after, and two hours later since that morning.
    assert rows_of(listed(dated, ("berlin", "on", "2026-03-30"))) == [0, 1, 2, 3, 4]
    assert rows_of(listed(dated, ("berlin", "from", "2026-03-30T01:30"))) == [2, 3, 4]
    assert rows_of(listed(dated, ("berlin", "from", "2026-03-29T23:30:00Z"))) == [2, 3, 4]
    assert rows_of(listed(dated, ("offset", "before", "2026-03-29T18:00"))) == [0]
    assert rows_of(listed(dated, ("fine", "before", "9999-12-31"))) == [0, 1, 2, 3, 4]
    assert rows_of(listed(dated, ("fine", "missing"))) == [5]


@pytest.mark.slow
def test_days_and_times_that_are_none_are_refused_in_words(dated):
    def asked(*one):
        return listed(dated, one)

    refused(asked("day", "on", "2026-02-30"), 422, "invalid", "needs a day such as 2024-05-31, found '2026-02-30'")
    refused(asked("day", "from", "2026-03-30T10:00"), 422, "invalid", "needs a day such as")
    refused(asked("taken", "from", "noon"), 422, "invalid", "needs a day or time such as")
    refused(asked("taken", "from", 3), 422, "invalid", "needs a day or time such as")
    refused(asked("taken", "from", "2026-03-30T10:00Z"), 422, "invalid", "have no time zone")
    refused(asked("taken", "is", "2026-03-30"), 422, "invalid", "use one of on, from, before, missing, there")
    with pytest.raises(UsageError, match="not known on this machine"):
        condition([Filter(column="t", test="on", value="2026-03-30")], None, {"t": pa.timestamp("s", "Mars/Base")})


@pytest.mark.slow
def test_filters_that_cannot_be_are_refused_in_words(clip):
    refused(listed(clip, ("nothing", "is", "x")), 422, "invalid", "no column 'nothing'")
    refused(
        clip.http.get("/explore/images", params={"filters": "nonsense"}), 422, "invalid", "filters: expected a list"
    )
    refused(clip.http.get("/explore/images", params={"filters": '[{"test": "is"}]'}), 422, "invalid", "0.column")
    body = {"text": "caption 3", "filters": [{"column": "width", "value": "wide"}]}
    refused(clip.http.post("/explore/find", json=body), 422, "invalid", "holds numbers")
    for digits in (400, 5000):  # beyond every float, and beyond what Python reads or writes
        given = f'[{{"column": "width", "value": {"1" * digits}}}]'
        assert clip.http.get("/explore/images", params={"filters": given}).status_code == 422
        body = f'{{"text": "caption 3", "filters": {given}}}'
        said = clip.http.post("/explore/find", content=body, headers={"Content-Type": "application/json"})
        assert said.status_code in (400, 422)


@pytest.mark.slow
def test_many_pictures_are_looked_at_evenly(clip, monkeypatch):
    monkeypatch.setattr(of_columns, "_LOOKED_AT", 3)
    found = clip.http.get("/explore/columns").json()
    assert (found["looked_at"], found["pictures"]) == (3, 5)


@pytest.mark.slow
def test_why_names_the_nearest_captions_and_says_what_it_cannot_weigh(clip):
    store = Store.open(clip.path)
    image = store.image_ids[2]
    found = clip.http.post("/explore/why", json={"image": image, "text": "caption 3"}).json()
    likeness = store.read_texts(list(store.ids("text"))) @ store.read_images([image])[0]
    best = [store.ids("text")[row] for row in np.argsort(-likeness)]
    assert [one["text"] for one in found["captions"]] == best[:5]
    assert found["captions"][0]["similarity"] == pytest.approx(float(likeness.max()), abs=2e-3)
    assert (found["by"], found["words"]) == ("encoder", [])
    assert "imported" in found["notes"][0]
    refused(clip.http.post("/explore/why", json={"image": "none"}), 404, "unknown_image", "'none'")


@pytest.mark.slow
def test_a_matching_run_says_why_by_its_scores(made, runs, tmp_path):
    place = copied(made, tmp_path)
    store = Store.open(place.store)
    dual = Scorer.open(runs / "find", store=store)
    with explored(place.store, place.images, scorers={"find": dual}) as looked:
        image = store.image_ids[0]
        text = "a red square"
        found = looked.http.post("/explore/why", json={"image": image, "text": text}).json()
        assert (found["by"], found["of"], len(found["captions"])) == ("run", "find", 5)
        assert [one["word"] for one in found["words"]] == text.split()
        whole, without = dual.score([(image, text), (image, "a square")])
        assert found["words"][1]["adds"] == pytest.approx(float(whole - without), abs=1e-4)
        assert looked.http.post("/explore/why", json={"image": image, "text": "square"}).json()["words"] == []


@pytest.mark.slow
def test_where_nothing_reads_texts_there_is_no_why(made, tmp_path):
    with explored(copied(made, tmp_path).store) as looked:
        image = looked.explorer.service.store.ids("image")[0]
        refused(
            looked.http.post("/explore/why", json={"image": image}),
            409,
            "cannot_explain",
            "start the service with --run",
        )


@pytest.mark.slow
def test_growth_is_what_every_commit_held(made, tmp_path):
    place = copied(made, tmp_path)
    ids = made.store.ids("image")
    remove(place.store, ids=list(ids[:10]))
    found = growth(place.store, "image")
    assert (found[0][1], found[-1][1]) == (len(ids), len(ids) - 10)
    assert found == sorted(found)
    assert len(growth(place.store, "image", most=2)) == 2
    assert growth(tmp_path, "text") == []
    with explored(place.store) as looked:
        seen = looked.http.get("/explore/overview").json()
        assert [one["rows"] for one in seen["growth"]] == [rows for _, rows in found]
        assert seen["text_growth"][-1]["rows"] == seen["texts"]


@pytest.mark.slow
def test_many_pictures_are_looked_up_at_once_not_one_by_one(made, tmp_path, monkeypatch):
    monkeypatch.setattr("frevl.store.lance_tables._MOST_IN_MEMORY", 1)  # as in a store of a million
    monkeypatch.setattr(RowsOfIds, "__getitem__", lambda *_: pytest.fail("one by one"))
    place = copied(made, tmp_path)
    ids = list(made.store.ids("image"))
    LabelsFile(place.store).label("ada", [(ids[3], "red"), (ids[1], "blue"), ("gone.png", "red")])
    with explored(place.store) as looked:
        found = listed(looked, ("id", "begins with", "1")).json()
        assert [one["id"] for one in found["images"]] == [id_ for id_ in ids if id_.startswith("1")]
        labelled = looked.http.get("/explore/images", params={"shown": "labelled"}).json()["images"]
        assert [one["id"] for one in labelled] == [ids[1], ids[3]]
        colours = looked.http.get("/explore/map/colours").json()
        assert [colours["names"][number] for number in (colours["values"][1], colours["values"][3])] == ["blue", "red"]

"""Rows of a table with deletions are those of a scan, and Lance does not look for their places."""

import lance
import numpy as np
import pyarrow as pa
import pytest

from frevl.store.ids.live_rows import LiveRows

ROWS, PART = 1_000, 250


@pytest.fixture
def table(tmp_path):
    rows = pa.table({"id": [f"{row}.png" for row in range(ROWS)], "n": np.arange(ROWS)})
    for start in range(0, ROWS, PART):
        lance.write_dataset(rows.slice(start, PART), tmp_path / "t", mode="append" if start else "create")
    return lambda: lance.dataset(tmp_path / "t")


DELETED = ["n = 0", "n = 999", "n >= 250 and n < 500", "n < 600", "n % 7 = 3", "n = 249 or n = 250", "n % 2 = 0"]


@pytest.mark.slow
@pytest.mark.parametrize("condition", DELETED)
def test_rows_are_those_of_a_scan(table, condition, monkeypatch):
    table().delete(condition)
    now = table()
    live = now.to_table()
    addresses = now.to_table(columns=[], with_row_address=True)["_rowaddr"]
    rows = LiveRows(now)

    def looks_itself(*_given, **_named):
        raise AssertionError("Lance looks for the places itself")

    if any(part.num_deletions for part in now.get_fragments()):  # parts without live rows are gone as a whole
        monkeypatch.setattr(lance.LanceDataset, "take", looks_itself)
    rng = np.random.default_rng(0)
    for asked in (np.arange(len(live)), rng.permutation(len(live))[:40], np.zeros(3, np.int64)):
        expected = live.take(pa.array(asked))
        assert rows.take(asked).to_pydict() == expected.to_pydict()
        assert rows.take(asked, ["id"])["id"].to_pylist() == expected["id"].to_pylist()
        found = rows.take(asked, ["_rowaddr"])["_rowaddr"]
        assert found.to_pylist() == addresses.take(pa.array(asked)).to_pylist()


def test_nothing_is_looked_for_without_deletions(table):
    rows = LiveRows(table())
    asked = np.array([3, 999, 251])
    assert rows.take(asked, ["n"])["n"].to_pylist() == [3, 999, 251]
    assert rows._runs is None
    assert len(rows.take(np.zeros(0, np.int64))) == 0


def test_a_table_without_live_rows(table):
    table().delete("true")
    assert LiveRows(table()).take(np.zeros(0, np.int64), ["id"]).num_rows == 0

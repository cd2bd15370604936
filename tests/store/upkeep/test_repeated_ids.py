"""Ids that stand twice are found by their hashes, and said by their names."""

import numpy as np
import pyarrow as pa
import pytest

import frevl
from frevl.store import lance_tables
from frevl.store.lance_tables import Snapshot, append_rows
from frevl.store.upkeep.verification import verify


@pytest.mark.parametrize("same_hash", [False, True])
def test_ids_that_stand_twice(tmp_path, monkeypatch, same_hash):
    if same_hash:  # the ids decide
        monkeypatch.setattr(lance_tables, "id_hashes", lambda ids: np.zeros(len(ids), np.uint64))
    pairs = [{"image": "x", "text": f"text {number}"} for number in range(20)]
    frevl.extract(tmp_path / "store", pairs=pairs, encoder="toy")
    at = Snapshot(tmp_path / "store", ("texts",))
    assert at.repeated_ids("texts") == []
    append_rows(tmp_path / "store", "texts", at.take_rows("texts", np.array([3, 11])))
    append_rows(tmp_path / "store", "texts", at.take_rows("texts", np.array([3])))
    assert Snapshot(tmp_path / "store", ("texts",)).repeated_ids("texts") == ["text 3", "text 11"]
    assert "Table 'texts': 2 ids appear twice, the first is 'text 3'." in verify(tmp_path / "store")
    assert Snapshot(tmp_path / "store", ("images",)).repeated_ids("images") == []
    assert isinstance(at.take_rows("texts", np.array([0])), pa.Table)

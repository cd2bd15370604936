"""Duplicate ids are found by their hashes and reported by their names."""

import numpy as np
import pytest

import frevl
from frevl.store.lance_tables import Snapshot, append_rows
from frevl.store.upkeep import verification
from frevl.store.upkeep.verification import repeated_ids, verify


@pytest.mark.parametrize("same_hash", [False, True])
def test_ids_that_stand_twice(tmp_path, monkeypatch, same_hash):
    if same_hash:  # the ids decide
        monkeypatch.setattr(verification, "id_hashes", lambda ids: np.zeros(len(ids), np.uint64))
    pairs = [{"image": "x", "text": f"text {number}"} for number in range(20)]
    frevl.extract(tmp_path / "store", pairs=pairs, encoder="toy")
    at = Snapshot(tmp_path / "store", ("texts",))
    assert repeated_ids(tmp_path / "store", "texts") == []
    append_rows(tmp_path / "store", "texts", at.take_rows("texts", np.array([3, 11])))
    append_rows(tmp_path / "store", "texts", at.take_rows("texts", np.array([3])))
    assert repeated_ids(tmp_path / "store", "texts") == ["text 3", "text 11"]
    assert "Table 'texts': 2 ids appear twice, the first is 'text 3'." in verify(tmp_path / "store")
    assert repeated_ids(tmp_path / "store", "images") == []

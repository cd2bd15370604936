"""Identity: what differs is refused, and the message names it."""

import hashlib
import json
import zlib

import lance
import numpy as np
import pyarrow as pa
import pytest

from frevl.errors import FingerprintError, StoreError
from frevl.store.reader import Store
from frevl.store.towers import Tower, check_same, checksum, fingerprint_of
from frevl.store.writer import StoreWriter
from handmade import IDENTITY, made_of, pooled, tower


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "there", "here"),
    [
        ("tower", "eye", "ear"),
        ("weights", "w1", "w2"),
        ("revision", "1", "2"),
        ("preprocessing", "p", "q"),
        ("tokens", "pooled", "7x7"),
        ("normalisation", "unit", "none"),
        ("dtype", "float16", "float32"),
        ("width", "3", "4"),
    ],
)
def test_every_field_of_the_identity_is_guarded(tmp_path, field, there, here):
    path = tmp_path / "s"
    made_of(path, [tower()], {"a": {"eye": pooled([1, 0, 0])}})
    identity = IDENTITY if field == "width" else {**IDENTITY, field: here}
    other = Tower("eye", "image", ("one",), identity, 4 if field == "width" else 3, tower().canaries)
    before = lance.dataset(str(path / "towers.lance")).version
    with StoreWriter(path) as writer, pytest.raises(FingerprintError) as raised:
        writer.register([tower("new"), other])
    assert str(raised.value) == (
        f"{path}: the embeddings of the tower 'eye' were made differently: '{field}' is '{there}' there and "
        f"'{here}' here. Use the encoder and settings that made the store, or extract into a new store"
    )
    # The refusal came before anything was written, the new tower next to it included.
    assert lance.dataset(str(path / "towers.lance")).version == before
    assert list(Store.open(path).towers) == ["eye"]


def test_a_field_that_is_absent_counts_as_different():
    with pytest.raises(FingerprintError, match="'extra' is 'absent' there and 'x' here"):
        check_same(tower(), tower(extra="x"), "s")


@pytest.mark.parametrize(("angle", "same"), [(0.0, True), (0.0138, True), (0.0145, False), (1.0, False)])
def test_canaries_decide_at_a_cosine_of_0_9999(angle, same):
    # cos(0.01414) = 0.9999
    stored = tower(dim=2, canaries=np.array([[2, 0], [0, 3]], np.float32))
    turned = np.array([[np.cos(angle), np.sin(angle)], [0, 1]], np.float32)
    if same:
        check_same(stored, tower(dim=2, canaries=turned), "s")
    else:
        with pytest.raises(FingerprintError, match=rf"embeds the canaries differently \(cosine {np.cos(angle):.5f}"):
            check_same(stored, tower(dim=2, canaries=turned), "s")


def test_canaries_that_are_no_numbers_or_of_another_count_are_refused():
    bad = tower().canaries.copy()
    bad[1, 1] = np.nan
    with pytest.raises(FingerprintError, match="cosine nan"):
        check_same(tower(), tower(canaries=bad), "s")
    with pytest.raises(FingerprintError, match="has 3 canaries there, but this version of frevl uses 2"):
        check_same(tower(), tower(canaries=tower().canaries[:2]), "s")


def test_fingerprints_are_pinned():
    """A change of these numbers makes every store and run in the world unreadable."""
    literal = (
        '{"dtype": "float16", "normalisation": "unit", "preprocessing": "p", "revision": "1", "tokens": "pooled", '
        '"tower": "eye", "weights": "w1"}'
    )
    assert hashlib.sha256(literal.encode()).hexdigest()[:16] == "18d5d19320b17791"
    assert fingerprint_of(IDENTITY) == "18d5d19320b17791"
    assert tower().fingerprint == fingerprint_of(dict(reversed(IDENTITY.items())))
    assert checksum("a.jpg", "00ff", np.array([[1.0, -2.0]], np.float16)) == zlib.crc32(
        b"a.jpg\n00ff\n\x00\x3c\x00\xc0"
    )


def rewrite_towers(path, **changes):
    rows = lance.dataset(str(path / "towers.lance")).to_table()
    row = {**rows.to_pylist()[0], **changes}
    lance.write_dataset(pa.Table.from_pylist([row], schema=rows.schema), str(path / "towers.lance"), mode="overwrite")


def test_an_identity_that_was_changed_by_hand_is_refused(tmp_path):
    made_of(tmp_path / "s", [tower()], {})
    rewrite_towers(tmp_path / "s", identity=json.dumps({**IDENTITY, "weights": "w2"}))
    with pytest.raises(
        FingerprintError, match="tower 'eye' was changed by hand: expected the fingerprint 18d5d19320b17791"
    ):
        Store.open(tmp_path / "s")


def test_a_store_of_a_newer_format_is_refused(tmp_path):
    made_of(tmp_path / "s", [tower()], {})
    rewrite_towers(tmp_path / "s", format=2)
    with pytest.raises(StoreError, match="has format 2, this frevl reads up to 1; upgrade with: pip install -U frevl"):
        Store.open(tmp_path / "s")

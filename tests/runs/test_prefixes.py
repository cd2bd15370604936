"""Prefixes of content hashes from arrays equal those from texts."""

import hashlib

import numpy as np

from frevl.runs.targets import hash_prefixes, prefixes_of


def test_arrays_give_what_texts_give():
    hashes = [hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(500)]
    hashes += ["f" * 32, "0" * 32, "0123456789abcdef" * 2, hashes[3]]
    found = prefixes_of(np.array(hashes, "S32"))
    assert found.dtype == np.uint64
    assert (found == hash_prefixes(hashes)).all()
    assert len(prefixes_of(np.zeros(0, "S32"))) == 0

"""What reading a pairs file returns, and what reading it row by row, like a small file, returns."""

import pytest

from frevl.data import pairs as pairs_module
from frevl.data.pairs import read_pairs
from frevl.errors import PairsError


def said(path, **given):
    """Return pairs, rejects and notes, or the message of an error."""
    try:
        pairs = read_pairs(path, **given)
    except PairsError as error:
        return str(error)
    columns = (list(column) for column in (pairs.images, pairs.texts, pairs.targets, pairs.extras, pairs.places))
    return *columns, pairs.rejected, pairs.notes, pairs.source


def by_rows(path, **given):
    """Return the same of a file of any size, read row by row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs_module, "read_packed", lambda *_: None)
        return said(path, **given)

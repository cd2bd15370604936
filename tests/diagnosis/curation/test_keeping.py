"""Which lines are dropped."""

import numpy as np
import pytest

from frevl.diagnosis.curation.keeping import check_shares, reasons_to_drop
from frevl.diagnosis.curation.lines import Found
from frevl.errors import UsageError

MATCH = Found([{}] * 5, np.array([True, False, False, False, False]), np.array([0.1, 0.6, 0.9, np.nan, 0.8]))
COPIES = Found([{}] * 5, np.array([True, False, True, False, False]))


def why(keep=None, below=None, notes=None, **found):
    return list(reasons_to_drop(found, 5, keep=keep, below=below, notes=[] if notes is None else notes))


def test_what_is_flagged_goes_with_every_reason():
    assert why(match=MATCH, duplicate=COPIES) == [["match", "duplicate"], [], ["duplicate"], [], []]


def test_below_replaces_the_flags_of_what_gives_probabilities():
    assert why(below=0.7, match=MATCH, duplicate=COPIES) == [["match", "duplicate"], ["match"], ["duplicate"], [], []]


def test_keep_drops_the_least_probable_of_what_the_others_leave():
    assert why(keep=0.6, match=MATCH) == [["match"], ["match"], [], [], []]
    assert why(keep=0.4, match=MATCH, duplicate=COPIES) == [["duplicate"], ["match"], ["duplicate"], [], []]
    assert why(keep=1, match=MATCH) == [[], [], [], [], []]
    notes = []
    assert why(keep=0.8, notes=notes, match=MATCH, duplicate=COPIES) == [["duplicate"], [], ["duplicate"], [], []]
    assert "Only 3 lines are left instead of 4" in notes[0]


def test_keep_drops_no_line_that_nobody_has_judged():
    notes = []
    silent = Found([{}] * 5, np.zeros(5, bool), np.full(5, np.nan))
    assert why(keep=0.4, notes=notes, match=silent) == [[]] * 5
    assert notes == ["3 lines more are kept than the 2 of --keep, because match could not judge what is left."]
    half = Found([{}] * 5, np.zeros(5, bool), np.array([np.nan, 0.6, np.nan, 0.9, np.nan]))
    assert why(keep=0.4, notes=notes, match=half) == [[], ["match"], [], ["match"], []]
    assert notes[1].startswith("1 line more is kept than the 2 of --keep")


@pytest.mark.parametrize(
    ("keep", "below", "message"),
    [
        (0, None, "--keep: expected a share of the lines, above 0 and at most 1, found 0"),
        (1.5, None, "--keep: expected a share"),
        (float("nan"), None, "--keep: expected a share"),
        (None, 0, "--below: expected a probability between 0 and 1, found 0"),
        (None, 1, "--below: expected a probability"),
        (0.5, 0.5, "give one of them"),
    ],
)
def test_shares_that_mean_nothing(keep, below, message):
    with pytest.raises(UsageError, match=message):
        check_shares(keep, below)


def test_a_share_needs_probabilities():
    with pytest.raises(UsageError, match=r"which no filter gives \(found: duplicate\); add --drop match"):
        why(keep=0.5, duplicate=COPIES)

"""Texts that count as one when leaks, contradictions and boilerplate are looked for."""

import pytest

from frevl.data.names import marks
from frevl.diagnosis.data_quality.near_duplicates import normal_text, words_of


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Is it a T-shirt?", "is it a t shirt", True),
        ("caf\u00e9", "CAFE\u0301", True),
        ("a\u200b dog\ufeff", "a dog", True),
        ("\u2764\ufe0f", "\u2764", True),
        ("Nike\u00ae shoe", "nike shoe", True),
        ("\u0647\u0644!", "\u0647\u0644", True),
        ("is 5 < 3?", "is 5 > 3?", False),
        ("at -5", "at 5", False),
        ("\U0001f436", "\U0001f431", False),
        ("\u0926\u093f\u0928", "\u0926\u0940\u0928", False),  # Hindi: day and poor
        ("\u0e2b\u0e21\u0e39", "\u0e2b\u0e21\u0e35", False),  # Thai: pig and bear
        ("1990-2000", "1990 2000", True),
    ],
)
def test_texts_that_differ_only_in_case_or_punctuation(one, other, same):
    assert (normal_text(one) == normal_text(other)) == same


def test_a_mark_belongs_to_its_word():
    assert words_of("\u0926\u093f\u0928, \u0926\u0940\u0928") == ("\u0926\u093f\u0928", "\u0926\u0940\u0928")
    assert words_of("snake_case don't \u2192 3") == ("snake_case", "don", "t", "\u2192", "3")
    assert words_of("_ \u5b57\u3002") == ("_", "\u5b57")


def test_marks_are_the_marks():
    import re
    import unicodedata

    pattern = re.compile(f"[{marks()}]")
    for code in (0x2FF, 0x300, 0x36F, 0x370, 0x93F, 0x940, 0xE35, 0xE39, 0xE40, 0x41, 0xE01EF, 0xE01F0):
        assert bool(pattern.fullmatch(chr(code))) == unicodedata.category(chr(code)).startswith("M")

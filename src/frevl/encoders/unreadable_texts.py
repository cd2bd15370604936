"""Texts that a tokenizer cannot read: unknown pieces, letters split into bytes, scripts spelled letter by letter.

A network sees only what its tokenizer passes on. If that is an unknown piece, all texts in a script become one
embedding; if a word is spelled letter by letter or byte by byte, the network never learned its meaning (with MiniLM-L6,
paraphrases find each other in 100 % of English sentences, and no better than chance in Greek ones). The measure is
ours; it examines the tokenizer alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

__all__ = ["MOSTLY", "Pieces", "UnreadTexts", "pieces_of_encoding", "unread_sentence"]

MOSTLY = 0.5
"""A text with a larger share of unread letters counts as unread."""

# Common words by script, keyed by the beginning of the names of its Unicode characters, and the least number of
# letters per piece of a tokenizer that knows words of the script. Japanese and Chinese are written without blanks, in
# signs for a syllable or a word each, Korean in syllables: a good tokenizer uses single signs as pieces there.
_WORDS = {
    "CYRILLIC": ("и в не на что это собака красный дом человек", 1.5),
    "GREEK": ("και το να είναι σκύλος κόκκινο σπίτι άνθρωπος", 1.5),
    "ARABIC": ("في من على هذا كلب أحمر بيت رجل", 1.5),
    "HEBREW": ("של את על זה כלב אדום בית איש", 1.5),
    "ARMENIAN": ("և այս է շուն կարմիր տուն մարդ", 1.5),
    "GEORGIAN": ("და ეს არის ძაღლი წითელი სახლი ადამიანი", 1.5),
    "ETHIOPIC": ("እና ይህ ነው ውሻ ቀይ ቤት ሰው", 1.2),
    "DEVANAGARI": ("और है में यह कुत्ता लाल घर आदमी", 1.2),
    "BENGALI": ("এবং এই করে কুকুর লাল বাড়ি মানুষ", 1.2),
    "GURMUKHI": ("ਅਤੇ ਇਹ ਹੈ ਕੁੱਤਾ ਲਾਲ ਘਰ ਆਦਮੀ", 1.2),
    "GUJARATI": ("અને આ છે કૂતરો લાલ ઘર માણસ", 1.2),
    "TAMIL": ("மற்றும் இந்த ஒரு நாய் சிவப்பு வீடு மனிதன்", 1.2),
    "TELUGU": ("మరియు ఈ ఒక కుక్క ఎరుపు ఇల్లు మనిషి", 1.2),
    "KANNADA": ("ಮತ್ತು ಈ ಒಂದು ನಾಯಿ ಕೆಂಪು ಮನೆ ಮನುಷ್ಯ", 1.2),
    "MALAYALAM": ("ഈ ഒരു ആണ് നായ ചുവപ്പ് വീട് മനുഷ്യൻ", 1.2),
    "SINHALA": ("සහ මෙය ඇත බල්ලා රතු ගෙදර මිනිසා", 1.2),
    "THAI": ("และ ที่ เป็น สุนัข สีแดง บ้าน คน", 1.3),
    "LAO": ("ແລະ ນີ້ ເປັນ ໝາ ສີແດງ ເຮືອນ ຄົນ", 1.3),
    "KHMER": ("និង នេះ មាន ឆ្កែ ក្រហម ផ្ទះ មនុស្ស", 1.2),
    "MYANMAR": ("နှင့် ဒီ သည် ခွေး အနီ အိမ် လူ", 1.2),
    "HANGUL": ("그리고 이것은 있다 개 빨간 집 사람", 0.8),
    "HIRAGANA": ("これ は です して いる こと ある いぬ", 1.2),
    "KATAKANA": ("コーヒー テレビ ホテル バス ドア テーブル", 1.2),
    "CJK": ("猫雨雪海花店家男女父母友走食白青手足耳口目心力茶牛草夏秋冬春夜朝", 0.8),
}
_ENGLISH = "the dog is red and this is a house with many people"
_LEAST_ENGLISH = 1.5  # letters per piece; below this, a tokenizer spells every text, as it was trained to
_MOST_UNKNOWN = 0.1  # share of the letters of common words


@dataclass(frozen=True)
class Pieces:
    """The pieces into which a tokenizer split a text.

    Attributes:
        text: The text that was split.
        spans: For every piece, its start and end in characters, and whether it is known.
        cut: Whether the end of the text was truncated, so that it has no pieces.
    """

    text: str
    spans: Sequence[tuple[int, int, bool]]
    cut: bool = False


class UnreadTexts:
    """Finds out what a tokenizer cannot read; thread-safe.

    Args:
        pieces_of: The tokenizer: splits texts into pieces.
    """

    def __init__(self, pieces_of: Callable[[Sequence[str]], Iterable[Pieces]]) -> None:
        self._pieces_of = pieces_of
        self._knows: dict[str, bool] = {}

    def shares(self, texts: Sequence[str]) -> np.ndarray:
        """Return the share of each text's letters, digits and symbols that is not read.

        A letter is not read if its piece is unknown, if it has no piece or more than one (bytes of it), or if the
        tokenizer does not know common words of its script.

        Returns:
            ``(n,)`` float32 in [0, 1]; 0 for a text without letters.
        """
        return np.array([self._share(pieces) for pieces in self._pieces_of(texts)], np.float32)

    def knows_script(self, script: str) -> bool:
        """Return whether common words of a script are known, whole or as pieces of several letters."""
        if script not in self._knows:
            words, least = _WORDS.get(script, ("", 0.0))
            self._knows[script] = (
                not words
                or self._spells_out("English", _ENGLISH, _LEAST_ENGLISH)
                or (not self._spells_out(script, words, least))
            )
        return self._knows[script]

    def _spells_out(self, name: str, words: str, least: float) -> bool:
        """Return whether words are unknown, or split into pieces with fewer letters than ``least``."""
        key = f"spells out {name}"
        if key not in self._knows:
            (pieces,) = self._pieces_of([words])
            letters = [place for place, sign in enumerate(pieces.text) if sign.isalpha()]
            unread = len(_unread_places(pieces, letters))
            # Pieces that consist of a blank do not count.
            count = sum(known and any(map(str.isalpha, pieces.text[a:b])) for a, b, known in pieces.spans)
            self._knows[key] = unread > _MOST_UNKNOWN * len(letters) or len(letters) < least * count
        return self._knows[key]

    def _share(self, pieces: Pieces) -> float:
        if pieces.text.isascii() and all(known for _, _, known in pieces.spans):
            return 0.0  # most texts
        end = max((end for _, end, _ in pieces.spans), default=0) if pieces.cut else len(pieces.text)
        places = [place for place, sign in enumerate(pieces.text[:end]) if _counts(sign)]
        if not places or self._spells_out("English", _ENGLISH, _LEAST_ENGLISH):
            return 0.0
        unread = _unread_places(pieces, places)
        unread |= {place for place in places if not self.knows_script(_script(pieces.text[place]))}
        return len(unread) / len(places)


def pieces_of_encoding(text: str, encoding: Any, unknown: int | None, *, prefix: int = 0) -> Pieces:
    """Return the pieces of a `tokenizers.Encoding`.

    Args:
        text: The text exactly as it was encoded.
        encoding: The encoding of the text.
        unknown: Id of the unknown piece; None if there is none.
        prefix: Number of characters before the text that do not belong to it.
    """
    parts = zip(encoding.ids, encoding.offsets, encoding.special_tokens_mask, strict=True)
    spans = [
        (max(0, start - prefix), end - prefix, id_ != unknown)
        for id_, (start, end), special in parts
        if not special and end > max(start, prefix)
    ]
    return Pieces(text[prefix:], spans, bool(encoding.overflowing))


def unread_sentence(unread: Sequence[str], total: int, towers: Sequence[str], what: str = "texts") -> str:
    """Return a sentence stating how many texts are not read.

    Args:
        unread: The unread texts.
        total: Total number of texts.
        towers: Names of the text towers, none of which can read them.
        what: Word for the texts, in the plural.

    Returns:
        A sentence; empty if all texts are read.
    """
    if not unread:
        return ""
    first = "".join(sign if sign.isprintable() else " " for sign in unread[0][:60])
    return (
        f"{len(unread):,} of {total:,} {what} are mostly unread: the tokenizer of {' and '.join(towers)} does not know "
        f"their letters or words. The first is '{first}'. Their embeddings mean little; frevl encoders list "
        "names encoders for other languages."
    )


def _unread_places(pieces: Pieces, places: Sequence[int]) -> set[int]:
    """Return the given positions of a text that are not covered by exactly one known piece."""
    known = np.zeros(len(pieces.text) + 1, np.int64)
    for start, end, is_known in pieces.spans:
        known[start:end] += 1 if is_known else 2
    return {place for place in places if known[place] != 1}


@cache
def _counts(sign: str) -> bool:
    """Return whether a character counts: letters, digits and symbols, but not blanks, punctuation or accents."""
    return unicodedata.category(sign)[0] in "LNS" and not 0xFE00 <= ord(sign) <= 0xFE0F


@cache
def _script(sign: str) -> str:
    """Return the first word of a letter's Unicode name, such as CYRILLIC; empty for other characters."""
    return re.split("[ -]", unicodedata.name(sign, ""), maxsplit=1)[0] if sign.isalpha() else ""

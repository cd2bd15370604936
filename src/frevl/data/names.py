"""Names and texts that a person sees as equal although their bytes differ."""

from __future__ import annotations

import unicodedata

__all__ = ["text_content"]


def text_content(text: str) -> str:
    """Return what two texts have in common that differ only in blanks or in how their letters are composed."""
    return " ".join(unicodedata.normalize("NFC", text).split())

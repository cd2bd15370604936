"""Lessons: made pictures of coloured shapes, and made statements about them whose truth is known. Ours."""

from __future__ import annotations

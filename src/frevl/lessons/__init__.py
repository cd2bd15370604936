"""Lessons: made pictures of coloured shapes, and made statements about them whose truth is known. Ours."""

from frevl.lessons.writing import Lessons, make_lessons

__all__ = ["Lessons", "make_lessons"]

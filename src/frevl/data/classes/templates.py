"""Build a text encoder's prompts from class names and templates."""

from __future__ import annotations

from collections.abc import Sequence

from frevl.data.classes.class_files import ClassEntry
from frevl.errors import UsageError

__all__ = ["TEMPLATE", "TEMPLATE_OF_CAPTIONS", "check_templates", "sentences_of"]

TEMPLATE = "a photo of a {}."
"""The CLIP authors' prompt: their encoders were not trained on bare words."""

TEMPLATE_OF_CAPTIONS = "a {}"
"""For a space trained on captions: the best of four tried on Flickr8k (research/experiments/log.md)."""


def check_templates(templates: Sequence[str]) -> None:
    """Refuse a template without a placeholder for the name.

    Raises:
        UsageError: Names the template.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise UsageError(
                "--template: expected a sentence with one '{}' where the name of the class belongs, found "
                f"'{template}'; for example --template \"{TEMPLATE}\""
            )


def sentences_of(entry: ClassEntry, templates: Sequence[str]) -> list[str]:
    """Return the distinct prompts of a class: every name in every template, then the descriptions."""
    named = [template.replace("{}", name) for template in templates for name in entry.names]
    return list(dict.fromkeys([*named, *entry.descriptions]))

"""Names and templates -> the sentences that a text encoder reads."""

from __future__ import annotations

from collections.abc import Sequence

from frevl.data.classes.class_files import ClassEntry
from frevl.errors import UsageError

__all__ = ["TEMPLATE", "TEMPLATE_OF_CAPTIONS", "check_templates", "sentences_of"]

TEMPLATE = "a photo of a {}."
"""Of CLIP's authors: a bare word is not what their encoders were trained on."""

TEMPLATE_OF_CAPTIONS = "a {}"
"""In a space that was trained on captions: of four tried on Flickr8k the best (research/experiments/log.md)."""


def check_templates(templates: Sequence[str]) -> None:
    """Refuse a template that has no place for the name.

    Raises:
        UsageError: Names the template.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise UsageError(
                f"--template: expected a sentence with one '{{}}' where the name of the class belongs, found "
                f"'{template}'; such as --template \"{TEMPLATE}\""
            )


def sentences_of(entry: ClassEntry, templates: Sequence[str]) -> list[str]:
    """Return the different sentences of a class: every name in every template, then the descriptions."""
    named = [template.replace("{}", name) for template in templates for name in entry.names]
    return list(dict.fromkeys([*named, *entry.descriptions]))

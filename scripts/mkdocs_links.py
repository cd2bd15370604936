"""A hook of MkDocs: links from a page to a file outside docs/ work on the site as they do in the repository.

A link to a file that exists leads to that file on the site of the repository (``repo_url``), or becomes plain text
where none is set. A link to a file that does not exist is a warning, which ``mkdocs build --strict`` turns into a
failure.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\.?/[^)#\s]+)(#[^)\s]*)?\)")
_log = logging.getLogger("mkdocs.hooks.links")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:  # noqa: ARG001
    """Rewrite the links of one page that leave the folder of the documents."""
    docs = Path(config.docs_dir)
    root = Path(config.config_file_path).parent

    def rewritten(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        place = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), target))
        if not place.startswith("../"):
            return match[0]  # a page: MkDocs checks it
        path = (docs / place).resolve()
        if not path.exists() or not path.is_relative_to(root.resolve()):
            _log.warning("Doc file '%s' contains a link '%s', but there is no such file.", page.file.src_uri, target)
            return match[0]
        if not config.repo_url:
            return text
        inside = path.relative_to(root.resolve()).as_posix()
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{inside}{anchor})"

    return _LINK.sub(rewritten, markdown)

"""``python -m frevl`` is the same as ``frevl``."""

from __future__ import annotations

from frevl.cli.main import main

main()

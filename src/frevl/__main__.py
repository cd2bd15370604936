"""Make ``python -m frevl`` the same as ``frevl``."""

from __future__ import annotations

from frevl.cli.main import main

main()

"""``python -m frevl`` is the same as ``frevl``."""

from frevl.cli import main

main()

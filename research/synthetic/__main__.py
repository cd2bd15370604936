"""``python -m research.synthetic --out FOLDER``: draw the images and write the statements."""

import argparse
import sys
from pathlib import Path

from frevl.errors import FrevlError
from research.synthetic.writing import make_lessons


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m research.synthetic", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures and lessons.jsonl")
    parser.add_argument("--pictures", type=int, default=3000, help="pictures to draw, at least 100")
    parser.add_argument("--statements", type=int, default=20_000, help="different statements, at least 2")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice")
    asked = parser.parse_args()
    try:
        made = make_lessons(asked.out, pictures=asked.pictures, statements=asked.statements, seed=asked.seed)
    except FrevlError as error:
        sys.exit(f"research.synthetic: {error}")
    print(
        f"Wrote {made.pairs:,} pairs of {made.statements:,} statements and {made.pictures:,} pictures to "
        f"{made.pairs_file}."
    )


if __name__ == "__main__":
    main()

"""A few examples per class: any encoder will do, and the other images say how good it is."""

from collections import defaultdict

import frevl
from drawn_shapes import arguments, draw, write

EXAMPLES = 6  # a class


def main() -> None:
    asked = arguments(__doc__)
    of_class = defaultdict(list)
    for image, colour, shape in draw(asked.folder):
        of_class[f"{colour} {shape}"].append({"image": image, "target": f"{colour} {shape}"})
    examples = [row for rows in of_class.values() for row in rows[:EXAMPLES]]
    others = write(asked.folder / "others.jsonl", [row for rows in of_class.values() for row in rows[EXAMPLES:]])
    store = asked.folder / "store"
    frevl.extract(store, images=asked.folder / "images", encoder=[asked.encoder])
    run = frevl.classify(store, examples=examples, run=asked.folder / "run", unknown=0.95)
    result = frevl.evaluate(frevl.Scorer(run, frevl.Store.open(store)), others)
    low, high = result.ci95["accuracy"]
    print(f"{run.results['selection']['chosen']} was chosen among {len(run.results['selection']['candidates'])}")
    print(f"{result.metrics['accuracy']:.1f} % of the other images are right ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()

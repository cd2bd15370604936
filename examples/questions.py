"""Questions about images: is the fusion worth it over a linear probe?"""

import frevl
from drawn_shapes import arguments, draw, questions, write


def main() -> None:
    asked = arguments(__doc__)
    drawn = draw(asked.folder, pictures=200)
    train = write(asked.folder / "train.jsonl", questions(drawn[:140]))
    test = write(asked.folder / "test.jsonl", questions(drawn[140:]))
    store, runs = asked.folder / "store", asked.folder / "runs"
    frevl.extract(store, images=asked.folder / "images", pairs=[train, test], encoder=[asked.encoder])
    # A few hundred pairs make a single batch of the usual size, and the first epochs teach a network little.
    small = {"batch_size": 32, "epochs": 40, "patience": 30}
    frevl.train(store, train, run=runs / "linear", task="classification", model="linear")
    frevl.train(store, train, run=runs / "tiny", task="classification", model="tiny", options=small)
    linear = frevl.Scorer.open(runs / "linear", store=store)
    fusion = frevl.Scorer.open(runs / "tiny", store=store)
    result = frevl.evaluate(fusion, test, versus=linear)
    low, high = result.difference["ci95"]
    print(f"fusion {result.metrics['accuracy']:.1f} % of {result.n} test questions")
    print(f"difference from the linear probe: {result.difference['difference']:+.1f} points ({low:.1f} to {high:.1f})")
    print(fusion.predict([(drawn[150][0], f"is it {drawn[150][1]}?")])[0].label)


if __name__ == "__main__":
    main()

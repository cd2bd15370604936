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
    for model in ("linear", "tiny"):
        frevl.train(store, train, run=runs / model, task="classification", model=model)
    linear = frevl.Scorer.open(runs / "linear", store=store)
    fusion = frevl.Scorer.open(runs / "tiny", store=store)
    result = frevl.evaluate(fusion, test, versus=linear)
    low, high = result.difference["ci95"]
    print(f"fusion {result.metrics['accuracy']:.1f} % of {result.n} test questions")
    print(f"better than the linear probe by {result.difference['difference']:.1f} points ({low:.1f} to {high:.1f})")
    print(fusion.predict([(drawn[150][0], f"is it {drawn[150][1]}?")])[0].label)


if __name__ == "__main__":
    main()

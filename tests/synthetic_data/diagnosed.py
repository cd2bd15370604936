"""A handwritten diagnosis: every section, both kinds of plot, cases, notes, and text that must not break a page."""

from frevl.diagnosis.diagnosis import Diagnosis
from frevl.diagnosis.findings import SECTIONS, Finding, chart, series

SENTENCE = "The fusion (tiny) beats the linear probe by 13.2 points (12.4 to 14.1): worth it."


def written() -> Diagnosis:
    """Return it; numbers are such that each can be told from the others."""
    models = ["majority", "text", "image", "linear", "mlp", "tiny"]
    right = [37.331, 66.532, 36.383, 86.964, 99.86, 99.934]
    first = Finding(
        "accuracy", "verdict", "The fusion (tiny) answers 99.9 % of 9,673 test pairs right.", 99.934, [99.85, 99.99],
        "Trained on the same pairs; 95 % bootstrap over 1,000 images.", SENTENCE,
        table=[
            {"model": name, "accuracy %": value, "low": value - 0.5, "high": None, "parameters": 12345 * (i + 1)}
            for i, (name, value) in enumerate(zip(models, right, strict=True))
        ],
        plot=chart(
            "bars", "model", "right answers, %",
            series("test", models, right, low=[v - 0.5 for v in right], high=[min(100.0, v + 0.5) for v in right]),
            series("guessing", models, [7.7] * 6, dashed=True),
        ),
    )  # fmt: skip
    short = Finding(
        "fusion-against-linear", "verdict", "The fusion (tiny) beats linear: +13.2 points, 12.4 to 14.1.", 13.2,
        [12.4, 14.1], "Difference on the same test pairs; sign-flip test p = 0.0002.", "The fusion is worth its cost.",
    )  # fmt: skip
    curve = Finding(
        "curve-tiny", "curve", "Ten times the data would buy 2.1 points.", 2.1, [0.3, 4.4],
        "Power law through 5 sizes.", "Label more pairs only if 2.1 points are worth it.",
        plot=chart(
            "lines", "training pairs", "right answers, %",
            series("tiny", [100, 400, 1600], [61.25, 72.5, None], low=[59.5, 70.5, None], high=[63.0, 74.5, None]),
            series("linear", [100, 400, 1600], [51.0, 58.0, 63.0]),
            series("law", [100.0, 16000.0], [60.0, 93.5], dashed=True),
            log_x=True,
        ),
    )  # fmt: skip
    skills = Finding(
        "skills-by-<type>", "skills", "Counting & <b>reading</b> gain nothing: the image adds 0.04 points.", 0.04, None,
        "Slices of the user's own key '<type>'.", "Try tokens.",
        table=[
            {
                "slice": f"a slice whose name goes on and on, number {i}", "pairs": 100 + i, "fusion %": 50.5 + i,
                "low": 45.25, "high": 55.75, "text alone %": 49.125, "difference": -0.5, "said": "nothing measurable",
                "most frequent answer": "a/very/long/path/without/any/blank/that/could/break.png",
            }
            for i in range(15)
        ],
    )  # fmt: skip
    rest = [
        Finding(
            f"one-{section}", section, f"A claim about {heading.rstrip('?').lower()}.", None, None, "Looked.", "Go on."
        )
        for section, heading in SECTIONS.items()
        if section not in ("verdict", "curve", "skills", "encoders")
    ]
    return Diagnosis(
        task="classification",
        verdict={
            "sentence": SENTENCE, "kind": "fusion", "detail": ["The fusion (tiny) beats the mlp model: +0.1 points."],
            "fusion": "tiny", "metric": "accuracy", "test_pairs": 9673, "test_images": 1000,
        },
        findings=[first, short, skills, curve, *rest],
        cases=[
            {"kind": "right only with the image", "image": "kitchen/3.png", "text": "is there a <red> shape?",
             "target": "yes", "answer": "yes", "confidence": 98.76},
            {"kind": "confident and wrong", "image": "gone.png", "text": "how many?", "target": ["two", "2"],
             "answer": "three", "confidence": 91.5},
            {"kind": "confident and wrong", "image": "kitchen/3.png", "text": "what is it?",
             "target": {"cup": 0.6, "mug": 0.3}, "answer": "bowl", "confidence": 88.25},
        ],
        notes=["2 pairs were left out: their image is broken."],
        provenance={"store": "STORE", "store_fingerprint": "0123456789abcdef", "seed": 0,
                    "versions": {"frevl": "0.1.0"}, "seconds": {"training": 61.2}},
    )  # fmt: skip

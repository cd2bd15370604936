"""VQA accuracy against a second, slow implementation of the official evaluator, written from its description."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frevl.data.benchmarks.vqa_answers import answer_vocabulary, normalise_answer, soft_targets, vqa_accuracy
from frevl.errors import UsageError

# The official table, spelling by spelling: what is looked up, what is put in its place.
OFFICIAL_WORDS = """
    aint ain't arent aren't cant can't couldve could've couldnt couldn't couldn'tve couldn't've couldnt've
    couldn't've didnt didn't doesnt doesn't dont don't hadnt hadn't hadnt've hadn't've hadn'tve hadn't've hasnt
    hasn't havent haven't hed he'd hed've he'd've he'dve he'd've hes he's howd how'd howll how'll hows how's Id've
    I'd've I'dve I'd've Im I'm Ive I've isnt isn't itd it'd itd've it'd've it'dve it'd've itll it'll let's let's
    maam ma'am mightnt mightn't mightnt've mightn't've mightn'tve mightn't've mightve might've mustnt mustn't mustve
    must've neednt needn't notve not've oclock o'clock oughtnt oughtn't ow's'at 'ow's'at 'ows'at 'ow's'at 'ow'sat
    'ow's'at shant shan't shed've she'd've she'dve she'd've she's she's shouldve should've shouldnt shouldn't
    shouldnt've shouldn't've shouldn'tve shouldn't've somebody'd somebodyd somebodyd've somebody'd've somebody'dve
    somebody'd've somebodyll somebody'll somebodys somebody's someoned someone'd someoned've someone'd've
    someone'dve someone'd've someonell someone'll someones someone's somethingd something'd somethingd've
    something'd've something'dve something'd've somethingll something'll thats that's thered there'd thered've
    there'd've there'dve there'd've therere there're theres there's theyd they'd theyd've they'd've they'dve
    they'd've theyll they'll theyre they're theyve they've twas 'twas wasnt wasn't wed've we'd've we'dve we'd've
    weve we've werent weren't whatll what'll whatre what're whats what's whatve what've whens when's whered where'd
    wheres where's whereve where've whod who'd whod've who'd've who'dve who'd've wholl who'll whos who's whove
    who've whyll why'll whyre why're whys why's wont won't wouldve would've wouldnt wouldn't wouldnt've wouldn't've
    wouldn'tve wouldn't've yall y'all yall'll y'all'll y'allll y'all'll yall'd've y'all'd've y'alld've y'all'd've
    y'all'dve y'all'd've youd you'd youd've you'd've you'dve you'd've youll you'll youre you're youve you've
""".split()  # noqa: SIM905
OFFICIAL_CONTRACTIONS = dict(zip(OFFICIAL_WORDS[::2], OFFICIAL_WORDS[1::2], strict=True))
OFFICIAL_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
OFFICIAL_SIGNS = [
    ";",
    "/",
    "[",
    "]",
    '"',
    "{",
    "}",
    "(",
    ")",
    "=",
    "+",
    "\\",
    "_",
    "-",
    ">",
    "<",
    "@",
    "`",
    ",",
    "?",
    "!",
]


# ------------------------------------------------------------------------- the slow second opinion


def slow_punctuation(text: str) -> str:
    comma_in_number = any(
        text[i] == "," and text[i - 1].isdecimal() and text[i + 1].isdecimal() for i in range(1, len(text) - 1)
    )
    result = text
    for sign in OFFICIAL_SIGNS:
        beside_blank = any({text[i : i + 2]} & {sign + " ", " " + sign} for i in range(len(text)))
        pieces = result.split(sign)
        result = ("" if beside_blank or comma_in_number else " ").join(pieces)
    kept, removed = [], 0
    for i, letter in enumerate(result):
        digit_follows = i + 1 < len(result) and result[i + 1].isdecimal()
        if letter == "." and not digit_follows and removed < 32:
            removed += 1
        else:
            kept.append(letter)
    return "".join(kept)


def slow_words(text: str) -> str:
    result = []
    for word in text.lower().split():
        if word == "none":
            word = "0"
        elif word in OFFICIAL_NUMBERS:
            word = str(OFFICIAL_NUMBERS.index(word))
        if word == "a" or word == "an" or word == "the":
            continue
        result.append(OFFICIAL_CONTRACTIONS.get(word, word))
    return " ".join(result)


def slow_accuracy(predicted: str, answers: list[str]) -> float:
    def trim(text: str) -> str:
        return "".join(" " if letter in "\n\t" else letter for letter in text).strip()

    predicted, answers = trim(predicted), [trim(answer) for answer in answers]
    if any(answer != answers[0] for answer in answers):
        predicted = slow_words(slow_punctuation(predicted))
        answers = [slow_words(slow_punctuation(answer)) for answer in answers]
    total = 0.0
    for left_out in range(len(answers)):
        matches = sum(answer == predicted for i, answer in enumerate(answers) if i != left_out)
        total += min(1.0, matches / 3)
    return total / len(answers)


# ------------------------------------------------------------------------------------ comparison

words = st.sampled_from(
    [
        *OFFICIAL_CONTRACTIONS,
        *OFFICIAL_CONTRACTIONS.values(),
        *OFFICIAL_NUMBERS,
        "none",
        "a",
        "an",
        "the",
        "The",
        "A",
        "yes",
        "No",
        "dog",
        "1,000",
        "1,0,0",
        "1 ,0",
        "2.5",
        ".5",
        "5.",
        "...",
        "e.g.",
        "café",
        "İ",
        "ß",
        "½",
        "’",
        "\xa0",
        "٣,٤",
        "٣.٤",
        "girl's",
        "2:50",
        "\x1c",
        *OFFICIAL_SIGNS,
    ]
)
gaps = st.sampled_from(["", " ", "  ", "\t", "\n", "\r", "\x0b", "-", ".", ",", "'", "\u2003"])
phrases = st.lists(st.tuples(words, gaps), max_size=5).map(lambda parts: "".join(itertools.chain(*parts)))
texts = st.one_of(
    phrases, phrases.map(str.upper), st.text(alphabet="ab1,.- '\n\t!٣", max_size=12), st.text(max_size=12)
)


@st.composite
def questions(draw: st.DrawFn) -> tuple[str, list[str]]:
    pool = draw(st.lists(texts, min_size=1, max_size=4))
    endings = st.sampled_from(["", "", "", ".", "!", " ", "\n", ","])
    answers = draw(st.lists(st.tuples(st.sampled_from(pool), endings).map("".join), min_size=1, max_size=10))
    return draw(st.one_of(st.sampled_from(pool + answers), texts)), answers


@pytest.mark.slow
@settings(max_examples=600, deadline=None, derandomize=True)
@given(questions())
def test_accuracy_equals_the_second_implementation(question: tuple[str, list[str]]) -> None:
    predicted, answers = question
    assert vqa_accuracy([predicted], [answers])[0] == slow_accuracy(predicted, answers)


@pytest.mark.slow
@settings(max_examples=600, deadline=None, derandomize=True)
@given(texts)
def test_normalisation_equals_the_second_implementation(text: str) -> None:
    trimmed = text.replace("\n", " ").replace("\t", " ").strip()
    assert normalise_answer(text) == slow_words(slow_punctuation(trimmed))


@pytest.mark.slow
@pytest.mark.parametrize(
    "word", sorted({*OFFICIAL_CONTRACTIONS, *OFFICIAL_CONTRACTIONS.values(), "none", *OFFICIAL_NUMBERS})
)
def test_every_word_of_the_official_tables(word: str) -> None:
    assert normalise_answer(word) == slow_words(word)


# --------------------------------------------------------------------------------- literal cases


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Dog", "dog"),
        ("a", ""),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("twenty", "twenty"),
        ("dont", "don't"),
        ("don't", "don't"),
        ("Im", "im"),  # the table says "Im", but the word is lower case by then
        ("somebody'd", "somebodyd"),
        ("yall'd've", "y'all'd've"),
        ("girl's", "girl's"),
        ("2:50 p.m.", "2:50 pm"),
        ("2.50", "2.50"),
        (".5", ".5"),
        ("5.", "5"),
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),  # a comma between digits makes every sign vanish
        ("black-white", "black white"),
        ("black - white", "black white"),
        ("black- white", "black white"),
        ("t-shirt, blue-ish", "t shirt blue ish"),
        ("t-shirt -blue", "tshirt blue"),  # one hyphen next to a blank makes all hyphens vanish
        ("what?", "what"),
        ("yes!no", "yes no"),
        ("\tred\nblue ", "red blue"),
        ("one\u00a0two", "1 2"),
        ("٣,٤", "٣٤"),
        ("." * 40 + "x", "." * 8 + "x"),  # no more than 32 periods vanish
        ("", ""),
    ],
)
def test_normalisation_by_hand(answer: str, expected: str) -> None:
    assert normalise_answer(answer) == expected


def test_accuracy_by_hand() -> None:
    def accuracy(predicted: str, *answers: str) -> float:
        return float(vqa_accuracy([predicted], [answers])[0])

    rest = [f"other {i}" for i in range(10)]
    assert accuracy("red", *rest) == 0.0
    assert accuracy("red", "red", *rest[1:]) == pytest.approx(0.3, abs=1e-15)
    assert accuracy("red", *["red"] * 2, *rest[2:]) == pytest.approx(0.6, abs=1e-15)
    assert accuracy("red", *["red"] * 3, *rest[3:]) == pytest.approx(0.9, abs=1e-15)
    assert accuracy("red", *["red"] * 4, *rest[4:]) == 1.0
    assert accuracy("red", *["red"] * 9, *rest[9:]) == 1.0
    assert accuracy("The red!", *["Red"] * 4, *["a red"] * 6) == 1.0
    # Ten equal answers are compared letter by letter.
    assert accuracy("yes", *["yes"] * 10) == 1.0
    assert accuracy(" yes\n", *["yes"] * 10) == 1.0
    assert accuracy("Yes", *["yes"] * 10) == 0.0
    assert accuracy("yes", *["Yes."] * 10) == 0.0
    assert accuracy("2", *["two"] * 10) == 0.0
    assert accuracy("2", *["two"] * 9, "2") == 1.0
    # Blanks and newlines at the ends do not make answers different.
    assert accuracy("Yes", *["yes"] * 9, " yes\n") == 0.0
    assert accuracy("", *["the"] * 4, *rest[4:]) == 1.0


def test_accuracy_of_many_questions_is_an_array_in_their_order() -> None:
    values = vqa_accuracy(["a b", "c"], [["c"] * 10, ["c"] * 10])
    assert values.tolist() == [0.0, 1.0]
    assert values.dtype == np.float64
    assert vqa_accuracy([], []).shape == (0,)


def test_accuracy_refuses_what_does_not_fit() -> None:
    with pytest.raises(UsageError, match="found 1 for 2"):
        vqa_accuracy(["a"], [["a"], ["b"]])
    with pytest.raises(UsageError, match="question 1: expected a list of answers, found \\[\\]"):
        vqa_accuracy(["a", "b"], [["a"], []])
    with pytest.raises(UsageError, match="question 0: expected a list of answers, found 'yes'"):
        vqa_accuracy(["a"], ["yes"])


# -------------------------------------------------------------------- soft targets and vocabulary


def test_soft_targets_by_hand() -> None:
    answers = ["red", "Red", "blue", "green", "green", "green", "a pink", "pink", "pink", "pink"]
    assert soft_targets(answers) == pytest.approx({"red": 0.6, "blue": 0.3, "green": 0.9, "pink": 1.0}, abs=1e-15)
    assert soft_targets(["Yes."] * 10) == {"Yes.": 1.0}
    assert soft_targets(["the"] * 5 + ["dog"] * 5) == {"dog": 1.0}
    assert soft_targets(["dog"]) == {}  # without the others there is nobody to agree with
    # 8 of 40 periods outlive normalisation, but not the second one, of the prediction: no credit.
    assert soft_targets(["." * 40 + "x"] * 5 + ["y"] * 5) == {"y": 1.0}
    with pytest.raises(UsageError, match="expected the answers to one question, found none"):
        soft_targets([])


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(questions())
def test_soft_targets_are_what_the_evaluator_gives(question: tuple[str, list[str]]) -> None:
    for answer, weight in soft_targets(question[1]).items():
        assert weight == pytest.approx(slow_accuracy(answer, question[1]), abs=1e-10)
        assert weight > 0
        assert answer


def test_vocabulary_by_hand() -> None:
    answers = ["yes"] * 8 + ["Yes!"] + ["two"] * 5 + ["2"] * 7 + ["no"] * 8 + ["the"] * 20 + ["cat"] * 9
    assert answer_vocabulary(answers) == ["2", "cat", "yes"]
    assert answer_vocabulary(answers, minimum=8) == ["2", "cat", "yes", "no"]
    assert answer_vocabulary([]) == []

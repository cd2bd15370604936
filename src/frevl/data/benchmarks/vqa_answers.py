"""VQA accuracy exactly as in the official evaluator, soft targets, and the answer vocabulary.

Reference: ``vqaEval.py`` of the VQA authors, last version (commit a013f00, "PythonEvaluationTools"), read as
Python 3. It differs from the description on the authors' web page and from older copies in other projects (such as
LAVIS), which always normalise the prediction and the ten answers only partly. The procedure, quirks included:

1. Every answer loses tabs, newlines and blanks at its ends. That is all if the ten answers are the same:
   the prediction must then equal them literally: "Yes" is not "yes".
2. Otherwise prediction and answers are normalised; see `normalise_answer`.
3. The accuracy is the mean, over the ten ways to leave out one answer, of ``min(1, matches / 3)``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from frevl.errors import UsageError

__all__ = ["answer_vocabulary", "normalise_answer", "soft_targets", "vqa_accuracy"]

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}

# The official table lists, for each of these words, the spellings that lack one of its apostrophes.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
    why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll
    you're you've
""".split()  # noqa: SIM905  (a list of 83 quoted words is harder to read)
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word for word in _CONTRACTED for place, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}  # reversed in the official table, which is authoritative
# Its entries with a capital I ("Im", "Ive") can never apply, because words are lower-cased first.

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The official code passes the flag re.UNICODE as the maximum number of replacements.
_PERIODS_REMOVED = 32


def vqa_accuracy(predicted: Sequence[str], answers: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return the official VQA accuracy of each question, in ``[0, 1]``.

    Args:
        predicted: ``(n,)`` one answer per question.
        answers: ``(n,)`` for each question, the answers that people gave, officially ten.

    Returns:
        ``(n,)`` accuracies in [0, 1].

    Raises:
        UsageError: The lengths differ, or a question has no answers.
    """
    if len(predicted) != len(answers):
        raise UsageError(
            f"VQA accuracy: expected one prediction per question, found {len(predicted)} for {len(answers)}."
        )
    accuracies = np.empty(len(predicted))
    for place, (prediction, people) in enumerate(zip(predicted, answers, strict=True)):
        if isinstance(people, str) or len(people) == 0:
            raise UsageError(f"VQA accuracy: question {place}: expected a list of answers, found {people!r}.")
        given, form = _comparable(people)
        accuracies[place] = _credit(form(prediction), given)
    return accuracies


def soft_targets(answers: Sequence[str]) -> dict[str, float]:
    """Return the weight of every distinct answer to a question: the accuracy that the evaluator gives it.

    With ten answers these are the customary 0.3, 0.6, 0.9 and 1 for one, two, three and more votes; they are rounded to
    ten digits. Answers without credit are left out, as are those that normalise to nothing ("the").

    Args:
        answers: The answers that people gave, officially ten.

    Returns:
        ``{answer: weight in (0, 1]}``, in the order of the answers; normalised as the evaluator does it.

    Raises:
        UsageError: There are no answers.
    """
    if len(answers) == 0:
        raise UsageError("Soft targets: expected the answers to one question, found none.")
    given, form = _comparable(answers)
    # A class is a prediction like any other: the evaluator would normalise it again.
    weights = {answer: round(_credit(form(answer), given), 10) for answer in dict.fromkeys(given) if answer}
    return {answer: weight for answer, weight in weights.items() if weight > 0}


def answer_vocabulary(answers: Iterable[str], minimum: int = 9) -> list[str]:
    """Return the answers that occur often enough to be classes.

    Customary for VQA v2 (Anderson et al. 2018): the majority answers (``multiple_choice_answer``), one per question,
    that occur at least 9 times. Use only the training split.

    Args:
        answers: One answer per question.
        minimum: Minimum number of occurrences after normalisation.

    Returns:
        Normalised answers, most frequent first; ties in alphabetical order.
    """
    counts = Counter(normalise_answer(answer) for answer in answers)
    frequent = [(-count, answer) for answer, count in counts.items() if answer and count >= minimum]
    return [answer for _, answer in sorted(frequent)]


@lru_cache(maxsize=200_000)
def normalise_answer(answer: str) -> str:
    """Normalise an answer as the official evaluator does before comparing (step 2 above).

    Punctuation other than apostrophes, colons and periods becomes a blank; it is removed instead if the answer has that
    sign next to a blank anywhere, or a comma between two digits anywhere. Periods are removed unless a digit follows,
    up to 32 of them. Then, word by word and in lower case: number words become digits, articles are removed, and
    missing apostrophes of contractions are added.
    """
    text = _trim(answer)
    number = _COMMA_IN_NUMBER.search(text) is not None
    table = {ord(sign): "" if number or f"{sign} " in text or f" {sign}" in text else " " for sign in PUNCTUATION}
    text = _PERIOD.sub("", text.translate(table), count=_PERIODS_REMOVED)
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _trim(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _comparable(answers: Sequence[str]) -> tuple[list[str], Callable[[str], str]]:
    """Return the answers in the form used for comparison, and the function that converts a prediction to it."""
    given = [_trim(answer) for answer in answers]
    if all(answer == given[0] for answer in given):
        return given, _trim
    return [normalise_answer(answer) for answer in given], normalise_answer


def _credit(guess: str, given: Sequence[str]) -> float:
    matches = given.count(guess)
    # Summed one by one in the order of the answers, so that the float matches the official one exactly.
    earned = [min(1, (matches - (answer == guess)) / 3) for answer in given]
    return sum(earned) / len(earned)

"""`frevl.train` for arrays: image-text pairs as rows of numbers, in both tasks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from frevl.data.pairs import Pairs
from frevl.errors import UsageError, nearest
from frevl.models.interface import PairNetwork
from frevl.runs.batches import EmbeddedPairs
from frevl.runs.calibration import calibrated
from frevl.runs.targets import match_truth
from frevl.store.towers import MODALITIES, Modality, Tower
from frevl.training.estimators.array_classifier import ArrayClassifier, equal_rows
from frevl.training.estimators.checks import is_between, is_whole
from frevl.training.examples import Prepared, examples_of, set_aside
from frevl.training.fitting.fit_model import NEEDS, trainable
from frevl.training.options import ModelOptions, make_options
from frevl.training.retrieval.two_tower import COMMON_SPACE
from frevl.training.selection.fit_prepared import fit_prepared
from frevl.training.selection.spare_classes import set_aside_note

__all__ = ["FusionClassifier", "FusionMatcher"]


class FusionClassifier(ArrayClassifier):
    """Classify image-text pairs (answering questions, entailment ...) from their embeddings.

    Models, selection, early stopping and calibration are those of `frevl.train` on the same embeddings.

    Args:
        image_dim: Number of leading columns of ``X`` that hold the image embedding; the rest hold that of the text.
            None: all columns hold the image.
        model: ``auto``, or one of the models of `frevl.train`: ``linear``, ``kernel``, ``mlp``, ``tiny`` ...
        options: Options of the model: a mapping, or an object of its class in `frevl.training.options`.
        dev_share: Share of the groups to set aside for early stopping and calibration, in (0, 1); at most about 50,000
            rows.
        time_limit: Time limit in seconds.
        random_state: Seed of weights, order and splits.
    """

    def __init__(
        self,
        *,
        image_dim: int | None = None,
        model: str = "auto",
        options: ModelOptions | Mapping[str, Any] | None = None,
        dev_share: float = 0.1,
        time_limit: float | None = None,
        random_state: int | None = 0,
    ) -> None:
        self.image_dim = image_dim
        self.model = model
        self.options = options
        self.dev_share = dev_share
        self.time_limit = time_limit
        self.random_state = random_state

    def _fit(
        self,
        X: NDArray[np.float32],
        y: NDArray[np.int64],
        clusters: NDArray[np.int64],
        weights: NDArray[np.float32] | None,
    ) -> tuple[PairNetwork, dict[str, float], dict[str, Any]]:
        known = (*trainable(), "auto")
        if self.model not in known:
            raise UsageError(f"There is no model '{self.model}'. {nearest(self.model, known)}")
        self._check_sides(X.shape[1])
        if not is_between(self.dev_share, 0, 1):
            raise ValueError(f"dev_share: expected a share between 0 and 1, found {self.dev_share!r}")
        given: object = self.options
        if not (given is None or isinstance(given, Mapping | ModelOptions)):
            raise ValueError(f"options: expected a mapping such as {{'epochs': 5}}, found {given!r}")
        options = make_options(self.model, self.options)
        data = self._prepared(X, y, clusters, weights)
        fitted = fit_prepared(
            data, task=self._task, model=self.model, options=options, session=self._session(), with_posterior=False
        )
        return fitted.network, fitted.calibration, fitted.results

    @property
    def _identity(self) -> dict[str, str]:
        """Return what is known about the encoders of both sides."""
        return {}

    def _prepared(
        self,
        X: NDArray[np.float32],
        y: NDArray[np.int64],
        clusters: NDArray[np.int64],
        weights: NDArray[np.float32] | None,
    ) -> Prepared:
        """Name the rows' items, and proceed as for pairs with a store."""
        sides = self._sides(X)
        items, item_rows = zip(*map(_different, sides), strict=True)
        has = [bool(side.shape[1]) for side in sides]
        pairs = Pairs(
            images=[f"image {row}" if has[0] else "" for row in item_rows[0]],
            texts=[f"text {row}" if has[1] else "" for row in item_rows[1]],
            targets=self._targets(y),
            extras=[{"cluster": str(number)} for number in clusters],
            places=[f"row {row} of X" for row in range(len(y))],
            rejected=(),
        )
        notes: list[str] = []
        learned, spare, seen = set_aside(pairs, self.dev_share, task=self._task, min_answer_count=1, seed=self._seed())
        notes += [] if seen else set_aside_note(pairs, spare, self.dev_share)
        at = {place: row for row, place in enumerate(pairs.places)}
        rows = [np.array([at[place] for place in part.places]) for part in (learned, spare)]
        whole = EmbeddedPairs(
            *(
                torch.from_numpy(array)
                for values in items
                for array in (values[:, None], np.ones((len(values), 1), bool))
            ),
            *map(torch.from_numpy, item_rows),
        )
        if weights is not None and self._task == "matching" and bool((match_truth(spare) > 0.5).all()):
            # Before wrong texts are drawn, so that those of a heavy pair weigh as much as it does.
            again = _repeated(weights[rows[1]], self._seed()).numpy()
            spare, rows[1] = spare.select(again), rows[1][again]
        train, dev, labels = examples_of(
            [learned, spare], [whole.select(torch.from_numpy(part)) for part in rows], task=self._task,
            min_answer_count=1, seed=self._seed(), dev_is_spare=True, dev_is_seen=seen, notes=notes,
        )  # fmt: skip
        if weights is not None:
            train, dev = (
                part.select(_repeated(weights[own], self._seed())) if len(part) == len(own) else part
                for part, own in zip((train, dev), rows, strict=True)  # others are repeated already
            )
        towers: list[list[Tower]] = [
            [_tower(side, values.shape[1], self._identity)] if values.shape[1] else []
            for side, values in zip(MODALITIES, sides, strict=True)
        ]
        self._order = [int(label) for label in labels]
        labels = [str(self.classes_[number]) for number in self._order]  # what messages show
        return Prepared(
            train, dev, labels, towers[0], towers[1], ["arrays"], np.zeros(0, np.uint64), notes, dev_is_spare=not seen,
            dev_is_seen=seen,
        )  # fmt: skip

    def _check_sides(self, columns: int) -> None:
        """Refuse a model that needs columns of a side that has none."""
        sides = self._sides(np.zeros((1, columns), np.float32))
        widths = {name: side.shape[1] for name, side in zip(MODALITIES, sides, strict=True)}
        for side in NEEDS.get(self.model, ()) if self._task == "classification" else ():
            if not widths[side]:
                raise ValueError(
                    f"model={self.model!r} needs columns of {side}s, found none among {columns}; say with image_dim "
                    "where the text begins"
                )

    def _targets(self, y: NDArray[np.int64]) -> list[Any]:
        return [str(label) for label in y]

    def _default_image_dim(self, columns: int) -> int:
        return columns

    def _output_classes(self) -> list[int]:
        return self._order

    def _remember_outputs(self, order: list[int]) -> None:
        self._order = order

    def _probabilities(self, logits: Tensor) -> NDArray[np.float64]:
        # The network orders its classes by frequency.
        found = calibrated(logits.double(), self.calibration_, soft=False).numpy()
        ordered = np.zeros((len(found), len(self.classes_)))
        ordered[:, self._order] = found
        return ordered

    def _sides(self, X: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        cut = self._default_image_dim(X.shape[1]) if self.image_dim is None else self.image_dim
        if not is_whole(cut) or not 0 <= cut <= X.shape[1]:
            raise ValueError(f"image_dim: expected 0 to {X.shape[1]}, the columns of X, found {cut!r}")
        return X[:, :cut], X[:, cut:]


class FusionMatcher(FusionClassifier):
    """Decide whether an image and a text belong together, from their embeddings.

    ``y`` has two labels, of which the larger (1, True) means that they do; of words, the later in the alphabet (a
    warning says so; "match" and "no match", for instance, are refused). Without ``y`` all pairs are right, and wrong
    texts are drawn, as in `frevl.train` with captions; ``classes_`` are then 0 and 1.

    Args:
        image_dim: As in `FusionClassifier`; None means the first half of the columns.
        model: ``auto``, ``cosine``, ``dual``, ``linear``, ``mlp``, ``tiny`` ...
        options: As in `FusionClassifier`.
        common_space: Whether image and text embeddings share one space, as those of CLIP do, so that their cosine is
            meaningful: ``cosine`` is then a model too, and ``auto`` starts with it.
        dev_share: As in `FusionClassifier`.
        time_limit: As in `FusionClassifier`.
        random_state: As in `FusionClassifier`.
    """

    _task = "matching"
    _of_one_class = "; if all pairs are right ones, leave y out, and wrong texts are drawn"

    def __init__(
        self,
        *,
        image_dim: int | None = None,
        model: str = "auto",
        options: ModelOptions | Mapping[str, Any] | None = None,
        common_space: bool = False,
        dev_share: float = 0.1,
        time_limit: float | None = None,
        random_state: int | None = 0,
    ) -> None:
        super().__init__(
            image_dim=image_dim, model=model, options=options, dev_share=dev_share, time_limit=time_limit,
            random_state=random_state,
        )  # fmt: skip
        self.common_space = common_space

    @property
    def _identity(self) -> dict[str, str]:
        return {COMMON_SPACE: "arrays"} if self.common_space else {}

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> FusionMatcher:
        """Fit; see `ArrayClassifier.fit`."""
        if X is None:
            raise ValueError("X: expected a 2D array, found None")
        if self.model == "cosine" and not self.common_space:
            raise ValueError(
                "model='cosine' needs image and text in one space, as those of CLIP; say so with common_space=True, "
                "or take model='dual', which learns one"
            )
        self._captions = y is None
        super().fit(X, np.ones(np.shape(X)[0], np.int64) if y is None else y, groups, sample_weight)
        return self

    def score(self, X: ArrayLike, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None) -> float:
        """Return the share of right answers, between 0 and 1.

        Raises:
            ValueError: There are no answers to compare with.
        """
        if y is None:
            raise ValueError(
                "y: score compares with known answers, found none; give rows that belong together and rows that do not "
                "with y, or, in cross_val_score, a scoring function of estimator and X"
            )
        return float(super().score(X, y, sample_weight))

    def _classes(self, y: NDArray[Any]) -> NDArray[Any]:
        found = np.array([0, 1]) if self._captions else super()._classes(y)
        if len(found) > 2:
            raise ValueError(f"Only binary classification is supported. The type of the target is multiclass: {found}")
        if len(found) == 2 and isinstance(found[0], str):
            _check_words(*(str(label) for label in found))
        return found

    def _targets(self, y: NDArray[np.int64]) -> list[Any]:
        return ["true" if right else "false" for right in y]

    def _default_image_dim(self, columns: int) -> int:
        return (columns + 1) // 2

    def _doubts(self) -> list[str]:
        if self.image_dim is not None or self.n_features_in_ % 2 == 0:
            return []
        cut = self._default_image_dim(self.n_features_in_)
        return [
            f"{self.n_features_in_:,} columns have no first half: the first {cut:,} were taken for the image, the "
            f"other {self.n_features_in_ - cut:,} for the text; set image_dim to the column where the text begins."
        ]

    def _sides(self, X: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        image, text = super()._sides(X)
        if not (image.shape[1] and text.shape[1]):
            raise ValueError(
                f"expected columns of an image and of a text, found {image.shape[1]} and {text.shape[1]} (n_features = "
                f"{X.shape[1]}); set image_dim to the column where the text begins"
            )
        if self.common_space and image.shape[1] != text.shape[1]:
            raise ValueError(
                f"common_space: expected as many columns of the image as of the text, found {image.shape[1]} and "
                f"{text.shape[1]}"
            )
        return image, text

    def _probabilities(self, logits: Tensor) -> NDArray[np.float64]:
        if self.network_ is None:
            raise ValueError("a single class has no logits")
        decisive = self.network_.probability_logits(logits)
        right = calibrated(decisive.double(), self.calibration_, soft=True)[:, 0].numpy()
        return np.stack([1 - right, right], axis=1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags


_NEGATIONS = ("no", "not", "non", "un", "mis", "dis", "in", "im", "ir")
_IN_ORDER = (("no", "yes"), ("false", "true"), ("0", "1"))


def _check_words(smaller: str, larger: str) -> None:
    """Refuse words whose alphabetical order contradicts their meaning; warn if the meaning is unknown."""
    if _negates(larger, smaller):
        raise ValueError(
            f"y: the larger label means that image and text belong together, and of '{smaller}' and '{larger}' "
            f"that is '{larger}'; give y == '{smaller}' instead"
        )
    if not _negates(smaller, larger) and (smaller.lower(), larger.lower()) not in _IN_ORDER:
        warnings.warn(
            f"FusionMatcher takes '{larger}' as the label of pairs that belong together, because it is the later one "
            f"in the alphabet; if it means '{smaller}', give y == '{smaller}'.",
            stacklevel=2,
        )


def _negates(word: str, other: str) -> bool:
    start = word.lower().removesuffix(other.lower())
    return start != word.lower() and start.strip(" -_") in _NEGATIONS


def _tower(side: Modality, dim: int, identity: Mapping[str, str]) -> Tower:
    return Tower(f"arrays-{side}", side, ("arrays",), dict(identity), dim, np.zeros((0, dim), np.float32))


def _different(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the distinct rows and each row's index among them: an image with five captions is stored once."""
    if not values.shape[1]:
        return np.zeros((1, 0), np.float32), np.zeros(len(values), np.int64)
    numbers = equal_rows(values)
    _, first = np.unique(numbers, return_index=True)
    return values[first], numbers


def _repeated(weights: NDArray[np.float32], seed: int) -> Tensor:
    """Repeat rows according to their weights: exactly for integers, otherwise on average (rounded at random).

    In this way every model supports weights, and a row of weight 2 equals two rows.
    """
    wanted = weights.astype(np.float64)
    if not (np.all(wanted == np.rint(wanted)) and wanted.sum() <= _MOST_REPEATS * len(wanted)):
        wanted = wanted * _ROWS_PER_WEIGHT / wanted.mean()
    whole = np.floor(wanted)
    counts = whole + (np.random.default_rng(seed).random(len(wanted)) < wanted - whole)
    return torch.from_numpy(np.repeat(np.arange(len(counts)), counts.astype(np.int64)))


_MOST_REPEATS = 20
_ROWS_PER_WEIGHT = 4  # copies of a row of average weight, so that rounding matters little

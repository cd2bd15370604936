"""Common base of the estimators: array checks, predictions, and saving as an ordinary run."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from frevl.errors import FrevlError, MissingExtraError, RunError, UsageError
from frevl.models.interface import PairNetwork
from frevl.provenance import provenance
from frevl.runs.calibration import ConformalScores, calibrated
from frevl.runs.run import Run
from frevl.training.estimators.checks import check_all_given, check_seconds, is_between, is_whole
from frevl.training.estimators.saved_parts import labels_of, parameters_of, record_of_labels
from frevl.training.estimators.wording import contradiction, in_terms_of_arrays, without_weight
from frevl.training.options import Session

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ModuleNotFoundError as error:
    if error.name != "sklearn":
        raise
    raise MissingExtraError("scikit-learn", "estimators") from None

__all__ = ["ArrayClassifier", "equal_rows"]

_AT_ONCE = 4_096
_LARGEST = 1e15
_ARRAYS = "given as arrays"  # identity of embeddings whose encoder was not named
A = TypeVar("A", bound="ArrayClassifier")


class ArrayClassifier(ClassifierMixin, BaseEstimator, ABC):  # type: ignore[misc]  # scikit-learn has no types
    """A classifier of embedding rows.

    A subclass defines `_fit`, which returns the network, its calibration and the results, and `_sides`.

    Attributes:
        classes_: ``(classes,)`` sorted labels.
        n_features_in_: Number of columns of ``X``.
        feature_names_in_: Names of the columns, if ``X`` was a data frame with names.
        network_: The fitted network; None if there was a single class.
        calibration_: ``scale`` and ``offset`` of its logits.
        results_: Record of the training: development accuracy, table of the comparison, notes.
    """

    classes_: NDArray[Any]
    n_features_in_: int
    feature_names_in_: NDArray[Any]
    network_: PairNetwork | None
    calibration_: dict[str, float]
    results_: dict[str, Any]
    random_state: int | np.random.RandomState | None
    time_limit: float | None
    _task = "classification"
    _of_one_class = ""

    def fit(
        self: A,
        X: ArrayLike,
        y: ArrayLike,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> A:
        """Fit the classifier.

        Args:
            X: ``(n, features)`` embeddings of any floating type; the class documents the columns.
            y: ``(n,)`` labels.
            groups: ``(n,)``; rows of one group are not independent and stay on one side of every split. None groups
                equal rows.
            sample_weight: ``(n,)`` weights of at least 0. Rows of weight 0 are left out.

        Raises:
            ValueError: As in scikit-learn: mismatched shapes, or values that are not finite.
        """
        given = np.asarray(y)
        if given.ndim == 1 and given.dtype == object:  # scikit-learn answers with an unknown type of labels
            check_all_given("y", "label", given, "leave such a row out")
        checked: tuple[NDArray[Any], NDArray[Any]] = self._validated(X, y)
        vectors, labels = checked
        with warnings.catch_warnings():  # one example per class is common here, and is not regression
            warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
            check_classification_targets(labels)
        check_seconds(self.time_limit)
        rows, weights = self._weights(sample_weight, len(labels))
        grouped = None if groups is None else _numbers(groups, len(labels))[rows]
        doubts = without_weight(labels, rows)
        vectors, labels = _as_float32(vectors[rows]), labels[rows]
        self.classes_ = self._classes(labels)
        if len(self.classes_) == 1:
            self.network_, self.calibration_ = None, {"scale": 1.0, "offset": 0.0}
            doubts = [*doubts, f"One class: every row is predicted to be it, with probability 1{self._of_one_class}."]
            self.results_ = {"notes": doubts, "warnings": doubts, "selection": None}
            return self
        encoded = np.searchsorted(self.classes_, labels).astype(np.int64)
        numbers = equal_rows(vectors)
        try:
            with torch.random.fork_rng():
                self.network_, self.calibration_, results = self._fit(
                    vectors, encoded, numbers if grouped is None else grouped, weights
                )
        except FrevlError as error:
            raise ValueError(in_terms_of_arrays(str(error), self.classes_)) from error  # as scikit-learn's users expect
        doubts = [*doubts, *self._doubts()]
        results |= {
            kind: [*doubts, *(in_terms_of_arrays(one, self.classes_) for one in results[kind])]
            for kind in ("warnings", "notes")
        }
        results["notes"] += contradiction(numbers, encoded)
        self.results_ = results
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the ``(n,)`` likeliest labels."""
        best = self.predict_proba(X).argmax(axis=1)
        found: NDArray[Any] = self.classes_[best]
        return found

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return calibrated probabilities, ``(n, classes)``, in the order of ``classes_``."""
        check_is_fitted(self)
        vectors: NDArray[Any] = self._validated(X, reset=False)
        if self.network_ is None:
            return np.ones((len(vectors), 1))
        return self._probabilities(self._logits(_as_float32(vectors)))

    def _validated(self, *given: Any, reset: bool = True) -> Any:
        """Return ``X``, or ``X`` and ``y``, as arrays, checked as scikit-learn does."""
        try:
            return validate_data(self, *given, dtype=[np.float32, np.float64], reset=reset)
        except ValueError as error:
            if "array element with a sequence" not in str(error):
                raise
            raise ValueError(
                f"X: expected a number in every cell, and as many in every row, found {type(given[0]).__name__} with "
                f"other contents ({error}); if a column holds whole embeddings, give np.stack(X['its name'])"
            ) from error

    def predict_set(self, X: ArrayLike, level: float = 0.9) -> NDArray[np.bool_]:
        """Return the classes that cannot be ruled out, with coverage ``level``.

        Split conformal prediction on the rows held out in `fit`, one per group; see `frevl.runs.calibration`. If too
        few were held out for the level, every set contains every class. That, and a coverage that may be far from the
        level because few were held out, is a `UserWarning`.

        Args:
            X: ``(n, features)`` embeddings.
            level: Target coverage, between 0 and 1.

        Returns:
            ``(n, classes)`` bool, in the order of ``classes_``.

        Raises:
            ValueError: Nothing was held out (one example per class), or the level is not between 0 and 1.
        """
        probabilities = self.predict_proba(X)
        if not is_between(level, 0, 1):
            raise ValueError(
                f"level: expected the share of sets that contain the right label, between 0 and 1, found {level!r}"
            )
        if self.network_ is None:
            return np.ones((len(probabilities), 1), bool)
        kept = self.results_.get("prediction_sets")
        if kept is None:
            raise ValueError("nothing was held out in fit, so prediction sets have no guarantee")
        scores = ConformalScores.from_record(kept)
        for note in scores.notes(level, items="groups of rows", remedy="fit on more groups"):
            warnings.warn(note, UserWarning, stacklevel=2)
        return scores.sets(probabilities, level)

    def save(self, folder: str | Path) -> Run:
        """Save as an ordinary run, without pickle, for `load`, `frevl.Scorer`, evaluate, serve and export.

        Args:
            folder: Folder to write, new or empty.

        Returns:
            The run. It matches no store, because stores declare how their embeddings were made; to use it with a store,
            import the arrays and call `frevl.train` or `frevl.classify`.

        Raises:
            RunError: The folder contains a run, or cannot be written.
            UsageError: There is a single class, so there is no network.
        """
        check_is_fitted(self)
        path = Path(folder)
        if self.network_ is None:
            raise UsageError("a classifier of a single class has no network, so it cannot be saved as a run")
        if (path / "run.json").exists():
            raise RunError(f"{path}: this folder holds a finished run; choose another, or delete it first")
        columns = getattr(self, "feature_names_in_", None)
        run = Run(
            path=path,
            model=type(self).__name__,
            task=self._task,
            network_name=self.network_.key,
            network_settings=self.network_.settings,
            labels=[]
            if self._task == "matching"
            else [str(self.classes_[number]) for number in self._output_classes()],
            encoders=["arrays"],
            towers={
                side: {f"arrays-{side}": _identity(side, dim)} if dim else {} for side, dim in self._widths().items()
            },
            calibration=self.calibration_,
            settings={
                "estimator": type(self).__name__,
                "parameters": parameters_of(self.get_params(), seed=self._seed()),
                **record_of_labels(self.classes_),
                "n_features_in": int(self.n_features_in_),
                "feature_names_in": None if columns is None else columns.tolist(),
                "outputs": self._output_classes(),
            },
            results={**self.results_, "train_pairs": self.results_.get("train_pairs", 0)},
            provenance=provenance(run=str(path), store_fingerprint="", seed=self._seed()),
            train_image_hashes=np.zeros(0, np.uint64),
            network=self.network_,
        )
        run.save()
        return run

    @classmethod
    def load(cls: type[A], folder: str | Path) -> A:
        """Load a classifier that `save` wrote.

        Raises:
            RunError: There is no such run, or another class wrote it.
        """
        run = Run.load(folder)
        if run.settings.get("estimator") != cls.__name__:
            raise RunError(
                f"{run.path}: expected a run that {cls.__name__}.save wrote, found one of "
                f"{run.settings.get('estimator', run.model)}"
            )
        fitted = cls(**run.settings["parameters"])
        fitted.classes_ = labels_of(run.settings)
        fitted.n_features_in_ = run.settings["n_features_in"]
        if run.settings.get("feature_names_in") is not None:
            fitted.feature_names_in_ = np.array(run.settings["feature_names_in"], object)
        fitted.network_, fitted.calibration_, fitted.results_ = run.network, run.calibration, run.results
        fitted._remember_outputs(run.settings["outputs"])
        return fitted

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")

    # ---- defined by subclasses

    @abstractmethod
    def _fit(
        self,
        X: NDArray[np.float32],
        y: NDArray[np.int64],
        clusters: NDArray[np.int64],
        weights: NDArray[np.float32] | None,
    ) -> tuple[PairNetwork, dict[str, float], dict[str, Any]]:
        """Return the network, its calibration, and the record of its training."""

    @abstractmethod
    def _sides(self, X: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the columns of image and text, ``(n, image_dim)`` and ``(n, text_dim)``; one may have width 0."""

    def _classes(self, y: NDArray[Any]) -> NDArray[Any]:
        found: NDArray[Any] = np.unique(y)
        return found

    def _probabilities(self, logits: Tensor) -> NDArray[np.float64]:
        found: NDArray[np.float64] = calibrated(logits.double(), self.calibration_, soft=False).numpy()
        return found

    def _output_classes(self) -> list[int]:
        """Return the class of each network output."""
        return list(range(len(self.classes_)))

    def _remember_outputs(self, order: list[int]) -> None:
        """Restore the saved result of `_output_classes`."""

    def _doubts(self) -> list[str]:
        """Return warnings about the shape of the data."""
        return []

    # ---- shared

    def _logits(self, X: NDArray[np.float32]) -> Tensor:
        # Torch warns of arrays that cannot be written to, such as those of joblib.
        image, text = (torch.from_numpy(np.require(side, requirements=["C", "W"])) for side in self._sides(X))
        if self.network_ is None:
            raise ValueError("a single class has no logits")
        with torch.inference_mode():
            blocks = zip(torch.split(image, _AT_ONCE), torch.split(text, _AT_ONCE), strict=True)
            return torch.cat([self.network_(one, other) for one, other in blocks])

    def _widths(self) -> dict[str, int]:
        image, text = self._sides(np.zeros((1, self.n_features_in_), np.float32))
        return {"image": image.shape[1], "text": text.shape[1]}

    def _seed(self) -> int:
        """Return the seed; a random number generator is copied, not advanced, so refits are equal."""
        if self.random_state is None:
            return 0
        if is_whole(self.random_state):
            return int(self.random_state)  # type: ignore[arg-type]
        own = deepcopy(check_random_state(self.random_state))  # scikit-learn refuses invalid values
        return int(own.randint(2**31 - 1))

    def _session(self) -> Session:
        return Session(seed=self._seed(), time_limit=self.time_limit, device="cpu", progress=False)

    def _weights(self, given: ArrayLike | None, count: int) -> tuple[NDArray[np.bool_], NDArray[np.float32] | None]:
        """Return which rows count, and their weights; None if all count equally."""
        if given is None:
            return np.ones(count, bool), None
        weights = np.asarray(given, np.float64)
        if weights.ndim == 0:
            weights = np.full(count, float(weights))
        if weights.shape != (count,):
            raise ValueError(f"sample_weight.shape == {weights.shape}, expected ({count},)!")
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise ValueError("sample_weight: expected finite weights that are not negative")
        rows = weights > 0
        if not rows.any():
            raise ValueError("sample_weight: expected a weight above 0, found zeros only")
        kept = weights[rows].astype(np.float32)
        return rows, None if bool((kept == 1).all()) else kept


def _as_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(found).all():
        raise ValueError("Input X contains infinity or a value too large for dtype('float32').")
    largest = float(np.abs(found).max(initial=0.0))
    if largest > _LARGEST or 0 < largest < 1 / _LARGEST:  # their squares are infinite, or zero, in float32
        raise ValueError(
            f"Input X: expected embeddings whose largest value lies between {1 / _LARGEST:g} and {_LARGEST:g}, found "
            f"{largest:.3g}; bring rows to unit length first (sklearn.preprocessing.normalize)"
        )
    return found


def _numbers(groups: ArrayLike, count: int) -> NDArray[np.int64]:
    values = np.asarray(groups)
    if values.shape != (count,):
        raise ValueError(f"groups: expected {count} values, one a row of X, found the shape {values.shape}")
    check_all_given("groups", "group", values, "give such a row a group of its own")
    try:
        found: NDArray[np.int64] = np.unique(values, return_inverse=True)[1]
    except TypeError as error:  # they cannot be ordered
        raise ValueError(f"groups: expected all numbers or all strings, found {error}") from error
    return found


def equal_rows(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Number the rows so that equal ones share a number, in order of appearance.

    A row and its copy must not be on different sides of a split.
    """
    seen: dict[bytes, int] = {}
    rows = np.ascontiguousarray(values)
    return np.fromiter((seen.setdefault(row.tobytes(), len(seen)) for row in rows), np.int64, len(rows))


def _identity(side: str, dim: int) -> dict[str, str]:
    return {"tower": f"arrays-{side}", "weights": _ARRAYS, "tokens": "pooled", "dtype": "float32", "width": str(dim)}
